/**
 * What memory says by itself: preserved blocks, memfs files, and what hardware translates, read from RAM and registers alone.
 *
 * Why: invariants must not believe the kernel that they check. Nothing here calls a kernel or uses its readers; only
 * the layouts of `abi` are shared. A structure that cannot be read throws: at the points where it is read it is whole.
 * @module
 */
import assert from "node:assert/strict";
import { KHO_SCRATCH, readKhoFdt } from "../../src/abi/kho.ts";
import { walkRadixTree } from "../../src/abi/kho-radix.ts";
import {
  MEMFS_BLOCK,
  MEMFS_EXTENT,
  MEMFS_EXTENT_LIVE,
  MEMFS_EXTENT_REMOVING,
  MEMFS_EXTENT_TABLE,
  MEMFS_INODE,
  MEMFS_INODE_TABLE,
  MEMFS_KIND_FILE,
  MEMFS_STORE_SLOTS,
  MEMFS_STORE_SLOTS_OFFSET,
  MEMFS_SUBTREE,
  MEMFS_SUPERBLOCK,
  MEMFS_SUPERBLOCK_MAGIC,
} from "../../src/abi/memfs.ts";
import { GSTS_REG, GSTS_TES, IQA_REG, RTADDR_REG } from "../../src/abi/vtd/registers.ts";
import {
  addressWidthLevels,
  CONTEXT_P,
  CONTEXT_TABLE_ENTRIES,
  contextAddressWidth,
  contextDomainId,
  contextEntryAddress,
  contextTranslationType,
  ROOT_P,
  ROOT_TABLE_ENTRIES,
  rootEntryAddress,
  TT_MULTI_LEVEL,
  tableAddress,
} from "../../src/abi/vtd/root-context.ts";
import {
  SS_TABLE_ENTRIES,
  ssAddress,
  ssIsLeaf,
  ssIsPresent,
  ssSpanBytes,
} from "../../src/abi/vtd/second-stage.ts";
import { alignDown, hex, orderBytes, PAGE_SIZE } from "../../src/base/units.ts";
import type { VtdUnit } from "../../src/machine/embedded/vtd/vtd-unit.ts";
import type { KhoBootParameters, MemoryRange } from "../../src/machine/machine.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";

/** An aligned block of 2^order pages. */
export interface Block {
  readonly pa: number;
  readonly order: number;
}

/** What a kexec would keep now. */
export interface Preserved {
  readonly fdtPa: number;
  /** Nodes of the radix tree, one page each. */
  readonly nodes: readonly number[];
  /** Highest order first, then by address; may overlap if the kernel has made a mistake. */
  readonly blocks: readonly Block[];
  readonly scratch: readonly MemoryRange[];
  readonly subtrees: ReadonlyMap<string, { readonly pa: number; readonly sizeBytes: number }>;
}

/** Reads the handover as it stands. */
export function readPreserved(ram: Ram, kho: KhoBootParameters): Preserved {
  const fdt = readKhoFdt(ram, kho.fdtAddress, kho.fdtSizeBytes);
  const nodes: number[] = [];
  const blocks: Block[] = [];
  walkRadixTree(ram, fdt.memoryMapPa, {
    node: (pa) => nodes.push(pa),
    block: (pa, order) => blocks.push({ pa, order }),
  });
  const scratch: MemoryRange[] = [];
  for (let at = 0; at < kho.scratchSizeBytes; at += KHO_SCRATCH.sizeBytes) {
    const { addr, size } = KHO_SCRATCH.read(ram, kho.scratchAddress + at);
    if (size > 0) scratch.push({ start: addr, lengthBytes: size });
  }
  return {
    fdtPa: kho.fdtAddress,
    nodes,
    blocks,
    scratch,
    subtrees: new Map(fdt.subtrees.map((subtree) => [subtree.name, subtree])),
  };
}

/** `count` blocks, one after the other in the file and in memory. */
export interface FileExtent extends Block {
  readonly offset: number;
  readonly count: number;
}

export interface MemfsFileMap {
  /** "STORE:NAME"; names longer than an inode holds are cut. */
  readonly label: string;
  readonly sizeBytes: number;
  /** By offset. */
  readonly extents: readonly FileExtent[];
}

