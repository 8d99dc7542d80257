/**
 * vfio-pci: every function that userspace may drive, its node under /dev/vfio/devices, and their interrupts.
 *
 * All functions are vfio-pci's but bridges: this kernel has no drivers of its own. A function that no remapping
 * unit covers is there only in no-IOMMU mode, which the administrator must ask for, as
 * "noiommu-vfioN".
 * Source: Linux 7.3 drivers/vfio/vfio_main.c (enable_unsafe_noiommu_mode), drivers/vfio/device_cdev.c
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import type { Interrupts, Mmio } from "../../machine/machine.ts";
import type { IommuCore } from "../iommu/domain.ts";
import type { PciFunction, PciRoot } from "../pci/function.ts";
import { VfioDeviceFile } from "./cdev.ts";
import { VfioDevice, type VfioServices } from "./device.ts";
import type { VectorAllocator } from "./vectors.ts";

export interface VfioPciOptions {
  readonly pci: PciRoot;
  readonly iommu: IommuCore;
  readonly interrupts: Interrupts;
  readonly mmio: Mmio;
  readonly vectors: VectorAllocator;
  readonly faults: FaultInjector;
  /** vfio.enable_unsafe_noiommu_mode: functions without IOMMU may be used, and can write all memory. */
  readonly enableUnsafeNoiommuMode: boolean;
}

export class VfioPci implements VfioServices {
  readonly iommu: IommuCore;
  readonly interrupts: Interrupts;
  readonly mmio: Mmio;
  readonly vectors: VectorAllocator;
  readonly faults: FaultInjector;
  readonly #pci: PciRoot;
  readonly #enableUnsafeNoiommuMode: boolean;
  #devices: readonly VfioDevice[] = [];
  /** Devices with MSI enabled; null: to be found again. */
  #interrupting: readonly VfioDevice[] | null = null;

  constructor(options: VfioPciOptions) {
    this.iommu = options.iommu;
    this.interrupts = options.interrupts;
    this.mmio = options.mmio;
    this.vectors = options.vectors;
    this.faults = options.faults;
    this.#pci = options.pci;
    this.#enableUnsafeNoiommuMode = options.enableUnsafeNoiommuMode;
  }

  /**
   * Takes all functions. Once, after enumeration and after a handover was adopted: the vectors that incoming
   * functions raise are reserved here, so that what they raised meanwhile is found pending.
   *
   * @returns the devices; each is to be opened by its node
   */
  probe(): readonly VfioDevice[] {
    const devices: VfioDevice[] = [];
    for (const pci of this.#pci.functions) {
      if (pci.isBridge) continue;
      const isNoiommu = !this.iommu.isTranslated(pci);
      // Incoming ones are there in any case: somebody must be able to stop them.
      if (isNoiommu && !this.#enableUnsafeNoiommuMode && !pci.isIncoming) continue;
      const node = `vfio/devices/${isNoiommu ? "noiommu-" : ""}vfio${devices.length}`;
      const device = new VfioDevice(this, pci, isNoiommu, node);
      if (pci.isIncoming) device.reserveIncomingVector();
      devices.push(device);
    }
    this.#devices = devices;
    return devices;
  }

  get devices(): readonly VfioDevice[] {
    return this.#devices;
  }

  find(pci: PciFunction): VfioDevice | null {
    return this.#devices.find((device) => device.pci === pci) ?? null;
  }

  /** @throws {KernelError} EPERM when the function has no IOMMU and no-IOMMU mode was not asked for */
  checkAllowed(device: VfioDevice, op: string): void {
    if (device.isNoiommu && !this.#enableUnsafeNoiommuMode)
      throw new KernelError("EPERM", op, `${device.name} has no IOMMU`);
  }

  /**
   * open(2) of a device's node. The file can do nothing before BIND_IOMMUFD.
   *
   * @throws {KernelError} EBUSY when the function waits for its live-update session; EPERM when it has no IOMMU and
   *   no-IOMMU mode was not asked for
   */
  open(device: VfioDevice): VfioDeviceFile {
    this.checkAllowed(device, "open");
    device.checkNotIncoming("open");
    return new VfioDeviceFile(device, false);
  }

  /**
   * Tells the eventfds of all devices that have raised an interrupt. Interrupts that nobody is told stay pending.
   *
   * @returns whether there was any
   */
  deliverInterrupts(): boolean {
    this.#interrupting ??= this.#devices.filter((device) => device.msiEnabled);
    let delivered = false;
    for (const device of this.#interrupting) if (device.deliverInterrupt()) delivered = true;
    return delivered;
  }

  msiChanged(): void {
    this.#interrupting = null;
  }
}
