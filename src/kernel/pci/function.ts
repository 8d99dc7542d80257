/**
 * A PCI function as the rest of the kernel sees it.
 * @module
 */

export interface PciBar {
  /** 0 to 5. A 64-bit BAR takes two. */
  readonly index: number;
  readonly address: number;
  readonly sizeBytes: number;
  readonly is64: boolean;
}

/** Linux's `struct pci_dev`. */
export interface PciFunction {
  /** PCI segment group. */
  readonly segment: number;
  /** bus << 8 | device << 3 | function: also the source-id of its DMA. */
  readonly bdf: number;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly classCode: number;
  /** True for PCI-to-PCI bridges (header type 1). */
  readonly isBridge: boolean;
  /** The bridge above, or null on a root bus. */
  readonly parent: PciFunction | null;
  /** Memory BARs that were assigned an address. */
  readonly bars: readonly PciBar[];
  /** Base address registers as they read, flags and all. */
  readonly rawBars: readonly number[];
  /** Whether the previous kernel handed it over and it has not been finished yet. */
  readonly isIncoming: boolean;
  /** Offset of a capability in config space, or 0. */
  capability(id: number): number;
  configRead(offset: number, size: 1 | 2 | 4): number;
  configWrite(offset: number, size: 1 | 2 | 4, value: number): void;
  /** Sets or clears the command register's bus master bit, and that of every bridge above when set. */
  setBusMaster(on: boolean): void;
  /**
   * Resets the function by the means it has (FLR); BARs, command register and MSI are as before afterwards.
   * @throws {KernelError} ENOTTY when it has none; EBUSY while it is preserved; EIO when it does not come back
   */
  reset(): void;
}

/** "0000:00:05.0" */
export function pciName(segment: number, bdf: number): string {
  const h = (value: number, digits: number) => value.toString(16).padStart(digits, "0");
  return `${h(segment, 4)}:${h(bdf >> 8, 2)}:${h((bdf >> 3) & 31, 2)}.${bdf & 7}`;
}

/** Functions of a handover. */
export interface IncomingFunctions {
  /** Asks for a preserved function: it has found its file. @returns whether it is preserved, and is no bridge */
  askFor(segment: number, bdf: number): boolean;
}

/** All functions found, and their part in a live update. */
export interface PciRoot {
  readonly functions: readonly PciFunction[];
  find(segment: number, bdf: number): PciFunction | null;
  /**
   * Keeps a function (and the bridges above it) as it is through the next kexec. May be called more than
   * once; each call needs its `unpreserve`. Passes the fault point "pci:preserve".
   * @throws {KernelError} EINVAL for a bridge; ENOMEM
   */
  preserve(pci: PciFunction): void;
  unpreserve(pci: PciFunction): void;
  isPreserved(pci: PciFunction): boolean;
  /** What was decoded of a handover, for checks before anything is adopted; null when nothing was handed over. */
  readonly incoming: IncomingFunctions | null;
  /** An incoming function has found its owner again and is ordinary from here on. */
  finish(pci: PciFunction): void;
  /** At reboot(KEXEC), when nothing can fail any more: bus mastering off for what is not preserved. */
  shutdown(): void;
}
