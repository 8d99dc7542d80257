/**
 * Root and context entries of Intel VT-d in legacy mode: which tables a source-id's DMA is translated by.
 *
 * Why: the remapping unit reads what the kernel writes (and what the kernel before it wrote), so both use
 * this one description. Each entry is 128 bits, given here as four 32-bit words, lowest first.
 * Source: Intel VT-d specification rev 5.0 §9.1 (root entry), §9.3 (context entry).
 * Layout of a root entry, by word:
 *   w0  P 0 · reserved 11:1 · CTP 31:12      w1  CTP 63:32 (bits above the host address width reserved)
 *   w2, w3  reserved
 * Layout of a context entry, by word:
 *   w0  P 0 · FPD 1 · TT 3:2 · reserved 11:4 · SSPTPTR 31:12    w1  SSPTPTR 63:32 (as CTP)
 *   w2  AW 2:0 · ignored 6:3 · reserved 7 · DID 23:8 · reserved 31:24    w3  reserved
 * @module
 */

/** Bytes of a root entry and of a context entry. */
export const ENTRY_BYTES = 16;
/** A root table has one entry for each bus, in 4 KiB. */
export const ROOT_TABLE_ENTRIES = 256;
/** A context table has one entry for each device and function of a bus, in 4 KiB. */
export const CONTEXT_TABLE_ENTRIES = 256;

/** w0 of a root entry: the context table is valid. */
export const ROOT_P = 1 << 0;

/** w0 of a context entry: the entry is valid. */
export const CONTEXT_P = 1 << 0;
/** w0: qualified faults are not recorded. Counts even when P is clear. */
export const CONTEXT_FPD = 1 << 1;
/** w0: place of TT. */
export const CONTEXT_TT_SHIFT = 2;
/** TT: untranslated requests go through the second-stage tables; the others are blocked. */
export const TT_MULTI_LEVEL = 0b00;
/** TT: as multi-level, with device-TLBs (ECAP.DT). */
export const TT_DEVICE_TLB = 0b01;
/** TT: untranslated requests pass with their address unchanged (ECAP.PT). */
export const TT_PASS_THROUGH = 0b10;

/** w2: mask of AW. */
export const CONTEXT_AW_MASK = 0b111;
/** AW: 3-level tables, 39-bit addresses (CAP.SAGAW bit 1). */
export const AW_39_BIT = 0b001;
/** AW: 4-level tables, 48-bit addresses (CAP.SAGAW bit 2). */
export const AW_48_BIT = 0b010;
/** w2: place of the four bits that hardware ignores and software may use (AVAIL). */
export const CONTEXT_AVAIL_SHIFT = 3;
export const CONTEXT_AVAIL_MASK = 0b1111;
/** w2: place of DID. */
export const CONTEXT_DID_SHIFT = 8;

/** An entry of either table as four 32-bit words, unsigned, lowest first. */
export type EntryWords = readonly [w0: number, w1: number, w2: number, w3: number];

/** Physical address of the root entry for a source-id's bus. */
export function rootEntryAddress(rootTable: number, sourceId: number): number {
  return rootTable + (sourceId >>> 8) * ENTRY_BYTES;
}

/** Physical address of the context entry for a source-id's device and function. */
export function contextEntryAddress(contextTable: number, sourceId: number): number {
  return contextTable + (sourceId & 0xff) * ENTRY_BYTES;
}

/** The table address in w0 and w1 of a root entry (CTP) or of a context entry (SSPTPTR). May be above 2^53: then not exact. */
export function tableAddress(w0: number, w1: number): number {
  return (w1 >>> 0) * 2 ** 32 + ((w0 & 0xfffff000) >>> 0);
}

/** A present root entry. @param contextTable - physical address, 4 KiB aligned */
export function rootEntry(contextTable: number): EntryWords {
  return [(contextTable % 2 ** 32) + ROOT_P, Math.floor(contextTable / 2 ** 32), 0, 0];
}

/** What a present context entry says. */
export interface ContextFields {
  /** TT_MULTI_LEVEL or TT_PASS_THROUGH. */
  readonly translationType: number;
  /** SSPTPTR: physical address of the top table, 4 KiB aligned. Hardware ignores it in pass-through. */
  readonly secondStageTable: number;
  /** AW_39_BIT or AW_48_BIT; in pass-through the widest that CAP.SAGAW has. */
  readonly addressWidth: number;
  /** DID, below 2^(4 + 2·CAP.ND). 0 is reserved when CAP.CM is set. */
  readonly domainId: number;
  readonly faultProcessingDisable?: boolean;
  /** For software: 0 to 15. */
  readonly avail?: number;
}

/** A present context entry. */
export function contextEntry(fields: ContextFields): EntryWords {
  const table = fields.secondStageTable;
  return [
    (table % 2 ** 32) +
      ((fields.translationType << CONTEXT_TT_SHIFT) |
        (fields.faultProcessingDisable ? CONTEXT_FPD : 0) |
        CONTEXT_P),
    Math.floor(table / 2 ** 32),
    (fields.domainId << CONTEXT_DID_SHIFT) |
      ((fields.avail ?? 0) << CONTEXT_AVAIL_SHIFT) |
      fields.addressWidth,
    0,
  ];
}

/** TT of a context entry. */
export function contextTranslationType(w0: number): number {
  return (w0 >>> CONTEXT_TT_SHIFT) & 0b11;
}

/** AW of a context entry, 0 to 7: only {@link AW_39_BIT} and {@link AW_48_BIT} are of use here. */
export function contextAddressWidth(w2: number): number {
  return w2 & CONTEXT_AW_MASK;
}

/** DID of a context entry. */
export function contextDomainId(w2: number): number {
  return (w2 >>> CONTEXT_DID_SHIFT) & 0xffff;
}

/** Number of table levels that AW stands for: 3 or 4. */
export function addressWidthLevels(addressWidth: number): number {
  return addressWidth + 2;
}

/** Bits of an address that AW stands for: 39 or 48. */
export function addressWidthBits(addressWidth: number): number {
  return 30 + 9 * addressWidth;
}

/** Reserved bits of w1 of both entries, and of the high half of table addresses everywhere: those above the host address width. */
export function reservedHighBits(hostAddressWidth: number): number {
  return hostAddressWidth >= 64 ? 0 : (0xffffffff - (2 ** (hostAddressWidth - 32) - 1)) >>> 0;
}

/** Whether a root entry has a reserved bit set. @param hostAddressWidth - 32 to 52 */
export function rootEntryHasReserved(
  w0: number,
  w1: number,
  w2: number,
  w3: number,
  hostAddressWidth: number,
): boolean {
  return ((w0 & 0xffe) | (w1 & reservedHighBits(hostAddressWidth)) | w2 | w3) !== 0;
}

/**
 * Whether a context entry has a reserved bit set.
 * @param hostAddressWidth - 32 to 52
 * @param domainIdBits - 4 + 2·CAP.ND: the bits of DID above are reserved
 */
export function contextEntryHasReserved(
  w0: number,
  w1: number,
  w2: number,
  w3: number,
  hostAddressWidth: number,
  domainIdBits: number,
): boolean {
  const did = 0xffff & ~(2 ** domainIdBits - 1);
  return (
    ((w0 & 0xff0) |
      (w1 & reservedHighBits(hostAddressWidth)) |
      (w2 & (0xff000080 | (did << CONTEXT_DID_SHIFT))) |
      w3) !==
    0
  );
}
