/**
 * Reserved memory regions (RMRRs): memory that firmware and a function share by DMA.
 *
 * Such a function can neither be blocked nor be given away: its regions stay identity mapped for it, from before
 * translation is enabled, through every kexec.
 * Source: VT-d spec rev 5.0 §8.4; Linux 7.3 drivers/iommu/intel/iommu.c device_rmrr_is_relaxable()
 * @module
 */
import { alignDown, alignUp, PAGE_SIZE } from "../../base/units.ts";
import type { MemoryRange, Rmrr } from "../../machine/machine.ts";

/** One function with all its regions: whole pages, sorted, apart from one another. */
export interface RmrrFunction {
  readonly segment: number;
  readonly bdf: number;
  readonly ranges: readonly MemoryRange[];
}

/** Collects what firmware tells by function, in the order of its list. */
export function rmrrFunctions(rmrrs: readonly Rmrr[]): readonly RmrrFunction[] {
  const functions: { segment: number; bdf: number; ranges: MemoryRange[] }[] = [];
  for (const { segment, bdf, start, lengthBytes } of rmrrs) {
    let found = functions.find((f) => f.segment === segment && f.bdf === bdf);
    if (found === undefined) {
      found = { segment, bdf, ranges: [] };
      functions.push(found);
    }
    const first = alignDown(start, PAGE_SIZE);
    found.ranges.push({
      start: first,
      lengthBytes: alignUp(start + lengthBytes, PAGE_SIZE) - first,
    });
  }
  return functions.map((f) => ({ ...f, ranges: merge(f.ranges) }));
}

function merge(ranges: readonly MemoryRange[]): readonly MemoryRange[] {
  const merged: { start: number; lengthBytes: number }[] = [];
  for (const range of ranges.toSorted((a, b) => a.start - b.start)) {
    const last = merged.at(-1);
    if (last !== undefined && range.start <= last.start + last.lengthBytes)
      last.lengthBytes = Math.max(last.lengthBytes, range.start + range.lengthBytes - last.start);
    else merged.push({ ...range });
  }
  return merged;
}
