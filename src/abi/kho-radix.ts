/**
 * KHO's map of preserved memory: a radix tree whose leaves are bitmaps, one bit for a block of any order.
 *
 * Why: the tree is another kernel's; it is walked before anything in memory is known to be sound, so the walk
 * trusts no pointer and no bit.
 * Source: Linux 7.3 include/linux/kho/abi/kexec_handover.h ("KHO persistent memory tracker"),
 * kernel/liveupdate/kexec_handover.c kho_encode_radix_key, __kho_radix_walk_tree
 * Layout of a key, for a block of 2^order pages at pa; 53 bits, so a number holds it exactly:
 *   bit 52 - order: 1;  bits below: pa >> (12 + order)
 *   | 52..51 level 5 | 50..42 level 4 | 41..33 level 3 | 32..24 level 2 | 23..15 level 1 | 14..0 bit of the leaf |
 * A node is a page of 512 u64 physical addresses (0: none), a leaf a page of 32,768 bits. Nodes are not marked as
 * preserved in the tree; the next kernel must walk it before it allocates outside scratch.
 * @module
 */
import { assert } from "../base/assert.ts";
import { hex, isAligned, orderBytes, PAGE_SIZE } from "../base/units.ts";
import { HandoverError } from "./handover-error.ts";
import type { RamWords } from "./ram-words.ts";

export const KHO_RADIX_KEY_WIDTH = 53;
/** log2 of the entries of a node. */
export const KHO_TABLE_SIZE_LOG2 = 9;
/** log2 of the bits of a leaf. */
export const KHO_BITMAP_SIZE_LOG2 = 15;
/** Levels, the leaf (level 0) among them. */
export const KHO_TREE_MAX_DEPTH = 6;
/** The largest order that a key can say. */
export const KHO_RADIX_MAX_ORDER = 52;

/** A tree of all single pages of 32 TiB has a quarter of this; more is no tree that a kernel made. */
const MAX_NODES = 2 ** 20;
const ENTRIES = 2 ** KHO_TABLE_SIZE_LOG2;

/** By order: the key of the block at address 0. */
const FIRST_KEY = Array.from({ length: KHO_RADIX_MAX_ORDER + 1 }, (_, order) => 2 ** (52 - order));

/** The key of a block. `pa` is aligned to the block's size and below 2^64 (a number, exact below 2^53). */
export function encodeRadixKey(pa: number, order: number): number {
  const size = orderBytes(order);
  assert(order >= 0 && order <= KHO_RADIX_MAX_ORDER && isAligned(pa, size), "a block has a key");
  return FIRST_KEY[order] + pa / size;
}

/** Order of the block that a key names; -1 for the key 0, which names none. */
export function radixKeyOrder(key: number): number {
  const high = Math.floor(key / 2 ** 32);
  const top = high !== 0 ? 63 - Math.clz32(high) : 31 - Math.clz32(key);
  return top < 0 ? -1 : 52 - top;
}

/** Address of the block that a key of that order names. */
export function radixKeyPa(key: number, order: number): number {
  return (key - FIRST_KEY[order]) * orderBytes(order);
}

/** Index into a node of `level` 1 to 5. */
export function radixTableIndex(key: number, level: number): number {
  // Bits of a number above 2^32 do not matter to `&`; `%` would be a call of fmod.
  return (key / levelSpan(level)) & (ENTRIES - 1);
}

/** Index of the bit in the leaf. */
export function radixBitmapIndex(key: number): number {
  return key & (2 ** KHO_BITMAP_SIZE_LOG2 - 1);
}

const LEVEL_SPAN = [0, 1, 2, 3, 4, 5].map(
  (level) => 2 ** (KHO_BITMAP_SIZE_LOG2 + KHO_TABLE_SIZE_LOG2 * (level - 1)),
);

/** Number of keys under one entry of a node of `level` 1 to 5. */
function levelSpan(level: number): number {
  return LEVEL_SPAN[level];
}

