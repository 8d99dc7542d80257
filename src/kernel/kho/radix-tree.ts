/**
 * The live map of what this kernel preserves: every bit is final at once, there is no last-minute pass.
 *
 * Why it differs from upstream in one thing: nodes that become empty are freed, so that preserving and
 * unpreserving leaves memory exactly as it was. Readers cannot tell the difference.
 * Order of stores: a new branch is complete before the one store that links it, a bit is cleared before its
 * branch goes. So whatever stops this kernel, the tree in memory is a valid one.
 * Source: Linux 7.3 kernel/liveupdate/kexec_handover.c kho_radix_add_key, kho_radix_del_key
 * @module
 */

import {
  encodeRadixKey,
  KHO_TREE_MAX_DEPTH,
  radixBitmapIndex,
  radixTableIndex,
} from "../../abi/kho-radix.ts";
import { assert } from "../../base/assert.ts";
import { withUndo } from "../../base/undo.ts";
import { hex, isAligned, isIndex, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";

const ROOT_LEVEL = KHO_TREE_MAX_DEPTH - 1;
const KEYS_PER_LEAF = 8 * PAGE_SIZE;

/** A tree of its own pages, order 0, which it does not mark as preserved. */
export class RadixTree {
  /** Physical address of the node of level 5. */
  readonly root: number;
  readonly #memory: PhysicalMemory;
  readonly #mm: PageAllocator;
  /** Children of each node, bits of each leaf. Counts only: the tree itself is in memory alone. */
  readonly #used = new Map<number, number>();
  /** The leaf of the last key, and which keys it is for: blocks of a file are neighbours. */
  #lastGroup = -1;
  #lastLeaf = 0;

  /** @throws {KernelError} ENOMEM */
  constructor(memory: PhysicalMemory, mm: PageAllocator) {
    this.#memory = memory;
    this.#mm = mm;
    this.root = mm.alloc(0);
    this.#used.set(this.root, 0);
  }

  /** Nodes and leaves. */
  get nodeCount(): number {
    return this.#used.size;
  }

  /** Whether exactly that block is marked. */
  has(pa: number, order: number): boolean {
    if (!isIndex(order, 52) || !(pa >= 0) || !isAligned(pa, orderBytes(order))) return false;
    const key = encodeRadixKey(pa, order);
    const leaf = this.#leafOf(key);
    return leaf !== 0 && this.#hasBit(leaf, radixBitmapIndex(key));
  }

  /**
   * Marks a block that is not marked.
   * @throws {KernelError} ENOMEM; nothing is changed then
   */
  add(pa: number, order: number): void {
    const key = encodeRadixKey(pa, order);
    const leaf = this.#leafOf(key);
    if (leaf !== 0) {
      const bit = radixBitmapIndex(key);
      assert(!this.#hasBit(leaf, bit), () => `${hex(pa)} of order ${order} is not preserved yet`);
      this.#setBit(leaf, bit);
      this.#count(leaf, 1);
      return;
    }
    let node = this.root;
    let level = ROOT_LEVEL;
    while (level > 0) {
      const child = this.#child(node, key, level);
      if (child === 0) break;
      node = child;
      level--;
    }
    this.#addBranch(node, level, key);
    this.#count(node, 1);
  }

  /** Unmarks a block that is marked. Never fails. */
  delete(pa: number, order: number): void {
    assert(this.has(pa, order), () => `${hex(pa)} of order ${order} is preserved`);
    const key = encodeRadixKey(pa, order);
    const path: number[] = [];
    let node = this.root;
    for (let level = ROOT_LEVEL; level > 0; level--) {
      path[level] = node;
      node = this.#child(node, key, level);
    }
    const bit = radixBitmapIndex(key);
    const at = wordAddress(node, bit);
    this.#memory.store32(at, this.#memory.load32(at) & ~(1 << (bit & 31)));

    let isEmpty = this.#count(node, -1) === 0;
    for (let level = 1; level <= ROOT_LEVEL && isEmpty; level++) {
      const parent = path[level];
      this.#memory.retract64(entryAddress(parent, key, level));
      this.#freeNode(node);
      isEmpty = this.#count(parent, -1) === 0;
      node = parent;
    }
  }

  /** Frees all nodes: for a kernel that cannot finish its boot. */
  destroy(): void {
    for (const node of [...this.#used.keys()]) this.#freeNode(node);
  }

  /** Builds the nodes below `level` from the leaf up, then links them into `node`. */
  #addBranch(node: number, level: number, key: number): void {
    const branch = withUndo((undo) => {
      let below = 0;
      for (let l = 0; l < level; l++) {
        const page = this.#mm.alloc(0);
        undo(() => this.#mm.free(page, 0));
        if (l === 0) this.#setBit(page, radixBitmapIndex(key));
        else this.#memory.store64(entryAddress(page, key, l), below);
        undo(() => this.#used.delete(page));
        this.#used.set(page, 1);
        below = page;
      }
      return below;
    });
    this.#memory.fence();
    this.#memory.publish64(
      entryAddress(node, key, level),
      branch % 2 ** 32,
      Math.floor(branch / 2 ** 32),
    );
  }

  /** The leaf that has a key's bit, or 0. */
  #leafOf(key: number): number {
    const group = Math.floor(key / KEYS_PER_LEAF);
    if (group === this.#lastGroup) return this.#lastLeaf;
    let node = this.root;
    for (let level = ROOT_LEVEL; level > 0 && node !== 0; level--)
      node = this.#child(node, key, level);
    if (node !== 0) {
      this.#lastGroup = group;
      this.#lastLeaf = node;
    }
    return node;
  }

  #hasBit(leaf: number, bit: number): boolean {
    return ((this.#memory.load32(wordAddress(leaf, bit)) >>> (bit & 31)) & 1) !== 0;
  }

  #child(node: number, key: number, level: number): number {
    return this.#memory.load64(entryAddress(node, key, level));
  }

  #setBit(leaf: number, bit: number): void {
    const at = wordAddress(leaf, bit);
    this.#memory.store32(at, (this.#memory.load32(at) | (1 << (bit & 31))) >>> 0);
  }

  #count(node: number, change: number): number {
    const used = (this.#used.get(node) ?? 0) + change;
    this.#used.set(node, used);
    return used;
  }

  #freeNode(node: number): void {
    if (node === this.#lastLeaf) this.#lastGroup = -1;
    this.#used.delete(node);
    this.#mm.free(node, 0);
  }
}

function entryAddress(node: number, key: number, level: number): number {
  return node + 8 * radixTableIndex(key, level);
}

/** Address of the 32-bit word that holds a leaf's bit. */
function wordAddress(leaf: number, bit: number): number {
  assert(bit < KEYS_PER_LEAF, "a leaf has 32,768 bits");
  return leaf + 4 * (bit >>> 5);
}
