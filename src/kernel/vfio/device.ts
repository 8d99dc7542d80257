/**
 * A PCI function in VFIO's hands, whoever has it open.
 *
 * Lifecycle: free → bound to an iommufd by one open file (enabled: reset, bus mastering off) → attached,
 * detached → closed (bus mastering off, MSI off, DMA blocked, reset) → free.
 * A function that the previous kernel preserved starts as incoming: untouched, nobody can open it; retrieving
 * it makes it bound and attached without a reset, discarding it makes it free.
 * Invariant: a function that is free cannot do DMA.
 * Source: Linux 7.3 drivers/vfio/pci/vfio_pci_core.c vfio_pci_core_enable(), _disable(); drivers/vfio/vfio_main.c
 * @module
 */
import {
  PCI_CAP_ID_EXP,
  PCI_COMMAND,
  PCI_COMMAND_MEMORY,
  PCI_EXP_DEVCAP,
  PCI_EXP_DEVCAP_FLR,
} from "../../abi/pci.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { withUndo } from "../../base/undo.ts";
import type { Interrupts, Mmio } from "../../machine/machine.ts";
import type { IommuCore } from "../iommu/domain.ts";
import type { IommufdFile } from "../iommufd/file.ts";
import type { Device as IommufdDevice } from "../iommufd/objects.ts";
import { type PciBar, type PciFunction, pciName } from "../pci/function.ts";
import { disableMsi, enableMsi } from "../pci/msi.ts";
import type { Eventfd } from "../vfs/eventfd.ts";
import type { Registers } from "./bar-access.ts";
import { ConfigSpace } from "./config-space.ts";
import { enabledMsiVector } from "./msi-vector.ts";
import type { VectorAllocator } from "./vectors.ts";

/** What a device needs of the rest of VFIO. */
export interface VfioServices {
  readonly iommu: IommuCore;
  readonly interrupts: Interrupts;
  readonly mmio: Mmio;
  readonly vectors: VectorAllocator;
  readonly faults: FaultInjector;
  /** A device's MSI was enabled or disabled. */
  msiChanged(): void;
}

/** An enabled MSI. */
interface MsiState {
  readonly vector: number;
  /** Who is told; null: nobody, and the interrupt stays pending. */
  eventfd: Eventfd | null;
  /** The previous kernel had told a VMM that did not look any more. */
  unread: boolean;
}

/** What a bound device has. */
interface Binding {
  readonly iommufd: IommufdFile;
  readonly handle: IommufdDevice;
  readonly config: ConfigSpace;
}

export class VfioDevice {
  readonly pci: PciFunction;
  /** Nothing translates its DMA, and the administrator allows its use all the same. */
  readonly isNoiommu: boolean;
  /** Below /dev: "vfio/devices/vfio0". */
  readonly node: string;
  readonly #vfio: VfioServices;
  #binding: Binding | null = null;
  #msi: MsiState | null = null;
  /** The vector that the previous kernel had the function raise, reserved at boot; 0: none. */
  #incomingVector = 0;
  /** Preserved for the next kernel. */
  isPreserved = false;

  constructor(vfio: VfioServices, pci: PciFunction, isNoiommu: boolean, node: string) {
    this.#vfio = vfio;
    this.pci = pci;
    this.isNoiommu = isNoiommu;
    this.node = node;
  }

  /** "0000:00:05.0" */
  get name(): string {
    return pciName(this.pci.segment, this.pci.bdf);
  }

  get isBound(): boolean {
    return this.#binding !== null;
  }

  /** Whether it has function level reset. */
  get canReset(): boolean {
    const express = this.pci.capability(PCI_CAP_ID_EXP);
    if (express === 0) return false;
    return (this.pci.configRead(express + PCI_EXP_DEVCAP, 4) & PCI_EXP_DEVCAP_FLR) !== 0;
  }

  get config(): ConfigSpace {
    return this.#bound.config;
  }