/** What a walk meets. */
export interface RadixVisitor {
  /** A node or, at level 0, a leaf: one page at `pa`. Called before what is under it is read. */
  node?(pa: number, level: number): void;
  /** A preserved block, in RAM and aligned. Blocks of higher orders come first, then by address. May overlap. */
  block?(pa: number, order: number): void;
  /** For who only looks: told what is wrong and in which page, instead of a throw; the walk goes on beside it. */
  broken?(error: HandoverError, pa: number): void;
}

/**
 * Walks an untrusted tree, highest level first.
 *
 * @param root - physical address of the node of level 5
 * @throws {HandoverError} when a node is unaligned, outside RAM or met twice, there are absurdly many, a key has
 *   more than 53 bits or none, or a block lies outside RAM. Blocks visited before that were called already.
 */
export function walkRadixTree(words: RamWords, root: number, visitor: RadixVisitor): void {
  const seen = new Set<number>();

  /** Does a part of the walk that others do not depend on. @param pa - of the page that it reads */
  const apart = (pa: number, part: () => void): void => {
    try {
      part();
    } catch (error) {
      if (!(error instanceof HandoverError) || visitor.broken === undefined) throw error;
      visitor.broken(error, pa);
    }
  };

  const enter = (pa: number, level: number, field: string): void => {
    if (!isAligned(pa, PAGE_SIZE)) throw new HandoverError(field, `${hex(pa)} is not page aligned`);
    if (!words.contains(pa, PAGE_SIZE)) throw new HandoverError(field, `${hex(pa)} is not in RAM`);
    if (seen.has(pa)) throw new HandoverError(field, `${hex(pa)} is in the tree already`);
    if (seen.size >= MAX_NODES) throw new HandoverError(field, `more than ${MAX_NODES} nodes`);
    seen.add(pa);
    visitor.node?.(pa, level);
  };

  const visitBlock = (pa: number, key: number, index: number): void => {
    const order = radixKeyOrder(key);
    if (order < 0)
      throw new HandoverError(bitField(pa, index), "is the key 0, which names no block");
    const block = radixKeyPa(key, order);
    if (!words.contains(block, orderBytes(order)))
      throw new HandoverError(bitField(pa, index), `${hex(block)} of order ${order} is not in RAM`);
    visitor.block?.(block, order);
  };

  const walkLeaf = (pa: number, firstKey: number): void => {
    for (let word = 0; word < PAGE_SIZE / 4; word++) {
      let bits = words.load32(pa + 4 * word);
      while (bits !== 0) {
        const index = 32 * word + 31 - Math.clz32(bits & -bits);
        bits &= bits - 1;
        // No closure for each block in a kernel: there may be millions.
        if (visitor.broken === undefined) visitBlock(pa, firstKey + index, index);
        else apart(pa, () => visitBlock(pa, firstKey + index, index));
      }
    }
  };

  const walkNode = (pa: number, level: number, firstKey: number): void => {
    const span = levelSpan(level);
    for (let index = 0; index < ENTRIES; index++) {
      const child = words.load64(pa + 8 * index);
      if (child !== 0) apart(pa, () => walkEntry(pa, level, firstKey + index * span, index, child));
    }
  };

  const walkEntry = (
    pa: number,
    level: number,
    key: number,
    index: number,
    child: number,
  ): void => {
    const field = `kho_radix_node@${hex(pa)}.table[${index}]`;
    if (key >= 2 ** KHO_RADIX_KEY_WIDTH)
      throw new HandoverError(field, `is for keys of more than ${KHO_RADIX_KEY_WIDTH} bits`);
    enter(child, level - 1, field);
    if (level === 1) walkLeaf(child, key);
    else walkNode(child, level - 1, key);
  };

  apart(root, () => {
    enter(root, KHO_TREE_MAX_DEPTH - 1, "preserved-memory-map");
    walkNode(root, KHO_TREE_MAX_DEPTH - 1, 0);
  });
}

function bitField(leaf: number, index: number): string {
  return `kho_radix_leaf@${hex(leaf)}.bitmap[${index}]`;
}
