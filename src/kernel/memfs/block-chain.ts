/**
 * A table of slots in a chain of 4 KiB blocks: the inode table or the extent table of a store.
 *
 * Which slots are in use is known in kernel heap only; in memory that is what the slots themselves say. A block
 * without used slots changes nothing for a reader, so blocks come and go outside of any commit, each by one
 * atomic store of the link before it.
 * @module
 */
import { MEMFS_BLOCK, type MemfsTable } from "../../abi/memfs.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { StorePages } from "./store-pages.ts";

/** A block and its used slots, as found in memory. */
export interface FoundBlock {
  readonly index: number;
  readonly pa: number;
  /** Slots within the block, 1 .. slotsEnd - 1. */
  readonly usedSlots: readonly number[];
}

interface Block {
  readonly index: number;
  readonly pa: number;
  /** By slot; slot 0 is the header and counts as used here only. */
  readonly used: Uint8Array;
  usedCount: number;
}

export class BlockChain {
  readonly #memory: PhysicalMemory;
  readonly #pages: StorePages;
  readonly #table: MemfsTable;
  readonly #headPa: number;
  /** In the order of the chain, which is that of `index`. */
  readonly #blocks: Block[];
  readonly #byIndex = new Map<number, Block>();
  readonly #maybeEmpty = new Set<Block>();
  /** No block before this position has a free slot. */
  #searchFrom = 0;

  /**
   * @param headPa - where the address of the first block stands
   * @param found - the blocks that are there already, in the chain's order
   */
  constructor(
    memory: PhysicalMemory,
    pages: StorePages,
    table: MemfsTable,
    headPa: number,
    found: readonly FoundBlock[],
  ) {
    this.#memory = memory;
    this.#pages = pages;
    this.#table = table;
    this.#headPa = headPa;
    this.#blocks = found.map(({ index, pa, usedSlots }) => {
      const block = this.#newBlock(index, pa);
      for (const slot of usedSlots) block.used[slot] = 1;
      block.usedCount = usedSlots.length;
      if (block.usedCount === 0) this.#maybeEmpty.add(block);
      return block;
    });
  }

  get blockCount(): number {
    return this.#blocks.length;
  }

  /** Addresses of all blocks. */
  blockAddresses(): number[] {
    return this.#blocks.map((b) => b.pa);
  }

  /** Address of a slot that is in use. */
  slotPa(number: number): number {
    const { slotsEnd, slotBytes } = this.#table;
    const block = this.#byIndex.get(Math.floor(number / slotsEnd));
    assert(block !== undefined && block.used[number % slotsEnd] === 1, `slot ${number} is in use`);
    return block.pa + (number % slotsEnd) * slotBytes;
  }

  /**
   * Takes the lowest free slot; what it holds is whatever was left in it, but FREE.
   * @returns its number
   * @throws {KernelError} ENOMEM or ENOSPC when a block is needed and cannot be had
   */
  allocSlot(): number {
    const { slotsEnd } = this.#table;
    while (
      this.#searchFrom < this.#blocks.length &&
      this.#blocks[this.#searchFrom].usedCount === slotsEnd - 1
    )
      this.#searchFrom++;
    const block =
      this.#searchFrom < this.#blocks.length ? this.#blocks[this.#searchFrom] : this.#addBlock();
    const slot = block.used.indexOf(0);
    block.used[slot] = 1;
    block.usedCount++;
    return block.index * slotsEnd + slot;
  }

  /** Gives a slot back, of which memory says already that it is FREE. Its block stays until `releaseEmpty`. */
  freeSlot(number: number): void {
    const { slotsEnd } = this.#table;
    const block = this.#byIndex.get(Math.floor(number / slotsEnd));
    const slot = number % slotsEnd;
    assert(slot !== 0 && block?.used[slot] === 1, `slot ${number} is in use`);
    block.used[slot] = 0;
    if (--block.usedCount === 0) this.#maybeEmpty.add(block);
    this.#searchFrom = Math.min(this.#searchFrom, this.#position(block.index));
  }

  /** Unlinks and frees the blocks of which no slot is in use. */
  releaseEmpty(): void {
    for (const block of this.#maybeEmpty) {
      this.#maybeEmpty.delete(block);
      if (block.usedCount !== 0) continue;
      const at = this.#position(block.index);
      this.#link(at, at + 1 < this.#blocks.length ? this.#blocks[at + 1].pa : 0);
      this.#blocks.splice(at, 1);
      this.#byIndex.delete(block.index);
      this.#searchFrom = Math.min(this.#searchFrom, at);
      this.#pages.free(block.pa, 0);
    }
  }

  #addBlock(): Block {
    // The lowest index that is missing: blocks are ascending, so the first that differs from its position.
    let at = 0;
    for (let end = this.#blocks.length; at < end; ) {
      const middle = (at + end) >>> 1;
      if (this.#blocks[middle].index === middle) at = middle + 1;
      else end = middle;
    }
    if (at === this.#table.indexEnd)
      throw new KernelError("ENOSPC", "memfs", `all ${at} blocks of a table are in use`);
    const pa = this.#pages.alloc(0);
    const next = at < this.#blocks.length ? this.#blocks[at].pa : 0;
    MEMFS_BLOCK.write(this.#memory, pa, { magic: this.#table.magic, index: at, next });
    // The block is whole before it can be found.
    this.#memory.fence();
    this.#link(at, pa);
    const block = this.#newBlock(at, pa);
    this.#blocks.splice(at, 0, block);
    this.#searchFrom = at;
    return block;
  }

  #newBlock(index: number, pa: number): Block {
    const used = new Uint8Array(this.#table.slotsEnd);
    used[0] = 1;
    const block = { index, pa, used, usedCount: 0 };
    this.#byIndex.set(index, block);
    return block;
  }

  /** Lets the link before position `at` point to `pa`, in one atomic store. */
  #link(at: number, pa: number): void {
    const from = at === 0 ? this.#headPa : this.#blocks[at - 1].pa + MEMFS_BLOCK.offset.next;
    this.#memory.exchange64(from, pa % 2 ** 32, Math.floor(pa / 2 ** 32));
  }

  #position(index: number): number {
    let at = 0;
    for (let end = this.#blocks.length; at < end; ) {
      const middle = (at + end) >>> 1;
      if (this.#blocks[middle].index < index) at = middle + 1;
      else end = middle;
    }
    return at;
  }
}
