/** Machines whose kernels are threads, the embedded one and QEMU's, as one. @module */
import type { MachineConfig } from "../../machine/embedded/config.ts";
import type {
  HardwareStatistics,
  NicStatistics,
} from "../../machine/embedded/hardware-statistics.ts";
import type { Firmware, KernelImage } from "../../machine/machine.ts";
import type { Ram } from "../../machine/physical-memory.ts";
import { QemuMachine } from "../../machine/qemu/qemu-machine.ts";
import { LiveMachine } from "../../machine/thread/live-machine.ts";
import type { LiveEnd, LiveOptions } from "../../machine/thread/supervisor.ts";
import type { MachineKind } from "./machine-kinds.ts";

/** A machine whose kernels are threads. */
export interface ThreadedMachine {
  readonly ram: Ram;
  readonly firmware: Firmware;
  nics(): readonly NicStatistics[];
  /** By PCI segment; complete when the machine has ended. */
  blockedRequests(): readonly number[];
  run(image: KernelImage, commandLine: string): Promise<LiveEnd>;
  /** Sends a line to the kernel that runs, or else to the next. */
  writeSerialLine(line: string): void;
  close(): Promise<void>;
}

/**
 * Starts the hardware.
 * @throws {KernelError} EINVAL the configuration; ENOENT, EOPNOTSUPP what QEMU needs is not there
 */
export async function powerOn(
  kind: MachineKind,
  config: MachineConfig,
  options: LiveOptions,
): Promise<ThreadedMachine> {
  if (kind === "embedded") {
    const machine = new LiveMachine(config, options);
    return {
      ram: machine.ram,
      firmware: machine.firmware,
      nics: () => machine.statistics.nics(),
      blockedRequests: () => blockedRequests(config, machine.statistics),
      run: (image, commandLine) => machine.run(image, commandLine),
      writeSerialLine: (line) => machine.writeSerialLine(line),
      close: () => machine.close(),
    };
  }
  const machine = await QemuMachine.start(config, options);
  return {
    ram: machine.ram,
    firmware: machine.firmware,
    nics: () => machine.nics(),
    // QEMU counts nothing: what its unit still has on record at the end, beside what the kernels took and told.
    blockedRequests: () => [machine.faults.length + (machine.faultsLost ? 1 : 0)],
    run: (image, commandLine) => machine.run(image, commandLine),
    writeSerialLine: (line) => machine.writeSerialLine(line),
    close: () => machine.close(),
  };
}

/** By PCI segment: requests that its remapping unit blocked. */
export function blockedRequests(config: MachineConfig, statistics: HardwareStatistics): number[] {
  return config.segments.map((_, segment) => statistics.dmaFaults(segment));
}
