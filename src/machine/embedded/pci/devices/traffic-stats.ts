/**
 * Counters of what goes over NICs' cables, both ways, shared between threads.
 *
 * Why: the thread that runs the devices counts, another one reports, and JavaScript has no atomic 53-bit number.
 * Layout: counters of two words for each NIC: {low, high}. One writer. Where the low word wraps, the writer first
 *   marks the high word as changing (bit 31), then stores the low word, then the new high word; a reader that sees
 *   the mark, or two different high words around its low word, reads again.
 * @module
 */

/** A whole before its parts. */
const COUNTERS = [
  "sent",
  "delivered",
  "missed",
  "filtered",
  "dmaFailed",
  "withoutKernel",
  "transmitted",
  "transmitCorrupt",
  "transmitGaps",
  "transmitWithoutKernel",
  "transmitDmaFailed",
] as const;
/**
 * Towards the NIC: sent = delivered + missed + filtered + dmaFailed; withoutKernel is a part of delivered.
 * From the NIC: transmitCorrupt and transmitGaps (out of sequence) are apart from one another, both of them and
 * transmitWithoutKernel are parts of transmitted; transmitDmaFailed counts reads that did not get through.
 */
export type TrafficCounter = (typeof COUNTERS)[number];

export type TrafficCounts = Readonly<Record<TrafficCounter, number>>;

const ZERO = Object.fromEntries(COUNTERS.map((counter) => [counter, 0])) as Record<
  TrafficCounter,
  number
>;

const WORDS_PER_NIC = 2 * COUNTERS.length;
const CHANGING = 0x80000000 | 0;

export class TrafficStats {
  readonly shared: SharedArrayBuffer;
  readonly #words: Int32Array;

  /** @param shared - of another instance, or made by {@link create} */
  constructor(shared: SharedArrayBuffer) {
    this.shared = shared;
    this.#words = new Int32Array(shared);
  }

  /** Counters at zero for `nicCount` NICs. */
  static create(nicCount: number): TrafficStats {
    return new TrafficStats(new SharedArrayBuffer(4 * WORDS_PER_NIC * Math.max(1, nicCount)));
  }

  /** Adds one. Only the thread that runs the NIC may call it. */
  increment(nic: number, counter: TrafficCounter): void {
    const at = index(nic, counter);
    const low = (Atomics.load(this.#words, at) + 1) | 0;
    if (low !== 0) {
      Atomics.store(this.#words, at, low);
      return;
    }
    const high = Atomics.load(this.#words, at + 1);
    Atomics.store(this.#words, at + 1, (high + 1) | CHANGING);
    Atomics.store(this.#words, at, 0);
    Atomics.store(this.#words, at + 1, high + 1);
  }

  /** One counter; exact at some moment during the call. */
  get(nic: number, counter: TrafficCounter): number {
    const at = index(nic, counter);
    for (;;) {
      const high = Atomics.load(this.#words, at + 1);
      const low = Atomics.load(this.#words, at) >>> 0;
      if (high >= 0 && Atomics.load(this.#words, at + 1) === high) return high * 2 ** 32 + low;
    }
  }

  /** All counters of a NIC, one after the other: a whole after its parts, so that they never add up to more. */
  read(nic: number): TrafficCounts {
    const counts = { ...ZERO };
    for (let i = COUNTERS.length - 1; i >= 0; i--) counts[COUNTERS[i]] = this.get(nic, COUNTERS[i]);
    return counts;
  }
}

function index(nic: number, counter: TrafficCounter): number {
  return WORDS_PER_NIC * nic + 2 * COUNTERS.indexOf(counter);
}
