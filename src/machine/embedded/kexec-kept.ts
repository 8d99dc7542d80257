/**
 * What a kexec keeps: the memory that a kernel hands over, as the machine finds it from the boot parameters.
 *
 * Kept are the FDT, the nodes of the radix tree, every block in it, the array of scratch areas, and the areas.
 * It is read as a kernel reads it, with the decoders of `abi`, from memory alone.
 * A handover with anything wrong in it keeps everything: what it does not say cannot be told from what it says
 * wrongly, and a machine that destroyed memory on a guess would hide from tests whether the next kernel refuses
 * in time. Without any handover nothing is kept.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import { readKhoFdt, readScratch } from "../../abi/kho.ts";
import { walkRadixTree } from "../../abi/kho-radix.ts";
import type { RamWords } from "../../abi/ram-words.ts";
import { alignDown, alignUp, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { KhoBootParameters, MemoryRange } from "../machine.ts";

export interface KeptMemory {
  /** Sorted, not overlapping, not adjacent. */
  readonly ranges: readonly MemoryRange[];
  /** What is wrong with the handover; null: nothing, `ranges` is all that is kept. */
  readonly problem: string | null;
}

/** Never throws, whatever memory and parameters hold. */
export function keptRanges(words: RamWords, kho: KhoBootParameters | null): KeptMemory {
  if (kho === null) return { ranges: [], problem: null };
  const kept = new PageRuns();
  try {
    const fdt = readKhoFdt(words, kho.fdtAddress, kho.fdtSizeBytes);
    kept.add(kho.fdtAddress, kho.fdtSizeBytes);
    const scratch = readScratch(words, kho.scratchAddress, kho.scratchSizeBytes);
    kept.add(kho.scratchAddress, kho.scratchSizeBytes);
    for (const { addr, size } of scratch) if (size > 0) kept.add(addr, size);
    walkRadixTree(words, fdt.memoryMapPa, {
      node: (pa) => kept.add(pa, PAGE_SIZE),
      block: (pa, order) => kept.add(pa, orderBytes(order)),
    });
  } catch (error) {
    if (!(error instanceof HandoverError)) throw error;
    return { ranges: [], problem: error.message };
  }
  return { ranges: kept.merged(), problem: null };
}

/** Collects runs of whole pages. A tree may hold a million single pages: two numbers for each, no objects. */
class PageRuns {
  readonly #starts: number[] = [];
  readonly #ends: number[] = [];

  add(pa: number, lengthBytes: number): void {
    this.#starts.push(alignDown(pa, PAGE_SIZE));
    this.#ends.push(alignUp(pa + lengthBytes, PAGE_SIZE));
  }

  /**
   * Where runs begin and end counts, not which end belongs to which begin: so both lists are sorted alone. A
   * piece of the union ends where as many runs have ended as have begun.
   */
  merged(): MemoryRange[] {
    const starts = Float64Array.from(this.#starts).sort();
    const ends = Float64Array.from(this.#ends).sort();
    const ranges: MemoryRange[] = [];
    let from = starts[0];
    for (let i = 0; i < ends.length; i++) {
      if (i + 1 < starts.length && starts[i + 1] <= ends[i]) continue;
      ranges.push({ start: from, lengthBytes: ends[i] - from });
      from = starts[i + 1];
    }
    return ranges;
  }
}
