/**
 * Memory before there is a page allocator: ranges from which boot takes pieces for good.
 *
 * Why: where scratch goes must be decided before the page allocator can be made, on a cold boot. After a kexec scratch is
 * inherited, and nothing is stored anywhere until the handover is found good.
 * Source: the idea of Linux's mm/memblock.c.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import { alignUp, formatBytes } from "../../base/units.ts";
import type { FirmwareMemory, MemoryRange } from "../../machine/machine.ts";

/** Where {@link Memblock.alloc} may take memory from. */
export interface MemblockOptions {
  /** One node only. Default any. */
  readonly node?: number;
  /** Exclusive upper limit of the address. Default none. */
  readonly end?: number;
}

interface FreeRange {
  start: number;
  end: number;
  readonly node: number;
}

export class Memblock {
  /** Sorted by address. */
  #free: FreeRange[];

  constructor(memory: readonly FirmwareMemory[]) {
    this.#free = memory
      .map(({ start, lengthBytes, node }) => ({ start, end: start + lengthBytes, node }))
      .filter(({ start, end }) => start < end)
      .sort((a, b) => a.start - b.start);
  }

  /** Takes a range out, whatever of it is free. */
  reserve({ start, lengthBytes }: MemoryRange): void {
    const end = start + lengthBytes;
    const rest: FreeRange[] = [];
    for (const range of this.#free) {
      if (range.start < Math.min(start, range.end))
        rest.push({ start: range.start, end: Math.min(start, range.end), node: range.node });
      if (Math.max(end, range.start) < range.end)
        rest.push({ start: Math.max(end, range.start), end: range.end, node: range.node });
    }
    this.#free = rest;
  }

  /**
   * Takes the lowest free range of that size.
   *
   * @param alignment - in bytes
   * @throws {KernelError} ENOMEM
   */
  alloc(lengthBytes: number, alignment: number, options: MemblockOptions = {}): number {
    const limit = options.end ?? Number.POSITIVE_INFINITY;
    for (const range of this.#free) {
      if (options.node !== undefined && range.node !== options.node) continue;
      const start = alignUp(range.start, alignment);
      if (start + lengthBytes > Math.min(range.end, limit)) continue;
      this.reserve({ start, lengthBytes });
      return start;
    }
    throw new KernelError("ENOMEM", "memblock", `no ${formatBytes(lengthBytes)} at boot`);
  }

  /** Free bytes, of one node or all. */
  freeBytes(node?: number): number {
    return this.#free.reduce(
      (sum, range) =>
        node === undefined || range.node === node ? sum + range.end - range.start : sum,
      0,
    );
  }
}