export interface MemfsStoreMap {
  readonly name: string;
  readonly carveOut: MemoryRange | null;
  /** Superblock, inode blocks, extent blocks: one page each. */
  readonly metadata: readonly number[];
  readonly files: readonly MemfsFileMap[];
}

export interface MemfsMap {
  readonly rootPa: number;
  readonly stores: readonly MemfsStoreMap[];
}

/** Reads all stores; null when there are none. No change may be under way. */
export function readMemfs(ram: Ram, preserved: Preserved): MemfsMap | null {
  const root = preserved.subtrees.get(MEMFS_SUBTREE);
  if (root === undefined) return null;
  const stores: MemfsStoreMap[] = [];
  for (let slot = 0; slot < MEMFS_STORE_SLOTS; slot++) {
    const pa = ram.load64(root.pa + MEMFS_STORE_SLOTS_OFFSET + 8 * slot);
    if (pa !== 0) stores.push(readStore(ram, pa));
  }
  return { rootPa: root.pa, stores };
}

function readStore(ram: Ram, superblockPa: number): MemfsStoreMap {
  const superblock = MEMFS_SUPERBLOCK.read(ram, superblockPa);
  assert(superblock.name !== null, "a store's name ends");
  assert.equal(superblock.magic, MEMFS_SUPERBLOCK_MAGIC, `a superblock at ${hex(superblockPa)}`);
  assert.equal(superblock.commit, 0, `store "${superblock.name}" is not changing`);
  const inodes = readChain(ram, superblock.inodeBlocks, MEMFS_INODE_TABLE);
  const extents = readChain(ram, superblock.extentBlocks, MEMFS_EXTENT_TABLE);
  const files = new Map<number, { label: string; sizeBytes: number; extents: FileExtent[] }>();
  for (const { number, pa } of inodes.slots) {
    if (ram.load8(pa) !== MEMFS_KIND_FILE) continue;
    const inode = MEMFS_INODE.read(ram, pa);
    const name = new TextDecoder().decode(inode.name.subarray(0, inode.nameBytes));
    files.set(number, {
      label: `${superblock.name}:${name}`,
      sizeBytes: inode.sizeBytes,
      extents: [],
    });
  }
  for (const { pa } of extents.slots) {
    const extent = MEMFS_EXTENT.read(ram, pa);
    if (extent.state !== MEMFS_EXTENT_LIVE && extent.state !== MEMFS_EXTENT_REMOVING) continue;
    const file = files.get(extent.ino);
    assert(file !== undefined, `extent of inode ${extent.ino}, which is no file`);
    file.extents.push(extent);
  }
  for (const file of files.values()) file.extents.sort((a, b) => a.offset - b.offset);
  const { carveOutStart, carveOutBytes } = superblock;
  return {
    name: superblock.name,
    carveOut: carveOutBytes === 0 ? null : { start: carveOutStart, lengthBytes: carveOutBytes },
    metadata: [superblockPa, ...inodes.pages, ...extents.pages],
    files: [...files.values()],
  };
}

function readChain(
  ram: Ram,
  first: number,
  table: typeof MEMFS_INODE_TABLE | typeof MEMFS_EXTENT_TABLE,
): { pages: number[]; slots: { number: number; pa: number }[] } {
  const pages: number[] = [];
  const slots: { number: number; pa: number }[] = [];
  for (let pa = first; pa !== 0; ) {
    const block = MEMFS_BLOCK.read(ram, pa);
    assert.equal(block.magic, table.magic, `a memfs block at ${hex(pa)}`);
    assert(!pages.includes(pa), `the chain of memfs blocks returns to ${hex(pa)}`);
    pages.push(pa);
    for (let slot = 1; slot < table.slotsEnd; slot++)
      slots.push({ number: block.index * table.slotsEnd + slot, pa: pa + slot * table.slotBytes });
    pa = block.next;
  }
  return { pages, slots };
}

/** A run of leaves that are contiguous on both sides, with the same rights. */
export interface LeafRun {
  readonly iova: number;
  readonly pa: number;
  readonly lengthBytes: number;
  readonly rights: number;
}

