/**
 * Registers of an Intel VT-d remapping unit: offsets in its 4 KiB page, and bits.
 *
 * 64-bit registers are two 32-bit words; names that end in LOW or HIGH are bits of that word, the others
 * are bits of a 32-bit register. A command in a high word starts when that word is written.
 * Source: Intel VT-d specification rev 5.0 §11.4 (Register Descriptions).
 * @module
 */

/** Bytes of a unit's register page. */
export const VTD_REGISTERS_BYTES = 4096;

/** Version, RO: major 7:4, minor 3:0. */
export const VER_REG = 0x00;
/** Capability, 64 bits, RO. */
export const CAP_REG = 0x08;
/** Extended capability, 64 bits, RO. */
export const ECAP_REG = 0x10;
/** Global command, WO: its state is read in GSTS. */
export const GCMD_REG = 0x18;
/** Global status, RO. */
export const GSTS_REG = 0x1c;
/** Root table address, 64 bits, RW; takes effect by GCMD.SRTP. */
export const RTADDR_REG = 0x20;
/** Context command, 64 bits, RW. */
export const CCMD_REG = 0x28;
/** Fault status, RW1C. */
export const FSTS_REG = 0x34;
/** Fault event control. */
export const FECTL_REG = 0x38;
export const FEDATA_REG = 0x3c;
export const FEADDR_REG = 0x40;
export const FEUADDR_REG = 0x44;
/** Invalidation queue head, 64 bits, RO: byte offset in 18:4. */
export const IQH_REG = 0x80;
/** Invalidation queue tail, 64 bits, RW: byte offset in 18:4. */
export const IQT_REG = 0x88;
/** Invalidation queue address, 64 bits, RW. */
export const IQA_REG = 0x90;
/** Invalidation completion status, RW1C. */
export const ICS_REG = 0x9c;
/** Invalidation event control. */
export const IECTL_REG = 0xa0;
export const IEDATA_REG = 0xa4;
export const IEADDR_REG = 0xa8;
export const IEUADDR_REG = 0xac;
/** Offset of the 64-bit IVA from ECAP.IRO · 16, WO. */
export const IVA_OFFSET = 0;
/** Offset of the 64-bit IOTLB invalidate register from ECAP.IRO · 16. */
export const IOTLB_OFFSET = 8;
/** Bytes of one fault recording register; they start at CAP.FRO · 16. */
export const FRCD_BYTES = 16;

// GCMD and GSTS have the same places.
export const GCMD_TE = 0x80000000;
export const GCMD_SRTP = 1 << 30;
export const GCMD_WBF = 1 << 27;
export const GCMD_QIE = 1 << 26;
export const GSTS_TES = 0x80000000;
export const GSTS_RTPS = 1 << 30;
export const GSTS_WBFS = 1 << 27;
export const GSTS_QIES = 1 << 26;
/** Bits of GSTS to write back to GCMD with a new command: all state but the one-shot commands (§11.4.4). */
export const GSTS_STATE = 0x96ffffff;

/** What CAP says. */
export interface VtdCap {
  /** ND: domain-ids have 4 + 2·nd bits. */
  readonly nd: number;
  /** RWBF: GCMD.WBF is required before hardware sees stores to tables. */
  readonly rwbf: boolean;
  /** CM: entries that are not present may be cached. */
  readonly cm: boolean;
  /** SAGAW: bit 1 for 39-bit 3-level, bit 2 for 48-bit 4-level tables: bit AW of a context entry's AW. */
  readonly sagaw: number;
  /** MGAW: bits of the widest address that is translated; the register has one less. */
  readonly mgaw: number;
  /** FRO: byte offset of the fault recording registers. */
  readonly faultRecordingOffset: number;
  /** SLLPS: bit 0 for 2 MiB, bit 1 for 1 GiB pages. */
  readonly sllps: number;
  /** PSI: page-selective invalidation. */
  readonly psi: boolean;
  /** NFR: number of fault recording registers, 1 to 256; the register has one less. */
  readonly nfr: number;
  /** MAMV: largest address mask of a page-selective invalidation. */
  readonly mamv: number;
  /** DWD, DRD: invalidations can drain writes, reads. */
  readonly dwd: boolean;
  readonly drd: boolean;
}

/** What ECAP says. */
export interface VtdEcap {
  /** C: table walks are coherent with the processor's caches. */
  readonly coherent: boolean;
  /** QI: queued invalidation. */
  readonly qi: boolean;
  /** DT: device-TLBs. */
  readonly dt: boolean;
  /** IR: interrupt remapping. */
  readonly ir: boolean;
  /** PT: pass-through translation type. */
  readonly pt: boolean;
  /** SC: snoop control. */
  readonly sc: boolean;
  /** IRO: byte offset of IVA and IOTLB. */
  readonly iotlbOffset: number;
}

/** CAP from its two words. */
export function decodeCap(low: number, high: number): VtdCap {
  return {
    nd: low & 0b111,
    rwbf: ((low >>> 4) & 1) !== 0,
    cm: ((low >>> 7) & 1) !== 0,
    sagaw: (low >>> 8) & 0b11111,
    mgaw: ((low >>> 16) & 0x3f) + 1,
    faultRecordingOffset: ((low >>> 24) | ((high & 0b11) << 8)) * 16,
    sllps: (high >>> 2) & 0b1111,
    psi: ((high >>> 7) & 1) !== 0,
    nfr: ((high >>> 8) & 0xff) + 1,
    mamv: (high >>> 16) & 0x3f,
    dwd: ((high >>> 22) & 1) !== 0,
    drd: ((high >>> 23) & 1) !== 0,
  };
}

