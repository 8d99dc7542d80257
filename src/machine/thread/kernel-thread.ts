/**
 * A kernel's thread: loads the image's code, lets it prepare itself, sleeps until the jump, then is that kernel until
 * it is ended.
 *
 * As kexec load does, it brings code into place before the jump; of the machine it sees nothing until then.
 * @module
 */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { parentPort, workerData } from "node:worker_threads";
import { assert, BugError } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { KernelImage, KernelModule, Machine } from "../machine.ts";
import { Ram } from "../physical-memory.ts";
import { reachDevices } from "./kernel-devices.ts";
import type { KernelEntry, KernelThreadData, LoadAnswer } from "./messages.ts";
import { monotonicNs } from "./monotonic-clock.ts";
import { SupervisorLink } from "./supervisor-link.ts";

assert(parentPort !== null, "kernel-thread runs in a worker");
const data = workerData as KernelThreadData;
const link = new SupervisorLink(parentPort, data);

const module = await loadModule(data.entry);
if (typeof module === "string") link.notify({ kind: "not-a-kernel", problem: module });
else {
  link.notify({ kind: "ready" });
  module.prepare?.(() => link.isWanted());
  const entry = link.answer() as KernelEntry;
  const machine = makeMachine(entry);
  try {
    Atomics.store(new Int32Array(entry.kernelPresent), 0, 1);
    link.notify({ kind: "entered", atNs: monotonicNs() });
    module.start(machine, entry.parameters);
    throw new BugError("the kernel's start() returned");
  } catch (error) {
    // Whatever it is: the supervisor ends the machine and rejects with it.
    const { message, stack } = error instanceof Error ? error : new Error(String(error));
    link.notify({ kind: "panic", message, stack: stack ?? message });
  }
}

/** @returns the module, or why it is none */
async function loadModule(entry: string): Promise<KernelModule | string> {
  try {
    const loaded: Partial<KernelModule> = await import(entry);
    return typeof loaded.start === "function" ? (loaded as KernelModule) : "exports no start()";
  } catch (error) {
    return error instanceof Error ? (error.stack ?? error.message) : String(error);
  }
}

/** Long before this kernel's end: what preparing has left is given back now, and not at the thread's end in a blackout. */
function collectGarbage(): void {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
}

function makeMachine({ ram, firmware, installed, kernelPresent, devices }: KernelEntry): Machine {
  const memory = new Ram(ram);
  let loaded: KernelImage | null = null;
  return {
    memory,
    ...reachDevices(devices, memory),
    firmware,
    clock: { nowNs: monotonicNs },
    serial: {
      writeLine: (line) => link.notify({ kind: "serial", line }),
      readLine: () =>
        link.hasInput() ? (link.call({ kind: "serial-read" }) as string | null) : null,
    },
    kexec: {
      installed,
      load(image) {
        collectGarbage();
        const answer = link.call({ kind: "load", image }) as LoadAnswer;
        if (!answer.ok)
          throw new KernelError(
            answer.code,
            "kexec load",
            `image "${image?.name}": ${answer.problem}`,
          );
        loaded = image;
      },
      execute(parameters) {
        assert(loaded !== null, "kexec.execute without a loaded image");
        const { commandLine, kho } = parameters;
        // The kernel's last instruction: this thread only waits for its end from here on.
        Atomics.store(new Int32Array(kernelPresent), 0, 0);
        return endBy({
          kind: "execute",
          parameters: { commandLine, kho: kho && { ...kho } },
          atNs: monotonicNs(),
        });
      },
    },
    powerOff: (status) => endBy({ kind: "power-off", status }),
  };
}

/** The supervisor ends this thread instead of answering. */
function endBy(message: Parameters<SupervisorLink["call"]>[0]): never {
  link.call(message);
  throw new BugError("a kernel goes on after its end");
}
