/**
 * PCI configuration space: registers, bits, and where ECAM puts them.
 *
 * Source: PCI Local Bus 3.0 §6, PCI-to-PCI Bridge 1.2 §3.2, PCI Express Base 5.0 §7;
 *   names as in Linux 7.3 include/uapi/linux/pci_regs.h
 * Not modelled: I/O space (I/O BARs and bridge windows are never enabled), INTx routing.
 * @module
 */

/** Bytes of config space of one function under ECAM. */
export const PCI_CFG_SPACE_EXP_SIZE = 4096;
/** Functions (device · 8 + function) of one bus. */
export const PCI_DEVFNS_PER_BUS = 256;

// Registers of both header types.
export const PCI_VENDOR_ID = 0x00;
export const PCI_DEVICE_ID = 0x02;
export const PCI_COMMAND = 0x04;
export const PCI_STATUS = 0x06;
/** Revision in the low byte, class code in the upper three. */
export const PCI_CLASS_REVISION = 0x08;
export const PCI_CACHE_LINE_SIZE = 0x0c;
export const PCI_HEADER_TYPE = 0x0e;
export const PCI_BASE_ADDRESS_0 = 0x10;
export const PCI_CAPABILITY_LIST = 0x34;
export const PCI_INTERRUPT_LINE = 0x3c;
export const PCI_INTERRUPT_PIN = 0x3d;

export const PCI_COMMAND_MEMORY = 1 << 1;
export const PCI_COMMAND_MASTER = 1 << 2;
export const PCI_COMMAND_PARITY = 1 << 6;
export const PCI_COMMAND_SERR = 1 << 8;
export const PCI_COMMAND_INTX_DISABLE = 1 << 10;
export const PCI_STATUS_CAP_LIST = 1 << 4;

export const PCI_HEADER_TYPE_MASK = 0x7f;
export const PCI_HEADER_TYPE_NORMAL = 0;
export const PCI_HEADER_TYPE_BRIDGE = 1;
/** In the header type of function 0: other functions of this device may exist. */
export const PCI_HEADER_TYPE_MFD = 0x80;

// Header type 0.
export const PCI_STD_NUM_BARS = 6;
export const PCI_SUBSYSTEM_VENDOR_ID = 0x2c;
export const PCI_SUBSYSTEM_ID = 0x2e;

/** BAR bits. */
export const PCI_BASE_ADDRESS_SPACE_IO = 0x1;
export const PCI_BASE_ADDRESS_MEM_TYPE_MASK = 0x6;
export const PCI_BASE_ADDRESS_MEM_TYPE_64 = 0x4;
export const PCI_BASE_ADDRESS_MEM_PREFETCH = 0x8;
/** Low bits of a memory BAR that are not address. */
export const PCI_BASE_ADDRESS_MEM_FLAGS = 0xf;

// Header type 1.
export const PCI_BRIDGE_NUM_BARS = 2;
export const PCI_PRIMARY_BUS = 0x18;
export const PCI_SECONDARY_BUS = 0x19;
export const PCI_SUBORDINATE_BUS = 0x1a;
/** Bits 15:4 are address bits 31:20 of the window's start; the limit at + 2 likewise, inclusive. */
export const PCI_MEMORY_BASE = 0x20;
export const PCI_PREF_MEMORY_BASE = 0x24;
export const PCI_PREF_BASE_UPPER32 = 0x28;
export const PCI_PREF_LIMIT_UPPER32 = 0x2c;
export const PCI_PREF_RANGE_TYPE_64 = 0x1;
export const PCI_BRIDGE_CONTROL = 0x3e;
export const PCI_BRIDGE_CTL_BUS_RESET = 0x40;
/** Granularity and alignment of a bridge's memory windows: 1 MiB. */
export const PCI_BRIDGE_WINDOW_ALIGN = 0x100000;

// Capabilities: a list of {u8 id, u8 next} from PCI_CAPABILITY_LIST on.
export const PCI_CAP_ID_MSI = 0x05;
export const PCI_CAP_ID_EXP = 0x10;
/** The list can hold no more entries than fit in 0x40 .. 0xff: bounds a walk over a broken one. */
export const PCI_CAP_LIST_MAX = 48;

