/**
 * Every field of every structure of a handover, made wrong in every way that `wrong-values.ts` knows, one at a time:
 * it is refused, or it is content, which a kernel takes as it finds it. Up to its decision the kernel writes to no
 * preserved page and to no register, and it never fails in any other way.
 *
 * Decisions only, thousands of them; `handover-refused.test.ts` and `handover-content.test.ts` go all the way.
 * @module
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Agent } from "../../src/agent/agent.ts";
import { MIB } from "../../src/base/units.ts";
import type { BootParameters } from "../../src/machine/machine.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";
import { type Booted, FailureRig, IMAGE, TARGET } from "../support/failure-rig.ts";
import { handoverContent } from "../support/handover-content.ts";
import { handoverFields } from "../support/handover-map.ts";
import { HandoverProbe } from "../support/handover-probe.ts";
import { wrongValues } from "../support/wrong-values.ts";

/** Far above what a decision takes, far below what an absurd count would. */
const DECISION_MS_MAX = 2_000;
const ARRAY_BYTES_MAX = 64 * MIB;

describe("a handover with any one field wrong", () => {
  it("is refused, or differs in content alone", (t) => {
    const rig = new FailureRig({ seed: 31, vms: 1, memoryBytes: 8 * MIB + 3 * 4096, userspace });
    rig.machine.onJump((ram, { parameters }) => {
      tryAll(ram, parameters);
      return parameters;
    });
    // What the kernels have seen has left no trace: the VM goes on.
    rig.run();

    function tryAll(ram: Ram, parameters: BootParameters): void {
      assert.ok(parameters.kho !== null);
      const fields = handoverFields(ram, parameters.kho);
      const probe = new HandoverProbe(rig.machine, parameters, IMAGE);
      const used = new Set<string>();
      let refused = 0;
      let accepted = 0;
      for (const field of fields) {
        const old = new Uint8Array(field.sizeBytes);
        ram.read(field.pa, old);
        for (const { label, bytes } of wrongValues(ram, field, fields)) {
          const what = `${field.name}: ${label}`;
          const startMs = performance.now();
          const startBytes = process.memoryUsage().arrayBuffers;
          ram.write(field.pa, bytes);
          const result = probe.show(parameters);
          ram.write(field.pa, old);
          const tookBytes = process.memoryUsage().arrayBuffers - startBytes;
          assert.ok(tookBytes < ARRAY_BYTES_MAX, `${what}: ${tookBytes} bytes allocated`);
          assert.ok(performance.now() - startMs < DECISION_MS_MAX, `${what}: took too long`);
          assert.notEqual(result.kind, "broken", `${what}: ${JSON.stringify(result)}`);
          const content = handoverContent(field.kind, label);
          if (result.kind === "refused") {
            refused++;
            assert.match(result.message, /^\S.*: \S/, `${what}: names no field`);
          } else {
            accepted++;
            assert.notEqual(content, null, `${what} was accepted`);
            used.add(field.kind);
          }
        }
      }
      const kinds = new Set(fields.map(({ kind }) => kind));
      t.diagnostic(
        `${fields.length} fields of ${kinds.size} kinds: ${refused} wrong values refused, ${accepted} are content`,
      );
      for (const kind of kinds)
        if (handoverContent(kind, null) !== null)
          assert.ok(used.has(kind), `"${kind}" is said to hold content, but no value was accepted`);
    }

    function userspace(booted: Booted): never {
      const { host } = booted;
      if (booted.boot === 0) {
        const agent = Agent.start(host, () => {});
        rig.mount(host);
        rig.makeFiles(host);
        return agent.update([rig.createVm(host, 0)], TARGET);
      }
      return rig.takeOverAndEnd(booted, true);
    }
  });
});
