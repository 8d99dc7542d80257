/**
 * The IOMMU's part of a handover: remapping units, the domains that stay, and which function uses which.
 *
 * Why: what hardware reads (root, context and page tables) stays in place and is its own description; this only
 * says where it is and what it must look like, so that the next kernel can compare all three: this record, the
 * tables, and the registers.
 * Layout: one header page with {@link IOMMU_SER}, a list of record pages, and at 3072 the first 32 records; records of 32
 * bytes go on in the record pages in order, 128 to a page: all units, then all domain slots, then all devices. So a
 * host of a dozen devices needs no page but the header. A list of addresses instead of a chain cannot be cyclic.
 * Not Linux's: its proposed `iommu-liveupdate` state (in review, 2026-09) carries the same facts in another layout.
 * @module
 */
import { struct, u16, u32, u64 } from "./struct.ts";

/** Changes with any change of the structures below or of their meaning. */
export const IOMMU_LUO_COMPATIBLE = "iommu-holdfast-v1";

/** First bytes of the header page; `page_count` addresses (u64) of record pages follow. */
export const IOMMU_SER = struct("iommu_ser", {
  unit_count: u32,
  /** Slots, used or not: the index of a slot is the domain's id. */
  domain_count: u32,
  device_count: u32,
  page_count: u32,
});

/** Where the header page's own records begin: the list of pages ends there. */
const HEADER_RECORDS_OFFSET = 3072;
/** Record pages that one header page can list. */
export const IOMMU_SER_PAGES_MAX = (HEADER_RECORDS_OFFSET - IOMMU_SER.sizeBytes) / 8;

export const IOMMU_RECORD_BYTES = 32;
/** Records in the header page. */
export const IOMMU_HEADER_RECORDS = (4096 - HEADER_RECORDS_OFFSET) / IOMMU_RECORD_BYTES;
const RECORDS_PER_PAGE = 4096 / IOMMU_RECORD_BYTES;
/** Units, domain slots and devices that one handover can hold together. */
export const IOMMU_RECORDS_MAX = IOMMU_HEADER_RECORDS + IOMMU_SER_PAGES_MAX * RECORDS_PER_PAGE;

/** Record pages that so many records need beside the header page. */
export function iommuRecordPages(records: number): number {
  return Math.max(0, Math.ceil((records - IOMMU_HEADER_RECORDS) / RECORDS_PER_PAGE));
}

/**
 * Physical address of a record.
 *
 * @param header - of the header page
 * @param pages - of the record pages
 */
export function iommuRecordAddress(
  header: number,
  pages: readonly number[],
  index: number,
): number {
  if (index < IOMMU_HEADER_RECORDS)
    return header + HEADER_RECORDS_OFFSET + index * IOMMU_RECORD_BYTES;
  const i = index - IOMMU_HEADER_RECORDS;
  return pages[Math.floor(i / RECORDS_PER_PAGE)] + (i % RECORDS_PER_PAGE) * IOMMU_RECORD_BYTES;
}

/** A remapping unit that is translating. */
export const IOMMU_UNIT_SER = struct("iommu_unit_ser", {
  /** Physical address of its registers, as firmware tells it: the unit's name. */
  register_base: u64,
  /** Physical address of its root table: what RTADDR holds. */
  root_table: u64,
  /** PCI segment group. */
  segment: u32,
  reserved: u32,
  reserved2: u64,
});

/** An unused slot; all other fields are 0. */
export const IOMMU_DOMAIN_NONE = 0;
/** Tables that a user of the IOMMU core had preserved. */
export const IOMMU_DOMAIN_PAGING = 1;
/** Identity mapping of one function's RMRRs. */
export const IOMMU_DOMAIN_RMRR = 2;

/** Second-stage page tables that stay. */
export const IOMMU_DOMAIN_SER = struct("iommu_domain_ser", {
  /** Physical address of the top table. */
  top_table: u64,
  /** `IOMMU_DOMAIN_*` */
  kind: u32,
  /** 3 or 4. */
  levels: u32,
  /** Bits of an IOVA: 39 with 3 levels, 48 with 4. */
  address_width: u32,
  /** Pages of its tables, the top table too. */
  table_count: u32,
  reserved: u64,
});

/** A function whose context entry stays. */
export const IOMMU_DEVICE_SER = struct("iommu_device_ser", {
  /** Index of its unit. */
  unit: u32,
  /** Slot of its domain. */
  domain: u32,
  /** PCI segment group. */
  segment: u32,
  /** Requester id. */
  bdf: u16,
  /** Domain id in its context entry; of no other device on that unit. */
  did: u16,
  reserved: u64,
  reserved2: u64,
});
