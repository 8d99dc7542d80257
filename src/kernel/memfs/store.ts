/**
 * One store of memfs: its tree of files and the operations on it.
 *
 * Everything that decides is in kernel heap (inodes, extents); memory is written by a {@link Change} for each
 * operation, and heap follows once the change is committed. So an operation that fails has changed nothing.
 * Pins: memory that is mapped or that DMA may reach must stay. While any byte of a file is pinned it cannot be
 * unlinked or replaced; it cannot shrink to below a pinned byte, nor be punched there (all EBUSY).
 * Holes: reading one gives zeros on other file systems; here there is no read, and mapping or pinning fills holes.
 * @module
 */
import {
  MEMFS_GENERATION_END,
  MEMFS_ORDERS,
  MEMFS_ROOT_INO,
  MEMFS_SIZE_LAST,
  MEMFS_SUPERBLOCK,
} from "../../abi/memfs.ts";
import { NAME_MAX } from "../../abi/uapi/fs.ts";
import { assert } from "../../base/assert.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import {
  alignDown,
  alignUp,
  formatBytes,
  isAligned,
  orderBytes,
  PAGE_SIZE,
} from "../../base/units.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { FileExtent } from "../vfs/file.ts";
import type { FilesystemStat } from "../vfs/filesystem.ts";
import { splitResolved } from "../vfs/path.ts";
import { utf8Length } from "../vfs/user-value.ts";
import type { BlockChain } from "./block-chain.ts";
import { Change, type ChangeTarget, type Extent, extentBytes } from "./change.ts";
import {
  allocatedBytes,
  encodeInode,
  extentAt,
  type Inode,
  type InodeRecord,
  nameSlotCount,
  newInode,
  type PinnedBytes,
} from "./inode.ts";
import type { StorePages } from "./store-pages.ts";

/** What a store is made of. */
export interface StoreParts {
  readonly name: string;
  /** Its slot in the root page: part of what identifies a file to a live-update session. */
  readonly slot: number;
  readonly memory: PhysicalMemory;
  readonly superblockPa: number;
  readonly pages: StorePages;
  readonly inodeTable: BlockChain;
  readonly extentTable: BlockChain;
  readonly limitBytes: number;
  readonly node: number | null;
  readonly isCarveOut: boolean;
  readonly nextGeneration: number;
  /** All inodes, the root among them, with their extents; the tree is built from `parent` and `name`. */
  readonly inodes: readonly Inode[];
}

export class Store {
  readonly name: string;
  readonly slot: number;
  readonly limitBytes: number;
  readonly node: number | null;
  readonly isCarveOut: boolean;
  /** Mounts of this store. */
  mountCount = 0;
  readonly #target: ChangeTarget;
  readonly #inodes = new Map<number, Inode>();
  readonly #root: Inode;
  #nextGeneration: number;
  #usedBytes = 0;

