/**
 * Interrupt vectors for devices.
 *
 * Why: a vector that a device of the previous kernel still raises must not be given to another one; it is
 * reserved at boot, before the first allocation.
 * Source: the range: Intel SDM Vol. 3 §7.2, vectors 0 to 31 are the processor's own
 * @module
 */
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { Interrupts } from "../../machine/machine.ts";

export const FIRST_DEVICE_VECTOR = 32;
export const LAST_VECTOR = 255;

export class VectorAllocator {
  readonly #interrupts: Interrupts;
  readonly #used = new Uint8Array(LAST_VECTOR + 1);

  constructor(interrupts: Interrupts) {
    this.#interrupts = interrupts;
  }

  /** @throws {KernelError} ENOSPC when all are taken */
  alloc(): number {
    const vector = this.#used.indexOf(0, FIRST_DEVICE_VECTOR);
    if (vector < 0) throw new KernelError("ENOSPC", "msi", "all interrupt vectors are in use");
    this.#used[vector] = 1;
    // What a former owner raised last is not the new owner's.
    this.#interrupts.take(vector);
    return vector;
  }

  /**
   * Takes a vector that is in use already; what is pending stays so.
   *
   * @returns false when it is taken, or no device vector
   */
  reserve(vector: number): boolean {
    if (!(vector >= FIRST_DEVICE_VECTOR && vector <= LAST_VECTOR) || this.#used[vector] !== 0)
      return false;
    this.#used[vector] = 1;
    return true;
  }

  free(vector: number): void {
    assert(this.#used[vector] === 1, `vector ${vector} is not in use`);
    this.#used[vector] = 0;
  }

  /** Vectors in use, for leak checks. */
  get usedCount(): number {
    return this.#used.reduce((sum, one) => sum + one, 0);
  }
}
