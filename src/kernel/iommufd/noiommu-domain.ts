/**
 * The domain of devices whose DMA nothing translates: it has no page tables and maps nothing.
 *
 * Why it exists at all: with it a no-IOMMU device uses the same chain as any other (IOAS, HWPT, attach), so
 * the kernel holds its memory pinned and knows for how long; userspace programs the device with physical
 * addresses from IOMMU_IOAS_NOIOMMU_GET_PA. Linux keeps a software page table here; our areas answer alone.
 * Source: Linux 7.3 drivers/iommu/iommufd/hwpt_noiommu.c
 * @module
 */
import { PAGE_SIZE } from "../../base/units.ts";

/** IOVAs of this kernel end here; Linux's end at 2^64. Every hardware's address width is smaller. */
export const IOVA_END = 2 ** 52;

export class NoiommuDomain {
  readonly type = "noiommu";
  readonly apertureEnd = IOVA_END;
  readonly pageSizes = PAGE_SIZE;
  map(): void {}
  unmap(): void {}
  free(): void {}
}