/** The two words of CAP; what {@link VtdCap} does not have is 0. */
export function encodeCap(cap: VtdCap): readonly [low: number, high: number] {
  const fro = cap.faultRecordingOffset / 16;
  const low =
    cap.nd |
    (Number(cap.rwbf) << 4) |
    (Number(cap.cm) << 7) |
    (cap.sagaw << 8) |
    ((cap.mgaw - 1) << 16) |
    ((fro & 0xff) << 24);
  const high =
    (fro >>> 8) |
    (cap.sllps << 2) |
    (Number(cap.psi) << 7) |
    ((cap.nfr - 1) << 8) |
    (cap.mamv << 16) |
    (Number(cap.dwd) << 22) |
    (Number(cap.drd) << 23);
  return [low >>> 0, high >>> 0];
}

/** ECAP from its two words. */
export function decodeEcap(low: number, _high: number): VtdEcap {
  return {
    coherent: (low & 1) !== 0,
    qi: ((low >>> 1) & 1) !== 0,
    dt: ((low >>> 2) & 1) !== 0,
    ir: ((low >>> 3) & 1) !== 0,
    pt: ((low >>> 6) & 1) !== 0,
    sc: ((low >>> 7) & 1) !== 0,
    iotlbOffset: ((low >>> 8) & 0x3ff) * 16,
  };
}

/** The two words of ECAP; what {@link VtdEcap} does not have is 0. */
export function encodeEcap(ecap: VtdEcap): readonly [low: number, high: number] {
  const low =
    Number(ecap.coherent) |
    (Number(ecap.qi) << 1) |
    (Number(ecap.dt) << 2) |
    (Number(ecap.ir) << 3) |
    (Number(ecap.pt) << 6) |
    (Number(ecap.sc) << 7) |
    ((ecap.iotlbOffset / 16) << 8);
  return [low >>> 0, 0];
}

/** CCMD low word: domain-id in 15:0, source-id in 31:16. */
export function ccmdLow(domainId: number, sourceId: number): number {
  return ((sourceId << 16) | domainId) >>> 0;
}
/** CCMD high word: source-id bits not compared: 0 none, 1 bit 2, 2 bits 2:1, 3 bits 2:0. */
export const CCMD_HIGH_FM_MASK = 0b11;
/** CCMD high word, RO: granularity that was done; 0 when the request was incorrect and ignored. */
export const CCMD_HIGH_CAIG_SHIFT = 27;
/** CCMD high word: requested granularity, see {@link GRANULARITY_GLOBAL}. */
export const CCMD_HIGH_CIRG_SHIFT = 29;
/** CCMD high word: start; hardware clears it when it is done. */
export const CCMD_HIGH_ICC = 0x80000000;

/** IOTLB high word: domain-id. */
export const IOTLB_HIGH_DID_MASK = 0xffff;
/** IOTLB high word: drain writes, drain reads. */
export const IOTLB_HIGH_DW = 1 << 16;
export const IOTLB_HIGH_DR = 1 << 17;
/** IOTLB high word, RO: granularity that was done; 0 when the request was incorrect and ignored. */
export const IOTLB_HIGH_IAIG_SHIFT = 25;
/** IOTLB high word: requested granularity, see {@link GRANULARITY_GLOBAL}. */
export const IOTLB_HIGH_IIRG_SHIFT = 28;
/** IOTLB high word: start; hardware clears it when it is done. */
export const IOTLB_HIGH_IVT = 0x80000000;

/** Granularities of context-cache and IOTLB invalidations, in registers and descriptors alike. */
export const GRANULARITY_GLOBAL = 0b01;
export const GRANULARITY_DOMAIN = 0b10;
/** Of a context-cache invalidation: one source-id, see function mask. */
export const GRANULARITY_DEVICE = 0b11;
/** Of an IOTLB invalidation: 2^AM pages. */
export const GRANULARITY_PAGE = 0b11;

/** IVA low word (and w2 of an IOTLB descriptor): address mask AM, log2 of the number of 4 KiB pages. */
export const IVA_LOW_AM_MASK = 0x3f;
/** IVA low word: invalidation hint: no entry that names a table has changed. */
export const IVA_LOW_IH = 1 << 6;

/** IQA low word: log2 of the queue's size in 4 KiB pages. */
export const IQA_LOW_QS_MASK = 0b111;
/** IQA low word: 256-bit descriptors (scalable mode only). */
export const IQA_LOW_DW = 1 << 11;
/** IQH and IQT low words: byte offset of a descriptor. */
export const IQ_OFFSET_MASK = 0x7fff0;

/** ICS: a wait descriptor with its interrupt flag set was completed. RW1C. */
export const ICS_IWC = 1 << 0;

/** FECTL and IECTL: the interrupt is masked. Set at reset. */
export const EVENT_IM = 0x80000000;
/** FECTL and IECTL, RO: the interrupt is pending. */
export const EVENT_IP = 1 << 30;