  get iommufd(): IommufdFile {
    return this.#bound.iommufd;
  }

  /** Its object in the iommufd. */
  get handle(): IommufdDevice {
    return this.#bound.handle;
  }

  get #bound(): Binding {
    assert(this.#binding !== null, `${this.name} is not bound`);
    return this.#binding;
  }

  /**
   * Binds a free function and makes it ready: reset if it can be, decoding its BARs, no DMA, no interrupts.
   *
   * @throws {KernelError} EINVAL when it is bound; EBUSY when it waits for its session; EIO when it does not come
   *   back from its reset; ENOMEM
   */
  bind(iommufd: IommufdFile): void {
    if (this.isBound) throw new KernelError("EINVAL", "bind", `${this.name} is bound already`);
    this.checkNotIncoming("bind");
    withUndo((undo) => {
      const handle = iommufd.context.bindDevice(this.pci, this.isNoiommu);
      undo(() => iommufd.context.unbindDevice(handle));
      this.#vfio.faults.point("vfio.bind:enable");
      this.pci.setBusMaster(false);
      this.#silence();
      if (this.canReset) this.pci.reset();
      const command = this.pci.configRead(PCI_COMMAND, 2);
      this.pci.configWrite(PCI_COMMAND, 2, command | PCI_COMMAND_MEMORY);
      this.#vfio.faults.point("vfio.bind:done");
      this.#binding = { iommufd, handle, config: this.#makeConfig() };
    });
  }

  /** Undoes {@link bind}: the function is as free as before, its DMA blocked. */
  close(): void {
    const { iommufd, handle } = this.#bound;
    // First the source of DMA, then the way of DMA; the memory goes last, with the IOAS.
    this.pci.setBusMaster(false);
    this.disableMsi();
    iommufd.context.unbindDevice(handle);
    this.#binding = null;
    if (this.canReset) this.pci.reset();
  }

  /**
   * Takes over a function of the previous kernel as it runs: nothing is written to it.
   *
   * @param index - place of its HWPT in the handover
   * @param unread - an interrupt was signalled to the previous VMM and not read
   * @throws {KernelError} EINVAL when it is not incoming, or does not use that HWPT; ENOMEM
   */
  adopt(iommufd: IommufdFile, index: number, unread: boolean): void {
    if (this.isBound || !this.pci.isIncoming)
      throw new KernelError("EINVAL", "retrieve", `${this.name} does not wait for its session`);
    withUndo((undo) => {
      const handle = iommufd.context.bindDevice(this.pci, this.isNoiommu);
      undo(() => iommufd.context.unbindDevice(handle));
      iommufd.context.adoptAttachment(handle, index);
      undo(() => iommufd.context.disownAttachment(handle));
      this.#vfio.faults.point("vfio.retrieve:done");
      if (this.#incomingVector !== 0) {
        this.#msi = { vector: this.#incomingVector, eventfd: null, unread };
        this.#incomingVector = 0;
        this.#vfio.msiChanged();
      }
      this.#binding = { iommufd, handle, config: this.#makeConfig() };
    });
  }

