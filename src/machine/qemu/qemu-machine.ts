/**
 * QEMU's q35 as a machine: hardware that we did not write, under the same kernels.
 *
 * QEMU runs no guest code but our firmware's few instructions. Kernels are threads of this process, as on the live
 * embedded machine: they share QEMU's RAM and reach registers over the qtest socket. QEMU's devices and the network
 * never wait for them.
 * At a kexec the kernel's thread and its connection end, QEMU goes on; the next kernel has a connection of its own.
 * Lifecycle: `start` (QEMU runs), `run` once (kernels run, one after the other), `close` at any time.
 * @module
 */
import type { FaultRecord } from "../../abi/vtd/faults.ts";
import { type MachineConfig, nicsOf } from "../embedded/config.ts";
import type { NicStatistics } from "../embedded/hardware-statistics.ts";
import type { Firmware, KernelImage } from "../machine.ts";
import type { Ram } from "../physical-memory.ts";
import {
  KernelSupervisor,
  type LiveEnd,
  type LiveJump,
  type LiveOptions,
} from "../thread/supervisor.ts";
import { QemuHardware, type QemuHardwareOptions } from "./qemu-hardware.ts";

export interface QemuOptions extends LiveOptions, QemuHardwareOptions {}

export class QemuMachine {
  /** Raw memory: for tests and `inspect`. */
  readonly ram: Ram;
  readonly firmware: Firmware;
  /** QEMU's process id. */
  readonly pid: number | undefined;
  readonly #config: MachineConfig;
  readonly #hardware: QemuHardware;
  readonly #supervisor: KernelSupervisor;

  private constructor(config: MachineConfig, hardware: QemuHardware, options: QemuOptions) {
    this.#config = config;
    this.#hardware = hardware;
    this.firmware = hardware.firmware;
    this.#supervisor = new KernelSupervisor(hardware, options);
    this.ram = this.#supervisor.ram;
    this.pid = hardware.process.pid;
    hardware.watch((error) => this.#supervisor.fail(error));
  }

  /**
   * Starts QEMU and does what firmware does: devices run from here on.
   *
   * @throws {KernelError} EINVAL when the configuration is not valid; ENOENT when there is no QEMU; EOPNOTSUPP where
   *   memory cannot be shared with it; EIO when it does not start
   */
  static async start(config: MachineConfig, options: QemuOptions = {}): Promise<QemuMachine> {
    const hardware = await QemuHardware.powerOn(config, options);
    return new QemuMachine(config, hardware, options);
  }

  /** All jumps so far. */
  get jumps(): readonly LiveJump[] {
    return this.#supervisor.jumps;
  }

  /** When the machine has ended: what the remapping unit has recorded and no kernel has taken. */
  get faults(): readonly FaultRecord[] {
    return this.#hardware.faults;
  }

  /** When the machine has ended: whether there were more faults than records. */
  get faultsLost(): boolean {
    return this.#hardware.faultsLost;
  }

  /**
   * By NIC. While the machine runs, `sent` counts frames that are still on their way; when it has ended, those that
   * the NIC never read count as not sent.
   */
  nics(): NicStatistics[] {
    return nicsOf(this.#config).map(({ name, segment }, id) => ({
      name,
      segment,
      ...this.#hardware.counts(id),
    }));
  }

  /**
   * Boots a kernel and waits until the machine ends.
   *
   * @throws {KernelPanic} when a kernel throws
   * @throws {KernelError} ENOENT or EINVAL when the first image is none; EIO when QEMU ends
   */
  run(image: KernelImage, commandLine: string): Promise<LiveEnd> {
    return this.#supervisor.run(image, commandLine);
  }

  /** Sends a line to the kernel that runs, or else to the next. */
  writeSerialLine(line: string): void {
    this.#supervisor.writeSerialLine(line);
  }

  /** Ends all threads and QEMU. `run` then resolves with "closed" unless the machine had ended already. */
  close(): Promise<void> {
    return this.#supervisor.close();
  }
}
