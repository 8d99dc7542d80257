/**
 * A byte for each page of a zone: what starts there.
 *
 * Why not one array: a zone of 1 TiB has 2^28 pages, nearly all of them inside large blocks. So blocks of 2 MiB and more
 * have a byte for each 2 MiB, and smaller ones are in chunks made when first used; a zone costs what is in it.
 * Invariant: at most one block starts at a page.
 * @module
 */

/** Blocks from this order on: 2 MiB. */
const LARGE_ORDER = 9;
/** 32 KiB of small heads: 128 MiB of memory. */
const CHUNK_LG2 = 15;
const CHUNK_PAGES = 2 ** CHUNK_LG2;

/** Head bytes of pages 0 .. `pageCount` - 1; all 0 at first. */
export class BlockHeads {
  readonly #pageCount: number;
  readonly #large: Uint8Array;
  readonly #small: (Uint8Array | undefined)[];

  constructor(pageCount: number) {
    this.#pageCount = pageCount;
    this.#large = new Uint8Array(Math.ceil(pageCount / 2 ** LARGE_ORDER));
    this.#small = new Array(Math.ceil(pageCount / CHUNK_PAGES));
  }

  /** Bytes when all of it is touched. */
  get metadataBytes(): number {
    return this.#pageCount + this.#large.length;
  }

  /** What starts at a page; 0: nothing. */
  get(page: number): number {
    const chunk = this.#small[page >>> CHUNK_LG2];
    const small = chunk === undefined ? 0 : chunk[page & (CHUNK_PAGES - 1)];
    if (small !== 0 || (page & (2 ** LARGE_ORDER - 1)) !== 0) return small;
    return this.#large[page >>> LARGE_ORDER];
  }

  /** Notes what starts at a page, as a block of that order; 0: nothing any more. */
  set(page: number, order: number, head: number): void {
    if (order >= LARGE_ORDER) {
      this.#large[page >>> LARGE_ORDER] = head;
      return;
    }
    const index = page >>> CHUNK_LG2;
    this.#small[index] ??= new Uint8Array(
      Math.min(CHUNK_PAGES, this.#pageCount - index * CHUNK_PAGES),
    );
    this.#small[index][page & (CHUNK_PAGES - 1)] = head;
  }
}