  /** Stops a function of the previous kernel that nobody has retrieved. */
  discard(): void {
    assert(!this.isBound, `${this.name} is discarded while it is open`);
    this.pci.setBusMaster(false);
    this.#silence();
    if (this.#incomingVector !== 0) this.#vfio.vectors.free(this.#incomingVector);
    this.#incomingVector = 0;
    if (!this.isNoiommu) this.#vfio.iommu.block(this.pci);
    if (this.canReset) this.pci.reset();
  }

  /** Keeps the vector that a function of the previous kernel raises from being given to another. */
  reserveIncomingVector(): void {
    const vector = enabledMsiVector(this.pci);
    if (this.#vfio.vectors.reserve(vector)) this.#incomingVector = vector;
  }

  /** @throws {KernelError} EBUSY until the function's live-update session is finished */
  checkNotIncoming(op: string): void {
    if (this.pci.isIncoming)
      throw new KernelError("EBUSY", op, `${this.name} waits for its live-update session`);
  }

  /** @returns the HWPT's id. @throws {KernelError} as IommufdFile.attachDevice */
  attach(ptId: number): number {
    const { iommufd, handle } = this.#bound;
    return iommufd.context.attachDevice(handle, ptId);
  }

  /** @throws {KernelError} ENOENT no object has that id; EINVAL else: no HWPT here is made for PASIDs */
  attachPasid(ptId: number): never {
    return this.#bound.iommufd.context.attachPasid(ptId);
  }

  /** @throws {KernelError} EBUSY while it is preserved */
  detach(): void {
    const { iommufd, handle } = this.#bound;
    iommufd.context.detachDevice(handle);
  }

  /**
   * Function level reset; interrupts and bus mastering are as before, the device is as after power-on.
   *
   * @throws {KernelError} EINVAL when it has no means of reset; EBUSY while it is preserved; EIO when it does not
   *   come back
   */
  reset(): void {
    if (this.isPreserved)
      throw new KernelError("EBUSY", "reset", `${this.name} is preserved for a live update`);
    if (!this.canReset) throw new KernelError("EINVAL", "reset", `${this.name} has no reset`);
    this.pci.reset();
  }

  /** The registers behind a BAR. */
  barRegisters(bar: PciBar): Registers {
    const { mmio } = this.#vfio;
    return {
      read: (offset, size) => mmio.read(bar.address + offset, size),
      write: (offset, size, value) => mmio.write(bar.address + offset, size, value),
    };
  }

  // Interrupts.

  get msiEnabled(): boolean {
    return this.#msi !== null;
  }

  /** 0 when MSI is off. */
  get msiVector(): number {
    return this.#msi?.vector ?? 0;
  }

  /** Whether an interrupt was told to a VMM that has not looked since. */
  get hasUnreadInterrupt(): boolean {
    return this.#msi !== null && (this.#msi.unread || (this.#msi.eventfd?.isReadable ?? false));
  }

  /**
   * Enables MSI, if it is off, and says who is told. What came while nobody was is told at once.
   *
   * @param eventfd - a reference is taken; null: nobody is told
   * @throws {KernelError} ENOSPC when no vector is free
   */
  setMsiEventfd(eventfd: Eventfd | null): void {
    if (this.#msi === null) {
      this.#vfio.faults.point("vfio.msi:alloc");
      const vector = this.#vfio.vectors.alloc();
      this.#msi = { vector, eventfd: null, unread: false };
      enableMsi(this.pci, vector);
      this.#vfio.msiChanged();
    }
    const old = this.#msi.eventfd;
    this.#msi.eventfd = eventfd?.get() ?? null;
    old?.put();
    if (eventfd !== null && this.#msi.unread) {
      this.#msi.unread = false;
      eventfd.signal(1);
    }
    this.deliverInterrupt();
  }

  /** Tells the eventfd as if the device had raised its interrupt. */
  triggerMsi(): void {
    this.#msi?.eventfd?.signal(1);
  }

  /** Tells the eventfd if the device has raised its interrupt. @returns whether it had */
  deliverInterrupt(): boolean {
    const msi = this.#msi;
    if (msi === null || msi.eventfd === null || !this.#vfio.interrupts.take(msi.vector))
      return false;
    msi.eventfd.signal(1);
    return true;
  }

  disableMsi(): void {
    if (this.#msi === null) return;
    this.#silence();
    this.#vfio.vectors.free(this.#msi.vector);
    this.#msi.eventfd?.put();
    this.#msi = null;
    this.#vfio.msiChanged();
  }

  /** Ends the function's MSIs. */
  #silence(): void {
    if (enabledMsiVector(this.pci) !== 0) disableMsi(this.pci);
  }

  #makeConfig(): ConfigSpace {
    return new ConfigSpace(this.pci, () => this.reset());
  }
}
