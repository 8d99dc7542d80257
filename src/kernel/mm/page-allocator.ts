/**
 * Pages of memory for the kernel: the contract of the allocator.
 * @module
 */

/** Where a page may come from. */
export interface AllocOptions {
  /** Preferred NUMA node; other nodes follow unless `thisNode`. Default 0. */
  readonly node?: number;
  /** Fail rather than take another node's memory. */
  readonly thisNode?: boolean;
  /** Fill with zeros. Default true: stale bytes must not look like entries. Guest memory too is zeroed. */
  readonly zero?: boolean;
}

/**
 * Allocates blocks of 2^order pages, aligned to their size, order 0 (4 KiB) to 18 (1 GiB). Every allocation
 * passes the fault point "mm:alloc".
 */
export interface PageAllocator {
  /**
   * @returns physical address of the block
   * @throws {KernelError} ENOMEM when no block of that order is free
   */
  alloc(order: number, options?: AllocOptions): number;
  /** Frees a block that `alloc` or {@link adopt} gave. Anything else is a bug. */
  free(pa: number, order: number): void;
  /** Takes over a block that was reserved at boot because the previous kernel preserved it; `free` may follow. */
  adopt(pa: number, order: number): void;
  /** Whether the block is allocated (or adopted) as one block of that order. */
  isAllocated(pa: number, order: number): boolean;
  /** Whether an address lies in a carve-out: memory that this allocator has no metadata for and never gives out. */
  isCarvedOut(pa: number): boolean;
  /** NUMA node of an address in RAM. */
  nodeOf(pa: number): number;
  /** Pages (4 KiB) by state, for one node or all; `reserved` were preserved and not adopted yet. */
  counts(node?: number): PageCounts;
}

export interface PageCounts {
  readonly total: number;
  readonly free: number;
  readonly allocated: number;
  readonly reserved: number;
}
