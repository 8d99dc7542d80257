/**
 * The joints between the parts of the embedded machine's hardware: bus, remapping unit, devices.
 *
 * All of it runs on the machine's hardware side; kernels reach it only by MMIO and memory.
 * @module
 */

/** A block of registers on the bus. Offsets are from `base`; accesses are aligned, of 1, 2 or 4 bytes. */
export interface MmioRegion {
  readonly base: number;
  readonly lengthBytes: number;
  read(offset: number, size: 1 | 2 | 4): number;
  write(offset: number, size: 1 | 2 | 4, value: number): void;
}

/** A DMA remapping unit, as the PCI root of its segment group uses it. */
export interface DmaRemapper {
  /**
   * Translates one access, which must not cross a 4 KiB page.
   * @returns the physical address, or -1 when it is blocked; the fault is then recorded in the unit
   */
  translate(sourceId: number, iova: number, isWrite: boolean): number;
}

/** What a device model may do to the outside. Requests fail as on the bus: no exceptions. */
export interface DmaPort {
  /** Reads memory at a bus address. False: unsupported request (no bus mastering, blocked, no such memory); `target` is then all ones. */
  read(address: number, target: Uint8Array): boolean;
  /** Writes memory at a bus address, in order with earlier writes. False as for `read`: nothing, or a part up to a page boundary, was written. */
  write(address: number, bytes: Uint8Array): boolean;
  /** Sends the function's MSI, if enabled. */
  signalMsi(): void;
}

/** Something that does work on its own. */
export interface Stepper {
  /** Does what is due at `nowNs`, in small steps (one frame, one burst). @returns whether there may be more to do at once */
  step(nowNs: number): boolean;
  /** When it has something to do next, if nothing else happens; Infinity for never. */
  nextDueNs(): number;
}

/** Takes interrupts: an MSI write to 0xfee00000 with vector v. */
export interface InterruptSink {
  raise(vector: number): void;
}
