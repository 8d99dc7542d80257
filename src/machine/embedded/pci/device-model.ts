/**
 * What a model of a PCI device provides, and what it is given.
 *
 * Why: a model knows its registers and its DMA only. Config space (BARs, command register, MSI, FLR) is the
 * fabric's, the same for every device, so a model cannot do DMA around bus mastering or the remapping unit.
 * Lifecycle: made once by a {@link DeviceModelFactory} when its slot is populated, `reset()` by the fabric at
 * power-on and for each function level reset, then register accesses and steps in any order.
 * @module
 */
import type { DmaPort, Stepper } from "../hardware.ts";

/** The read-only identification registers of a function's config space. */
export interface DeviceIdentity {
  readonly vendorId: number;
  readonly deviceId: number;
  /** Base class << 16 | sub-class << 8 | programming interface: 0x020000 is an Ethernet controller. */
  readonly classCode: number;
  readonly revisionId: number;
  readonly subsystemVendorId: number;
  readonly subsystemId: number;
}

/** A memory BAR. I/O BARs are not modelled. */
export interface BarSpec {
  /** 0 to 5; 0 to 4 for a 64-bit one, which takes two. */
  readonly index: number;
  /** A power of two, at least 16. */
  readonly sizeBytes: number;
  readonly kind: "memory32" | "memory64";
  readonly isPrefetchable: boolean;
}

/**
 * A device behind one PCI function.
 *
 * `step` and `nextDueNs` ({@link Stepper}) are for work that it does on its own; a model that only answers
 * register accesses returns false and Infinity.
 */
export interface DeviceModel extends Stepper {
  readonly identity: DeviceIdentity;
  readonly bars: readonly BarSpec[];
  /**
   * A read of a BAR: `offset` is below the BAR's size, the access is aligned and does not leave the BAR.
   * May have side effects (read to clear).
   * @returns the value, unsigned, below 2^(8 · size); what the device returns for sizes that it does not support
   */
  barRead(bar: number, offset: number, size: 1 | 2 | 4): number;
  /** A write to a BAR, as {@link barRead}; `value` is unsigned and below 2^(8 · size). Unsupported ones are ignored. */
  barWrite(bar: number, offset: number, size: 1 | 2 | 4, value: number): void;
  /** Power-on state: registers at their defaults, all work that was under way is dropped. */
  reset(): void;
}

/** Makes a model, given its only way to memory and interrupts. The port works at once; before bus mastering is on it refuses. */
export type DeviceModelFactory = (dma: DmaPort) => DeviceModel;
