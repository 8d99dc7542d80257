/**
 * PCI's part of a handover: which functions stay as they are, and how all functions were left.
 *
 * Why: the next kernel must find bus numbers, BARs and bridge windows as they were, or not take the handover; and it must
 * know the sizes of BARs without probing them, since that moves them for a moment.
 * Layout: one record (kho-record.ts): {@link PCI_SER}, then `count` records of 64 bytes, sorted by
 *   segment, then bdf. Every function is in it; `refcount` is above 0 for those that are preserved.
 * Not Linux's: its `pci_ser` (queued for 7.4) carries {domain, bdf, refcount} only and does not pin BARs and windows.
 * @module
 */
import { byteArray, struct, u8, u16, u32 } from "./struct.ts";

/** Changes with any change of the structures below or of their meaning. */
export const PCI_LUO_COMPATIBLE = "pci-holdfast-v1";

/** First bytes of the record. */
export const PCI_SER = struct("pci_ser", {
  /** Records that follow. */
  count: u32,
  /** Bytes of a record: 64. */
  record_bytes: u32,
});

export const PCI_FUNCTION_SER = struct("pci_function_ser", {
  segment: u16,
  bdf: u16,
  /** How often it is preserved; for a bridge, the sum of what is below. 0: not preserved. */
  refcount: u32,
  vendor_id: u16,
  device_id: u16,
  /** The command register. */
  command: u16,
  /** Header type without the multi-function bit: 0 or 1. */
  header_type: u8,
  /** Bus numbers of a bridge; 0 in others. */
  primary_bus: u8,
  /** BAR registers as they read; a bridge has two, the others are 0. */
  bar0: u32,
  bar1: u32,
  bar2: u32,
  bar3: u32,
  bar4: u32,
  bar5: u32,
  /** log2 of each memory BAR's size, at its first register; 0: no memory BAR. */
  bar_size_lg2: byteArray(6),
  secondary_bus: u8,
  subordinate_bus: u8,
  /** Windows of a bridge: the four dwords from PCI_MEMORY_BASE on; 0 in others. */
  memory_window: u32,
  pref_window: u32,
  pref_base_upper: u32,
  pref_limit_upper: u32,
});

/** Functions that one handover can hold: a record of 1 MiB. */
export const PCI_LUO_FUNCTIONS_MAX = 16383;

/** Bytes of the record for so many functions. */
export function pciSerBytes(count: number): number {
  return PCI_SER.sizeBytes + count * PCI_FUNCTION_SER.sizeBytes;
}
