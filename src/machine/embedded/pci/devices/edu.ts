/**
 * QEMU's educational PCI device: a register file, a factorial, and DMA between memory and its own 4 KiB.
 *
 * Why: the simplest device whose DMA can be under way at a kexec, and QEMU has the same.
 * Source: QEMU docs/specs/edu.rst, hw/misc/edu.c
 * Lifecycle of a transfer: the command is written; the next step notes the time; from `dmaLatencyNs` later each step
 * moves one burst; then RUN is clear and the interrupt, if asked for, is sent behind the data.
 * Differs from QEMU: a transfer that does not fit the buffer moves nothing (QEMU runs past its end); data moves in
 * bursts instead of at once, and a burst that fails does not keep the next from being tried; function reset clears it.
 * Not modelled: INTx, and 64-bit accesses, so DMA addresses have 32 bits at most.
 * @module
 */
import {
  EDU_BAR_BYTES,
  EDU_BUFFER,
  EDU_BUFFER_BYTES,
  EDU_DEVICE_ID,
  EDU_DMA_CMD,
  EDU_DMA_COUNT,
  EDU_DMA_DST,
  EDU_DMA_IRQ,
  EDU_DMA_MASK,
  EDU_DMA_RUN,
  EDU_DMA_SRC,
  EDU_DMA_TO_MEMORY,
  EDU_FACTORIAL,
  EDU_ID,
  EDU_ID_VALUE,
  EDU_IRQ_ACK,
  EDU_IRQ_DMA,
  EDU_IRQ_FACTORIAL,
  EDU_IRQ_RAISE,
  EDU_IRQ_STATUS,
  EDU_LIVENESS,
  EDU_STATUS,
  EDU_STATUS_COMPUTING,
  EDU_STATUS_IRQFACT,
  EDU_VENDOR_ID,
} from "../../../../abi/edu.ts";
import type { DmaPort } from "../../hardware.ts";
import type { BarSpec, DeviceIdentity, DeviceModel, DeviceModelFactory } from "../device-model.ts";

/** Bytes that one step moves. */
export const EDU_BURST_BYTES = 256;

/** What a register that cannot be read gives. */
const ALL_ONES = 0xffffffff;

export interface EduOptions {
  /** Address bits of its DMA: 2^n - 1, at most 2^32 - 1. Higher ones are cut off. Default {@link EDU_DMA_MASK}. */
  readonly dmaMask?: number;
  /** Time from a command to its first burst. Default 100 ms, as in QEMU. */
  readonly dmaLatencyNs?: number;
}

/** Makes edu devices. */
export function eduFactory(options: EduOptions = {}): DeviceModelFactory {
  return (dma) => new Edu(dma, options);
}

export class Edu implements DeviceModel {
  readonly identity: DeviceIdentity = {
    vendorId: EDU_VENDOR_ID,
    deviceId: EDU_DEVICE_ID,
    classCode: 0x00ff00,
    revisionId: 0x10,
    subsystemVendorId: 0x1af4,
    subsystemId: 0x1100,
  };
  readonly bars: readonly BarSpec[] = [
    { index: 0, sizeBytes: EDU_BAR_BYTES, kind: "memory32", isPrefetchable: false },
  ];
  readonly #dma: DmaPort;
  readonly #dmaMask: number;
  readonly #latencyNs: number;
  readonly #buffer = new Uint8Array(EDU_BUFFER_BYTES);

  #liveness = 0;
  #factorial = 0;
  #status = 0;
  #irqStatus = 0;
  #source = 0;
  #destination = 0;
  #count = 0;
  #command = 0;
  /** When the transfer's first burst is due; null before a step has noted the time. */
  #dueNs: number | null = null;
  #movedBytes = 0;

  constructor(dma: DmaPort, options: EduOptions = {}) {
    this.#dma = dma;
    this.#dmaMask = options.dmaMask ?? EDU_DMA_MASK;
    this.#latencyNs = options.dmaLatencyNs ?? 100e6;
  }

  reset(): void {
    this.#buffer.fill(0);
    this.#liveness = 0;
    this.#factorial = 0;
    this.#status = 0;
    this.#irqStatus = 0;
    this.#source = 0;
    this.#destination = 0;
    this.#count = 0;
    this.#endTransfer(0);
  }

