/**
 * Reading second-stage page tables: where an IOVA leads, which runs of leaves there are, which pages hold tables.
 *
 * Why apart from the tables that can be changed: tables of the previous kernel are only ever read.
 * All tables read here are our own or were checked by `table-decoder.ts`, so addresses are not checked again.
 * Source: VT-d spec rev 5.0 §3.7, §9.8
 * @module
 */
import {
  SS_R,
  SS_TABLE_ENTRIES,
  SS_W,
  ssAddress,
  ssIndex,
  ssIsLeaf,
  ssIsPresent,
  ssSpanBytes,
} from "../../abi/vtd/second-stage.ts";
import type { WordReader } from "../../abi/words.ts";

const RIGHTS = SS_R | SS_W;

/** A tree of tables as its readers know it. */
export interface SecondStageTree {
  readonly memory: WordReader;
  /** Physical address of the top table. */
  readonly top: number;
  /** 3 or 4; the top table is of level `levels` - 1. */
  readonly levels: number;
}

/** Physical address that `iova` leads to, or null. Safe on any number. */
export function walkToPhys(tree: SecondStageTree, iova: number): number | null {
  if (!(iova >= 0 && iova < ssSpanBytes(tree.levels))) return null;
  let table = tree.top;
  for (let level = tree.levels - 1; ; level--) {
    const entry = table + 8 * ssIndex(iova, level);
    const low = tree.memory.load32(entry);
    if (!ssIsPresent(low)) return null;
    const address = ssAddress(low, tree.memory.load32(entry + 4));
    if (ssIsLeaf(low, level)) {
      const span = ssSpanBytes(level);
      return address + (iova - Math.floor(iova / span) * span);
    }
    table = address;
  }
}

/** Calls `visit` with every table under `table` and then with `table` itself. */
export function forEachTable(
  memory: WordReader,
  table: number,
  level: number,
  visit: (table: number) => void,
): void {
  if (level > 0) {
    for (let entry = table; entry < table + 8 * SS_TABLE_ENTRIES; entry += 8) {
      const low = memory.load32(entry);
      if (ssIsPresent(low) && !ssIsLeaf(low, level))
        forEachTable(memory, ssAddress(low, memory.load32(entry + 4)), level - 1, visit);
    }
  }
  visit(table);
}

/**
 * Goes over what a tree maps, in ascending order of IOVA, one run at a time: leaves of one table that follow one
 * another in IOVA and in physical memory with the same rights. Neighbouring runs may still be contiguous.
 */
export class LeafCursor {
  /** The current run. Before the first `next()` it is empty at 0, after the last one empty at the end. */
  iova = 0;
  pa = 0;
  lengthBytes = 0;
  /** IOMMU_READ | IOMMU_WRITE, which are the hardware's bits. */
  prot = 0;
  readonly #tree: SecondStageTree;
  readonly #end: number;
  #at = 0;

  constructor(tree: SecondStageTree) {
    this.#tree = tree;
    this.#end = ssSpanBytes(tree.levels);
  }

  /** Moves to the next run. @returns false when there is none */
  next(): boolean {
    const { memory, top, levels } = this.#tree;
    while (this.#at < this.#end) {
      let table = top;
      let level = levels - 1;
      for (;;) {
        const index = this.#skipAbsent(table, level);
        if (index === SS_TABLE_ENTRIES) break;
        const entry = table + 8 * index;
        const low = memory.load32(entry);
        const address = ssAddress(low, memory.load32(entry + 4));
        if (ssIsLeaf(low, level)) {
          this.#takeRun(table, level, index, low, address);
          return true;
        }
        table = address;
        level--;
      }
    }
    this.iova = this.#end;
    this.lengthBytes = 0;
    return false;
  }

  /** Moves `#at` to the first present entry of a table and returns its index, or moves it past the table. */
  #skipAbsent(table: number, level: number): number {
    const memory = this.#tree.memory;
    const span = ssSpanBytes(level);
    const first = ssIndex(this.#at, level);
    let index = first;
    while (index < SS_TABLE_ENTRIES && !ssIsPresent(memory.load32(table + 8 * index))) index++;
    if (index > first)
      this.#at += (index - first) * span - (this.#at - Math.floor(this.#at / span) * span);
    return index;
  }

  #takeRun(table: number, level: number, index: number, low: number, pa: number): void {
    const memory = this.#tree.memory;
    const span = ssSpanBytes(level);
    const prot = low & RIGHTS;
    let end = index + 1;
    for (let nextPa = pa + span; end < SS_TABLE_ENTRIES; end++, nextPa += span) {
      const nextLow = memory.load32(table + 8 * end);
      if ((nextLow & RIGHTS) !== prot || !ssIsLeaf(nextLow, level)) break;
      if (ssAddress(nextLow, memory.load32(table + 8 * end + 4)) !== nextPa) break;
    }
    this.iova = this.#at;
    this.pa = pa;
    this.lengthBytes = (end - index) * span;
    this.prot = prot;
    this.#at += this.lengthBytes;
  }
}
