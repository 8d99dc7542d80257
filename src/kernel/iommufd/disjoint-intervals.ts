/**
 * Intervals that do not overlap, in order of address.
 *
 * Why: an IOAS asks "what is the first area in this range" all the time, and has few areas; a sorted array
 * with binary search answers that without a tree.
 * @module
 */
import { assert } from "../../base/assert.ts";

/** Both ends are inclusive, as in iommufd's uAPI. */
export interface Interval {
  readonly start: number;
  readonly last: number;
}

export class DisjointIntervals<T extends Interval> {
  readonly #items: T[] = [];

  get items(): readonly T[] {
    return this.#items;
  }

  /** Index of the first interval that ends at `address` or after it. */
  #lowerBound(address: number): number {
    let low = 0;
    let high = this.#items.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#items[middle].last < address) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The first interval that has an address in `start` .. `last`. */
  first(start: number, last: number): T | null {
    const item = this.#items[this.#lowerBound(start)];
    return item !== undefined && item.start <= last ? item : null;
  }

  /** All intervals that have an address in `start` .. `last`, in order. */
  within(start: number, last: number): T[] {
    const from = this.#lowerBound(start);
    let to = from;
    while (to < this.#items.length && this.#items[to].start <= last) to++;
    return this.#items.slice(from, to);
  }

  insert(item: T): void {
    assert(item.start <= item.last, "an interval ends before it starts");
    assert(this.first(item.start, item.last) === null, "intervals overlap");
    this.#items.splice(this.#lowerBound(item.start), 0, item);
  }

  remove(item: T): void {
    const at = this.#lowerBound(item.start);
    assert(this.#items[at] === item, "the interval is not in the list");
    this.#items.splice(at, 1);
  }
}
