/**
 * A set of block numbers that finds its smallest member in a few word reads.
 *
 * Why: a free list would need links in every free page or an object for each; a bitmap with summary levels
 * costs a bit per block and gives the lowest block first. Where nothing was ever free it is not even allocated: a
 * kernel boots on a machine of many TiB, in a blackout, and most of its blocks are never free one by one.
 * Layout: level 0 has a bit for each block, in chunks made when first used; a bit of level n + 1 says that a word of
 * level n is not zero.
 * @module
 */
import { BugError } from "../../base/assert.ts";

/** 4 KiB of level 0: 32768 blocks. */
const CHUNK_WORDS_LG2 = 10;
const CHUNK_WORDS = 2 ** CHUNK_WORDS_LG2;

/** Blocks 0 .. `blockCount` - 1, at most 2^31 of them. Members are neither added nor removed twice. */
export class FreeBitmap {
  readonly #wordCount: number;
  readonly #chunks: (Uint32Array | undefined)[];
  /** Levels 1 and above. */
  readonly #summaries: Uint32Array[] = [];
  #size = 0;

  constructor(blockCount: number) {
    this.#wordCount = Math.ceil(blockCount / 32);
    this.#chunks = new Array(Math.ceil(this.#wordCount / CHUNK_WORDS));
    for (let words = this.#wordCount; words > 1; ) {
      words = Math.ceil(words / 32);
      this.#summaries.push(new Uint32Array(words));
    }
  }

  /** Number of members. */
  get size(): number {
    return this.#size;
  }

  /** Bytes that the levels take when all of them are touched. */
  get metadataBytes(): number {
    return this.#summaries.reduce((sum, level) => sum + level.byteLength, 4 * this.#wordCount);
  }

  has(block: number): boolean {
    const word = block >>> 5;
    const chunk = this.#chunks[word >>> CHUNK_WORDS_LG2];
    return chunk !== undefined && ((chunk[word & (CHUNK_WORDS - 1)] >>> (block & 31)) & 1) !== 0;
  }

  add(block: number): void {
    if (this.has(block)) throw new BugError(`block ${block} is free already`);
    this.#size++;
    let index = block >>> 5;
    const chunk = this.#chunkOf(index);
    const before = chunk[index & (CHUNK_WORDS - 1)];
    chunk[index & (CHUNK_WORDS - 1)] = before | (1 << (block & 31));
    if (before !== 0) return;
    for (const words of this.#summaries) {
      const summary = words[index >>> 5];
      words[index >>> 5] = summary | (1 << (index & 31));
      if (summary !== 0) return;
      index >>>= 5;
    }
  }

  delete(block: number): void {
    if (!this.has(block)) throw new BugError(`block ${block} is not free`);
    this.#size--;
    let index = block >>> 5;
    const chunk = this.#chunkOf(index);
    const after = chunk[index & (CHUNK_WORDS - 1)] & ~(1 << (block & 31));
    chunk[index & (CHUNK_WORDS - 1)] = after;
    if (after !== 0) return;
    for (const words of this.#summaries) {
      const summary = words[index >>> 5] & ~(1 << (index & 31));
      words[index >>> 5] = summary;
      if (summary !== 0) return;
      index >>>= 5;
    }
  }

  /** The smallest member, or -1. */
  first(): number {
    if (this.#size === 0) return -1;
    let index = 0;
    for (let level = this.#summaries.length - 1; level >= 0; level--)
      index = index * 32 + lowestBit(this.#summaries[level][index]);
    return index * 32 + lowestBit(this.#chunkOf(index)[index & (CHUNK_WORDS - 1)]);
  }

  /** The chunk that holds a word of level 0. */
  #chunkOf(word: number): Uint32Array {
    const index = word >>> CHUNK_WORDS_LG2;
    this.#chunks[index] ??= new Uint32Array(
      Math.min(CHUNK_WORDS, this.#wordCount - index * CHUNK_WORDS),
    );
    return this.#chunks[index];
  }
}

function lowestBit(word: number): number {
  return 31 - Math.clz32(word & -word);
}
