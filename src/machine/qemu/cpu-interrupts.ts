/**
 * The interrupts of a QEMU machine, as its processor writes them down (`bios.ts`).
 *
 * They are pending in RAM, so they outlive a kernel. The processor cannot wake a thread of ours: `wait` looks every
 * {@link SLICE_NS}.
 * @module
 */
import { assert } from "../../base/assert.ts";
import type { Interrupts } from "../machine.ts";
import type { Ram } from "../physical-memory.ts";
import { monotonicNs } from "../thread/monotonic-clock.ts";
import { INTERRUPT_COUNT, INTERRUPT_FLAGS } from "./bios.ts";

const VECTORS = 256;
const SLICE_NS = 50_000;

export class CpuInterrupts implements Interrupts {
  readonly #flags: Uint8Array;
  readonly #flagWords: Int32Array;
  readonly #count: Int32Array;

  constructor(ram: Ram) {
    const { buffer, byteOffset } = ram.view(INTERRUPT_FLAGS, VECTORS);
    this.#flags = new Uint8Array(buffer, byteOffset, VECTORS);
    this.#flagWords = new Int32Array(buffer, byteOffset, VECTORS / 4);
    this.#count = new Int32Array(buffer, byteOffset + INTERRUPT_COUNT - INTERRUPT_FLAGS, 1);
  }

  take(vector: number): boolean {
    assert(vector >= 0 && vector < VECTORS, () => `interrupt vector ${vector}`);
    return Atomics.exchange(this.#flags, vector, 0) !== 0;
  }

  wait(timeoutNs: number): void {
    const count = Atomics.load(this.#count, 0);
    if (this.#anyPending()) return;
    const endNs = monotonicNs() + timeoutNs;
    for (let leftNs = timeoutNs; leftNs > 0; leftNs = endNs - monotonicNs()) {
      // Nobody notifies; a count that has changed already ends the wait at once.
      const woken = Atomics.wait(this.#count, 0, count, Math.min(leftNs, SLICE_NS) / 1e6);
      if (woken === "not-equal") return;
    }
  }

  #anyPending(): boolean {
    for (let i = 0; i < this.#flagWords.length; i++)
      if (Atomics.load(this.#flagWords, i) !== 0) return true;
    return false;
  }
}
