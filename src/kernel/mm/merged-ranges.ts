/**
 * A set of addresses, made once from ranges in any order: which other ranges lie in it.
 * @module
 */
import type { MemoryRange } from "../../machine/machine.ts";

export class MergedRanges {
  /** Sorted; neither overlapping nor adjacent. */
  readonly #starts: Float64Array;
  readonly #ends: Float64Array;

  /** @param ranges - may overlap and touch; empty ones count for nothing */
  constructor(ranges: Iterable<MemoryRange>) {
    const sorted = [...ranges]
      .filter(({ lengthBytes }) => lengthBytes > 0)
      .sort((a, b) => a.start - b.start);
    const starts: number[] = [];
    const ends: number[] = [];
    for (const { start, lengthBytes } of sorted) {
      const last = ends.length - 1;
      if (last >= 0 && start <= ends[last]) ends[last] = Math.max(ends[last], start + lengthBytes);
      else {
        starts.push(start);
        ends.push(start + lengthBytes);
      }
    }
    this.#starts = Float64Array.from(starts);
    this.#ends = Float64Array.from(ends);
  }

  /** Whether all of a range lies in the set. */
  contains(start: number, lengthBytes: number): boolean {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#starts[middle] <= start) low = middle + 1;
      else high = middle;
    }
    return low > 0 && start + lengthBytes <= this.#ends[low - 1];
  }
}