/** MSI: offsets from the capability, for the layout that the flags name. */
export const PCI_MSI_FLAGS = 2;
export const PCI_MSI_FLAGS_ENABLE = 0x0001;
export const PCI_MSI_FLAGS_QSIZE = 0x0070;
export const PCI_MSI_FLAGS_64BIT = 0x0080;
export const PCI_MSI_FLAGS_MASKBIT = 0x0100;
export const PCI_MSI_ADDRESS_LO = 4;
export const PCI_MSI_ADDRESS_HI = 8;
export const PCI_MSI_DATA_32 = 8;
export const PCI_MSI_DATA_64 = 12;
export const PCI_MSI_MASK_32 = 12;
export const PCI_MSI_MASK_64 = 16;
export const PCI_MSI_PENDING_64 = 20;

/**
 * Writes to this range are interrupts, not memory accesses. Source: Intel SDM Vol. 3 §11.11; VT-d rev 5.0 §3.14.
 */
export const MSI_ADDRESS_BASE = 0xfee00000;
export const MSI_ADDRESS_LAST = 0xfeefffff;
/** The vector in the data of an MSI. */
export const MSI_DATA_VECTOR_MASK = 0xff;

/** PCI Express capability: offsets from it. */
export const PCI_EXP_FLAGS = 2;
export const PCI_EXP_FLAGS_TYPE_MASK = 0xf0;
export const PCI_EXP_FLAGS_TYPE_SHIFT = 4;
export const PCI_EXP_TYPE_ENDPOINT = 0x0;
export const PCI_EXP_TYPE_ROOT_PORT = 0x4;
export const PCI_EXP_TYPE_UPSTREAM = 0x5;
export const PCI_EXP_TYPE_DOWNSTREAM = 0x6;
/** Its bus is a conventional one. */
export const PCI_EXP_TYPE_PCI_BRIDGE = 0x7;
export const PCI_EXP_DEVCAP = 4;
export const PCI_EXP_DEVCAP_FLR = 0x10000000;
export const PCI_EXP_DEVCTL = 8;
/** Initiate function level reset; reads as 0. */
export const PCI_EXP_DEVCTL_BCR_FLR = 0x8000;
export const PCI_EXP_DEVSTA = 10;
/** Requests of the function are without their completions. */
export const PCI_EXP_DEVSTA_TRPND = 0x0020;

/** Offset of a function's config space within the ECAM window whose first bus is `startBus`. */
export function ecamOffset(startBus: number, bdf: number): number {
  return (bdf - (startBus << 8)) * PCI_CFG_SPACE_EXP_SIZE;
}

/** The bus of a bdf. */
export function busOf(bdf: number): number {
  return bdf >> 8;
}

/** An inclusive range of addresses that a bridge forwards, or null when it forwards none. */
export interface BridgeWindow {
  readonly start: number;
  readonly last: number;
}

/**
 * A bridge's memory window.
 *
 * @param baseLimit - the dword at PCI_MEMORY_BASE
 */
export function decodeMemoryWindow(baseLimit: number): BridgeWindow | null {
  const start = (baseLimit & 0xfff0) * 0x10000;
  const last = ((baseLimit >>> 20) & 0xfff) * 0x100000 + 0xfffff;
  return start <= last ? { start, last } : null;
}

/**
 * A bridge's prefetchable window, 64-bit when its range type says so.
 *
 * @param baseLimit - the dword at PCI_PREF_MEMORY_BASE
 */
export function decodePrefetchableWindow(
  baseLimit: number,
  baseUpper: number,
  limitUpper: number,
): BridgeWindow | null {
  const is64 = (baseLimit & 0xf) === PCI_PREF_RANGE_TYPE_64;
  const high = is64 ? 2 ** 32 : 0;
  const start = (baseLimit & 0xfff0) * 0x10000 + baseUpper * high;
  const last = ((baseLimit >>> 20) & 0xfff) * 0x100000 + 0xfffff + limitUpper * high;
  return start <= last ? { start, last } : null;
}

/** The dword at PCI_MEMORY_BASE (or PCI_PREF_MEMORY_BASE without its type bits) for a window; null closes it. */
export function encodeWindow(window: BridgeWindow | null): number {
  if (window === null) return 0x0000fff0;
  const base = Math.floor((window.start % 2 ** 32) / 0x100000);
  const limit = Math.floor((window.last % 2 ** 32) / 0x100000);
  return ((limit << 20) | (base << 4)) >>> 0;
}
