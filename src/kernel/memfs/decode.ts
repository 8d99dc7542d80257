/**
 * Reads and checks the metadata of all stores that the previous kernel left, before anything of it is used.
 *
 * Every field of every structure that is in use is checked, every page is claimed, and memory that two extents name
 * is refused. Nothing is written: what a change was in the middle of is seen through the log, as src/abi/memfs.ts
 * says, and settled when the stores are adopted. It costs by blocks, files and extents.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import {
  MEMFS_BLOCK,
  MEMFS_COMPATIBLE,
  MEMFS_EXTENT,
  MEMFS_EXTENT_ADDING,
  MEMFS_EXTENT_FREE,
  MEMFS_EXTENT_LIVE,
  MEMFS_EXTENT_REMOVING,
  MEMFS_EXTENT_TABLE,
  MEMFS_GENERATION_END,
  MEMFS_INODE,
  MEMFS_INODE_TABLE,
  MEMFS_KIND_DIRECTORY,
  MEMFS_KIND_FILE,
  MEMFS_KIND_FREE,
  MEMFS_KIND_NAME,
  MEMFS_LOG_ENTRIES,
  MEMFS_LOG_ENTRY,
  MEMFS_LOG_EXTENTS,
  MEMFS_LOG_INODES,
  MEMFS_LOG_OFFSET,
  MEMFS_NO_NODE,
  MEMFS_ORDERS,
  MEMFS_ROOT,
  MEMFS_SIZE_LAST,
  MEMFS_STORE_SLOTS,
  MEMFS_STORE_SLOTS_OFFSET,
  MEMFS_SUPERBLOCK,
  MEMFS_SUPERBLOCK_MAGIC,
  type MemfsExtent,
  type MemfsInode,
  type MemfsSuperblock,
  type MemfsTable,
} from "../../abi/memfs.ts";
import type { WordReader } from "../../abi/words.ts";
import { hex, isAligned, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { MemoryRange } from "../../machine/machine.ts";
import { apart, type IncomingMemory } from "../kho/incoming.ts";
import type { FoundBlock } from "./block-chain.ts";
import { CARVE_OUT_ALIGNMENT, carveOutBlocks } from "./carve-out.ts";
import { type BlockRun, ClaimedMemory } from "./claimed-memory.ts";
import { decodeTree } from "./decode-tree.ts";
import type { Inode } from "./inode.ts";
import { type LoggedWord, withLog } from "./log-reader.ts";

/** A slot whose state a change left unsettled. */
export interface UnsettledExtent {
  readonly pa: number;
  /** LIVE or FREE: what it shall be. */
  readonly state: number;
}

/** One store, checked. */
export interface DecodedStore {
  readonly slot: number;
  readonly superblockPa: number;
  readonly superblock: MemfsSuperblock & { readonly name: string };
  readonly carveOut: MemoryRange | null;
  readonly inodeBlocks: readonly FoundBlock[];
  readonly extentBlocks: readonly FoundBlock[];
  /** By inode number; with their extents, ascending. */
  readonly inodes: ReadonlyMap<number, Inode>;
  /** Words that a committed change had still to write. */
  readonly logged: readonly LoggedWord[];
  readonly unsettled: readonly UnsettledExtent[];
  /** Blocks of a dynamic store that are claimed: to be restored and preserved anew. */
  readonly kept: readonly BlockRun[];
  /** Blocks that a change left preserved, and that no file has: to be restored and freed. */
  readonly reclaimed: readonly BlockRun[];
  /** Memory in use, ascending. */
  readonly used: readonly { readonly pa: number; readonly lengthBytes: number }[];
}

export interface DecodedMemfs {
  readonly rootPa: number;
  readonly stores: readonly DecodedStore[];
  /** Memory that the allocator must leave alone. */
  readonly carveOuts: readonly MemoryRange[];
}

/**
 * @param pa - the blob of KHO subtree "memfs": untrusted
 * @param field - how to name the place in errors
 * @throws {HandoverError}
 */
