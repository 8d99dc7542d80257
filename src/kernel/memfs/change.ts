/**
 * One change of a store: prepared where no reader looks, committed by one store, then cleaned up.
 *
 * Why: every operation, however many words it touches, is this one sequence; so the argument that a stop at any
 * store leaves the tree as it was or as it shall be is made once, here (src/abi/memfs.ts says how a reader decides).
 * Lifecycle: 1. prepare: slots and blocks are taken, new extents written as ADDING. May fail: `abandon`.
 *   2. `commit`: old extents marked REMOVING, the log written, then `commit` stored. Cannot fail.
 *   3. still in `commit`: the log copied to its places, memory freed, states settled, `commit` back to 0.
 * Invariants: memory that goes is freed only after the commit; memory that comes is preserved before a slot names it;
 *   a slot stays REMOVING until its memory is free, so that a later kernel finds what was not freed yet.
 * @module
 */
import {
  MEMFS_EXTENT,
  MEMFS_EXTENT_ADDING,
  MEMFS_EXTENT_FREE,
  MEMFS_EXTENT_LIVE,
  MEMFS_EXTENT_REMOVING,
  MEMFS_LOG_ENTRIES,
  MEMFS_LOG_ENTRY,
  MEMFS_LOG_EXTENTS,
  MEMFS_LOG_INODES,
  MEMFS_LOG_OFFSET,
  MEMFS_SUPERBLOCK,
} from "../../abi/memfs.ts";
import { ByteWords } from "../../abi/words.ts";
import { assert } from "../../base/assert.ts";
import { withUndo } from "../../base/undo.ts";
import { orderBytes } from "../../base/units.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { BlockChain } from "./block-chain.ts";
import type { StorePages } from "./store-pages.ts";

/** A run of blocks of a file. Immutable once committed; a cut leaves others in its place. */
export interface Extent {
  /** Extent number in the store's table. */
  readonly number: number;
  readonly offset: number;
  readonly pa: number;
  readonly order: number;
  count: number;
}

/** Bytes of an extent. */
export function extentBytes(extent: Extent): number {
  return extent.count * orderBytes(extent.order);
}

/** What a change works on. */
export interface ChangeTarget {
  readonly memory: PhysicalMemory;
  readonly superblockPa: number;
  readonly pages: StorePages;
  readonly inodes: BlockChain;
  readonly extents: BlockChain;
}

interface LogEntry {
  readonly table: typeof MEMFS_LOG_INODES | typeof MEMFS_LOG_EXTENTS;
  readonly number: number;
  readonly word: number;
  readonly low: number;
  readonly high: number;
}

interface Blocks {
  readonly pa: number;
  readonly order: number;
  readonly count: number;
}

export class Change {
  readonly #target: ChangeTarget;
  readonly #log: LogEntry[] = [];
  readonly #takenInodes: number[] = [];
  readonly #freedInodes: number[] = [];
  readonly #adding: Extent[] = [];
  /** Those of `#adding` that a cut leaves behind: their memory is not new. */
  readonly #remainders = new Set<Extent>();
  readonly #removing: Extent[] = [];
  /** Blocks that no extent names once the change is committed. */
  readonly #freed: Blocks[] = [];

  constructor(target: ChangeTarget) {
    this.#target = target;
  }

  /** Takes an inode slot. @throws {KernelError} ENOMEM, ENOSPC */
  allocInode(): number {
    const number = this.#target.inodes.allocSlot();
    this.#takenInodes.push(number);
    return number;
  }

  /** Frees an inode slot with the commit. */
  freeInode(number: number): void {
    // Its first word holds `kind`; FREE is 0.
    this.#put(MEMFS_LOG_INODES, number, 0, 0, 0);
    this.#freedInodes.push(number);
  }

  /** Writes a whole inode slot with the commit; words that are so already are left out. */
  setInode(number: number, bytes: Uint8Array): void {
    const pa = this.#target.inodes.slotPa(number);
    const words = new ByteWords(bytes);
    for (let word = 0; word < bytes.length / 8; word++) {
      const low = words.load32(8 * word);
      const high = words.load32(8 * word + 4);
      const { memory } = this.#target;
      if (memory.load32(pa + 8 * word) === low && memory.load32(pa + 8 * word + 4) === high)
        continue;
      this.#put(MEMFS_LOG_INODES, number, word, low, high);
    }
  }

  /**
   * Takes a block and adds it to a file: to the last extent added, where it continues that one, else as a new one.
   * @throws {KernelError} ENOMEM, ENOSPC
   */
  addBlock(ino: number, offset: number, order: number): void {
    const { memory, extents, pages } = this.#target;
    withUndo((undo) => {
      const pa = pages.alloc(order);
      undo(() => pages.free(pa, order));
      const last = this.#adding.at(-1);
      const bytes = last === undefined ? 0 : extentBytes(last);
      if (last?.order === order && last.offset + bytes === offset && last.pa + bytes === pa) {
        last.count++;
        memory.store32(extents.slotPa(last.number) + MEMFS_EXTENT.offset.count, last.count);
      } else this.#addExtent(ino, { offset, pa, order, count: 1 });
    });
  }

  /** Takes an extent away from its file, and frees its memory after the commit. */
  removeExtent(extent: Extent): void {
    this.#removing.push(extent);
    this.#freed.push(extent);
  }

