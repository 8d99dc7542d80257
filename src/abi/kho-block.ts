/**
 * Chains of pages that hold entries of one size: how subsystems hand over lists.
 *
 * Source: Linux 7.3 include/linux/kho/abi/block.h, kernel/liveupdate/kho_block.c
 * Layout of a block: one page | next u64 | count u64 | count entries of the user's size | unused |
 * @module
 */
import { hex, PAGE_SIZE } from "../base/units.ts";
import { HandoverError } from "./handover-error.ts";
import type { ClaimableWords } from "./ram-words.ts";
import { struct, u64 } from "./struct.ts";

export const KHO_BLOCK_SIZE = PAGE_SIZE;
/** Blocks of a chain at most. */
export const KHO_MAX_BLOCKS = 10_000;

/** `next` is 0 in the last block. */
export const KHO_BLOCK_HEADER_SER = struct("kho_block_header_ser", { next: u64, count: u64 });

/** Entries that one block holds: 51 sessions of 80 bytes, 63 files of 64. */
export function blockCapacity(entrySizeBytes: number): number {
  return Math.floor((KHO_BLOCK_SIZE - KHO_BLOCK_HEADER_SER.sizeBytes) / entrySizeBytes);
}

/** Physical address of entry `index` of the block at `blockPa`. */
export function blockEntryAddress(blockPa: number, entrySizeBytes: number, index: number): number {
  return blockPa + KHO_BLOCK_HEADER_SER.sizeBytes + index * entrySizeBytes;
}

/** A block as a reader found it. */
export interface KhoBlock {
  readonly pa: number;
  /** 1 to the capacity. */
  readonly count: number;
}

/**
 * Reads a chain, and claims its blocks (order 0).
 *
 * @param headPa - the first block; 0 for an empty chain
 * @param field - how to name the chain in errors: "luo_ser.sessions_pa"
 * @param onBroken - for who looks only: told what is wrong, and of which block; the blocks before it are returned
 * @throws {HandoverError} when a block cannot be claimed, the chain is cyclic or too long, or a count is not 1
 *   to the block's capacity (upstream refuses an empty block too)
 */
export function readBlocks(
  incoming: ClaimableWords,
  headPa: number,
  entrySizeBytes: number,
  field: string,
  onBroken?: (error: HandoverError, blockPa: number) => void,
): readonly KhoBlock[] {
  const blocks: KhoBlock[] = [];
  try {
    for (const block of chainedBlocks(incoming, headPa, entrySizeBytes, field)) blocks.push(block);
  } catch (error) {
    if (!(error instanceof HandoverError) || onBroken === undefined) throw error;
    onBroken(error, blocks.at(-1)?.pa ?? headPa);
  }
  return blocks;
}

function* chainedBlocks(
  incoming: ClaimableWords,
  headPa: number,
  entrySizeBytes: number,
  field: string,
): Generator<KhoBlock> {
  const capacity = blockCapacity(entrySizeBytes);
  const seen = new Set<number>();
  let from = field;
  for (let pa = headPa; pa !== 0; ) {
    if (seen.has(pa)) throw new HandoverError(from, `${hex(pa)} makes the chain cyclic`);
    if (seen.size >= KHO_MAX_BLOCKS)
      throw new HandoverError(from, `the chain exceeds ${KHO_MAX_BLOCKS} blocks`);
    const block = `${field}: ${KHO_BLOCK_HEADER_SER.name}[${seen.size}]`;
    seen.add(pa);
    incoming.claim(pa, 0, from);
    const { next, count } = KHO_BLOCK_HEADER_SER.read(incoming.memory, pa);
    if (count < 1 || count > capacity)
      throw new HandoverError(`${block}.count`, `${count} is not 1 to ${capacity}`);
    yield { pa, count };
    from = `${block}.next`;
    pa = next;
  }
}

/** Physical addresses of all entries of blocks that were read, in order. */
export function* blockEntries(
  blocks: readonly KhoBlock[],
  entrySizeBytes: number,
): Generator<number> {
  for (const { pa, count } of blocks)
    for (let i = 0; i < count; i++) yield blockEntryAddress(pa, entrySizeBytes, i);
}
