import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { BootParameters, KernelModule } from "../../machine/machine.ts";
import { demoKernel } from "./kernel-module.ts";
import { rehearse } from "./rehearsal.ts";

/** The demo's kernel, and a list of its boots: cold or with a handover. */
function watched() {
  const real = demoKernel("rehearsed");
  const boots: ("cold" | "live")[] = [];
  const kernel: KernelModule = {
    start(machine, parameters: BootParameters) {
      boots.push(parameters.kho === null ? "cold" : "live");
      return real.start(machine, parameters);
    },
  };
  return { kernel, boots };
}

describe("rehearse()", () => {
  it("takes the kernel through whole updates", () => {
    const { kernel, boots } = watched();
    rehearse(kernel, () => false);
    assert.deepEqual(boots.slice(0, 3), ["cold", "live", "live"]);
    assert.ok(boots.filter((boot) => boot === "live").length >= 4, boots.join());
  });

  it("stops at once when the real machine waits", () => {
    const { kernel, boots } = watched();
    let asked = 0;
    rehearse(kernel, () => ++asked > 500);
    assert.deepEqual(boots, ["cold"]);
    assert.ok(asked < 510, `asked ${asked} times`);
    boots.length = 0;
    rehearse(kernel, () => true);
    assert.deepEqual(boots, []);
  });
});