  constructor(parts: StoreParts) {
    this.name = parts.name;
    this.slot = parts.slot;
    this.limitBytes = parts.limitBytes;
    this.node = parts.node;
    this.isCarveOut = parts.isCarveOut;
    this.#nextGeneration = parts.nextGeneration;
    this.#target = {
      memory: parts.memory,
      superblockPa: parts.superblockPa,
      pages: parts.pages,
      inodes: parts.inodeTable,
      extents: parts.extentTable,
    };
    for (const inode of parts.inodes) {
      this.#inodes.set(inode.ino, inode);
      this.#usedBytes += allocatedBytes(inode);
    }
    for (const inode of parts.inodes)
      if (inode.parent !== 0) this.#directory(inode.parent).children.set(inode.name, inode);
    const root = this.#inodes.get(MEMFS_ROOT_INO);
    assert(root !== undefined, "a store has a root");
    this.#root = root;
  }

  /** Whether it holds no file and no directory but the root. */
  get isEmpty(): boolean {
    return this.#inodes.size === 1;
  }

  /** Ranges of files that are pinned, for leak checks. */
  get pinCount(): number {
    let count = 0;
    for (const inode of this.#inodes.values()) count += inode.pins.size;
    return count;
  }

  /** Bytes of metadata: superblock, inode and extent blocks. */
  get metadataBytes(): number {
    const { inodes, extents } = this.#target;
    return PAGE_SIZE * (1 + inodes.blockCount + extents.blockCount);
  }

  /** Bytes of memory in files. */
  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** 4 KiB pages of the page allocator: none for a carve-out. */
  get allocatorPages(): number {
    return this.isCarveOut ? 0 : (this.metadataBytes + this.#usedBytes) / PAGE_SIZE;
  }

  /** An inode by its number and generation, or null. */
  find(ino: number, generation: number): Inode | null {
    const inode = this.#inodes.get(ino);
    return inode !== undefined && inode.generation === generation ? inode : null;
  }

  /** Frees the files that were unlinked but open when the last kernel ended, and that nothing relies on. */
  reclaimOrphans(): void {
    for (const inode of [...this.#inodes.values()])
      if (inode.isOrphan && inode.holders === 0) this.#destroy(inode);
  }

  // -- the tree -----------------------------------------------------------------------------------------

  /** @throws {KernelError} ENOENT; ENOTDIR on the way */
  lookup(path: string, op: string): Inode {
    let inode = this.#root;
    for (const name of splitResolved(path)) {
      if (inode.kind !== "directory")
        throw new KernelError("ENOTDIR", op, `"${inode.name}" in "${path}" is not a directory`);
      const child = inode.children.get(name);
      if (child === undefined) throw new KernelError("ENOENT", op, `"${path}" does not exist`);
      inode = child;
    }
    return inode;
  }

  /** As `lookup`, but null when only the last name does not exist. */
  lookupOrNull(path: string, op: string): Inode | null {
    if (path === "/") return this.#root;
    const { parent, name } = this.#parentOf(path, op);
    return parent.children.get(name) ?? null;
  }

  /**
   * Makes an empty file or directory.
   * @throws {KernelError} EEXIST; ENOENT or ENOTDIR on the way; ENAMETOOLONG; ENOMEM, ENOSPC
   */
  create(path: string, kind: "file" | "directory", op: string): Inode {
    const { parent, name } = this.#parentOf(path, op);
    if (parent.children.has(name)) throw new KernelError("EEXIST", op, `"${path}" exists already`);
    const inode = this.#change((change) => {
      const record: InodeRecord = {
        ino: change.allocInode(),
        kind,
        generation: this.#nextGeneration,
        sizeBytes: 0,
        name,
        nameSlots: takeNameSlots(change, name),
        parent: parent.ino,
        isOrphan: false,
      };
      writeInode(change, record);
      return newInode(record);
    });
    this.#countGeneration();
    this.#inodes.set(inode.ino, inode);
    parent.children.set(name, inode);
    return inode;
  }

  /** @throws {KernelError} ENOENT, ENOTDIR; EISDIR; EBUSY when it is pinned or retained */
  unlink(path: string): void {
    const inode = this.lookup(path, "unlink");
    if (inode.kind === "directory")
      throw new KernelError("EISDIR", "unlink", `"${path}" is a directory`);
    checkUnused(inode, "unlink", path);
    this.#change((change) => dropName(change, inode));
    this.#forgetName(inode);
  }

  /** @throws {KernelError} ENOENT, ENOTDIR; ENOTEMPTY; EBUSY for the root */
  rmdir(path: string): void {
    const inode = this.lookup(path, "rmdir");
    if (inode.kind !== "directory")
      throw new KernelError("ENOTDIR", "rmdir", `"${path}" is not a directory`);
    if (inode === this.#root) throw new KernelError("EBUSY", "rmdir", '"/" is the root');
    if (inode.children.size > 0)
      throw new KernelError("ENOTEMPTY", "rmdir", `"${path}" is not empty`);
    this.#change((change) => dropName(change, inode));
    this.#forgetName(inode);
  }

  /**
   * Moves a file or directory, replacing what has the new name, in one step.
   * @throws {KernelError} ENOENT, ENOTDIR, EISDIR, ENOTEMPTY; EINVAL into itself; EBUSY for the root, or when the
   *   file that is replaced is pinned or retained; ENAMETOOLONG; ENOMEM, ENOSPC for a long name
   */
  rename(from: string, to: string): void {
    const inode = this.lookup(from, "rename");
    const { parent, name } = this.#parentOf(to, "rename");
    if (inode === this.#root) throw new KernelError("EBUSY", "rename", '"/" is the root');
    for (let above = parent; ; above = this.#directory(above.parent)) {
      if (above === inode)
        throw new KernelError("EINVAL", "rename", `"${to}" lies below "${from}"`);
      if (above === this.#root) break;
    }
    const replaced = parent.children.get(name);
    if (replaced === inode) return;
    if (replaced !== undefined) checkReplaceable(inode, replaced, to);
    const oldSlots = inode.nameSlots;
    const nameSlots = this.#change((change) => {
      const taken = takeNameSlots(change, name);
      writeInode(change, { ...inode, name, nameSlots: taken, parent: parent.ino });
      for (const slot of oldSlots) change.freeInode(slot);
      if (replaced !== undefined) dropName(change, replaced);
      return taken;
    });
    if (replaced !== undefined) this.#forgetName(replaced);
    this.#directory(inode.parent).children.delete(inode.name);
    Object.assign(inode, { name, nameSlots, parent: parent.ino });
    parent.children.set(name, inode);
  }

  // -- contents -----------------------------------------------------------------------------------------

  /**
   * @throws {KernelError} EBUSY when it would take away pinned bytes, or any change of a retained file's size; EFBIG
   *   above 2^52
   */
  truncate(inode: Inode, sizeBytes: number): void {
    const op = "ftruncate";
    if (sizeBytes > MEMFS_SIZE_LAST) throw new KernelError("EFBIG", op, `${sizeBytes} bytes`);
    if (sizeBytes === inode.sizeBytes) return;
    checkSizeFree(inode, op);
    if (sizeBytes > inode.sizeBytes) {
      this.#change((change) => writeInode(change, { ...inode, sizeBytes }));
      inode.sizeBytes = sizeBytes;
      return;
    }
    checkUnpinned(inode, sizeBytes, Number.POSITIVE_INFINITY, op);
    this.#remove(inode, sizeBytes, MEMFS_SIZE_LAST, sizeBytes);
  }

  /**
   * Takes memory out of the middle of a file: whole blocks go, the rest of the range is zeroed.
   * @throws {KernelError} EBUSY when a byte of the range is pinned; ENOMEM, ENOSPC
   */
  punch(inode: Inode, offset: number, lengthBytes: number): void {
    const end = Math.min(offset + lengthBytes, MEMFS_SIZE_LAST);
    if (offset >= end) return;
    checkUnpinned(inode, offset, end, "fallocate");
    this.#remove(inode, offset, end, inode.sizeBytes);
  }

  /**
   * Backs a range with memory, the largest blocks first, and grows the file to its end if `grow`.
   * @throws {KernelError} EFBIG above 2^52; EBUSY when a retained file would grow; ENOSPC above the store's limit or
   *   in a full carve-out; ENOMEM
   */
  allocate(inode: Inode, offset: number, lengthBytes: number, grow: boolean, op: string): void {
    const end = offset + lengthBytes;
    if (end > MEMFS_SIZE_LAST) throw new KernelError("EFBIG", op, `up to byte ${end}`);
    const sizeBytes = grow ? Math.max(inode.sizeBytes, end) : inode.sizeBytes;
    if (sizeBytes !== inode.sizeBytes) checkSizeFree(inode, op);
    const holes = holesOf(inode, alignDown(offset, PAGE_SIZE), alignUp(end, PAGE_SIZE));
    if (holes.length === 0 && sizeBytes === inode.sizeBytes) return;
    const bytes = holes.reduce((sum, hole) => sum + hole.end - hole.start, 0);
    if (this.limitBytes !== 0 && this.#usedBytes + bytes > this.limitBytes)
      throw new KernelError(
        "ENOSPC",
        op,
        `store "${this.name}" is limited to ${formatBytes(this.limitBytes)}`,
      );
    const added = this.#change((change) => {
      fillHoles(change, inode.ino, holes);
      if (sizeBytes !== inode.sizeBytes) writeInode(change, { ...inode, sizeBytes });
      return change.added;
    });
    inode.sizeBytes = sizeBytes;
    inode.extents = mergeByOffset(inode.extents, added);
    this.#usedBytes += bytes;
  }

  /** The memory behind a range that has no holes, in file order; neighbours in memory are one. */
  runs(inode: Inode, offset: number, lengthBytes: number): FileExtent[] {
    const runs: FileExtent[] = [];
    const end = offset + lengthBytes;
    for (let i = extentAt(inode.extents, offset), at = offset; at < end; i++) {
      const extent = inode.extents[i];
      assert(extent !== undefined && extent.offset <= at, "the range has no holes");
      const pa = extent.pa + (at - extent.offset);
      const bytes = Math.min(end, extent.offset + extentBytes(extent)) - at;
      const last = runs.at(-1);
      if (last !== undefined && last.pa + last.lengthBytes === pa)
        runs[runs.length - 1] = { ...last, lengthBytes: last.lengthBytes + bytes };
      else runs.push({ offsetBytes: at, pa, lengthBytes: bytes });
      at += bytes;
    }
    return runs;
  }

  // -- holders ------------------------------------------------------------------------------------------

  /** One more open file, mapping or pin. */
  hold(inode: Inode): void {
    inode.holders++;
  }

  /** One less; an orphan goes with the last. */
  drop(inode: Inode): void {
    assert(inode.holders > 0, "every hold is dropped once");
    if (--inode.holders === 0 && inode.isOrphan) this.#destroy(inode);
  }

  /**
   * Keeps bytes in place, and the file alive.
   * @returns what undoes it, once
   */
  pin(inode: Inode, start: number, end: number): () => void {
    const pin: PinnedBytes = { start, end };
    inode.pins.add(pin);
    this.hold(inode);
    return () => {
      assert(inode.pins.delete(pin), "a pin is undone once");
      this.drop(inode);
    };
  }

  statfs(): FilesystemStat {
    const space = this.#target.pages.space();
    const left = this.limitBytes - this.#usedBytes;
    return {
      type: "memfs",
      totalBytes: this.limitBytes === 0 ? space.totalBytes : this.limitBytes,
      freeBytes: this.limitBytes === 0 ? space.freeBytes : Math.min(left, space.freeBytes),
      inodes: this.#inodes.size,
    };
  }

  /** Frees the pages of an empty dynamic store, which nothing refers to any more. */
  release(): void {
    assert(this.isEmpty && !this.isCarveOut, "only an empty dynamic store is released");
    const { pages, inodes, extents, superblockPa } = this.#target;
    for (const pa of [...inodes.blockAddresses(), ...extents.blockAddresses(), superblockPa])
      pages.free(pa, 0);
  }

  // -- how ----------------------------------------------------------------------------------------------

  #change<T>(prepare: (change: Change) => T): T {
    const change = new Change(this.#target);
    const result = withUndo((undo) => {
      undo(() => change.abandon());
      return prepare(change);
    });
    change.commit();
    return result;
  }

  /** Takes whole blocks out of [start, end), zeroes what is left there, and sets the size. */
  #remove(inode: Inode, start: number, end: number, sizeBytes: number): void {
    const first = extentAt(inode.extents, start);
    let last = first;
    const left: Extent[] = [];
    let freedBytes = 0;
    this.#change((change) => {
      for (; last < inode.extents.length && inode.extents[last].offset < end; last++) {
        const extent = inode.extents[last];
        const bytes = orderBytes(extent.order);
        const from = Math.max(0, Math.ceil((start - extent.offset) / bytes));
        const to = Math.min(extent.count, Math.floor((end - extent.offset) / bytes));
        if (from >= to) left.push(extent);
        else if (to - from < extent.count)
          left.push(...change.cutExtent(inode.ino, extent, from, to));
        else change.removeExtent(extent);
      }
      if (sizeBytes !== inode.sizeBytes) writeInode(change, { ...inode, sizeBytes });
      freedBytes = change.freedBytes;
    });
    inode.sizeBytes = sizeBytes;
    inode.extents.splice(first, last - first, ...left);
    this.#usedBytes -= freedBytes;
    // After the commit: had it failed, the bytes would have to be as they were.
    for (const extent of left) {
      const from = Math.max(start, extent.offset);
      const to = Math.min(end, extent.offset + extentBytes(extent));
      if (from < to) this.#target.memory.fill(extent.pa + (from - extent.offset), to - from, 0);
    }
  }

  /** Heap's part of `dropName`. */
  #forgetName(inode: Inode): void {
    this.#directory(inode.parent).children.delete(inode.name);
    if (inode.holders === 0) this.#forget(inode);
    else Object.assign(inode, { name: "", nameSlots: [], parent: 0, isOrphan: true });
  }

  #destroy(inode: Inode): void {
    this.#change((change) => dropInode(change, inode));
    this.#forget(inode);
  }

  #forget(inode: Inode): void {
    this.#usedBytes -= allocatedBytes(inode);
    inode.extents = [];
    this.#inodes.delete(inode.ino);
  }

  /** A number that is lost by a stop before the commit does no harm. */
  #countGeneration(): void {
    const next = this.#nextGeneration + 1;
    this.#nextGeneration = next === MEMFS_GENERATION_END ? 1 : next;
    this.#target.memory.store32(
      this.#target.superblockPa + MEMFS_SUPERBLOCK.offset.nextGeneration,
      this.#nextGeneration,
    );
  }

  #directory(ino: number): Inode {
    const inode = this.#inodes.get(ino);
    assert(inode !== undefined && inode.kind === "directory", `${ino} is a directory`);
    return inode;
  }

  #parentOf(path: string, op: string): { parent: Inode; name: string } {
    const names = splitResolved(path);
    const name = names.pop();
    if (name === undefined)
      throw new KernelError(op === "rename" ? "EBUSY" : "EEXIST", op, '"/" is the root');
    const lengthBytes = utf8Length(name);
    if (lengthBytes < 1 || name === "." || name === ".." || name.includes("\0"))
      throw new KernelError("EINVAL", op, "the last name is not one that a file can have");
    if (lengthBytes > NAME_MAX)
      throw new KernelError("ENAMETOOLONG", op, `a name of ${lengthBytes} bytes`);
    const parent = this.lookup(`/${names.join("/")}`, op);
    if (parent.kind !== "directory")
      throw new KernelError("ENOTDIR", op, `what holds "${path}" is not a directory`);
    return { parent, name };
  }
}

