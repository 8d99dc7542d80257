/**
 * A source of frames for one NIC: the network, which does not wait for anybody's kernel.
 *
 * Why: frames that keep arriving while no kernel exists are the proof that DMA goes on; so the source counts what it
 * sent and what became of it, apart from any kernel, in memory that any thread can read.
 * Lifecycle: silent until the driver has set the link up (CTRL.SLU) and enabled reception (RCTL.EN), then a frame
 *   every 1/rate seconds; a step that comes late sends what is due, a burst at a time; the driver stops it by clearing
 *   SLU. Sequence numbers go on from one link-up to the next.
 * @module
 */
import { encodeTestFrame } from "../../../../abi/test-frame.ts";
import { assert } from "../../../../base/assert.ts";
import type { Stepper } from "../../hardware.ts";
import type { E1000e, ReceiveResult } from "./e1000e.ts";
import type { TrafficCounter, TrafficStats } from "./traffic-stats.ts";

/** Locally administered address of the source. */
const SOURCE_ADDRESS = Uint8Array.of(0x02, 0x48, 0x46, 0x00, 0x00, 0xff);

export interface TrafficOptions {
  /** In every frame; also the index in `stats`. */
  readonly nicId: number;
  /** Above 0. */
  readonly framesPerSecond: number;
  /** Bytes of a frame without FCS, 60 to 1514. Default 256. */
  readonly frameBytes?: number;
  readonly stats: TrafficStats;
  /** Word 0 is 1 while a kernel exists and 0 during the jump from one to the next. Read atomically. */
  readonly kernelPresent: Int32Array;
  /** Frames that one step may send. Default 16. */
  readonly burstFrames?: number;
}

/** How late frames may be sent. What is due for longer is not sent at all: the wire had no room for it. */
const BACKLOG_NS = 1e9;

const COUNTER: Readonly<Record<ReceiveResult, TrafficCounter>> = {
  delivered: "delivered",
  missed: "missed",
  filtered: "filtered",
  dmaFailed: "dmaFailed",
  // Checked before each frame.
  linkDown: "missed",
};

export class TrafficSource implements Stepper {
  readonly #nic: E1000e;
  readonly #options: TrafficOptions;
  readonly #frame: Uint8Array;
  readonly #intervalNs: number;
  readonly #burst: number;
  #sequence = 0;
  /** When the next frame is due; null while the link is down. */
  #dueNs: number | null = null;

  constructor(nic: E1000e, options: TrafficOptions) {
    assert(options.framesPerSecond > 0, `a rate of ${options.framesPerSecond} frames per second`);
    this.#nic = nic;
    this.#options = options;
    this.#frame = new Uint8Array(options.frameBytes ?? 256);
    this.#intervalNs = 1e9 / options.framesPerSecond;
    this.#burst = options.burstFrames ?? 16;
  }

  step(nowNs: number): boolean {
    if (!this.#nic.isReceiving) {
      this.#dueNs = null;
      return false;
    }
    let due = Math.max(this.#dueNs ?? nowNs, nowNs - BACKLOG_NS);
    for (let i = 0; i < this.#burst && due <= nowNs && this.#nic.isReceiving; i++) {
      this.#send();
      due += this.#intervalNs;
    }
    this.#dueNs = due;
    return due <= nowNs && this.#nic.isReceiving;
  }

  /** Depends on the NIC's registers: ask again after each write to them. */
  nextDueNs(): number {
    if (!this.#nic.isReceiving) return Number.POSITIVE_INFINITY;
    return this.#dueNs ?? 0;
  }

  #send(): void {
    const { nicId, stats, kernelPresent } = this.#options;
    encodeTestFrame(this.#frame, this.#nic.macAddress, SOURCE_ADDRESS, nicId, this.#sequence++);
    // Before the frame is in memory, so that a receiver never has more than was sent.
    stats.increment(nicId, "sent");
    const result = this.#nic.receive(this.#frame);
    stats.increment(nicId, COUNTER[result]);
    if (result === "delivered" && Atomics.load(kernelPresent, 0) === 0)
      stats.increment(nicId, "withoutKernel");
  }
}
