/**
 * memfs: the guest-memory filesystem as it lies in memory, from kernel to kernel.
 *
 * Why a format of its own: the seeds keep a 2 MiB block of pointers for each file (pkernfs) or a copy of the
 * metadata made at the jump (guestmemfs). Here the metadata is in place all the time, so there is nothing to write at
 * a jump and nothing lost in a panic, and it costs 64 bytes for a file and 32 for a run of pages.
 *
 * Layout, all in preserved 4 KiB pages (of a carve-out: in the carve-out):
 *   root page      MEMFS_ROOT, then 504 u64: address of each store's superblock page, or 0. KHO subtree "memfs".
 *   superblock     MEMFS_SUPERBLOCK; at 1024 the log: 64 MEMFS_LOG_ENTRY
 *   inode blocks   a chain in ascending `index`: MEMFS_BLOCK, padded to 64 bytes; then 63 slots of 64 bytes, each a
 *                  MEMFS_INODE or a MEMFS_NAME. Inode number = 64 · index + slot (1 .. 63); the root is number 1.
 *   extent blocks  a chain in ascending `index`: MEMFS_BLOCK, padded to 32 bytes; then 127 MEMFS_EXTENT. Extent
 *                  number = 128 · index + slot (1 .. 127). Extents of all files, in no order.
 * There are no directory blocks: an inode has one parent and one name, since there are no hard links.
 *
 * A change commits by one store, of `commit` from 0 to 1 + the number of log entries:
 *   before it   log entries are written; extents that shall appear have state ADDING, those that shall go REMOVING
 *   after it    the log is copied to its places, ADDING becomes LIVE, REMOVING becomes FREE; then `commit` is 0
 * So with `commit` 0 the log means nothing, ADDING means free and REMOVING means live; otherwise the log's
 * values stand for the words that it names, ADDING means live and REMOVING means free.
 * @module
 */
import { byteArray, cString, struct, u8, u16, u32, u64, type ValueOf } from "./struct.ts";

/** Name of the KHO subtree; its blob is the root page. */
export const MEMFS_SUBTREE = "memfs";
/** Changes with any layout in this file. */
export const MEMFS_COMPATIBLE = "memfs-v1";
/**
 * A memfs file in a live-update session. Its `data` is the file itself: the store's slot in the root page (12 bits,
 * at the top), the generation (24 bits), the inode number (28 bits).
 */
export const MEMFS_FILE_COMPATIBLE = "memfs-file-v1";

export const MEMFS_ROOT = struct("memfs_root", {
  compatible: cString(16),
  /** {@link MEMFS_STORE_SLOTS}. */
  slotCount: u32,
  reserved: u32,
});
/** Where the root page's slots begin, and how many there are. */
export const MEMFS_STORE_SLOTS_OFFSET = 64;
export const MEMFS_STORE_SLOTS = 504;

/** "MFSB" */
export const MEMFS_SUPERBLOCK_MAGIC = 0x4253464d;
export const MEMFS_NO_NODE = 0xffffffff;
export const MEMFS_SUPERBLOCK = struct("memfs_superblock", {
  magic: u32,
  /** 0, or 1 + the number of log entries of a change that has been committed but not finished. */
  commit: u32,
  /** What mount(2) calls the store: 1 to 63 bytes. */
  name: cString(64),
  /** Most bytes of file memory, a multiple of 4 KiB; 0: no limit. */
  limitBytes: u64,
  /** The carve-out that holds the store's pages, aligned to 2 MiB; both 0 in a dynamic store. */
  carveOutStart: u64,
  carveOutBytes: u64,
  /** First inode block; never 0. */
  inodeBlocks: u64,
  /** First extent block, or 0. */
  extentBlocks: u64,
  /** NUMA node of all pages, or MEMFS_NO_NODE. */
  node: u32,
  /** Generation of the next inode: 1 .. 2^24 - 1. */
  nextGeneration: u32,
});

export const MEMFS_LOG_OFFSET = 1024;
export const MEMFS_LOG_ENTRIES = 64;
export const MEMFS_LOG_INODES = 1;
export const MEMFS_LOG_EXTENTS = 2;
/** "Word `word` of slot `number` of `table` is {high:low}." */
export const MEMFS_LOG_ENTRY = struct("memfs_log_entry", {
  number: u32,
  /** MEMFS_LOG_INODES or MEMFS_LOG_EXTENTS. */
  table: u16,
  /** Index of a 64-bit word within the slot. */
  word: u16,
  low: u32,
  high: u32,
});

