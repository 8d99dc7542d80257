/**
 * Watches every write of hardware to memory, translated or not: each must land in a guest's file, in a reserved memory
 * region, or in the status word of an invalidation queue.
 *
 * Why judged late: a device may write into a new file while another file is being made, when memfs cannot be read. What
 * lands outside the memory that was allowed last is kept, and judged at the next `allow`. So memory that is freed
 * must be told of at once (`Moment.check`), or writes to it pass until the next point.
 * @module
 */
import { alignDown, hex, PAGE_SIZE } from "../../src/base/units.ts";
import type { MemoryRange } from "../../src/machine/machine.ts";

export class DeviceWrites {
  /** Writes outside of what was allowed, at most 10. */
  readonly stray: string[] = [];
  /** All so far. */
  count = 0;
  /** Pages written since {@link mark}. */
  readonly #written = new Set<number>();
  readonly #allowed: Uint8Array;
  readonly #unjudged = new Map<number, string>();
  #where = "power on";

  /** @param ramEnd - first address after all RAM */
  constructor(ramEnd: number) {
    this.#allowed = new Uint8Array(ramEnd / PAGE_SIZE);
  }

  /** For the machine: hardware is about to write. */
  observe(pa: number, lengthBytes: number): void {
    this.count++;
    const last = alignDown(pa + lengthBytes - 1, PAGE_SIZE);
    for (let page = alignDown(pa, PAGE_SIZE); page <= last; page += PAGE_SIZE) {
      this.#written.add(page);
      if (this.#allowed[page / PAGE_SIZE] === 0 && !this.#unjudged.has(page))
        this.#unjudged.set(page, `${lengthBytes} bytes at ${hex(pa)} after "${this.#where}"`);
    }
  }

  /**
   * Hardware may write here and nowhere else, from now on; and so it was since the last call.
   * @param where - name of this point, for messages
   */
  allow(ranges: readonly MemoryRange[], where: string): void {
    this.#allowed.fill(0);
    for (const { start, lengthBytes } of ranges)
      this.#allowed.fill(
        1,
        Math.floor(start / PAGE_SIZE),
        Math.ceil((start + lengthBytes) / PAGE_SIZE),
      );
    for (const [page, what] of this.#unjudged)
      if (this.#allowed[page / PAGE_SIZE] === 0 && this.stray.length < 10) this.stray.push(what);
    this.#unjudged.clear();
    this.#where = where;
  }

  /** Forgets which pages were written. */
  mark(): void {
    this.#written.clear();
  }

  /** Whether hardware has written to a page since {@link mark}. */
  isWritten(page: number): boolean {
    return this.#written.has(page);
  }
}
