/**
 * A set of block numbers that finds its smallest member in a few word reads.
 *
 * Why: a free list would need links in every free page or an object for each; a bitmap with summary levels
 * costs a bit per block, is all zero (so never touched) where nothing is free, and gives the lowest block first.
 * Layout: level 0 has a bit for each block; a bit of level n + 1 says that a word of level n is not zero.
 * @module
 */
import { BugError } from "../../base/assert.ts";

/** Blocks 0 .. `blockCount` - 1, at most 2^31 of them. Members are neither added nor removed twice. */
export class FreeBitmap {
  readonly #levels: Uint32Array[] = [];
  #size = 0;

  constructor(blockCount: number) {
    let words = blockCount;
    do {
      words = Math.ceil(words / 32);
      this.#levels.push(new Uint32Array(words));
    } while (words > 1);
  }

  /** Number of members. */
  get size(): number {
    return this.#size;
  }

  /** Bytes that the levels take when all of them are touched. */
  get metadataBytes(): number {
    return this.#levels.reduce((sum, level) => sum + level.byteLength, 0);
  }

  has(block: number): boolean {
    return ((this.#levels[0][block >>> 5] >>> (block & 31)) & 1) !== 0;
  }

  add(block: number): void {
    if (this.has(block)) throw new BugError(`block ${block} is free already`);
    this.#size++;
    let index = block;
    for (const words of this.#levels) {
      const before = words[index >>> 5];
      words[index >>> 5] = before | (1 << (index & 31));
      if (before !== 0) return;
      index >>>= 5;
    }
  }

  delete(block: number): void {
    if (!this.has(block)) throw new BugError(`block ${block} is not free`);
    this.#size--;
    let index = block;
    for (const words of this.#levels) {
      const after = words[index >>> 5] & ~(1 << (index & 31));
      words[index >>> 5] = after;
      if (after !== 0) return;
      index >>>= 5;
    }
  }

  /** The smallest member, or -1. */
  first(): number {
    if (this.#size === 0) return -1;
    let index = 0;
    for (let level = this.#levels.length - 1; level >= 0; level--) {
      const bits = this.#levels[level][index];
      index = index * 32 + (31 - Math.clz32(bits & -bits));
    }
    return index;
  }
}