/** "MFIB" and "MFEB" */
export const MEMFS_INODE_BLOCK_MAGIC = 0x4249464d;
export const MEMFS_EXTENT_BLOCK_MAGIC = 0x4245464d;
export const MEMFS_BLOCK = struct("memfs_block", {
  magic: u32,
  /** Above that of the block before it in the chain. */
  index: u32,
  /** Next block, or 0. */
  next: u64,
});

export const MEMFS_KIND_FREE = 0;
export const MEMFS_KIND_FILE = 1;
export const MEMFS_KIND_DIRECTORY = 2;
export const MEMFS_KIND_NAME = 3;
/** An unlinked file that was open: it has no name and no parent, and goes when nobody holds it. */
export const MEMFS_ORPHAN = 1;
export const MEMFS_ROOT_INO = 1;
/** Inode numbers are below this: 28 bits. */
export const MEMFS_INO_END = 2 ** 28;
/** Generations are below this: 24 bits. */
export const MEMFS_GENERATION_END = 2 ** 24;
/** File sizes, and ends of extents, are at most this. */
export const MEMFS_SIZE_LAST = 2 ** 52;

/** Bytes of a name in its inode; the rest follows in MEMFS_NAME slots. */
export const MEMFS_INLINE_NAME_BYTES = 40;
export const MEMFS_INODE = struct("memfs_inode", {
  /** FILE or DIRECTORY. */
  kind: u8,
  /** 0 or MEMFS_ORPHAN. */
  flags: u8,
  /** Bytes of the name, 1 .. 255; 0 for the root and for orphans. */
  nameBytes: u16,
  /** Tells this use of the inode number from others: 1 .. 2^24 - 1. */
  generation: u32,
  /** 0 for a directory. */
  sizeBytes: u64,
  /** Inode number of the directory; 0 for the root and for orphans. */
  parent: u32,
  /** Number of the slot with the rest of the name, or 0. */
  nameNext: u32,
  name: byteArray(MEMFS_INLINE_NAME_BYTES),
});

export const MEMFS_NAME_TEXT_BYTES = 48;
/** More of a name than fits in the inode. */
export const MEMFS_NAME = struct("memfs_name", {
  /** NAME. */
  kind: u8,
  reserved: u8,
  reserved2: u16,
  /** Inode number that it belongs to. */
  owner: u32,
  /** Number of the slot with the next part, or 0. */
  next: u32,
  reserved3: u32,
  text: byteArray(MEMFS_NAME_TEXT_BYTES),
});

export const MEMFS_EXTENT_FREE = 0;
export const MEMFS_EXTENT_LIVE = 1;
export const MEMFS_EXTENT_ADDING = 2;
export const MEMFS_EXTENT_REMOVING = 3;
/** `count` blocks of 2^order pages, one after the other in the file and in memory. */
export const MEMFS_EXTENT = struct("memfs_extent", {
  state: u32,
  ino: u32,
  /** Where in the file: a multiple of the block size. */
  offset: u64,
  pa: u64,
  /** 0, 9 or 18: each order in use costs five pages of KHO's tree. */
  order: u32,
  count: u32,
});

/** Orders of data blocks, largest first. */
export const MEMFS_ORDERS: readonly number[] = [18, 9, 0];

/** Geometry of the two kinds of block: slot s of a block lies at s · slotBytes, s from 1 to slotsEnd - 1. */
export const MEMFS_INODE_TABLE = {
  magic: MEMFS_INODE_BLOCK_MAGIC,
  slotBytes: 64,
  slotsEnd: 64,
  indexEnd: MEMFS_INO_END / 64,
} as const;
export const MEMFS_EXTENT_TABLE = {
  magic: MEMFS_EXTENT_BLOCK_MAGIC,
  slotBytes: 32,
  slotsEnd: 128,
  indexEnd: 2 ** 25,
} as const;

export type MemfsSuperblock = ValueOf<typeof MEMFS_SUPERBLOCK>;
export type MemfsInode = ValueOf<typeof MEMFS_INODE>;
export type MemfsExtent = ValueOf<typeof MEMFS_EXTENT>;
/** The geometry of a table. */
export type MemfsTable = typeof MEMFS_INODE_TABLE | typeof MEMFS_EXTENT_TABLE;
