/**
 * The memory that a no-IOMMU device of the previous kernel may be using, pinned again.
 *
 * Why: nothing translates its DMA, so all that keeps it from writing into memory of others is that this
 * memory stays its own until the device has moved to an IOAS that holds the same memory, or is stopped. Until
 * its iommufd is retrieved the files of the session, preserved as they are, hold the memory; they are finished
 * after the device.
 * @module
 */
import type { Area, IoPageTable } from "./io-pagetable.ts";

export class RestoredNoiommu {
  readonly type = "restored-noiommu";
  readonly areas: readonly Area[];

  /** @param areas - in order of IOVA; takes over the references on their pages */
  constructor(areas: readonly Area[]) {
    this.areas = areas;
  }

  /** Unpins the memory. */
  free(): void {
    for (const area of this.areas) area.pages.put();
  }

  /**
   * The first IOVA that an address space does not hold to the same physical address with no fewer rights;
   * null when it holds them all. A device that moves there keeps every byte that it may be using.
   */
  firstNotHeldBy(table: IoPageTable): number | null {
    for (const area of this.areas) {
      let iova = area.start;
      while (iova <= area.last) {
        const rest = area.last - iova + 1;
        const old = area.pages.contiguousFrom(area.startByte + (iova - area.start), rest);
        const now = table.physicalAt(iova, rest);
        if (now === null || now.pa !== old.pa || (area.prot & ~now.prot) !== 0) return iova;
        iova += Math.min(old.lengthBytes, now.lengthBytes);
      }
    }
    return null;
  }
}
