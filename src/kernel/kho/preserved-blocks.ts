/**
 * The blocks that a kernel has preserved, out of KHO's tree: sorted, to be asked by address.
 *
 * Why a copy: the tree's nodes are ordinary memory, not preserved; once it is read into sorted arrays, they may be
 * given out, and nothing has to be freed.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import { walkRadixTree } from "../../abi/kho-radix.ts";
import type { RamWords } from "../../abi/ram-words.ts";
import { hex, isAligned, isIndex, MAX_ORDER, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { MemoryRange } from "../../machine/machine.ts";
import type { BlockList } from "../mm/buddy-allocator.ts";
import type { Scratch } from "./scratch.ts";

const MAP = "preserved-memory-map";

/** Blocks sorted by address, as numbers: frame number times 64 plus order. */
export class SortedBlocks implements BlockList {
  readonly #packed: Float64Array;

  constructor(packed: Float64Array) {
    this.#packed = packed.sort();
  }

  get count(): number {
    return this.#packed.length;
  }
  pa(index: number): number {
    return Math.floor(this.#packed[index] / 64) * PAGE_SIZE;
  }
  order(index: number): number {
    return this.#packed[index] & 63;
  }
  end(index: number): number {
    return this.pa(index) + orderBytes(this.order(index));
  }

  /** Index of the first block that starts at `pa` or above. */
  lowerBound(pa: number): number {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.pa(middle) < pa) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Index of the block that starts exactly at `pa`, or -1. */
  find(pa: number): number {
    const index = this.lowerBound(pa);
    return index < this.count && this.pa(index) === pa ? index : -1;
  }

  /** Index of a block that has a byte of the range, or -1. */
  findOverlap(pa: number, lengthBytes: number): number {
    const index = this.lowerBound(pa + lengthBytes) - 1;
    return index >= 0 && this.end(index) > pa ? index : -1;
  }
}

/** RAM as the tree's reader needs it. */
export interface TreeMemory extends RamWords {
  readonly ranges: readonly MemoryRange[];
}

/** Takes what breaks a rule, for who only looks; absent in a kernel, which throws. `pa`: of the tree's page, or 0. */
export type OnBroken = (error: HandoverError, pa: number) => void;

/**
 * Reads an untrusted tree.
 *
 * @param root - physical address of its root
 * @throws {HandoverError} without `onBroken`
 */
export function readPreservedTree(
  memory: TreeMemory,
  root: number,
  onBroken?: OnBroken,
): { readonly blocks: SortedBlocks; readonly nodes: readonly number[] } {
  const ramBytes = memory.ranges.reduce((sum, range) => sum + range.lengthBytes, 0);
  const nodes: number[] = [];
  let packed = new Float64Array(1024);
  let count = 0;
  let bytes = 0;
  walkRadixTree(memory, root, {
    node: (pa) => nodes.push(pa),
    ...(onBroken !== undefined && { broken: onBroken }),
    block: (pa, order) => {
      if (order > MAX_ORDER)
        throw new HandoverError(MAP, `block ${hex(pa)} has order ${order}, above ${MAX_ORDER}`);
      // Blocks that do not overlap cannot exceed RAM: a tree of nonsense ends here, not in a full heap.
      bytes += orderBytes(order);
      if (bytes > ramBytes) throw new HandoverError(MAP, "blocks exceed all RAM");
      if (count === packed.length) {
        const larger = new Float64Array(2 * count);
        larger.set(packed);
        packed = larger;
      }
      packed[count++] = (pa / PAGE_SIZE) * 64 + order;
    },
  });
  return { blocks: new SortedBlocks(packed.slice(0, count)), nodes };
}

/**
 * Blocks overlap neither one another nor scratch nor the tree's nodes.
 *
 * @param scratch - null: not known
 * @throws {HandoverError} without `onBroken`
 */
export function checkOverlaps(
  blocks: SortedBlocks,
  nodes: readonly number[],
  scratch: Scratch | null,
  onBroken: OnBroken = (error) => {
    throw error;
  },
): void {
  const refuse = (pa: number, problem: string) => onBroken(new HandoverError(MAP, problem), pa);
  const name = (index: number) => `block ${hex(blocks.pa(index))} of order ${blocks.order(index)}`;
  for (let i = 1; i < blocks.count; i++)
    if (blocks.end(i - 1) > blocks.pa(i))
      refuse(blocks.pa(i), `${name(i)} overlaps ${name(i - 1)}`);
  scratch?.areas.forEach((area, index) => {
    const block = area.size === 0 ? -1 : blocks.findOverlap(area.addr, area.size);
    if (block >= 0) refuse(blocks.pa(block), `${name(block)} overlaps kho_scratch[${index}]`);
  });
  for (const node of nodes) {
    const block = blocks.findOverlap(node, PAGE_SIZE);
    if (block >= 0) refuse(node, `${name(block)} overlaps the tree's node ${hex(node)}`);
    if (scratch?.overlaps(node, PAGE_SIZE) === true)
      refuse(node, `the tree's node ${hex(node)} lies in scratch`);
  }
}

/** Boundaries of the runs of adjacent blocks: start, end, start, end. */
export function mergeRuns(blocks: SortedBlocks): Float64Array {
  const runs = new Float64Array(2 * blocks.count);
  let length = 0;
  for (let i = 0; i < blocks.count; i++) {
    if (length > 0 && runs[length - 1] === blocks.pa(i)) length--;
    else runs[length++] = blocks.pa(i);
    runs[length++] = blocks.end(i);
  }
  return runs.slice(0, length);
}

/** Whether all bytes lie in one run of {@link mergeRuns}. Safe on any number. */
export function liesInRuns(runs: Float64Array, pa: number, lengthBytes: number): boolean {
  if (!(pa >= 0 && lengthBytes >= 0)) return false;
  // Runs are start, end, start, end: pa lies in one if the last boundary not above it is a start.
  let low = 0;
  let high = runs.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (runs[middle] <= pa) low = middle + 1;
    else high = middle;
  }
  return low % 2 === 1 && pa + lengthBytes <= runs[low];
}

/**
 * Checks that an address and an order are those of a block in RAM. Safe on any numbers.
 *
 * @param field - that names the block
 * @throws {HandoverError} when they are not
 */
export function checkBlock(
  ram: Pick<RamWords, "contains">,
  pa: number,
  order: number,
  field: string,
): void {
  if (!isIndex(order, MAX_ORDER))
    throw new HandoverError(field, `order ${order} is not 0 to ${MAX_ORDER}`);
  if (!(pa >= 0) || !isAligned(pa, orderBytes(order)))
    throw new HandoverError(field, `${hex(pa)} is not aligned to order ${order}`);
  if (!ram.contains(pa, orderBytes(order)))
    throw new HandoverError(field, `${hex(pa)} is not in RAM`);
}
