/**
 * The conformance suite on our kernel, in a deterministic machine: as many kernels in a row as the cases have stages.
 */
import assert from "node:assert/strict";
import { before, describe, test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { LINUX_REBOOT_CMD_KEXEC, LINUX_REBOOT_CMD_POWER_OFF } from "../../src/abi/uapi/reboot.ts";
import { KernelError } from "../../src/base/errno.ts";
import { FaultInjector } from "../../src/base/fault-injector.ts";
import { MIB } from "../../src/base/units.ts";
import { boot } from "../../src/kernel/boot.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import type { KernelModule } from "../../src/machine/machine.ts";
import { COMMAND_LINE, IMAGE, IMAGE_PATH } from "../support/failure-rig.ts";
import { describeCases } from "./case-tests.ts";
import type { AllocationFaults, StageResult } from "./conformance-case.ts";
import { DEVICE_SEGMENT } from "./device-machines.ts";
import { loadNextKernel, runStage, stageCount } from "./stage-run.ts";
import { CASES } from "./suite.ts";

const SEED = 1;
const RAM_BYTES = 256 * MIB;
/** RLIMIT_NOFILE, as a Linux process can raise it by itself: 2000 sessions are open at a time. */
const FILE_LIMIT = 4096;

/** What a machine's life came to. */
interface Run {
  readonly results: readonly StageResult[];
  /** Cases of one stage that have left something behind. */
  readonly leaky: readonly string[];
  /** When the last kernel's userspace has ended. */
  readonly leaks: ReturnType<Kernel["leaks"]>;
}

/** The `nth` step from here on that can fail does, for want of memory. */
function allocationFaults(faults: FaultInjector): AllocationFaults {
  return {
    during(nth, action) {
      faults.arm(nth - 1, (point) => new KernelError("ENOMEM", "test", point));
      let reached = false;
      try {
        action();
      } finally {
        reached = faults.disarm();
      }
      return reached;
    },
  };
}

function runAll(): Run {
  const results: StageResult[] = [];
  const leaky: string[] = [];
  let leaks: Run["leaks"] | null = null;
  let stage = 0;
  const module: KernelModule = {
    start(machine, parameters) {
      const faults = new FaultInjector();
      const kernel = boot(machine, parameters, { release: IMAGE.release, faults });
      const host = kernel.spawn({ fileLimit: FILE_LIMIT });
      const place = {
        kernel: "ours" as const,
        host,
        faults: allocationFaults(faults),
        nextKernel: { kernel: IMAGE_PATH, initrd: null, commandLine: COMMAND_LINE },
      };
      for (const one of CASES) {
        const before = kernel.leaks();
        results.push(...runStage(place, [one], stage, () => performance.now()));
        const carriesNothing = one.stages.length === 1;
        if (carriesNothing && !isDeepStrictEqual(kernel.leaks(), before)) leaky.push(one.name);
      }
      stage++;
      if (stage < stageCount(CASES)) {
        loadNextKernel(place);
        return host.reboot(LINUX_REBOOT_CMD_KEXEC);
      }
      host.exit();
      leaks = kernel.leaks();
      return kernel.spawn().reboot(LINUX_REBOOT_CMD_POWER_OFF);
    },
  };
  const lines: string[] = [];
  const config = {
    nodeBytes: [RAM_BYTES],
    segments: [DEVICE_SEGMENT],
    installed: [IMAGE],
  };
  const machine = new DeterministicMachine(config, {
    seed: SEED,
    modules: () => module,
    onSerialLine: (line) => lines.push(line),
    eventsPerStep: 1024,
  });
  const end = machine.run(module, { commandLine: COMMAND_LINE, kho: null });
  assert.deepEqual(end, { kind: "powered-off", status: 0 }, lines.join("\n"));
  assert(leaks !== null, "the last kernel has ended");
  return { results, leaky, leaks };
}

describe("conformance of our kernel", () => {
  let run: Run;
  before(() => {
    run = runAll();
  });

  describeCases("ours", () => run.results);

  test("a case that carries nothing on leaves nothing behind", () => {
    assert.deepEqual(run.leaky, []);
  });

  test("nothing is left when the last process has ended", () => {
    assert.deepEqual(run.leaks, { pages: 0, pins: 0, domains: 0 });
  });
});