export function decodeMemfs(
  incoming: IncomingMemory,
  pa: number,
  sizeBytes: number,
  field: string,
): DecodedMemfs {
  if (sizeBytes !== PAGE_SIZE)
    throw new HandoverError(`${field}.size`, `${sizeBytes} bytes are not a page`);
  incoming.claim(pa, 0, `${field}.data`);
  const root = MEMFS_ROOT.read(incoming.memory, pa);
  refuseUnless(
    root.compatible === MEMFS_COMPATIBLE,
    "memfs_root.compatible",
    `"${root.compatible ?? "(no string)"}" is not "${MEMFS_COMPATIBLE}"`,
  );
  const { slotCount, reserved } = root;
  refuseUnless(slotCount === MEMFS_STORE_SLOTS, "memfs_root.slotCount", `is ${slotCount}`);
  refuseUnless(reserved === 0, "memfs_root.reserved", `is ${reserved}`);
  const stores: DecodedStore[] = [];
  const names = new Set<string>();
  for (let slot = 0; slot < MEMFS_STORE_SLOTS; slot++) {
    const superblockPa = incoming.memory.load64(pa + MEMFS_STORE_SLOTS_OFFSET + 8 * slot);
    if (superblockPa === 0) continue;
    const place = { pa: superblockPa, struct: MEMFS_SUPERBLOCK };
    const store = apart(incoming, place, () => decodeStore(incoming, slot, superblockPa));
    if (store === null) continue;
    const { name } = store.superblock;
    apart(incoming, place, () =>
      refuseUnless(!names.has(name), `memfs_store[${slot}].name`, `"${name}" is used twice`),
    );
    names.add(name);
    stores.push(store);
  }
  const carveOuts = stores.flatMap((s) => (s.carveOut === null ? [] : [s.carveOut]));
  return { rootPa: pa, stores, carveOuts };
}

function decodeStore(incoming: IncomingMemory, slot: number, superblockPa: number): DecodedStore {
  const field = `memfs_store[${slot}]`;
  if (!isAligned(superblockPa, PAGE_SIZE) || !incoming.isPreserved(superblockPa, PAGE_SIZE))
    throw new HandoverError(`memfs_root.slot[${slot}]`, `${hex(superblockPa)} is not preserved`);
  const superblock = readSuperblock(incoming.memory, superblockPa, field);
  const carveOut =
    superblock.carveOutBytes === 0
      ? null
      : { start: superblock.carveOutStart, lengthBytes: superblock.carveOutBytes };
  if (carveOut !== null)
    for (const { pa, order } of carveOutBlocks(carveOut))
      incoming.claim(pa, order, `${field}.carveOutStart`);
  const claimed = new ClaimedMemory(incoming, carveOut);
  claimed.claim(superblockPa, 0, 1, `memfs_root.slot[${slot}]`);

  const inodeBlockPas = walkChain(
    incoming.memory,
    claimed,
    MEMFS_INODE_TABLE,
    superblock.inodeBlocks,
    `${field}.inodeBlocks`,
  );
  const extentBlockPas = walkChain(
    incoming.memory,
    claimed,
    MEMFS_EXTENT_TABLE,
    superblock.extentBlocks,
    `${field}.extentBlocks`,
  );
  const logged = readLog(
    incoming.memory,
    superblockPa,
    superblock.commit,
    inodeBlockPas,
    extentBlockPas,
    field,
  );
  const words = withLog(incoming.memory, logged);

  const inodes = new Map<number, MemfsInode>();
  const nameSlots = new Set<number>();
  const inodeBlocks = readTable(MEMFS_INODE_TABLE, inodeBlockPas, (pa, number) => {
    const inode = MEMFS_INODE.read(words, pa);
    if (inode.kind === MEMFS_KIND_FREE) return false;
    if (inode.kind === MEMFS_KIND_NAME) nameSlots.add(number);
    else if (inode.kind === MEMFS_KIND_FILE || inode.kind === MEMFS_KIND_DIRECTORY)
      inodes.set(number, inode);
    else throw new HandoverError(`${field}.inode[${number}].kind`, `is ${inode.kind}`);
    return true;
  });
  const slotPa = (number: number) =>
    (inodeBlockPas.get(Math.floor(number / MEMFS_INODE_TABLE.slotsEnd)) ?? 0) +
    (number % MEMFS_INODE_TABLE.slotsEnd) * MEMFS_INODE_TABLE.slotBytes;
  const tree = decodeTree({ incoming, words }, inodes, nameSlots, slotPa, field);

  const unsettled: UnsettledExtent[] = [];
  const dropped: MemfsExtent[] = [];
  const isCommitted = superblock.commit !== 0;
  const readExtent = (pa: number, number: number): boolean => {
    const extent = MEMFS_EXTENT.read(words, pa);
    const at = `${field}.extent[${number}]`;
    if (extent.state === MEMFS_EXTENT_FREE) return false;
    refuseUnless(extent.state <= MEMFS_EXTENT_REMOVING, `${at}.state`, `is ${extent.state}`);
    checkExtent(extent, at);
    const comes = extent.state === MEMFS_EXTENT_ADDING;
    const goes = extent.state === MEMFS_EXTENT_REMOVING;
    const isLive = comes ? isCommitted : goes ? !isCommitted : true;
    if (comes || goes)
      unsettled.push({ pa, state: isLive ? MEMFS_EXTENT_LIVE : MEMFS_EXTENT_FREE });
    if (!isLive) {
      dropped.push(extent);
      return false;
    }
    const { offset, order, count } = extent;
    claimed.claim(extent.pa, order, count, `${at}.pa`);
    const inode = tree.get(extent.ino);
    // Of an inode that could not be read, by who only looks: that was told already.
    if (inode === undefined && inodes.has(extent.ino)) return true;
    refuseUnless(inode?.kind === "file", `${at}.ino`, `${extent.ino} is not a file`);
    inode.extents.push({ number, offset, pa: extent.pa, order, count });
    return true;
  };
  const extentBlocks = readTable(
    MEMFS_EXTENT_TABLE,
    extentBlockPas,
    (pa, number) =>
      apart(incoming, { pa, struct: MEMFS_EXTENT }, () => readExtent(pa, number)) ?? false,
  );
  for (const inode of tree.values())
    apart(incoming, { pa: slotPa(inode.ino) }, () => checkContents(inode, field));
  apart(incoming, { pa: superblockPa }, () => claimed.checkDisjoint(field));
  for (const extent of dropped) claimed.reclaim(extent, `${field}.unfinished`);

  return {
    slot,
    superblockPa,
    superblock,
    carveOut,
    inodeBlocks,
    extentBlocks,
    inodes: tree,
    logged,
    unsettled,
    kept: claimed.kept,
    reclaimed: claimed.reclaimed,
    used: claimed.used,
  };
}

