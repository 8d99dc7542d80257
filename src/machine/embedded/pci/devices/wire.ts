/**
 * What can be at the other end of a network cable.
 * @module
 */
import { testFrameSequence, verifyTestFrame } from "../../../../abi/test-frame.ts";
import type { E1000e, EthernetWire } from "./e1000e.ts";
import { type TrafficCounter, TrafficStats } from "./traffic-stats.ts";

export interface CheckingWireOptions {
  /** Whose test frames are expected; also the index in `stats`. */
  readonly nicId: number;
  /** Absent: counters of its own. */
  readonly stats?: TrafficStats;
  /** Word 0 is 1 while a kernel exists and 0 during the jump. Absent: one always does. */
  readonly kernelPresent?: Int32Array;
  /** The most that this end takes, as a busy switch does by flow control; absent: any number. */
  readonly framesPerSecond?: number;
}

/** Takes frames that a guest sends and checks that they are test frames in sequence. */
export class CheckingWire implements EthernetWire {
  readonly #nicId: number;
  readonly #stats: TrafficStats;
  readonly #kernelPresent: Int32Array | null;
  readonly #intervalNs: number;
  #readyNs = 0;
  #next = 0;

  constructor(options: CheckingWireOptions) {
    this.#nicId = options.nicId;
    this.#stats = options.stats ?? TrafficStats.create(options.nicId + 1);
    this.#kernelPresent = options.kernelPresent ?? null;
    this.#intervalNs = options.framesPerSecond === undefined ? 0 : 1e9 / options.framesPerSecond;
  }

  get frames(): number {
    return this.#stats.get(this.#nicId, "transmitted");
  }
  /** Frames that are not test frames of that NIC, whole. */
  get corrupt(): number {
    return this.#stats.get(this.#nicId, "transmitCorrupt");
  }
  /** Whole frames whose sequence is not that of the one before plus one. */
  get outOfSequence(): number {
    return this.#stats.get(this.#nicId, "transmitGaps");
  }

  get readyNs(): number {
    return this.#readyNs;
  }

  transmit(frame: Uint8Array, nowNs: number): void {
    this.#count("transmitted");
    // Not from when it was due: what the NIC did not send in time is not caught up with.
    this.#readyNs = nowNs + this.#intervalNs;
    if (this.#kernelPresent !== null && Atomics.load(this.#kernelPresent, 0) === 0)
      this.#count("transmitWithoutKernel");
    if (verifyTestFrame(frame, 0, frame.length, this.#nicId) !== "") {
      this.#count("transmitCorrupt");
      return;
    }
    const sequence = testFrameSequence(frame, 0);
    if (sequence !== this.#next) this.#count("transmitGaps");
    this.#next = sequence + 1;
  }

  dmaFailed(): void {
    this.#count("transmitDmaFailed");
  }

  #count(counter: TrafficCounter): void {
    this.#stats.increment(this.#nicId, counter);
  }
}

/** A cable to another NIC. Connected after both exist. */
export class Cable implements EthernetWire {
  readonly readyNs = 0;
  #peer: E1000e | null = null;
  #lost = 0;

  connect(peer: E1000e): void {
    this.#peer = peer;
  }

  /** Frames that the peer did not take. */
  get lost(): number {
    return this.#lost;
  }

  transmit(frame: Uint8Array): void {
    if (this.#peer?.receive(frame) !== "delivered") this.#lost++;
  }

  dmaFailed(): void {
    // Nothing arrives here; the NIC counts it.
  }
}
