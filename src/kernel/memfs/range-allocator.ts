/**
 * Blocks out of one range of memory, with no metadata in memory and none per page.
 *
 * Why: a carve-out has no page metadata, and what of it is in use follows from the file system's own metadata; so
 * this allocator keeps a list of free ranges and is filled anew from the metadata after each kexec.
 * Large blocks come from the bottom, single pages from the topmost 2 MiB with a free page, so that small ones do not
 * break up 1 GiB blocks; upwards within these, so that pages that follow one another make one extent.
 * @module
 */
import { assert } from "../../base/assert.ts";
import { alignDown, alignUp, hex, MIB, orderBytes } from "../../base/units.ts";

export class RangeAllocator {
  /** Free ranges, ascending, not touching: starts and their ends. */
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];
  #freeBytes = 0;

  /** @param used - blocks in use, ascending, not overlapping, inside the range */
  constructor(start: number, end: number, used: readonly { pa: number; lengthBytes: number }[]) {
    let from = start;
    for (const { pa, lengthBytes } of used) {
      this.#append(from, pa);
      from = pa + lengthBytes;
    }
    this.#append(from, end);
  }

  get freeBytes(): number {
    return this.#freeBytes;
  }

  /** A block aligned to its size, or null when none is free. */
  alloc(order: number): number | null {
    const bytes = orderBytes(order);
    if (order === 0) {
      const last = this.#starts.length - 1;
      if (last < 0) return null;
      const pa = Math.max(this.#starts[last], alignDown(this.#ends[last] - 1, 2 * MIB));
      this.#take(last, pa, bytes);
      return pa;
    }
    for (let i = 0; i < this.#starts.length; i++) {
      const pa = alignUp(this.#starts[i], bytes);
      if (pa + bytes > this.#ends[i]) continue;
      this.#take(i, pa, bytes);
      return pa;
    }
    return null;
  }

  free(pa: number, order: number): void {
    const bytes = orderBytes(order);
    assert(alignDown(pa, bytes) === pa, () => `free of ${hex(pa)}, order ${order}`);
    let i = 0;
    for (let end = this.#starts.length; i < end; ) {
      const middle = (i + end) >>> 1;
      if (this.#starts[middle] < pa) i = middle + 1;
      else end = middle;
    }
    const joinsBelow = i > 0 && this.#ends[i - 1] === pa;
    const joinsAbove = i < this.#starts.length && this.#starts[i] === pa + bytes;
    assert(
      (i === 0 || this.#ends[i - 1] <= pa) &&
        (i === this.#starts.length || this.#starts[i] >= pa + bytes),
      `${hex(pa)}, order ${order}, is free already`,
    );
    this.#freeBytes += bytes;
    if (joinsBelow && joinsAbove) {
      this.#ends[i - 1] = this.#ends[i];
      this.#starts.splice(i, 1);
      this.#ends.splice(i, 1);
    } else if (joinsBelow) this.#ends[i - 1] += bytes;
    else if (joinsAbove) this.#starts[i] = pa;
    else {
      this.#starts.splice(i, 0, pa);
      this.#ends.splice(i, 0, pa + bytes);
    }
  }

  #append(start: number, end: number): void {
    assert(start <= end, "used blocks are ascending and inside the range");
    if (start === end) return;
    this.#starts.push(start);
    this.#ends.push(end);
    this.#freeBytes += end - start;
  }

  #take(i: number, pa: number, bytes: number): void {
    const start = this.#starts[i];
    const end = this.#ends[i];
    this.#freeBytes -= bytes;
    const pieces: [number, number][] = [];
    if (start < pa) pieces.push([start, pa]);
    if (pa + bytes < end) pieces.push([pa + bytes, end]);
    this.#starts.splice(i, 1, ...pieces.map((p) => p[0]));
    this.#ends.splice(i, 1, ...pieces.map((p) => p[1]));
  }
}