function readSuperblock(
  memory: WordReader,
  pa: number,
  field: string,
): MemfsSuperblock & { readonly name: string } {
  const superblock = MEMFS_SUPERBLOCK.read(memory, pa);
  const { magic, commit, name, limitBytes, carveOutStart, carveOutBytes, node } = superblock;
  const { nextGeneration } = superblock;
  refuseUnless(magic === MEMFS_SUPERBLOCK_MAGIC, `${field}.magic`, `is ${hex(magic)}`);
  refuseUnless(commit <= 1 + MEMFS_LOG_ENTRIES, `${field}.commit`, `is ${commit}`);
  refuseUnless(name !== null && name !== "", `${field}.name`, "is not a name");
  refuseUnless(
    limitBytes <= MEMFS_SIZE_LAST && isAligned(limitBytes, PAGE_SIZE),
    `${field}.limitBytes`,
    `is ${limitBytes}`,
  );
  const end = carveOutStart + carveOutBytes;
  refuseUnless(
    isAligned(carveOutBytes, CARVE_OUT_ALIGNMENT) && carveOutBytes <= 2 ** 52,
    `${field}.carveOutBytes`,
    `is ${carveOutBytes}`,
  );
  refuseUnless(
    isAligned(carveOutStart, CARVE_OUT_ALIGNMENT) &&
      end <= 2 ** 52 &&
      (carveOutBytes !== 0 || carveOutStart === 0),
    `${field}.carveOutStart`,
    `is ${hex(carveOutStart)}`,
  );
  refuseUnless(
    node === MEMFS_NO_NODE || (node < 1024 && carveOutBytes === 0),
    `${field}.node`,
    `is ${node}`,
  );
  refuseUnless(
    nextGeneration >= 1 && nextGeneration < MEMFS_GENERATION_END,
    `${field}.nextGeneration`,
    `is ${nextGeneration}`,
  );
  refuseUnless(superblock.inodeBlocks !== 0, `${field}.inodeBlocks`, "is 0: there is no root");
  return { ...superblock, name };
}

