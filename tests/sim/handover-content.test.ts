/**
 * Handovers that differ in content alone, taken in full: for every kind of field that holds content a kernel boots
 * with another value, userspace brings back what it can, and the damage stays where the field is.
 * @module
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { LUO_KHO_ENTRY_NAME } from "../../src/abi/luo.ts";
import { Agent, type RestoreResult } from "../../src/agent/agent.ts";
import type { Journal } from "../../src/agent/journal.ts";
import { isKernelError } from "../../src/base/errno.ts";
import { MIB } from "../../src/base/units.ts";
import { finish, retrieveFd, retrieveSession } from "../../src/host/liveupdate.ts";
import { detach } from "../../src/host/vfio.ts";
import type { BootParameters } from "../../src/machine/machine.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";
import type { VirtualMachine } from "../../src/vmm/virtual-machine.ts";
import { type Booted, FailureRig, IMAGE, MOUNT_POINT, TARGET } from "../support/failure-rig.ts";
import { handoverContent } from "../support/handover-content.ts";
import { type HandoverField, handoverFields } from "../support/handover-map.ts";
import { HandoverProbe } from "../support/handover-probe.ts";
import { wrongValues } from "../support/wrong-values.ts";

/** Of a VM's device in its session, as src/vmm/virtual-machine.ts says. */
const DEVICE_TOKEN = 4n;
/** What leaves something that nobody can come for: a session of another name, pages that nothing names. */
const LEAVES_SOMETHING = new Set([
  "fdt_struct",
  "kho_radix_leaf.bitmap",
  "luo_session_ser.name",
  "luo_session.luo_file_ser.token",
  "luo_session.luo_file memfd_luo_ser.nr_folios",
  "luo_session.luo_file memfd_luo_folio_ser.pfn_flags",
  "memfs_extent.state",
]);
/** What may harm the VM itself: its memory, its device's way there, its saved registers. */
const MAY_HARM = /ss_table|memfs_extent.offset|bar_size|memfd|luo_file_ser.token|sizeBytes|name/;

interface Outcome {
  readonly what: string;
  readonly vms: number;
  readonly failures: readonly string[];
}

describe("a handover that differs in content", () => {
  it("is taken, and harms nothing but what the content is of", (t) => {
    const done = new Set<string>();
    const outcomes: Outcome[] = [];
    while (runOnce(done, outcomes));
    const lost = outcomes.filter(({ failures }) => failures.length > 0);
    t.diagnostic(
      `${outcomes.length} kinds of content; a VM was reported as failed for ${lost.length}`,
    );
    for (const { what, failures } of lost) t.diagnostic(`${what}: ${failures.join("; ")}`);
    assert.ok(outcomes.length > 40);
  });
});

/** One host, one update, one field. @returns false when every kind was tried */
function runOnce(done: Set<string>, outcomes: Outcome[]): boolean {
  let kind = "";
  let what = "";
  const rig = new FailureRig({ seed: 61, vms: 1, memoryBytes: 8 * MIB + 3 * 4096, userspace });
  rig.machine.onJump((ram, { parameters }) => {
    const changed = changeNext(rig, ram, parameters, done);
    if (changed !== null) [kind, what] = changed;
    return parameters;
  });
  rig.run();
  return kind !== "";

  function userspace(booted: Booted): never {
    const { host, kernel } = booted;
    if (booted.boot === 0) {
      const agent = Agent.start(host, () => {});
      rig.mount(host);
      rig.makeFiles(host);
      return agent.update([rig.createVm(host, 0)], TARGET);
    }
    assert.ok(!rig.lines.some((line) => line.startsWith("handover refused")), what);
    // What it does not recognise, this userspace does without.
    const { vms, failures } = restoreSomehow(rig, host);
    for (const vm of vms) for (let i = 0; i < 50; i++) vm.step();
    rig.machine.runDevices(1_000_000);
    rig.checkDma(what);
    if (!MAY_HARM.test(kind)) {
      const isLost = LEAVES_SOMETHING.has(kind);
      assert.equal(vms.length, isLost ? vms.length : 1, what);
      if (!isLost) assert.deepEqual(failures, [], what);
      for (const vm of vms) {
        rig.runVms(host, [vm]);
        rig.checkVm(vm, what);
      }
    }
    if (kind !== "")
      outcomes.push({
        what,
        vms: vms.length,
        failures: failures.map(({ phase, error }) => `${phase}: ${error.message}`),
      });
    host.exit();
    // Whatever has become of it all, the kernel is sound: what is left can be deleted.
    const next = kernel.spawn();
    takeApart(next);
    for (const path of filesUnder(next, MOUNT_POINT)) {
      try {
        next.unlink(path);
      } catch (error) {
        // Of a session that nobody retrieves.
        if (!isKernelError(error, "EBUSY") || !LEAVES_SOMETHING.has(kind)) throw error;
      }
    }
    if (!LEAVES_SOMETHING.has(kind)) {
      rig.watch.forbidAll();
      rig.machine.runDevices(1_000_000);
      rig.checkNoLeaks(booted, what);
    }
    rig.checkDma(what);
    return rig.powerOff(booted);
  }
}

