/**
 * A file or directory in kernel heap: what a store's metadata says, and who holds it.
 * @module
 */
import {
  MEMFS_INLINE_NAME_BYTES,
  MEMFS_INODE,
  MEMFS_KIND_DIRECTORY,
  MEMFS_KIND_FILE,
  MEMFS_KIND_NAME,
  MEMFS_NAME,
  MEMFS_NAME_TEXT_BYTES,
  MEMFS_ORPHAN,
} from "../../abi/memfs.ts";
import { encodeUtf8 } from "../../abi/struct.ts";
import { ByteWords } from "../../abi/words.ts";
import { type Extent, extentBytes } from "./change.ts";

/** Bytes `start` .. `end` - 1 of a file that must stay where they are. */
export interface PinnedBytes {
  readonly start: number;
  readonly end: number;
}

/** The state that is also in memory. */
export interface InodeRecord {
  readonly ino: number;
  readonly kind: "file" | "directory";
  readonly generation: number;
  sizeBytes: number;
  /** "" of the root and of orphans. */
  name: string;
  /** Slots that hold the rest of a long name. */
  nameSlots: readonly number[];
  /** 0 of the root and of orphans. */
  parent: number;
  isOrphan: boolean;
}

/** Compared by identity: one object for an inode as long as its store is there. */
export interface Inode extends InodeRecord {
  /** Of a directory. */
  readonly children: Map<string, Inode>;
  /** Of a file: ascending, not overlapping. */
  extents: Extent[];
  /** Open files, mappings, pins: an orphan goes with the last. */
  holders: number;
  readonly pins: Set<PinnedBytes>;
  /** A live-update session relies on it: its size is fixed. */
  isRetained: boolean;
}

export function newInode(record: InodeRecord): Inode {
  return {
    ...record,
    children: new Map(),
    extents: [],
    holders: 0,
    pins: new Set(),
    isRetained: false,
  };
}

/** Bytes of memory that back a file. */
export function allocatedBytes(inode: Inode): number {
  let bytes = 0;
  for (const extent of inode.extents) bytes += extentBytes(extent);
  return bytes;
}

/** Position of the first extent that ends above `offset`. */
export function extentAt(extents: readonly Extent[], offset: number): number {
  let at = 0;
  for (let end = extents.length; at < end; ) {
    const middle = (at + end) >>> 1;
    if (extents[middle].offset + extentBytes(extents[middle]) <= offset) at = middle + 1;
    else end = middle;
  }
  return at;
}

/** NAME slots that a name takes besides its inode. */
export function nameSlotCount(name: string): number {
  const rest = encodeUtf8(name).length - MEMFS_INLINE_NAME_BYTES;
  return rest <= 0 ? 0 : Math.ceil(rest / MEMFS_NAME_TEXT_BYTES);
}

/** The slots of an inode, as bytes: its own first, then those of its name. */
export function encodeInode(record: InodeRecord): { number: number; bytes: Uint8Array }[] {
  const text = encodeUtf8(record.name);
  const { ino, nameSlots } = record;
  const slots = [{ number: ino, bytes: new Uint8Array(MEMFS_INODE.sizeBytes) }];
  MEMFS_INODE.write(new ByteWords(slots[0].bytes), 0, {
    kind: record.kind === "file" ? MEMFS_KIND_FILE : MEMFS_KIND_DIRECTORY,
    flags: record.isOrphan ? MEMFS_ORPHAN : 0,
    nameBytes: text.length,
    generation: record.generation,
    sizeBytes: record.sizeBytes,
    parent: record.parent,
    nameNext: nameSlots[0] ?? 0,
    name: text.subarray(0, MEMFS_INLINE_NAME_BYTES),
  });
  for (let i = 0; i < nameSlots.length; i++) {
    const from = MEMFS_INLINE_NAME_BYTES + i * MEMFS_NAME_TEXT_BYTES;
    const bytes = new Uint8Array(MEMFS_NAME.sizeBytes);
    MEMFS_NAME.write(new ByteWords(bytes), 0, {
      kind: MEMFS_KIND_NAME,
      reserved: 0,
      reserved2: 0,
      owner: ino,
      next: nameSlots[i + 1] ?? 0,
      reserved3: 0,
      text: text.subarray(from, from + MEMFS_NAME_TEXT_BYTES),
    });
    slots.push({ number: nameSlots[i], bytes });
  }
  return slots;
}
