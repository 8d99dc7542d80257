/**
 * Takes a checked store over from the previous kernel.
 *
 * Lifecycle: 1. every block is restored and preserved anew, so that the next kernel gets it too; what an unfinished
 *   change left behind is freed. 2. the unfinished change is settled in memory. 3. the store is built in heap.
 * A stop in the middle of 2 does no harm: what is settled twice is the same.
 * @module
 */
import {
  MEMFS_EXTENT,
  MEMFS_EXTENT_TABLE,
  MEMFS_INODE_TABLE,
  MEMFS_NO_NODE,
  MEMFS_SUPERBLOCK,
} from "../../abi/memfs.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { orderBytes } from "../../base/units.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { KexecHandover } from "../kho/handover.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import { BlockChain } from "./block-chain.ts";
import { carveOutBlocks } from "./carve-out.ts";
import type { BlockRun } from "./claimed-memory.ts";
import type { DecodedStore } from "./decode.ts";
import { Store } from "./store.ts";
import { CarveOutPages, DynamicPages } from "./store-pages.ts";

/** What stores are built on. */
export interface MemfsServices {
  readonly memory: PhysicalMemory;
  readonly mm: PageAllocator;
  readonly kho: KexecHandover;
  readonly faults: FaultInjector;
}

/** @throws {KernelError} ENOMEM when the blocks cannot be preserved anew; the kernel cannot go on then */
export function adoptStore(services: MemfsServices, decoded: DecodedStore): Store {
  const { memory, mm, kho, faults } = services;
  const { superblock, superblockPa, carveOut } = decoded;
  const kept: readonly BlockRun[] =
    carveOut === null
      ? decoded.kept
      : carveOutBlocks(carveOut).map(({ pa, order }) => ({ pa, order, count: 1 }));
  for (const run of kept)
    eachBlock(run, (pa, order) => {
      kho.restore(pa, order);
      kho.preserve(pa, order);
    });
  for (const run of decoded.reclaimed)
    eachBlock(run, (pa, order) => {
      kho.restore(pa, order);
      mm.free(pa, order);
    });

  settle(memory, decoded);

  const node = superblock.node === MEMFS_NO_NODE ? null : superblock.node;
  const pages =
    carveOut === null
      ? new DynamicPages(mm, kho, node)
      : new CarveOutPages(memory, carveOut, faults, decoded.used);
  const { offset } = MEMFS_SUPERBLOCK;
  return new Store({
    name: superblock.name,
    slot: decoded.slot,
    memory,
    superblockPa,
    pages,
    inodeTable: new BlockChain(
      memory,
      pages,
      MEMFS_INODE_TABLE,
      superblockPa + offset.inodeBlocks,
      decoded.inodeBlocks,
    ),
    extentTable: new BlockChain(
      memory,
      pages,
      MEMFS_EXTENT_TABLE,
      superblockPa + offset.extentBlocks,
      decoded.extentBlocks,
    ),
    limitBytes: superblock.limitBytes,
    node,
    isCarveOut: carveOut !== null,
    nextGeneration: superblock.nextGeneration,
    inodes: [...decoded.inodes.values()],
  });
}

/** Finishes a committed change, or takes an uncommitted one back. */
function settle(memory: PhysicalMemory, decoded: DecodedStore): void {
  for (const { pa, low, high } of decoded.logged) {
    memory.store32(pa, low);
    memory.store32(pa + 4, high);
  }
  for (const { pa, state } of decoded.unsettled)
    memory.store32(pa + MEMFS_EXTENT.offset.state, state);
  if (decoded.superblock.commit === 0) return;
  // All of it is in place before the log loses its meaning.
  memory.fence();
  memory.store32(decoded.superblockPa + MEMFS_SUPERBLOCK.offset.commit, 0);
  memory.fence();
}

function eachBlock(run: BlockRun, visit: (pa: number, order: number) => void): void {
  for (let i = 0; i < run.count; i++) visit(run.pa + i * orderBytes(run.order), run.order);
}
