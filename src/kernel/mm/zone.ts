/**
 * One contiguous piece of one node's memory, as blocks that split and merge.
 *
 * Why bitmaps and a byte per page instead of a struct page: a zone of 1 TiB starts with a few words touched,
 * and costs about 1.3 bytes for each page that is in use as a single one.
 * Policy: the smallest free block that is large enough, the lowest of these. So small allocations fill the gaps of
 * others before they break up a large block: 1 GiB pages stay whole, and pages that are handed over one by
 * one lie in few 128 MiB regions (each costs a leaf of KHO's tree).
 * Source: the binary buddy system (Knowlton, 1965), as Linux's mm/page_alloc.c.
 * Invariants: a free block's buddy is not free; a head byte is 0 where no block starts; every page is in
 * exactly one of: a free block, an allocated one, a reserved one.
 * @module
 */
import { assert, BugError } from "../../base/assert.ts";
import { alignDown, hex, MAX_ORDER, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import { BlockHeads } from "./block-heads.ts";
import { FreeBitmap } from "./free-bitmap.ts";

/** Head byte of an allocated block of order n: n + 1. */
const ALLOCATED = 1;
/** Head byte of a block that the previous kernel preserved and nobody has adopted: this + order. */
const RESERVED = 0x40;

/** At most 1 TiB of one node, page aligned. Page indices then fit in small integers. */
export class Zone {
  readonly node: number;
  readonly start: number;
  readonly end: number;
  /** The largest order that a block of this zone can have. */
  readonly maxOrder: number;
  readonly #base: number;
  readonly #heads: BlockHeads;
  readonly #free: FreeBitmap[] = [];
  #freePages = 0;
  #reservedPages = 0;

  /** A zone without any free page; {@link addFree} and {@link addReserved} fill it. */
  constructor(node: number, start: number, end: number) {
    this.node = node;
    this.start = start;
    this.end = end;
    const pages = (end - start) / PAGE_SIZE;
    this.maxOrder = Math.min(MAX_ORDER, 31 - Math.clz32(pages));
    // Aligned no further than any block can be: a small zone must not pay for 1 GiB of head bytes.
    this.#base = alignDown(start, orderBytes(this.maxOrder));
    const span = (end - this.#base) / PAGE_SIZE;
    this.#heads = new BlockHeads(span);
    for (let order = 0; order <= this.maxOrder; order++)
      this.#free.push(new FreeBitmap(Math.ceil(span / 2 ** order)));
  }

  get totalPages(): number {
    return (this.end - this.start) / PAGE_SIZE;
  }
  get freePages(): number {
    return this.#freePages;
  }
  get reservedPages(): number {
    return this.#reservedPages;
  }
  /** Bytes of bookkeeping when every page of it is touched. */
  get metadataBytes(): number {
    return this.#free.reduce((sum, map) => sum + map.metadataBytes, this.#heads.metadataBytes);
  }

  /** Makes `start` .. `end` free: at boot, for memory of which nothing is known yet. */
  addFree(start: number, end: number): void {
    let page = this.#page(start);
    const last = (end - this.#base) / PAGE_SIZE;
    this.#freePages += last - page;
    while (page < last) {
      const aligned = page === 0 ? MAX_ORDER : 31 - Math.clz32(page & -page);
      const order = Math.min(aligned, 31 - Math.clz32(last - page), this.maxOrder);
      this.#free[order].add(page >>> order);
      page += 1 << order;
    }
  }

  /** Notes a block that the previous kernel preserved: at boot. */
  addReserved(pa: number, order: number): void {
    this.#heads.set(this.#page(pa), order, RESERVED + order);
    this.#reservedPages += 1 << order;
  }

  /** The order of the block that {@link alloc} would take or split, or -1 when none is large enough. */
  bestOrder(order: number): number {
    for (let o = order; o <= this.maxOrder; o++) if (this.#free[o].size > 0) return o;
    return -1;
  }

  /** Allocates a block; {@link bestOrder} has said that there is one. */
  alloc(order: number): number {
    let from = this.bestOrder(order);
    assert(from >= 0, "a zone is asked for what it has");
    let block = this.#free[from].first();
    this.#free[from].delete(block);
    while (from > order) {
      from--;
      block *= 2;
      this.#free[from].add(block + 1);
    }
    const page = block << order;
    this.#heads.set(page, order, ALLOCATED + order);
    this.#freePages -= 1 << order;
    return this.#base + page * PAGE_SIZE;
  }

  /** @throws {BugError} when `pa` is not the start of an allocated block of that order */
  free(pa: number, order: number): void {
    const page = this.#page(pa);
    if (this.#heads.get(page) !== ALLOCATED + order)
      throw new BugError(
        `free of ${hex(pa)} with order ${order}: ${describeHead(this.#heads.get(page))}`,
      );
    this.#heads.set(page, order, 0);
    this.#freePages += 1 << order;
    let block = page >>> order;
    let o = order;
    while (o < this.maxOrder && this.#free[o].has(block ^ 1)) {
      this.#free[o].delete(block ^ 1);
      block >>>= 1;
      o++;
    }
    this.#free[o].add(block);
  }

  /** @throws {BugError} when `pa` is not the start of a reserved block of that order */
  adopt(pa: number, order: number): void {
    const page = this.#page(pa);
    if (this.#heads.get(page) !== RESERVED + order)
      throw new BugError(
        `adopt of ${hex(pa)} with order ${order}: ${describeHead(this.#heads.get(page))}`,
      );
    this.#heads.set(page, order, ALLOCATED + order);
    this.#reservedPages -= 1 << order;
  }

  isAllocated(pa: number, order: number): boolean {
    return this.#heads.get(this.#page(pa)) === ALLOCATED + order;
  }

  #page(pa: number): number {
    return (pa - this.#base) / PAGE_SIZE;
  }
}

function describeHead(head: number): string {
  if (head === 0) return "no block starts there";
  if (head >= RESERVED) return `a reserved block of order ${head - RESERVED}`;
  return `an allocated block of order ${head - ALLOCATED}`;
}