/** Changes the next kind of content. @returns kind and description; null when none is left */
function changeNext(
  rig: FailureRig,
  ram: Ram,
  parameters: BootParameters,
  done: Set<string>,
): [kind: string, what: string] | null {
  assert.ok(parameters.kho !== null);
  const fields = handoverFields(ram, parameters.kho);
  const probe = new HandoverProbe(rig.machine, parameters, IMAGE);
  const byKind = new Map<string, HandoverField[]>();
  for (const field of fields) {
    const same = byKind.get(field.kind);
    if (same === undefined) byKind.set(field.kind, [field]);
    else same.push(field);
  }
  for (const [kind, same] of byKind) {
    if (done.has(kind)) continue;
    done.add(kind);
    // The last one is the VM's, where there are several.
    for (const field of same.reverse()) {
      const old = new Uint8Array(field.sizeBytes);
      ram.read(field.pa, old);
      for (const { label, bytes } of wrongValues(ram, field, fields)) {
        if (handoverContent(kind, label) === null) continue;
        ram.write(field.pa, bytes);
        if (probe.show(parameters).kind === "accepted") return [kind, `${field.name}: ${label}`];
        ram.write(field.pa, old);
      }
    }
  }
  return null;
}

function restoreSomehow(rig: FailureRig, host: Booted["host"]): RestoreResult<VirtualMachine> {
  rig.mount(host);
  let agent: Agent | null = null;
  let journal: Pick<Journal, "vms"> = {
    vms: [{ name: "vm0", ownerUid: null, pausedAtNs: 0 }],
  };
  try {
    const taken = Agent.takeOver(host, () => {});
    if (taken !== null) ({ agent, journal } = taken);
  } catch (error) {
    if (!isKernelError(error)) throw error;
  }
  agent ??= Agent.start(host, () => {});
  return agent.restore(journal, {
    open: (session) => rig.restoreVm(host, session),
    running: () => {},
    runOthers: () => {},
  });
}

/** Ends the session of a VM that could not leave the previous kernel's tables. */
function takeApart(host: Booted["host"]): void {
  const liveUpdate = host.open("/dev/liveupdate", 0);
  try {
    const session = retrieveSession(host, liveUpdate, "vm0");
    const device = retrieveFd(host, session, DEVICE_TOKEN);
    detach(host, device);
    host.close(device);
    finish(host, session);
    host.close(session);
  } catch (error) {
    if (!isKernelError(error, "ENOENT")) throw error;
  }
  host.close(liveUpdate);
}

/** All files below a directory, by path. */
function filesUnder(host: Booted["host"], directory: string): string[] {
  return host.readdir(directory).flatMap((name) => {
    const path = `${directory}/${name}`;
    return host.stat(path).kind === "directory" ? filesUnder(host, path) : [path];
  });
}

describe("a handover whose live update is not known", () => {
  it("leaves files in place, and stops devices before any page is given out", () => {
    let accesses = Number.NaN;
    const rig = new FailureRig({
      seed: 62,
      vms: 1,
      userspace,
      beforeBoot: (boot) => {
        if (boot === 0) return;
        rig.faults.onPoint = () => {
          accesses = rig.watch.accesses;
          rig.faults.onPoint = null;
        };
      },
    });
    rig.machine.onJump((ram, { parameters }) => {
      assert.ok(parameters.kho !== null);
      const at = findText(ram, parameters.kho.fdtAddress, LUO_KHO_ENTRY_NAME);
      ram.store8(at + 2, "X".charCodeAt(0));
      return parameters;
    });
    rig.run();

    function userspace(booted: Booted): never {
      const { host } = booted;
      if (booted.boot === 0) {
        const agent = Agent.start(host, () => {});
        rig.mount(host);
        return agent.update([rig.createVm(host, 0)], TARGET);
      }
      assert.ok(rig.lines.some((line) => /preserved pages belong to nothing/.test(line)));
      assert.equal(
        Agent.takeOver(host, () => {}),
        null,
      );
      rig.machine.runDevices(2_000_000);
      assert.equal(rig.watch.accesses, accesses, "the first point is that of the handover's use");
      rig.mount(host);
      // The guest's memory is a file like any other now.
      rig.watch.forbid("vm0");
      host.unlink(`${MOUNT_POINT}/vm0`);
      rig.runVms(host, [rig.createVm(host, 0)]);
      return rig.powerOff(booted);
    }
  });
});

/** Address of a text with its NUL in a page. */
function findText(ram: Ram, page: number, text: string): number {
  const bytes = Buffer.alloc(4096);
  ram.read(page, bytes);
  const at = bytes.indexOf(`${text}\0`);
  assert.ok(at >= 0, `"${text}" is there`);
  return page + at;
}
