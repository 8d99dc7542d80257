/**
 * All of a QEMU machine that is not a kernel: QEMU's process, its RAM, its network, and the connection to its registers.
 *
 * Lifecycle: `powerOn`; `connect` before each kernel, `kernelEnded` after it; `powerOff`.
 * @module
 */
import { closeSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { FaultRecord } from "../../abi/vtd/faults.ts";
import { KernelError } from "../../base/errno.ts";
import type { MachineConfig } from "../embedded/config.ts";
import type { TrafficCounts } from "../embedded/pci/devices/traffic-stats.ts";
import type { Firmware, KernelImage } from "../machine.ts";
import type { Ram, SharedRam } from "../physical-memory.ts";
import type { KernelDevices } from "../thread/kernel-devices.ts";
import { monotonicNs } from "../thread/monotonic-clock.ts";
import type { Platform } from "../thread/supervisor.ts";
import { BIOS_READY, makeBios } from "./bios.ts";
import { type Libc, loadLibc } from "./libc.ts";
import { type FrameCounts, HardwareObserver, type RingPosition } from "./observer.ts";
import { type NicPlace, nicPlaces, q35AddressMap, q35Arguments, q35PowerOn } from "./q35.ts";
import { FIRST_QEMU_FD, findQemu, QemuProcess } from "./qemu-process.ts";
import { QtestClient } from "./qtest.ts";
import { RamFile } from "./ram-file.ts";
import { Wires } from "./wires.ts";

const START_TIMEOUT_NS = 20e9;
/** QEMU answers in 50 us; this is for a computer on which it gets no turn. */
const ANSWER_TIMEOUT_MS = 30_000;
const POLL_MS = 5;
/**
 * QEMU reads a frame ahead of a NIC whose reception is off, keeps it, and drops it for another when the command
 * register is written. So many at the end were not sent to a NIC that receives. Frames that are lost before the end are
 * gaps in the sequence that the guest sees.
 */
const AFTER_RECEPTION_MAX = 4;

export interface QemuHardwareOptions {
  /** Path of QEMU. Default: `findQemu()`. */
  readonly program?: string;
  /** Appended to QEMU's arguments: for tests that look at the machine by other means. */
  readonly extraArguments?: readonly string[];
  /** How long QEMU may take for one register access before it counts as hung. Default: 30 s. */
  readonly answerTimeoutMs?: number;
}

/** How a NIC's counters stood when the machine ended, and what it had not read. */
interface FinalCounts extends FrameCounts {
  readonly unread: number;
}

export class QemuHardware implements Platform {
  readonly process: QemuProcess;
  readonly firmware: Firmware;
  readonly installed: readonly KernelImage[];
  readonly kernelPresent = new SharedArrayBuffer(4);
  readonly faults: FaultRecord[] = [];
  readonly #libc: Libc;
  readonly #ramFile: RamFile;
  readonly #wires: Wires;
  readonly #places: readonly NicPlace[];
  readonly #answerTimeoutMs: number;
  /** The connection of the kernel that runs or comes. */
  #socket = -1;
  /** While no kernel exists: where the rings stood when the last one had ended. */
  #ringsAtEnd: readonly (RingPosition | null)[] = [];
  /** There were more faults than the unit has records. */
  faultsLost = false;
  /** By NIC, at the end. */
  #sourceIds: readonly number[] = [];
  #isReleased = false;
  #finalCounts: readonly FinalCounts[] | null = null;
  #onError: (error: Error) => void = () => {};

  private constructor(config: MachineConfig, libc: Libc, answerTimeoutMs: number) {
    const { ram, firmware } = q35AddressMap(config);
    this.#libc = libc;
    this.#answerTimeoutMs = answerTimeoutMs;
    this.#places = nicPlaces(config);
    this.firmware = firmware;
    this.installed = config.installed;
    this.#ramFile = new RamFile(libc, ram);
    this.#wires = new Wires(libc, this.#places);
    this.process = new QemuProcess();
  }

  static async powerOn(config: MachineConfig, options: QemuHardwareOptions): Promise<QemuHardware> {
    q35AddressMap(config);
    const program = options.program ?? findQemu();
    const hardware = new QemuHardware(
      config,
      loadLibc(),
      options.answerTimeoutMs ?? ANSWER_TIMEOUT_MS,
    );
    try {
      await hardware.#start(config, program, options.extraArguments ?? []);
      return hardware;
    } catch (error) {
      await hardware.#release();
      throw error;
    }
  }

  get ram(): SharedRam {
    return this.#ramFile.shared;
  }

  get #qtestPath(): string {
    return join(this.process.folder, "qtest");
  }

  async #start(config: MachineConfig, program: string, extra: readonly string[]): Promise<void> {
    const biosPath = join(this.process.folder, "bios");
    writeFileSync(biosPath, makeBios());
    const args = q35Arguments(config, {
      ramFd: FIRST_QEMU_FD,
      ramBytes: this.#ramFile.lengthBytes,
      biosPath,
      qtestPath: this.#qtestPath,
      wireFds: this.#wires.qemuEnds.map((_end, nic) => FIRST_QEMU_FD + 1 + nic),
    });
    const fds = [this.#ramFile.fd, ...this.#wires.qemuEnds];
    this.process.start(program, [...args, ...extra], fds);
    void this.process.ended.then((reason) => {
      if (!this.process.isStopped)
        this.#onError(new KernelError("EIO", "machine", `QEMU has ended: ${reason}`));
    });
    let reason: string | null = null;
    void this.process.ended.then((said) => {
      reason = said;
    });
    const words = new Int32Array(this.ram.windows[0] ?? new SharedArrayBuffer(0));
    const deadlineNs = monotonicNs() + START_TIMEOUT_NS;
    for (;;) {
      if (this.#socket < 0) this.#socket = this.#connect() ?? -1;
      if (this.#socket >= 0 && Atomics.load(words, BIOS_READY / 4) === 1) break;
      if (reason !== null) throw new KernelError("EIO", "power on", `QEMU: ${reason}`);
      if (monotonicNs() > deadlineNs)
        throw new KernelError("EIO", "power on", "QEMU does not run its firmware");
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    q35PowerOn(new QtestClient(this.#socket));
    this.#wires.start(this.#places, this.kernelPresent, (cause) =>
      this.#onError(new Error(`the network failed: ${cause.message}`, { cause })),
    );
  }

  /** @param onError - told when QEMU ends by itself */
  watch(onError: (error: Error) => void): void {
    this.#onError = onError;
  }

  connect(): KernelDevices {
    for (const [nic, before] of this.#ringsAtEnd.entries()) {
      const after = this.#observer().receiveRing(this.#places[nic]);
      if (before === null || after === null) continue;
      // No kernel has moved the tail, so it is at most once around.
      const frames = (after.head - before.head + before.size) % before.size;
      for (let i = 0; i < frames; i++) this.#wires.stats.increment(nic, "withoutKernel");
    }
    this.#ringsAtEnd = [];
    return { kind: "qtest", socket: this.#socket };
  }

  kernelEnded(): Ram {
    this.#reconnect();
    const observer = this.#observer();
    this.#ringsAtEnd = this.#places.map((place) => observer.receiveRing(place));
    return this.#ramFile.ramAsBacked();
  }

  async powerOff(): Promise<void> {
    await this.#wires.stop();
    try {
      const counts = this.process.isRunning ? this.#readLast() : [];
      await this.process.stop();
      const unread = this.#wires.takeUnread();
      this.#finalCounts = counts.map((count, nic) => ({ ...count, unread: unread[nic] }));
    } finally {
      await this.#release();
    }
  }

  /** What the hardware has recorded. @returns the NICs' counts */
  #readLast(): FrameCounts[] {
    // Its own connection: a kernel may have ended in the middle of an access.
    this.#reconnect();
    const observer = this.#observer();
    const counts = this.#places.map((place) => observer.takeFrameCounts(place));
    const state = observer.remapping();
    this.faults.push(...state.faults);
    this.faultsLost = state.faultsLost;
    this.#sourceIds = this.#places.map((place) => observer.bdf(place));
    return counts;
  }

  counts(nic: number): TrafficCounts {
    const counts = this.#wires.stats.read(nic);
    const final = this.#finalCounts?.[nic];
    if (final === undefined) return counts;
    const { received, missed, isReceiving, unread } = final;
    const taken = counts.sent - unread;
    const seen = received + missed;
    const isTail = !isReceiving && taken >= seen && taken - seen <= AFTER_RECEPTION_MAX;
    const sent = isTail ? seen : taken;
    const sourceId = this.#sourceIds[nic];
    const dmaFailed = this.faults.filter((fault) => fault.sourceId === sourceId).length;
    return { ...counts, sent, delivered: received, missed, dmaFailed };
  }

  #observer(): HardwareObserver {
    return new HardwareObserver(new QtestClient(this.#socket), this.firmware);
  }

  #connect(): number | null {
    return this.#libc.connectUnix(this.#qtestPath, this.#answerTimeoutMs);
  }

  #reconnect(): void {
    if (this.#socket >= 0) closeSync(this.#socket);
    this.#socket = -1;
    const socket = this.#connect();
    if (socket === null) throw new KernelError("EIO", "connect", "QEMU does not listen any more");
    this.#socket = socket;
  }

  /** Gives everything back, QEMU too. May be called again. */
  async #release(): Promise<void> {
    await this.#wires.stop();
    await this.process.stop();
    if (this.#isReleased) return;
    this.#isReleased = true;
    if (this.#socket >= 0) closeSync(this.#socket);
    this.#wires.close();
    this.#ramFile.close();
  }
}
