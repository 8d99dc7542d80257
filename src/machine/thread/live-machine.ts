/**
 * The embedded machine with real concurrency: devices in one thread, the kernel in another, the supervisor beside
 * them.
 *
 * Lifecycle: construct (devices run), `run` once (kernels run, one after the other), `close` at any time.
 * @module
 */
import type { MachineConfig } from "../embedded/config.ts";
import { HardwareStatistics } from "../embedded/hardware-statistics.ts";
import { createInterruptState } from "../embedded/interrupts.ts";
import { buildAddressMap } from "../firmware.ts";
import type { Firmware, KernelImage } from "../machine.ts";
import { createSharedRam, type Ram } from "../physical-memory.ts";
import { createMailbox } from "./mailbox.ts";
import type { HardwareThreadData, SharedState } from "./messages.ts";
import { startWorker } from "./start-worker.ts";
import { KernelSupervisor, type LiveEnd, type LiveJump, type LiveOptions } from "./supervisor.ts";

export class LiveMachine {
  /** Raw memory: for tests and `inspect`. */
  readonly ram: Ram;
  readonly firmware: Firmware;
  /** May be read at any time, also after the end. */
  readonly statistics: HardwareStatistics;
  readonly #supervisor: KernelSupervisor;

  /**
   * Powers a machine on: devices run from here on.
   *
   * @throws {KernelError} EINVAL when the configuration is not valid
   */
  constructor(config: MachineConfig, options: LiveOptions = {}) {
    const { ram: ranges, firmware } = buildAddressMap(config);
    const ram = createSharedRam(ranges);
    this.firmware = firmware;
    this.statistics = new HardwareStatistics(config);
    const state: SharedState = {
      mailbox: createMailbox(),
      interrupts: createInterruptState(),
      kernelPresent: new SharedArrayBuffer(4),
      statistics: this.statistics.shared,
    };
    const data: HardwareThreadData = { config, ram, state };
    const hardware = startWorker("hardware-thread", data, []);
    this.#supervisor = new KernelSupervisor(
      {
        ram,
        firmware,
        installed: config.installed,
        kernelPresent: state.kernelPresent,
        connect: () => ({
          kind: "mailbox",
          mailbox: state.mailbox,
          interrupts: state.interrupts,
        }),
        // Devices store by the same memory object, so it knows of all stores.
        kernelEnded: () => this.ram,
        async powerOff() {
          await hardware.terminate();
        },
      },
      options,
    );
    this.ram = this.#supervisor.ram;
    hardware.on("error", (cause) =>
      this.#supervisor.fail(new Error(`the hardware failed: ${cause.message}`, { cause })),
    );
  }

  /** All jumps so far. */
  get jumps(): readonly LiveJump[] {
    return this.#supervisor.jumps;
  }

  /**
   * Boots a kernel and waits until the machine ends.
   *
   * @param image - the first kernel's; need not be among the installed ones
   * @throws {KernelPanic} when a kernel throws
   * @throws {KernelError} ENOENT or EINVAL when the first image is none
   */
  run(image: KernelImage, commandLine: string): Promise<LiveEnd> {
    return this.#supervisor.run(image, commandLine);
  }

  /** Sends a line to the kernel that runs, or else to the next. */
  writeSerialLine(line: string): void {
    this.#supervisor.writeSerialLine(line);
  }

  /** Ends all threads. `run` then resolves with "closed" unless the machine had ended already. */
  close(): Promise<void> {
    return this.#supervisor.close();
  }
}
