/**
 * What a guest that does nothing but write has in its memory: every byte follows from a seed and the count of pages written.
 *
 * Why: whoever has these two numbers knows all of a guest's memory without a copy of it, so a VM can prove after a
 * live update that nothing of it was lost, moved, or left over from a moment before.
 * Layout: pages are written one after the other, round and round. A page is one of {@link TEMPLATES} random ones, chosen by
 *   its number and its round, with a stamp of both and of the seed at its start: neighbours in space and in time differ
 *   in nearly every byte.
 * @module
 */
import { ByteWords } from "../abi/words.ts";
import { Prng } from "../base/prng.ts";
import { PAGE_SIZE } from "../base/units.ts";

/** A prime, so that pages a power of two apart have different templates. */
const TEMPLATES = 61;
/** How far the choice moves with each round. */
const ROUND_STRIDE = 7;
const STAMP_WORDS = 5;

export class MemoryPattern {
  readonly seed: number;
  readonly pages: number;
  readonly #templates: readonly Uint8Array[];

  /**
   * @param seed - 0 .. 2^32 - 1
   * @param pages - pages of the memory, 1 or more
   */
  constructor(seed: number, pages: number) {
    this.seed = seed;
    this.pages = pages;
    const prng = new Prng(seed);
    this.#templates = Array.from({ length: TEMPLATES }, () => {
      const bytes = new Uint8Array(PAGE_SIZE);
      const words = new ByteWords(bytes);
      for (let at = 0; at < PAGE_SIZE; at += 4) words.store32(at, prng.next());
      return bytes;
    });
  }

  /** The page that write number `count` goes to, counted from 0. */
  pageOfWrite(count: number): number {
    return count % this.pages;
  }

  /** How often a page has been written, when there were `count` writes in all. */
  roundOf(page: number, count: number): number {
    return Math.floor(count / this.pages) + (page < count % this.pages ? 1 : 0);
  }

  /** Writes the content of a page in its round into `target`, which has {@link PAGE_SIZE} bytes. Round 0: as the guest boots. */
  fill(target: Uint8Array, page: number, round: number): void {
    target.set(this.#templates[(page + round * ROUND_STRIDE) % TEMPLATES]);
    const stamp = new Uint32Array(target.buffer, target.byteOffset, STAMP_WORDS);
    stamp[0] = this.seed;
    stamp[1] = page;
    stamp[2] = page / 2 ** 32;
    stamp[3] = round;
    stamp[4] = round / 2 ** 32;
  }
}