function takeNameSlots(change: Change, name: string): number[] {
  return Array.from({ length: nameSlotCount(name) }, () => change.allocInode());
}

function writeInode(change: Change, record: InodeRecord): void {
  for (const { number, bytes } of encodeInode(record)) change.setInode(number, bytes);
}

/** An inode loses its name: it goes at once, or becomes an orphan while somebody holds it. */
function dropName(change: Change, inode: Inode): void {
  if (inode.holders === 0) {
    dropInode(change, inode);
    return;
  }
  for (const slot of inode.nameSlots) change.freeInode(slot);
  writeInode(change, { ...inode, name: "", nameSlots: [], parent: 0, isOrphan: true });
}

function dropInode(change: Change, inode: Inode): void {
  change.freeInode(inode.ino);
  for (const slot of inode.nameSlots) change.freeInode(slot);
  for (const extent of inode.extents) change.removeExtent(extent);
}

function checkReplaceable(inode: Inode, replaced: Inode, path: string): void {
  if (replaced.kind !== "directory") {
    if (inode.kind === "directory")
      throw new KernelError("ENOTDIR", "rename", `"${path}" is not a directory`);
    checkUnused(replaced, "rename", path);
  } else if (inode.kind !== "directory")
    throw new KernelError("EISDIR", "rename", `"${path}" is a directory`);
  else if (replaced.children.size > 0)
    throw new KernelError("ENOTEMPTY", "rename", `"${path}" is not empty`);
}

