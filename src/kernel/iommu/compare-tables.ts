/**
 * Whether a device may move from one tree of page tables to another while it does DMA.
 *
 * Why: after a live update userspace builds its mappings anew. Whatever it builds, a transfer that the device
 * has under way must end where it was meant to, so every old translation must be in the new tables.
 * Cost: one visit of each leaf and table of both trees; page sizes may differ.
 * @module
 */
import { LeafCursor, type SecondStageTree } from "./second-stage-walk.ts";

/** The first translation that would break, in order of IOVA. */
export interface BrokenTranslation {
  readonly iova: number;
  readonly problem: "is not mapped" | "leads to another address" | "has fewer rights";
}

/**
 * Looks for a translation of `old` that `replacement` lacks, leads elsewhere, or allows less.
 *
 * @returns the first one, or null when the replacement can take over
 */
export function compareTables(
  old: SecondStageTree,
  replacement: SecondStageTree,
): BrokenTranslation | null {
  const was = new LeafCursor(old);
  const is = new LeafCursor(replacement);
  while (was.next()) {
    const end = was.iova + was.lengthBytes;
    for (let at = was.iova; at < end; at = is.iova + is.lengthBytes) {
      while (is.iova + is.lengthBytes <= at)
        if (!is.next()) return { iova: at, problem: "is not mapped" };
      if (is.iova > at) return { iova: at, problem: "is not mapped" };
      if (is.pa - is.iova !== was.pa - was.iova)
        return { iova: at, problem: "leads to another address" };
      if ((was.prot & ~is.prot) !== 0) return { iova: at, problem: "has fewer rights" };
    }
  }
  return null;
}
