/** The cases about iommufd and VFIO on our kernel, on the embedded machine. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { LINUX_REBOOT_CMD_POWER_OFF } from "../../src/abi/uapi/reboot.ts";
import { MIB } from "../../src/base/units.ts";
import { boot } from "../../src/kernel/boot.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import type { MachineConfig } from "../../src/machine/embedded/config.ts";
import { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import type { KernelModule } from "../../src/machine/machine.ts";
import { eduSlot, nicSlot } from "../support/simulated-host.ts";
import { ASSIGNED_DEVICE_CASES } from "./assigned-devices.ts";
import type { ConformanceCase, StageResult } from "./conformance-case.ts";
import { runStage } from "./stage-run.ts";

const SEED = 1;
const CONFIG: MachineConfig = {
  nodeBytes: [256 * MIB],
  segments: [
    {
      drhd: { addressBits: 48, superpages: true },
      slots: [eduSlot(2), nicSlot(3, "nic0", 0)],
    },
  ],
  installed: [],
};

/** Boots a kernel for the cases. A case that leaks fails, too. */
function run(cases: readonly ConformanceCase[]): StageResult[] {
  const results: StageResult[] = [];
  const module: KernelModule = {
    start(machine, parameters) {
      const kernel = boot(machine, parameters, { release: "test-1" });
      for (const one of cases) results.push(...runOne(kernel, one));
      return kernel.spawn().reboot(LINUX_REBOOT_CMD_POWER_OFF);
    },
  };
  const machine = new DeterministicMachine(CONFIG, {
    seed: SEED,
    modules: () => module,
    onSerialLine: () => undefined,
    eventsPerStep: 256,
  });
  machine.run(module, { commandLine: "", kho: null });
  return results;
}

function runOne(kernel: Kernel, one: ConformanceCase): StageResult[] {
  const host = kernel.spawn();
  const place = {
    kernel: "ours" as const,
    host,
    faults: {
      during: () => {
        throw new Error("these cases fail no allocation");
      },
    },
    loadNextKernel: () => {
      throw new Error("these cases have no second kernel");
    },
  };
  const [result] = runStage(place, [one], 0, () => host.clockNs() / 1e6);
  const { openDescriptors } = host;
  host.exit();
  const leaks = { ...kernel.leaks(), openDescriptors };
  if (result.outcome !== "passed") return [result];
  try {
    assert.deepEqual(leaks, { pages: 0, pins: 0, domains: 0, openDescriptors: [] });
  } catch (error) {
    if (!(error instanceof assert.AssertionError)) throw error;
    return [{ ...result, outcome: "failed", detail: `it leaks: ${error.message}` }];
  }
  return [result];
}

for (const { name, outcome, detail } of run(ASSIGNED_DEVICE_CASES))
  test(name, () => assert.equal(outcome, "passed", `${detail}\nseed ${SEED}`));
