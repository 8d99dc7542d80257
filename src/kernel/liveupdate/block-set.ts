/**
 * A chain of preserved pages that holds the entries of one list for the next kernel.
 *
 * Why: pages are added when an entry is announced (a session created, a file preserved), long before it is
 * written at the freeze, so that a freeze cannot run out of memory. Entries are numbered; entry i is slot
 * i % capacity of block i / capacity, so no block but the last is ever partly filled and none is empty.
 * Source: Linux 7.3 kernel/liveupdate/kho_block.c
 * @module
 */
import {
  blockCapacity,
  blockEntryAddress,
  KHO_BLOCK_HEADER_SER,
  KHO_BLOCK_SIZE,
  KHO_MAX_BLOCKS,
} from "../../abi/kho-block.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { withUndo } from "../../base/undo.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { KexecHandover } from "../kho/handover.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";

/** What keeps pages through a kexec. */
export interface PreservedPages {
  readonly memory: PhysicalMemory;
  readonly mm: PageAllocator;
  readonly kho: KexecHandover;
  readonly faults: FaultInjector;
}

/**
 * Allocates one zeroed page that the next kernel will find.
 * @throws {KernelError} ENOMEM
 */
export function allocPreservedPage({ mm, kho }: PreservedPages): number {
  return withUndo((undo) => {
    const pa = mm.alloc(0);
    undo(() => mm.free(pa, 0));
    kho.preserve(pa, 0);
    return pa;
  });
}

/** Undoes {@link allocPreservedPage}. */
export function freePreservedPage({ mm, kho }: PreservedPages, pa: number): void {
  kho.unpreserve(pa, 0);
  mm.free(pa, 0);
}

export class BlockSet {
  readonly #pages: PreservedPages;
  readonly #entryBytes: number;
  readonly #capacity: number;
  readonly #blocks: number[] = [];

  /** @param entryBytes - size of one entry */
  constructor(pages: PreservedPages, entryBytes: number) {
    this.#pages = pages;
    this.#entryBytes = entryBytes;
    this.#capacity = blockCapacity(entryBytes);
  }

  /** Address of the first block, or 0. */
  get headPa(): number {
    return this.#blocks[0] ?? 0;
  }

  get blockCount(): number {
    return this.#blocks.length;
  }

  /**
   * Makes room for `count` entries. Each new block passes the fault point "luo.serialise:alloc".
   * @throws {KernelError} ENOSPC above 10,000 blocks; ENOMEM. The set is then as before.
   */
  grow(count: number): void {
    const before = this.#blocks.length;
    withUndo((undo) => {
      undo(() => this.#truncate(before));
      while (count > this.#blocks.length * this.#capacity) this.#addBlock();
    });
  }

  #addBlock(): void {
    const { memory, faults } = this.#pages;
    if (this.#blocks.length >= KHO_MAX_BLOCKS)
      throw new KernelError("ENOSPC", "liveupdate", `${KHO_MAX_BLOCKS} blocks are in use`);
    faults.point("luo.serialise:alloc");
    const pa = allocPreservedPage(this.#pages);
    const last = this.#blocks.at(-1);
    if (last !== undefined) memory.store64(last + KHO_BLOCK_HEADER_SER.offset.next, pa);
    this.#blocks.push(pa);
  }

  /** Gives up the blocks that `count` entries do not need. */
  shrink(count: number): void {
    this.#truncate(Math.ceil(count / this.#capacity));
  }

  #truncate(blocks: number): void {
    while (this.#blocks.length > blocks) {
      const pa = this.#blocks.pop()!;
      const last = this.#blocks.at(-1);
      if (last !== undefined)
        this.#pages.memory.store64(last + KHO_BLOCK_HEADER_SER.offset.next, 0);
      freePreservedPage(this.#pages, pa);
    }
  }

  /** Address of entry `index`, for which there must be room. */
  entryPa(index: number): number {
    const block = this.#blocks[Math.floor(index / this.#capacity)];
    assert(block !== undefined, `entry ${index} has no block`);
    return blockEntryAddress(block, this.#entryBytes, index % this.#capacity);
  }

  /** Says that the first `count` entries are written. */
  publish(count: number): void {
    for (let i = 0; i < this.#blocks.length; i++) {
      const here = Math.min(this.#capacity, Math.max(0, count - i * this.#capacity));
      this.#pages.memory.store64(this.#blocks[i] + KHO_BLOCK_HEADER_SER.offset.count, here);
    }
  }

  /** Forgets all entries; the blocks stay. */
  clear(): void {
    this.publish(0);
    const headerBytes = KHO_BLOCK_HEADER_SER.sizeBytes;
    for (const pa of this.#blocks)
      this.#pages.memory.fill(pa + headerBytes, KHO_BLOCK_SIZE - headerBytes, 0);
  }

  /** Gives up everything. */
  destroy(): void {
    this.#truncate(0);
  }
}
