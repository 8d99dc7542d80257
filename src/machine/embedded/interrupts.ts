/**
 * The interrupt controller: 256 vectors, pending or not, in shared memory.
 *
 * Why shared: devices raise vectors from the hardware's thread, a kernel takes them in its own, and what is
 * pending when a kernel ends must be pending in the next.
 * Layout: Int32[8] pending bits, vector v is bit v % 32 of word v / 32; Int32 count of all raises.
 * Invariant: the pending bit is set before the count changes, so whoever reads the count, then finds nothing
 * pending, then sleeps for as long as the count is that, misses nothing.
 * @module
 */
import { assert } from "../../base/assert.ts";
import type { Interrupts } from "../machine.ts";
import type { InterruptSink } from "./hardware.ts";

const WORDS = 8;
const RAISES = WORDS;
const VECTORS = 256;

/** What other threads need to share an interrupt controller. */
export function createInterruptState(): SharedArrayBuffer {
  return new SharedArrayBuffer((WORDS + 1) * Int32Array.BYTES_PER_ELEMENT);
}

/** One thread's access to the interrupt controller. */
export class InterruptController implements InterruptSink, Interrupts {
  readonly #words: Int32Array;

  /** @param state - from {@link createInterruptState} */
  constructor(state: SharedArrayBuffer) {
    this.#words = new Int32Array(state);
  }

  /** Makes a vector pending. Raising a pending vector again changes nothing: interrupts are messages, not counts. */
  raise(vector: number): void {
    assert(vector >= 0 && vector < VECTORS, () => `interrupt vector ${vector}`);
    Atomics.or(this.#words, vector >>> 5, 1 << (vector & 31));
    Atomics.add(this.#words, RAISES, 1);
    Atomics.notify(this.#words, RAISES);
  }

  take(vector: number): boolean {
    assert(vector >= 0 && vector < VECTORS, () => `interrupt vector ${vector}`);
    const bit = 1 << (vector & 31);
    return (Atomics.and(this.#words, vector >>> 5, ~bit) & bit) !== 0;
  }

  /** Whether any vector is pending. */
  anyPending(): boolean {
    for (let i = 0; i < WORDS; i++) if (Atomics.load(this.#words, i) !== 0) return true;
    return false;
  }

  /** Blocks this thread until a vector is pending or the time has passed. */
  wait(timeoutNs: number): void {
    const raises = Atomics.load(this.#words, RAISES);
    if (this.anyPending()) return;
    Atomics.wait(this.#words, RAISES, raises, timeoutNs / 1e6);
  }
}