/** @returns the blocks by index, in the chain's order */
function walkChain(
  memory: WordReader,
  claimed: ClaimedMemory,
  table: MemfsTable,
  head: number,
  field: string,
): Map<number, number> {
  const blocks = new Map<number, number>();
  // Indices ascend and are bounded, so a cycle ends at its second visit.
  let last = -1;
  let link = field;
  for (let pa = head; pa !== 0; ) {
    claimed.claim(pa, 0, 1, link);
    const { magic, index, next } = MEMFS_BLOCK.read(memory, pa);
    const at = `${field}[${blocks.size}]`;
    refuseUnless(magic === table.magic, `${at}.magic`, `is ${hex(magic)}`);
    refuseUnless(
      index > last && index < table.indexEnd,
      `${at}.index`,
      `${index} does not follow ${last}`,
    );
    blocks.set(index, pa);
    last = index;
    link = `${at}.next`;
    pa = next;
  }
  return blocks;
}

/** The words that the log of a committed change names, with their addresses. */
function readLog(
  memory: WordReader,
  superblockPa: number,
  commit: number,
  inodeBlocks: ReadonlyMap<number, number>,
  extentBlocks: ReadonlyMap<number, number>,
  field: string,
): LoggedWord[] {
  const logged: LoggedWord[] = [];
  for (let i = 0; i < commit - 1; i++) {
    const at = `${field}.log[${i}]`;
    const entry = MEMFS_LOG_ENTRY.read(
      memory,
      superblockPa + MEMFS_LOG_OFFSET + i * MEMFS_LOG_ENTRY.sizeBytes,
    );
    refuseUnless(
      entry.table === MEMFS_LOG_INODES || entry.table === MEMFS_LOG_EXTENTS,
      `${at}.table`,
      `is ${entry.table}`,
    );
    const isInode = entry.table === MEMFS_LOG_INODES;
    const table = isInode ? MEMFS_INODE_TABLE : MEMFS_EXTENT_TABLE;
    const slot = entry.number % table.slotsEnd;
    const block = (isInode ? inodeBlocks : extentBlocks).get(
      Math.floor(entry.number / table.slotsEnd),
    );
    refuseUnless(
      block !== undefined && slot !== 0,
      `${at}.number`,
      `there is no slot ${entry.number}`,
    );
    refuseUnless(entry.word < table.slotBytes / 8, `${at}.word`, `is ${entry.word}`);
    const pa = block + slot * table.slotBytes + 8 * entry.word;
    logged.push({ pa, low: entry.low, high: entry.high });
  }
  return logged;
}

function readTable(
  table: MemfsTable,
  blocks: ReadonlyMap<number, number>,
  readSlot: (pa: number, number: number) => boolean,
): FoundBlock[] {
  const found: FoundBlock[] = [];
  for (const [index, pa] of blocks) {
    const usedSlots: number[] = [];
    for (let slot = 1; slot < table.slotsEnd; slot++)
      if (readSlot(pa + slot * table.slotBytes, index * table.slotsEnd + slot))
        usedSlots.push(slot);
    found.push({ index, pa, usedSlots });
  }
  return found;
}

function checkExtent(extent: MemfsExtent, at: string): void {
  const { offset, pa, order, count } = extent;
  refuseUnless(MEMFS_ORDERS.includes(order), `${at}.order`, `is ${order}`);
  const bytes = orderBytes(order);
  refuseUnless(count >= 1 && count <= MEMFS_SIZE_LAST / bytes, `${at}.count`, `is ${count}`);
  refuseUnless(
    isAligned(offset, bytes) && offset + count * bytes <= MEMFS_SIZE_LAST,
    `${at}.offset`,
    `is ${hex(offset)}`,
  );
  refuseUnless(isAligned(pa, bytes) && pa + count * bytes <= 2 ** 52, `${at}.pa`, `is ${hex(pa)}`);
}

/** Puts a file's extents in order; no byte of a file may be in two. */
function checkContents(inode: Inode, field: string): void {
  inode.extents.sort((a, b) => a.offset - b.offset);
  let end = 0;
  for (const { number, offset, order, count } of inode.extents) {
    refuseUnless(
      offset >= end,
      `${field}.extent[${number}].offset`,
      `byte ${offset} of inode ${inode.ino} has an extent already`,
    );
    end = offset + count * orderBytes(order);
  }
}

function refuseUnless(condition: boolean, field: string, problem: string): asserts condition {
  if (!condition) throw new HandoverError(field, problem);
}
