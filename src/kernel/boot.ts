/**
 * From the first instruction to userspace.
 *
 * A handover that breaks a rule is refused as a whole: the log names the field, all devices are stopped (bus mastering
 * off, every remapping unit blocking) before any page is given out, and the boot goes on as a cold one.
 * A boot that fails for want of memory starts over once: until it is done nothing of the handover is overwritten.
 * If that fails too the kernel panics, and devices go on by the previous kernel's tables, into memory that
 * nobody was given.
 * @module
 */
import { HandoverError } from "../abi/handover-error.ts";
import { isKernelError } from "../base/errno.ts";
import { FaultInjector } from "../base/fault-injector.ts";
import type { BootParameters, Machine } from "../machine/machine.ts";
import { parseCommandLine } from "./command-line.ts";
import { Kernel, type KernelParts } from "./kernel.ts";
import { IncomingHandover } from "./kho/incoming-handover.ts";

/** What is built into an image. */
export interface KernelBuild {
  /** uname -r, at most 64 bytes. */
  readonly release: string;
  /** For tests: fails chosen steps. */
  readonly faults?: FaultInjector;
}

const ATTEMPTS = 2;

/**
 * Boots a kernel.
 *
 * @param parameters - from firmware or from the previous kernel: untrusted
 * @throws {KernelError} EINVAL the command line; ENOMEM: a panic
 */
export function boot(machine: Machine, parameters: BootParameters, build: KernelBuild): Kernel {
  const { commandLine } = parameters;
  const log = (line: string) => machine.serial.writeLine(line);
  const faults = build.faults ?? new FaultInjector();
  const common = {
    machine,
    options: parseCommandLine(commandLine),
    commandLine,
    release: build.release,
    faults,
    log,
  };
  if (parameters.kho !== null) {
    try {
      return adoptHandover(common, IncomingHandover.read(machine.memory, parameters.kho));
    } catch (error) {
      if (!(error instanceof HandoverError)) throw error;
      log(`${error.message}; all devices are stopped and this is a cold boot`);
    }
  }
  return new Kernel({ ...common, incoming: null });
}

function adoptHandover(common: Omit<KernelParts, "incoming">, incoming: IncomingHandover): Kernel {
  for (let attempt = 1; ; attempt++) {
    try {
      return new Kernel({ ...common, incoming });
    } catch (error) {
      if (!isKernelError(error) || attempt === ATTEMPTS) throw error;
      common.log(`boot failed (${error.message}); starting over`);
      incoming.startOver();
    }
  }
}
