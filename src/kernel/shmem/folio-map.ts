/**
 * Which memory backs each page of a file.
 *
 * Why: a guest's RAM of hundreds of GiB may be one file, so the map costs a word per 2 MiB where large pages back
 * it and a word per 4 KiB where small ones do, and no object per page.
 * Layout of a word: physical address of the piece | order of the folio that it belongs to, plus 1 (5 bits); 0
 * is a hole. A folio is a block of the allocator: 2^order pages, aligned in memory and in the file.
 * Source: the idea of Linux's page cache (include/linux/pagemap.h)
 * @module
 */
import { assert } from "../../base/assert.ts";
import { alignDown, MAX_ORDER, PAGE_SIZE } from "../../base/units.ts";

/** Order of a region: 2 MiB. */
const REGION_ORDER = 9;
const REGION_PAGES = 2 ** REGION_ORDER;
const REGION_BYTES = PAGE_SIZE * REGION_PAGES;

export class FolioMap {
  /** By number of the 2 MiB region: one word where a folio of at least that size backs it, or a word per page. */
  readonly #regions = new Map<number, number | Float64Array>();
  #pages = 0;

  /** Pages that are backed. */
  get pageCount(): number {
    return this.#pages;
  }

  #word(index: number): number {
    const region = this.#regions.get(Math.floor(index / REGION_PAGES));
    if (region === undefined) return 0;
    return typeof region === "number" ? region : region[index % REGION_PAGES];
  }

  /** Order of the folio that backs page `index`, or -1 for a hole. */
  orderAt(index: number): number {
    return (this.#word(index) % PAGE_SIZE) - 1;
  }

  /** Physical address of page `index`, or -1 for a hole. */
  addressAt(index: number): number {
    const word = this.#word(index);
    if (word === 0) return -1;
    const order = (word % PAGE_SIZE) - 1;
    const pa = alignDown(word, PAGE_SIZE);
    return order < REGION_ORDER ? pa : pa + (index % REGION_PAGES) * PAGE_SIZE;
  }

  /** Backs pages from `index` on with a folio; nothing may be there, and `index` is a multiple of its pages. */
  insert(index: number, pa: number, order: number): void {
    const pages = 2 ** order;
    assert(order >= 0 && order <= MAX_ORDER && index % pages === 0, "a folio is aligned");
    if (order >= REGION_ORDER) {
      for (let i = 0; i < pages / REGION_PAGES; i++) {
        const region = index / REGION_PAGES + i;
        assert(!this.#regions.has(region), "a folio goes into a hole");
        this.#regions.set(region, pa + i * REGION_BYTES + order + 1);
      }
    } else {
      const number = Math.floor(index / REGION_PAGES);
      let region = this.#regions.get(number);
      if (region === undefined) {
        region = new Float64Array(REGION_PAGES);
        this.#regions.set(number, region);
      }
      assert(typeof region !== "number", "a folio goes into a hole");
      for (let i = 0; i < pages; i++) {
        assert(region[(index % REGION_PAGES) + i] === 0, "a folio goes into a hole");
        region[(index % REGION_PAGES) + i] = pa + i * PAGE_SIZE + order + 1;
      }
    }
    this.#pages += pages;
  }

  /** Makes a hole where the folio that starts at page `index` is. */
  remove(index: number): void {
    const order = this.orderAt(index);
    const pages = 2 ** order;
    assert(order >= 0 && index % pages === 0, "a folio is removed by its first page");
    if (order >= REGION_ORDER) {
      for (let i = 0; i < pages / REGION_PAGES; i++) this.#regions.delete(index / REGION_PAGES + i);
    } else {
      const number = Math.floor(index / REGION_PAGES);
      const region = this.#regions.get(number) as Float64Array;
      region.fill(0, index % REGION_PAGES, (index % REGION_PAGES) + pages);
      if (region.every((word) => word === 0)) this.#regions.delete(number);
    }
    this.#pages -= pages;
  }

  /** Whether the 2 MiB around page `index` have no folio at all. */
  isRegionEmpty(index: number): boolean {
    return !this.#regions.has(Math.floor(index / REGION_PAGES));
  }

  /**
   * Calls `visit` with the first page of each folio that has a page in `first` .. `end` - 1, in file order. The
   * visitor may remove that folio. Costs what is backed, not what the range spans.
   */
  forEach(first: number, end: number, visit: (index: number, pa: number, order: number) => void) {
    if (end <= first) return;
    const firstRegion = Math.floor(first / REGION_PAGES);
    const endRegion = Math.ceil(end / REGION_PAGES);
    let last = -1;
    const visitRegion = (number: number): void => {
      const start = Math.max(first, number * REGION_PAGES);
      const stop = Math.min(end, (number + 1) * REGION_PAGES);
      for (let index = start; index < stop; ) {
        const order = this.orderAt(index);
        if (order < 0) {
          index++;
          continue;
        }
        const head = alignDown(index, 2 ** order);
        // A folio of more than one region is met again in each.
        if (head !== last) {
          const pa = this.addressAt(index) - (index - head) * PAGE_SIZE;
          last = head;
          visit(head, pa, order);
        }
        index = head + 2 ** order;
      }
    };
    if (endRegion - firstRegion <= this.#regions.size) {
      for (let number = firstRegion; number < endRegion; number++)
        if (this.#regions.has(number)) visitRegion(number);
    } else {
      const numbers = [...this.#regions.keys()].filter((n) => n >= firstRegion && n < endRegion);
      numbers.sort((a, b) => a - b);
      for (const number of numbers) visitRegion(number);
    }
  }
}