/** A tree of second-stage tables. */
export interface TableTree {
  readonly top: number;
  readonly levels: number;
  /** All tables, the top one first. */
  readonly tables: readonly number[];
  readonly runs: readonly LeafRun[];
  /** Bytes mapped by leaves of each level. */
  readonly bytesByLevel: readonly [number, number, number];
}

/** A function whose context entry is present. */
export interface TranslatedFunction {
  readonly segment: number;
  readonly bdf: number;
  readonly did: number;
  readonly tree: TableTree;
}

export interface UnitMap {
  readonly segment: number;
  readonly rootTable: number;
  readonly contextTables: readonly number[];
  /** Address of the invalidation queue; 0 before any. */
  readonly queuePa: number;
  readonly functions: readonly TranslatedFunction[];
}

/** Reads what a unit translates now, the way hardware does; null while its translation is off. */
export function readUnit(ram: Ram, segment: number, unit: VtdUnit): UnitMap | null {
  if ((unit.read(GSTS_REG, 4) & GSTS_TES) === 0) return null;
  const register64 = (at: number) => unit.read(at + 4, 4) * 2 ** 32 + unit.read(at, 4);
  const rootTable = register64(RTADDR_REG);
  const contextTables: number[] = [];
  const functions: TranslatedFunction[] = [];
  const trees = new Map<number, TableTree>();
  for (let bus = 0; bus < ROOT_TABLE_ENTRIES; bus++) {
    const root = rootEntryAddress(rootTable, bus << 8);
    if ((ram.load32(root) & ROOT_P) === 0) continue;
    const contextTable = tableAddress(ram.load32(root), ram.load32(root + 4));
    contextTables.push(contextTable);
    for (let devfn = 0; devfn < CONTEXT_TABLE_ENTRIES; devfn++) {
      const bdf = (bus << 8) | devfn;
      const entry = contextEntryAddress(contextTable, bdf);
      const w0 = ram.load32(entry);
      if ((w0 & CONTEXT_P) === 0) continue;
      assert.equal(contextTranslationType(w0), TT_MULTI_LEVEL, "nothing passes untranslated");
      const w2 = ram.load32(entry + 8);
      const top = tableAddress(w0, ram.load32(entry + 4));
      const levels = addressWidthLevels(contextAddressWidth(w2));
      const tree = trees.get(top) ?? readTree(ram, top, levels);
      assert.equal(tree.levels, levels, `tables at ${hex(top)} have one height`);
      trees.set(top, tree);
      functions.push({ segment, bdf, did: contextDomainId(w2), tree });
    }
  }
  // The low bits say the queue's size.
  const queuePa = alignDown(register64(IQA_REG), PAGE_SIZE);
  return { segment, rootTable, contextTables, queuePa, functions };
}

/** Reads a tree of second-stage tables. */
export function readTree(ram: Ram, top: number, levels: number): TableTree {
  const tables: number[] = [];
  const runs: LeafRun[] = [];
  const bytesByLevel: [number, number, number] = [0, 0, 0];
  const walk = (table: number, level: number, base: number, rightsAbove: number): void => {
    tables.push(table);
    const span = ssSpanBytes(level);
    for (let i = 0; i < SS_TABLE_ENTRIES; i++) {
      const low = ram.load32(table + 8 * i);
      if (!ssIsPresent(low)) continue;
      const pa = ssAddress(low, ram.load32(table + 8 * i + 4));
      const iova = base + i * span;
      const rights = rightsAbove & low & 3;
      if (!ssIsLeaf(low, level)) {
        walk(pa, level - 1, iova, rights);
        continue;
      }
      bytesByLevel[level] += span;
      const last = runs.at(-1);
      if (
        last !== undefined &&
        last.rights === rights &&
        last.iova + last.lengthBytes === iova &&
        last.pa + last.lengthBytes === pa
      )
        runs[runs.length - 1] = { ...last, lengthBytes: last.lengthBytes + span };
      else runs.push({ iova, pa, lengthBytes: span, rights });
    }
  };
  walk(top, levels - 1, 0, 3);
  return { top, levels, tables, runs, bytesByLevel };
}

/** The bytes of an extent. */
export function extentRange({ pa, order, count }: FileExtent): MemoryRange {
  return { start: pa, lengthBytes: count * orderBytes(order) };
}
