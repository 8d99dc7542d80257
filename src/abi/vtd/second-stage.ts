/**
 * Second-stage paging entries of Intel VT-d.
 *
 * Why: bits that the kernel writes and hardware reads. An entry is 64 bits, given as two 32-bit halves, so
 * that a walk needs no bigint. Level 0 is the leaf table (SS-PTE), 1 SS-PDE, 2 SS-PDPTE, 3 SS-PML4E.
 * Source: Intel VT-d specification rev 5.0 §3.7, §9.8; Linux 7.3 drivers/iommu/generic_pt/fmt/vtdss.h
 * Layout:
 *   low   R 0 · W 1 · ignored 6:2 · PS 7 · ignored 10:8 (A 8, D 9 in scalable mode) · SNP 11 · ADDR 31:12
 *   high  ADDR 19:0 (bits above the host address width reserved) · ignored 29:20 · reserved 30 · ignored 31
 * An entry is present when R or W is set; bits of others mean nothing. PS is reserved in level 3 and where
 * CAP.SLLPS does not have that size; SNP is reserved in entries that name a table, and without ECAP.SC.
 * A leaf of level 1 or 2 has the address bits below its size reserved.
 * @module
 */

export const SS_ENTRY_BYTES = 8;
export const SS_TABLE_ENTRIES = 512;

/** Low half: reads are allowed. The rights of a page are those that all entries on the way to it have. */
export const SS_R = 1 << 0;
/** Low half: writes are allowed. */
export const SS_W = 1 << 1;
/** Low half of levels 1 and 2: a page, not a table. */
export const SS_PS = 1 << 7;
/** Low half: accessed; ignored in legacy mode. */
export const SS_A = 1 << 8;
/** Low half: dirty; ignored in legacy mode. */
export const SS_D = 1 << 9;
/** Low half of a leaf: snoop (ECAP.SC). */
export const SS_SNP = 1 << 11;
/** Bits that hardware ignores in any present entry, for software: low half. */
export const SS_IGNORED_LOW = 0x77c;
/** Bits that hardware ignores in any present entry, for software: high half, 61:52 and 63. */
export const SS_IGNORED_HIGH = 0xbff00000;
/** High half: the address bits. */
export const SS_ADDRESS_HIGH = 0x000fffff;

const SPAN = [2 ** 12, 2 ** 21, 2 ** 30, 2 ** 39, 2 ** 48];
/** Exact, and multiplying takes a quarter of the time of dividing: walks do it at every level. */
const PER_BYTE = SPAN.map((bytes) => 1 / bytes);

/** Bytes that one entry of a level spans: 4 KiB, 2 MiB, 1 GiB, 512 GiB. */
export function ssSpanBytes(level: number): number {
  return SPAN[level];
}

/** Index of an address in a table of a level. */
export function ssIndex(iova: number, level: number): number {
  return (iova * PER_BYTE[level]) & 511;
}

/** Whether the entry is present. */
export function ssIsPresent(low: number): boolean {
  return (low & (SS_R | SS_W)) !== 0;
}

/** Whether a present entry names a page and not a table. */
export function ssIsLeaf(low: number, level: number): boolean {
  return level === 0 || (level <= 2 && (low & SS_PS) !== 0);
}

/** The table or page that an entry names: its bits 51:12. */
export function ssAddress(low: number, high: number): number {
  return (high & SS_ADDRESS_HIGH) * 2 ** 32 + ((low & 0xfffff000) >>> 0);
}

/** Low half of an entry. @param pa - 4 KiB aligned; @param bits - SS_R, SS_W, SS_PS, ... */
export function ssEntryLow(pa: number, bits: number): number {
  return (pa % 2 ** 32) + bits;
}

/** High half of an entry. */
export function ssEntryHigh(pa: number): number {
  return Math.floor(pa / 2 ** 32);
}

/** Bits that must be 0 in a present entry, by level 0 to 3. */
export interface SsReservedBits {
  readonly tableLow: Uint32Array;
  readonly leafLow: Uint32Array;
  /** The same for tables and leaves of every level. */
  readonly high: number;
}

/**
 * The reserved bits for a unit with these capabilities.
 * @param hostAddressWidth - 32 to 52
 * @param sllps - CAP.SLLPS: bit 0 for 2 MiB, bit 1 for 1 GiB pages
 * @param snoopControl - ECAP.SC
 */
export function ssReservedBits(
  hostAddressWidth: number,
  sllps: number,
  snoopControl: boolean,
): SsReservedBits {
  const snp = snoopControl ? 0 : SS_SNP;
  return {
    // PS is clear in an entry of level 1 or 2 that names a table; level 3 has no page size.
    tableLow: Uint32Array.of(0, SS_SNP, SS_SNP, SS_SNP | SS_PS),
    leafLow: Uint32Array.of(
      snp,
      snp | 0x1ff000 | ((sllps & 1) !== 0 ? 0 : SS_PS),
      snp | 0x3ffff000 | ((sllps & 2) !== 0 ? 0 : SS_PS),
      0xffffffff,
    ),
    high:
      ((2 ** 20 - 2 ** (hostAddressWidth - 32)) | (~(SS_IGNORED_HIGH | SS_ADDRESS_HIGH) >>> 0)) >>>
      0,
  };
}
