/**
 * Where a store's pages come from. In both ways a page is preserved for the next kernel before it can be
 * referred to, and until nothing refers to it: so a panic keeps guest memory too.
 * @module
 */
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { withUndo } from "../../base/undo.ts";
import { orderBytes } from "../../base/units.ts";
import type { MemoryRange, PhysicalMemory } from "../../machine/machine.ts";
import type { KexecHandover } from "../kho/handover.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import { RangeAllocator } from "./range-allocator.ts";

export interface StorePages {
  /**
   * @returns address of a zeroed, preserved block
   * @throws {KernelError} ENOMEM, or ENOSPC in a carve-out
   */
  alloc(order: number): number;
  /** Nothing refers to the block any more. */
  free(pa: number, order: number): void;
  /** Most bytes that there can ever be, and how many are free now. */
  space(): { readonly totalBytes: number; readonly freeBytes: number };
}

/** Pages of the ordinary allocator, each preserved on its own. */
export class DynamicPages implements StorePages {
  readonly #mm: PageAllocator;
  readonly #kho: KexecHandover;
  readonly #node: number | null;

  /** @param node - take pages of this NUMA node only; null: of any */
  constructor(mm: PageAllocator, kho: KexecHandover, node: number | null) {
    this.#mm = mm;
    this.#kho = kho;
    this.#node = node;
  }

  alloc(order: number): number {
    return withUndo((undo) => {
      const where = this.#node === null ? {} : { node: this.#node, thisNode: true };
      const pa = this.#mm.alloc(order, where);
      undo(() => this.#mm.free(pa, order));
      this.#kho.preserve(pa, order);
      return pa;
    });
  }

  free(pa: number, order: number): void {
    this.#kho.unpreserve(pa, order);
    this.#mm.free(pa, order);
  }

  space(): { readonly totalBytes: number; readonly freeBytes: number } {
    const counts = this.#node === null ? this.#mm.counts() : this.#mm.counts(this.#node);
    return { totalBytes: orderBytes(0) * counts.total, freeBytes: orderBytes(0) * counts.free };
  }
}

/** Pages of a carve-out, which is preserved as a whole. */
export class CarveOutPages implements StorePages {
  readonly #memory: PhysicalMemory;
  readonly #range: MemoryRange;
  readonly #faults: FaultInjector;
  readonly #allocator: RangeAllocator;

  /** @param used - blocks in use, ascending */
  constructor(
    memory: PhysicalMemory,
    range: MemoryRange,
    faults: FaultInjector,
    used: readonly { pa: number; lengthBytes: number }[],
  ) {
    this.#memory = memory;
    this.#range = range;
    this.#faults = faults;
    this.#allocator = new RangeAllocator(range.start, range.start + range.lengthBytes, used);
  }

  alloc(order: number): number {
    this.#faults.point("memfs:alloc");
    const pa = this.#allocator.alloc(order);
    if (pa === null)
      throw new KernelError("ENOSPC", "memfs", `no free block of order ${order} in the carve-out`);
    this.#memory.fill(pa, orderBytes(order), 0);
    return pa;
  }

  free(pa: number, order: number): void {
    const { start, lengthBytes } = this.#range;
    assert(pa >= start && pa < start + lengthBytes, "the block is of this carve-out");
    this.#allocator.free(pa, order);
  }

  space(): { readonly totalBytes: number; readonly freeBytes: number } {
    return { totalBytes: this.#range.lengthBytes, freeBytes: this.#allocator.freeBytes };
  }
}