function checkUnused(inode: Inode, op: string, path: string): void {
  if (inode.isRetained)
    throw new KernelError("EBUSY", op, `"${path}" belongs to a live-update session`);
  if (inode.pins.size > 0)
    throw new KernelError("EBUSY", op, `"${path}" is pinned by ${inode.pins.size} mappings`);
}

function checkSizeFree(inode: Inode, op: string): void {
  if (inode.isRetained)
    throw new KernelError("EBUSY", op, "the size is fixed by a live-update session");
}

function checkUnpinned(inode: Inode, start: number, end: number, op: string): void {
  if (inode.isRetained)
    throw new KernelError("EBUSY", op, "the memory is fixed by a live-update session");
  for (const pin of inode.pins)
    if (pin.start < end && pin.end > start)
      throw new KernelError("EBUSY", op, `bytes ${pin.start} to ${pin.end - 1} are pinned`);
}

interface Hole {
  readonly start: number;
  readonly end: number;
}

/** What of a page-aligned range has no memory. */
function holesOf(inode: Inode, start: number, end: number): Hole[] {
  const holes: Hole[] = [];
  let at = start;
  for (let i = extentAt(inode.extents, start); i < inode.extents.length && at < end; i++) {
    const extent = inode.extents[i];
    if (extent.offset > at) holes.push({ start: at, end: Math.min(extent.offset, end) });
    at = Math.max(at, extent.offset + extentBytes(extent));
  }
  if (at < end) holes.push({ start: at, end });
  return holes;
}

/** Fills holes with the largest blocks that fit and are aligned in the file, and that can be had. */
function fillHoles(change: Change, ino: number, holes: readonly Hole[]): void {
  // Once a size has run out it is not asked for again: the search for it may be long.
  let orders = MEMFS_ORDERS;
  for (const hole of holes)
    for (let at = hole.start; at < hole.end; ) {
      const order = orders.find(
        (o) => isAligned(at, orderBytes(o)) && at + orderBytes(o) <= hole.end,
      );
      assert(order !== undefined, "a hole is page aligned");
      try {
        change.addBlock(ino, at, order);
        at += orderBytes(order);
      } catch (error) {
        const isFull = isKernelError(error, "ENOMEM") || isKernelError(error, "ENOSPC");
        if (!isFull || order === 0) throw error;
        orders = orders.filter((o) => o < order);
      }
    }
}

function mergeByOffset(a: readonly Extent[], b: readonly Extent[]): Extent[] {
  const merged: Extent[] = [];
  for (let i = 0, j = 0; i < a.length || j < b.length; )
    if (j === b.length || (i < a.length && a[i].offset < b[j].offset)) merged.push(a[i++]);
    else merged.push(b[j++]);
  return merged;
}
