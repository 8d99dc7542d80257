/**
 * Write buffers between the processor's stores and a unit that reports CAP.RWBF.
 *
 * Why: on such hardware an entry that becomes present is not seen until software has flushed the buffers; a driver that
 * forgets to would work on every other unit.
 * Source: Intel VT-d specification rev 5.0 §6.8, §11.4.4 (GCMD.WBF), §11.4.6, §11.4.8 (invalidation commands flush too).
 * How: a page that the unit has read stays for it as it was then, until a flush. Buffers may drain by themselves at any time,
 * so a page that it has not read yet is as it is.
 * @module
 */
import { PAGE_SIZE } from "../../../base/units.ts";
import type { WalkMemory } from "./table-walk.ts";

export class WriteBuffer implements WalkMemory {
  readonly #memory: WalkMemory;
  /** By address: a page's words as they were when one of them was read first. */
  readonly #seen = new Map<number, Uint32Array>();

  constructor(memory: WalkMemory) {
    this.#memory = memory;
  }

  contains(pa: number, lengthBytes: number): boolean {
    return this.#memory.contains(pa, lengthBytes);
  }

  loadOrdered32(pa: number): number {
    const start = Math.floor(pa / PAGE_SIZE) * PAGE_SIZE;
    let words = this.#seen.get(start);
    if (words === undefined) {
      words = Uint32Array.from({ length: PAGE_SIZE / 4 }, (_, i) =>
        this.#memory.loadOrdered32(start + 4 * i),
      );
      this.#seen.set(start, words);
    }
    return words[(pa - start) / 4];
  }

  /** All stores up to now are seen from here on. */
  flush(): void {
    this.#seen.clear();
  }
}