  /**
   * Takes blocks `from` .. `end` - 1 out of an extent, not all of them; their memory is freed after the commit.
   * @returns what is left of it: one extent, or two around a gap
   * @throws {KernelError} ENOMEM, ENOSPC when a gap in the middle needs a slot
   */
  cutExtent(ino: number, extent: Extent, from: number, end: number): Extent[] {
    const bytes = orderBytes(extent.order);
    const { number, offset, pa, order, count } = extent;
    assert(0 <= from && from < end && end <= count && end - from < count, "a part is cut out");
    const tail = { offset: offset + end * bytes, pa: pa + end * bytes, order, count: count - end };
    const left: Extent[] = [];
    if (from === 0) {
      this.#putWord(extent, MEMFS_EXTENT.offset.offset, tail.offset);
      this.#putWord(extent, MEMFS_EXTENT.offset.pa, tail.pa);
      this.#putCount(extent, tail.count);
      left.push({ number, ...tail });
    } else {
      if (end < count) {
        const remainder = this.#addExtent(ino, tail);
        this.#remainders.add(remainder);
        left.push(remainder);
      }
      this.#putCount(extent, from);
      left.unshift({ ...extent, count: from });
    }
    this.#freed.push({ pa: pa + from * bytes, order, count: end - from });
    return left;
  }

  /** Extents that the commit adds, in the order of adding. */
  get added(): readonly Extent[] {
    return this.#adding;
  }

  /** Bytes that the commit frees. */
  get freedBytes(): number {
    return this.#freed.reduce((sum, b) => sum + b.count * orderBytes(b.order), 0);
  }

  /** Undoes the preparation. */
  abandon(): void {
    const { memory, extents, inodes, pages } = this.#target;
    for (const extent of this.#adding) {
      const pa = extents.slotPa(extent.number);
      memory.store32(pa + MEMFS_EXTENT.offset.state, MEMFS_EXTENT_FREE);
      extents.freeSlot(extent.number);
    }
    memory.fence();
    for (const extent of this.#adding) if (!this.#remainders.has(extent)) freeBlocks(pages, extent);
    for (const number of this.#takenInodes) inodes.freeSlot(number);
    inodes.releaseEmpty();
    extents.releaseEmpty();
  }

  /** Makes the change real. Nothing in it can fail. */
  commit(): void {
    const { memory, superblockPa, inodes, extents, pages } = this.#target;
    const state = (extent: Extent) => extents.slotPa(extent.number) + MEMFS_EXTENT.offset.state;
    for (const extent of this.#removing) memory.store32(state(extent), MEMFS_EXTENT_REMOVING);
    for (let i = 0; i < this.#log.length; i++)
      MEMFS_LOG_ENTRY.write(
        memory,
        superblockPa + MEMFS_LOG_OFFSET + i * MEMFS_LOG_ENTRY.sizeBytes,
        this.#log[i],
      );
    // Everything that `commit` gives a meaning to is there before it.
    memory.fence();
    memory.store32(superblockPa + MEMFS_SUPERBLOCK.offset.commit, 1 + this.#log.length);
    memory.fence();

    for (const { table, number, word, low, high } of this.#log) {
      const chain = table === MEMFS_LOG_INODES ? inodes : extents;
      const pa = chain.slotPa(number) + 8 * word;
      memory.store32(pa, low);
      memory.store32(pa + 4, high);
    }
    for (const blocks of this.#freed) freeBlocks(pages, blocks);
    for (const extent of this.#adding) memory.store32(state(extent), MEMFS_EXTENT_LIVE);
    for (const extent of this.#removing) memory.store32(state(extent), MEMFS_EXTENT_FREE);
    // The words are in their places before the log loses its meaning.
    memory.fence();
    memory.store32(superblockPa + MEMFS_SUPERBLOCK.offset.commit, 0);
    memory.fence();

    for (const number of this.#freedInodes) inodes.freeSlot(number);
    for (const extent of this.#removing) extents.freeSlot(extent.number);
    inodes.releaseEmpty();
    extents.releaseEmpty();
  }

  #addExtent(ino: number, run: Omit<Extent, "number">): Extent {
    const { memory, extents } = this.#target;
    const number = extents.allocSlot();
    const pa = extents.slotPa(number);
    const { offset, order, count } = run;
    // The state last: what it names is there when a reader looks at the rest.
    MEMFS_EXTENT.write(memory, pa, {
      state: MEMFS_EXTENT_FREE,
      ino,
      offset,
      pa: run.pa,
      order,
      count,
    });
    memory.fence();
    memory.store32(pa + MEMFS_EXTENT.offset.state, MEMFS_EXTENT_ADDING);
    const extent = { number, ...run };
    this.#adding.push(extent);
    return extent;
  }

  #putWord(extent: Extent, offset: number, value: number): void {
    const low = value % 2 ** 32;
    this.#put(MEMFS_LOG_EXTENTS, extent.number, offset / 8, low, (value - low) / 2 ** 32);
  }

  /** `order` and `count` share a word. */
  #putCount(extent: Extent, count: number): void {
    const word = MEMFS_EXTENT.offset.order / 8;
    this.#put(MEMFS_LOG_EXTENTS, extent.number, word, extent.order, count);
  }

  #put(table: LogEntry["table"], number: number, word: number, low: number, high: number): void {
    assert(this.#log.length < MEMFS_LOG_ENTRIES, "a change fits the log");
    this.#log.push({ table, number, word, low, high });
  }
}

/** The last block first: what a stop leaves of a run is its beginning, which a later kernel can find. */
function freeBlocks(pages: StorePages, { pa, order, count }: Blocks): void {
  for (let i = count - 1; i >= 0; i--) pages.free(pa + i * orderBytes(order), order);
}
