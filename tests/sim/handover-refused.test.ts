/**
 * Refused handovers, in full: for every kind of field of a handover one that is wrong meets a kernel that boots
 * for real. It must name the field, boot cold, and give out no page that a device may still write to.
 *
 * One host goes through it all: VMs, an update, a wrong handover, a cold boot, VMs again.
 * @module
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Agent } from "../../src/agent/agent.ts";
import { isKernelError } from "../../src/base/errno.ts";
import { MAX_ORDER, MIB, orderBytes } from "../../src/base/units.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import type { BootParameters } from "../../src/machine/machine.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";
import { type Booted, FailureRig, IMAGE, TARGET } from "../support/failure-rig.ts";
import { type HandoverField, handoverFields } from "../support/handover-map.ts";
import { HandoverProbe } from "../support/handover-probe.ts";
import { wrongValues } from "../support/wrong-values.ts";

/** After each so many refusals all free memory is watched byte by byte. */
const FILL_EVERY = 8;
const PATTERN = 0xa5;

describe("a handover with one field wrong", () => {
  it("is refused whole: a cold boot, and devices that reach no memory", (t) => {
    const rig = new FailureRig({
      seed: 51,
      vms: 1,
      memoryBytes: 8 * MIB + 3 * 4096,
      userspace,
      beforeBoot: () => {
        rig.lines.length = 0;
        rig.faults.onPoint = (point) => {
          if (point !== "mm:alloc" || refusal() === undefined) return;
          // The first page that a kernel gives out after it has refused: from here on nobody may write but the kernel.
          rig.watch.forbidAll();
          rig.faults.onPoint = null;
        };
      },
    });
    const done = new Set<string>();
    /** Kinds of which no value is wrong enough. */
    const content = new Set<string>();
    let current = "";
    let kinds = 0;

    rig.machine.onJump((ram, { parameters }) => {
      current = corruptNext(ram, parameters);
      return parameters;
    });
    rig.run();
    t.diagnostic(`${done.size} of ${kinds} kinds of fields refused; content: ${content.size}`);
    assert.ok(done.size > 100);

    function refusal(): string | undefined {
      return rig.lines.find((line) => line.startsWith("handover refused: "));
    }

    /** Makes the next kind of field wrong. @returns its name; "" when none is left */
    function corruptNext(ram: Ram, parameters: BootParameters): string {
      assert.ok(parameters.kho !== null);
      const fields = handoverFields(ram, parameters.kho);
      const probe = new HandoverProbe(rig.machine, parameters, IMAGE);
      const byKind = new Map<string, HandoverField[]>();
      for (const field of fields) {
        const same = byKind.get(field.kind);
        if (same === undefined) byKind.set(field.kind, [field]);
        else same.push(field);
      }
      kinds = byKind.size;
      for (const [kind, same] of byKind) {
        if (done.has(kind) || content.has(kind)) continue;
        // Not always the first: another field and another value for each kind.
        const field = same[done.size % same.length];
        const values = wrongValues(ram, field, fields);
        const old = new Uint8Array(field.sizeBytes);
        ram.read(field.pa, old);
        for (let i = 0; i < values.length; i++) {
          const { label, bytes } = values[(i + done.size) % values.length];
          ram.write(field.pa, bytes);
          if (probe.show(parameters).kind === "refused") {
            done.add(kind);
            return `${field.name}: ${label}`;
          }
          ram.write(field.pa, old);
        }
        content.add(kind);
      }
      return "";
    }

    function userspace(booted: Booted): never {
      const { host, kernel } = booted;
      if (booted.boot > 0) {
        if (current === "") {
          // The last update, with nothing wrong, is taken.
          assert.equal(refusal(), undefined);
          return rig.takeOverAndEnd(booted, false);
        }
        assert.match(refusal() ?? "", /^handover refused: [^ ].*: .*cold boot$/, current);
        const before = rig.watch.accesses;
        if (done.size % FILL_EVERY === 0) checkFreeMemory(rig, kernel, current);
        else rig.machine.runDevices(2_000_000);
        assert.equal(rig.watch.accesses, before, `no device reaches memory: ${current}`);
        rig.checkDma(current);
        rig.checkNoLeaks(booted, current);
        assert.equal(
          Agent.takeOver(host, () => {}),
          null,
          current,
        );
      }
      const agent = Agent.start(host, () => {});
      rig.mount(host);
      rig.makeFiles(host);
      return agent.update([rig.createVm(host, 0)], TARGET);
    }
  });
});

/** Takes all memory there is, lets devices run, and looks whether a byte of it has changed. */
function checkFreeMemory(rig: FailureRig, kernel: Kernel, when: string): void {
  const { ram } = rig.machine;
  const blocks: { pa: number; order: number }[] = [];
  for (let order = MAX_ORDER; order >= 0; order--) {
    try {
      for (;;) blocks.push({ pa: kernel.mm.alloc(order, { zero: false }), order });
    } catch (error) {
      if (!isKernelError(error, "ENOMEM")) throw error;
    }
  }
  for (const { pa, order } of blocks) ram.fill(pa, orderBytes(order), PATTERN);
  rig.machine.runDevices(2_000_000);
  const expected = Buffer.alloc(orderBytes(MAX_ORDER - 8), PATTERN);
  for (const { pa, order } of blocks) {
    const bytes = Buffer.alloc(orderBytes(order));
    ram.read(pa, bytes);
    for (let at = 0; at < bytes.length; at += expected.length) {
      const piece = bytes.subarray(at, at + expected.length);
      assert.ok(piece.equals(expected.subarray(0, piece.length)), `memory changed: ${when}`);
    }
  }
  for (const { pa, order } of blocks) kernel.mm.free(pa, order);
}
