/**
 * DMA faults of VT-d: status bits, fault records, and the reasons of legacy mode.
 *
 * Source: Intel VT-d specification rev 5.0 §7 (fault conditions, here with their names there), §11.4.7.1
 * (FSTS), §11.4.7.6 (FRCD); Linux 7.3 drivers/iommu/intel/dmar.c dma_remap_fault_reasons.
 * Layout of a fault record, by 32-bit word:
 *   w0  FI 31:12 (page of the address)      w1  FI 63:32
 *   w2  SID 15:0                            w3  FR 7:0 · T 30 (1: read) · F 31
 * @module
 */

/** FSTS: a fault was lost because its record was still in use; nothing more is recorded until cleared. RW1C. */
export const FSTS_PFO = 1 << 0;
/** FSTS, RO: some record has F set. */
export const FSTS_PPF = 1 << 1;
/** FSTS: the invalidation queue has stopped at a descriptor. RW1C. */
export const FSTS_IQE = 1 << 4;
/** FSTS: invalidation completion and time-out errors of device-TLBs. RW1C. */
export const FSTS_ICE = 1 << 5;
export const FSTS_ITE = 1 << 6;
/** FSTS, RO: index of the record that was the first when PPF became set. */
export const FSTS_FRI_SHIFT = 8;

/** w3 of a record: it holds a fault. RW1C. */
export const FRCD_W3_F = 0x80000000;
/** w3: the request was a read. */
export const FRCD_W3_T = 1 << 30;
/** w3: mask of the fault reason. */
export const FRCD_W3_FR_MASK = 0xff;
/** w2: mask of the source-id. */
export const FRCD_W2_SID_MASK = 0xffff;

/** LRT.2: P of the root entry is clear. */
export const FAULT_ROOT_NOT_PRESENT = 0x1;
/** LCT.2: P of the context entry is clear. */
export const FAULT_CONTEXT_NOT_PRESENT = 0x2;
/** LCT.4: AW or TT of the context entry is not supported, or its top table cannot be read. */
export const FAULT_CONTEXT_INVALID = 0x3;
/** LGN.1: the address is beyond the smaller of MGAW and AW. */
export const FAULT_BEYOND_MGAW = 0x4;
/** LGN.2: a write without the right to write. */
export const FAULT_WRITE = 0x5;
/** LGN.3: a read without the right to read. */
export const FAULT_READ = 0x6;
/** LSS.1: a second-stage entry below the top table cannot be read. */
export const FAULT_PAGING_ENTRY_ACCESS = 0x7;
/** LRT.1: the root entry cannot be read. */
export const FAULT_ROOT_TABLE_ACCESS = 0x8;
/** LCT.1: the context entry cannot be read. */
export const FAULT_CONTEXT_TABLE_ACCESS = 0x9;
/** LRT.3: a reserved bit in a present root entry. */
export const FAULT_ROOT_RESERVED = 0xa;
/** LCT.3: a reserved bit in a present context entry. */
export const FAULT_CONTEXT_RESERVED = 0xb;
/** LSS.2: a reserved bit in a present second-stage entry. */
export const FAULT_PAGING_ENTRY_RESERVED = 0xc;
/** LCT.5: translated or translation request blocked by TT (device-TLBs only). */
export const FAULT_TRANSLATION_TYPE = 0xd;
/** LGN.4: the translated address is in the interrupt range 0xfee00000 to 0xfeefffff. */
export const FAULT_INTERRUPT_ADDRESS = 0xe;

const REASONS: readonly string[] = [
  "software",
  "root entry not present",
  "context entry not present",
  "invalid context entry",
  "address beyond MGAW",
  "no write access",
  "no read access",
  "second-stage entry cannot be read",
  "root table cannot be read",
  "context table cannot be read",
  "reserved bit in root entry",
  "reserved bit in context entry",
  "reserved bit in second-stage entry",
  "request blocked by translation type",
  "translated to interrupt address",
];

/** A reason for a person, as "0x5 (no write access)". */
export function faultReasonText(reason: number): string {
  return `0x${reason.toString(16)} (${REASONS[reason] ?? "unknown"})`;
}

/** One recorded fault. */
export interface FaultRecord {
  readonly sourceId: number;
  /** First byte of the page that was accessed. */
  readonly address: number;
  readonly isWrite: boolean;
  /** FAULT_*. */
  readonly reason: number;
}

/** The fault in a record's four words, or null when F is clear. */
export function decodeFaultRecord(
  w0: number,
  w1: number,
  w2: number,
  w3: number,
): FaultRecord | null {
  if ((w3 & FRCD_W3_F) === 0) return null;
  return {
    sourceId: w2 & FRCD_W2_SID_MASK,
    address: (w1 >>> 0) * 2 ** 32 + ((w0 & 0xfffff000) >>> 0),
    isWrite: (w3 & FRCD_W3_T) === 0,
    reason: w3 & FRCD_W3_FR_MASK,
  };
}
