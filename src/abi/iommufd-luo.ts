/**
 * What an iommufd hands to the next kernel: its marked HWPTs, by token, and no-IOMMU HWPTs that are in use.
 *
 * Why so little: the new kernel's userspace builds the ordinary chain (file, IOAS, HWPT) again and swaps it
 * in, so object ids, IOASes and mappings of translated HWPTs are not part of the format. The page tables
 * themselves are handed over by the IOMMU core; a HWPT names one of them by the core's domain id. A no-IOMMU
 * HWPT has no tables: what it hands over is which memory it held pinned, so that this can be pinned again.
 * Layout: one record (kho-record.ts): iommufd_ser, then hwpt_count × iommufd_hwpt_ser, then area_count ×
 * iommufd_area_ser, where each no-IOMMU HWPT owns the next `area_count` areas.
 * Source: ours; the idea of serialising tokens and domains only: Linux list, iommufd live update series v1-v5.
 * @module
 */
import { struct, token64, u32, u64, type ValueOf } from "./struct.ts";

export const IOMMUFD_LUO_COMPATIBLE = "holdfast-iommufd-v1";

/** Set in {@link iommufd_hwpt_ser}.flags: DMA by physical address; `domain_id` is 0. */
export const IOMMUFD_HWPT_NOIOMMU = 1 << 0;
/** Userspace has given it no token, and it is 0; allowed for a no-IOMMU HWPT only. */
export const IOMMUFD_HWPT_UNNAMED = 1 << 1;

/** Bounds of the counts: far above use, low enough that a record holds both. */
export const IOMMUFD_HWPT_COUNT_MAX = 1 << 16;
export const IOMMUFD_AREA_COUNT_MAX = 1 << 20;

export const iommufd_ser = struct("iommufd_ser", {
  hwpt_count: u32,
  area_count: u32,
});

/** Devices of the same session name it by its place in the array. */
export const iommufd_hwpt_ser = struct("iommufd_hwpt_ser", {
  token: token64,
  flags: u32,
  /** What the IOMMU core called this domain in the handover. */
  domain_id: u32,
  /** Areas of a no-IOMMU HWPT; 0 otherwise. */
  area_count: u32,
  reserved: u32,
});

/** A range of IOVAs, and the bytes of a file of the same session that back it. */
export const iommufd_area_ser = struct("iommufd_area_ser", {
  iova: u64,
  length: u64,
  file_token: token64,
  file_offset: u64,
  /** IOMMU_READ | IOMMU_WRITE. */
  prot: u32,
  reserved: u32,
});
export type IommufdAreaSer = ValueOf<typeof iommufd_area_ser>;

/** Bytes of a handed-over iommufd. */
export function iommufdSerBytes(hwptCount: number, areaCount: number): number {
  return (
    iommufd_ser.sizeBytes +
    hwptCount * iommufd_hwpt_ser.sizeBytes +
    areaCount * iommufd_area_ser.sizeBytes
  );
}