  barRead(_bar: number, offset: number, size: 1 | 2 | 4): number {
    if (size !== 4) return ALL_ONES >>> (32 - 8 * size);
    switch (offset) {
      case EDU_ID:
        return EDU_ID_VALUE;
      case EDU_LIVENESS:
        return this.#liveness;
      case EDU_FACTORIAL:
        return this.#factorial;
      case EDU_STATUS:
        return this.#status;
      case EDU_IRQ_STATUS:
        return this.#irqStatus;
      case EDU_DMA_SRC:
        return this.#source;
      case EDU_DMA_DST:
        return this.#destination;
      case EDU_DMA_COUNT:
        return this.#count;
      case EDU_DMA_CMD:
        return this.#command;
      default:
        return ALL_ONES;
    }
  }

  barWrite(_bar: number, offset: number, size: 1 | 2 | 4, value: number): void {
    if (size !== 4) return;
    switch (offset) {
      case EDU_LIVENESS:
        this.#liveness = ~value >>> 0;
        break;
      case EDU_FACTORIAL:
        if ((this.#status & EDU_STATUS_COMPUTING) !== 0) break;
        this.#factorial = value;
        this.#status |= EDU_STATUS_COMPUTING;
        break;
      case EDU_STATUS:
        this.#status = (this.#status & EDU_STATUS_COMPUTING) | (value & EDU_STATUS_IRQFACT);
        break;
      case EDU_IRQ_RAISE:
        this.#raise(value);
        break;
      case EDU_IRQ_ACK:
        this.#irqStatus = (this.#irqStatus & ~value) >>> 0;
        break;
      default:
        if (!this.#isTransferring) this.#writeDma(offset, value);
    }
  }

  #writeDma(offset: number, value: number): void {
    switch (offset) {
      case EDU_DMA_SRC:
        this.#source = value;
        break;
      case EDU_DMA_DST:
        this.#destination = value;
        break;
      case EDU_DMA_COUNT:
        this.#count = value;
        break;
      case EDU_DMA_CMD:
        if ((value & EDU_DMA_RUN) !== 0) this.#command = value;
        break;
    }
  }

  step(nowNs: number): boolean {
    if ((this.#status & EDU_STATUS_COMPUTING) !== 0) {
      this.#factorial = factorial(this.#factorial);
      this.#status &= ~EDU_STATUS_COMPUTING;
      if ((this.#status & EDU_STATUS_IRQFACT) !== 0) this.#raise(EDU_IRQ_FACTORIAL);
    }
    if (!this.#isTransferring) return false;
    this.#dueNs ??= nowNs + this.#latencyNs;
    if (nowNs < this.#dueNs) return false;
    this.#burst();
    return this.#isTransferring;
  }

  nextDueNs(): number {
    if ((this.#status & EDU_STATUS_COMPUTING) !== 0) return 0;
    return this.#isTransferring ? (this.#dueNs ?? 0) : Number.POSITIVE_INFINITY;
  }

  get #isTransferring(): boolean {
    return (this.#command & EDU_DMA_RUN) !== 0;
  }

  /** Moves one burst, and ends the transfer with the last one. What the port refuses to read arrives as ones. */
  #burst(): void {
    const toMemory = (this.#command & EDU_DMA_TO_MEMORY) !== 0;
    const start = (toMemory ? this.#source : this.#destination) - EDU_BUFFER;
    const fits = start >= 0 && start + this.#count <= EDU_BUFFER_BYTES;
    const lengthBytes = fits ? Math.min(EDU_BURST_BYTES, this.#count - this.#movedBytes) : 0;
    if (lengthBytes > 0) {
      const from = start + this.#movedBytes;
      const piece = this.#buffer.subarray(from, from + lengthBytes);
      const address = this.#clamp(toMemory ? this.#destination : this.#source) + this.#movedBytes;
      if (toMemory) this.#dma.write(address, piece);
      else this.#dma.read(address, piece);
      this.#movedBytes += lengthBytes;
      if (this.#movedBytes < this.#count) return;
    }
    const irq = (this.#command & EDU_DMA_IRQ) !== 0;
    this.#endTransfer(this.#command & ~EDU_DMA_RUN);
    if (irq) this.#raise(EDU_IRQ_DMA);
  }

  #endTransfer(command: number): void {
    this.#command = command >>> 0;
    this.#dueNs = null;
    this.#movedBytes = 0;
  }

  #clamp(address: number): number {
    return (address & this.#dmaMask) >>> 0;
  }

  #raise(bits: number): void {
    this.#irqStatus = (this.#irqStatus | bits) >>> 0;
    if (this.#irqStatus !== 0) this.#dma.signalMsi();
  }
}

/** n! mod 2^32. It is 0 from 34 on, so a large n costs no more. */
function factorial(n: number): number {
  let result = 1;
  for (let i = n; i > 0 && result !== 0; i--) result = Math.imul(result, i);
  return result >>> 0;
}
