/**
 * The context behind an open /dev/iommu: its objects, what drivers of devices do with them, and what a live update
 * keeps of them. What userspace asks for is decoded in file.ts.
 *
 * Invariants: an object goes only when nothing uses it; what fails changes nothing; a device leaves its domain
 * for the blocking one or, in one step, for another.
 * Differs from Linux: each PCI function is its own group; a new HWPT is filled before a device moves to it, not
 * after.
 * Source: Linux 7.3 drivers/iommu/iommufd/{main,hw_pagetable,device}.c
 * @module
 */
import { assert } from "../../base/assert.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { withUndo } from "../../base/undo.ts";
import { hex } from "../../base/units.ts";
import type { RestoredDomain, UnitCapabilities } from "../iommu/domain.ts";
import type { PciFunction } from "../pci/function.ts";
import type { FollowingDomain } from "./io-pagetable.ts";
import type { Iommufd } from "./iommufd.ts";
import { NoiommuDomain } from "./noiommu-domain.ts";
import {
  type Device,
  type Hwpt,
  type Ioas,
  type IommufdObject,
  ObjectTable,
  type PagingHwpt,
  type RestoredHwpt,
} from "./objects.ts";
import type { RestoredNoiommu } from "./restored-noiommu.ts";

/** The references of the open file: each bound device holds one. */
export interface FileReferences {
  get(): unknown;
  put(): void;
}

export class IommufdContext {
  readonly objects: ObjectTable;
  readonly #core: Iommufd;
  readonly #file: FileReferences;
  /** What a live update has of it, in the order of the handover; null: nothing is preserved. */
  #preserved: readonly PagingHwpt[] | null = null;

  constructor(core: Iommufd, file: FileReferences) {
    this.#core = core;
    this.#file = file;
    this.objects = new ObjectTable(core.faults);
  }

  get faults(): FaultInjector {
    return this.#core.faults;
  }

  /** The file is released. Drivers hold a reference for each bound device, so only HWPTs and IOASes are left. */
  release(): void {
    for (const object of [...this.objects.values()])
      if (object.type === "hwpt") this.#destroyHwpt(object);
    for (const object of [...this.objects.values()]) {
      assert(object.type === "ioas", "a released iommufd has a device");
      this.#destroyIoas(object);
    }
  }

  /** What a device's remapping unit can do; null when nothing translates its DMA. */
  capabilitiesOf(device: Device): UnitCapabilities | null {
    return this.#core.iommu.capabilitiesOf(device.pci);
  }

  // Devices: what a driver does.

  /**
   * Takes a function under control of this context. Until it is attached its DMA stays blocked.
   *
   * @param isNoiommu - nothing translates its DMA, and the administrator has allowed that
   * @throws {KernelError} ENODEV when it is not translated and `isNoiommu` is not set; ENOMEM
   */
  bindDevice(pci: PciFunction, isNoiommu: boolean): Device {
    if (this.#core.iommu.isTranslated(pci) === isNoiommu)
      throw new KernelError("ENODEV", "bind", "the function has no IOMMU, or must use it");
    const device = this.objects.add<Device>((id) => ({
      type: "device",
      id,
      // The table and the driver.
      users: 2,
      pci,
      isNoiommu,
      hwpt: null,
      isPreserved: false,
    }));
    this.#file.get();
    return device;
  }

  /** Undoes {@link bindDevice}; detaches first. May release this file. */
  unbindDevice(device: Device): void {
    assert(!device.isPreserved, "a preserved device is unbound");
    if (device.hwpt !== null) this.detachDevice(device);
    device.users--;
    this.objects.remove(device);
    this.#file.put();
  }

  /**
   * Lets a device use a HWPT, or an IOAS through a HWPT that is found or made for it; an attached device
   * moves over in one atomic step.
   *
   * @returns the id of the HWPT
   * @throws {KernelError} ENOENT no object has that id; EINVAL it is neither IOAS nor HWPT, or does not suit the
   *   device, or (leaving a HWPT of the previous kernel) would break a translation; EBUSY the device is preserved,
   *   or has firmware's memory to reach; EADDRINUSE an area or allowed range lies where the device cannot have
   *   it; ENOMEM. The attachment is then as before.
   */
  attachDevice(device: Device, ptId: number): number {
    const op = "attach";
    const target = this.objects.find(ptId);
    if (target === null) throw new KernelError("ENOENT", op, `no object has id ${ptId}`);
    if (target.type === "device")
      throw new KernelError("EINVAL", op, `${ptId} is a device, not an IOAS or a HWPT`);
    if (target.type === "hwpt") {
      this.#moveDevice(device, target, op);
      return target.id;
    }
    return this.#attachAuto(device, target, op).id;
  }

  /**
   * Refuses a device's PASID: HWPTs that can have any are not built, and others cannot on Linux either.
   *
   * @throws {KernelError} ENOENT when no object has that id, else EINVAL
   */
  attachPasid(ptId: number): never {
    const op = "attach";
    if (this.objects.find(ptId) === null)
      throw new KernelError("ENOENT", op, `no object has id ${ptId}`);
    throw new KernelError("EINVAL", op, `${ptId} is no HWPT for PASIDs`);
  }

  /**
   * Ends a device's use of its HWPT: its DMA is blocked.
   *
   * @throws {KernelError} EBUSY when the attachment is preserved
   */
  detachDevice(device: Device): void {
    this.#checkNotPreserved(device, "detach");
    const { hwpt } = device;
    if (hwpt === null) return;
    // Bus mastering is all that can stop a device that nothing translates.
    if (device.isNoiommu) device.pci.setBusMaster(false);
    else this.#core.iommu.block(device.pci);
    device.hwpt = null;
    this.#leave(device, hwpt);
  }

  /** The device's attachment is part of a live update, or no more. */
  setDevicePreserved(device: Device, isPreserved: boolean): void {
    device.isPreserved = isPreserved;
  }

  /**
   * Records a device of the previous kernel on the HWPT that its DMA goes through already.
   *
   * @param index - the HWPT's place in the handover
   * @throws {KernelError} EINVAL when there is no such HWPT, or the device's DMA goes elsewhere
   */
  adoptAttachment(device: Device, index: number): void {
    const hwpt = this.restoredHwpts().find((restored) => restored.index === index);
    if (hwpt === undefined)
      throw new KernelError("EINVAL", "retrieve", `no HWPT has place ${index} in the handover`);
    const { domain } = hwpt;
    const isThere =
      domain.type === "restored"
        ? this.#core.iommu.domainOf(device.pci) === domain
        : device.isNoiommu;
    if (!isThere)
      throw new KernelError("EINVAL", "retrieve", `the device does not use HWPT ${index}`);
    device.hwpt = hwpt;
    hwpt.users++;
  }

  /** Undoes {@link adoptAttachment}: the device goes on using the HWPT, as before it was retrieved. */
  disownAttachment(device: Device): void {
    assert(device.hwpt?.ioas === null, "the device has no restored attachment");
    device.hwpt.users--;
    device.hwpt = null;
  }

  #checkNotPreserved(device: Device, op: string): void {
    if (device.isPreserved)
      throw new KernelError("EBUSY", op, "the device is preserved for a live update");
  }

  /** Attaches to a HWPT, or replaces the one that is attached. */
  #moveDevice(device: Device, hwpt: Hwpt, op: string): void {
    const old = device.hwpt;
    this.#checkNotPreserved(device, op);
    if (hwpt === old) return;
    if (hwpt.ioas === null)
      throw new KernelError("EINVAL", op, "a HWPT of the previous kernel takes no device");
    if ((hwpt.domain.type === "noiommu") !== device.isNoiommu)
      throw new KernelError("EINVAL", op, "the HWPT is for devices of the other kind");
    const { table } = hwpt.ioas;
    withUndo((undo) => {
      // An IOAS that the device leaves for another HWPT of the same IOAS keeps its reserved regions.
      if (old?.ioas !== hwpt.ioas) {
        undo(() => table.unreserve(device));
        if (!device.isNoiommu)
          for (const region of this.#core.iommu.reservedRegions(device.pci))
            table.reserve(region.start, region.start + region.lengthBytes - 1, device, op);
      }
      if (hwpt.domain.type === "paging") this.#core.iommu.attach(device.pci, hwpt.domain);
      else if (old?.domain.type === "restored-noiommu") {
        const iova = old.domain.firstNotHeldBy(table);
        if (iova !== null)
          throw new KernelError(
            "EINVAL",
            op,
            `the IOAS does not hold what the device may be using at iova ${hex(iova)}`,
          );
      }
    });
    hwpt.users++;
    device.hwpt = hwpt;
    if (old !== null) this.#leave(device, old);
  }

  /** The device's DMA does not go through `hwpt` any more; `device.hwpt` says where it goes now. */
  #leave(device: Device, hwpt: Hwpt): void {
    if (hwpt.ioas !== null && device.hwpt?.ioas !== hwpt.ioas) hwpt.ioas.table.unreserve(device);
    hwpt.users--;
    if (hwpt.ioas !== null && hwpt.isAuto && hwpt.users === 1) this.#destroyHwpt(hwpt);
  }

  /** Attaches to some automatic HWPT of the IOAS; makes one when none suits the device. */
  #attachAuto(device: Device, ioas: Ioas, op: string): PagingHwpt {
    for (const hwpt of ioas.hwpts) {
      if (!hwpt.isAuto) continue;
      try {
        this.#moveDevice(device, hwpt, op);
        return hwpt;
      } catch (error) {
        // EINVAL: this domain is not for this device; another may be.
        if (!isKernelError(error, "EINVAL")) throw error;
      }
    }
    return withUndo((undo) => {
      const hwpt = this.makeHwpt(ioas, device, op);
      undo(() => this.#destroyHwpt(hwpt));
      this.#moveDevice(device, hwpt, op);
      hwpt.isAuto = true;
      return hwpt;
    });
  }

  /**
   * Makes a page table for a device that shows an IOAS; the device is not attached.
   *
   * @throws {KernelError} EADDRINUSE when an area does not suit the device's IOMMU; ENOMEM
   */
  makeHwpt(ioas: Ioas, device: Device, op: string): PagingHwpt {
    return withUndo((undo) => {
      const domain: FollowingDomain = device.isNoiommu
        ? new NoiommuDomain()
        : this.#core.iommu.allocDomain(device.pci);
      undo(() => domain.free());
      ioas.table.addDomain(domain, op);
      undo(() => ioas.table.removeDomain(domain));
      const hwpt = this.objects.add<PagingHwpt>((id) => ({
        type: "hwpt",
        id,
        users: 1,
        ioas,
        domain,
        isAuto: false,
        token: null,
      }));
      ioas.users++;
      ioas.hwpts.push(hwpt);
      return hwpt;
    });
  }

  // Destruction.

  /**
   * Destroys an object.
   *
   * @throws {KernelError} EBUSY when something uses it
   */
  destroy(object: IommufdObject, op: string): void {
    const { type, id } = object;
    if (object.users > 1) throw new KernelError("EBUSY", op, `${type} ${id} is in use`);
    if (object.type === "hwpt") {
      // A device that nobody has retrieved yet uses it too.
      if (object.domain.type === "restored" && object.domain.attachedCount > 0)
        throw new KernelError("EBUSY", op, `hwpt ${id} has a device of the previous kernel`);
      this.#destroyHwpt(object);
    } else {
      assert(object.type === "ioas", "a bound device has two users");
      this.#destroyIoas(object);
    }
  }

  #destroyHwpt(hwpt: Hwpt): void {
    this.objects.remove(hwpt);
    if (hwpt.ioas === null) {
      if (hwpt.domain.type === "restored") this.#core.freeRestored(hwpt.domain);
      else hwpt.domain.free();
      return;
    }
    hwpt.ioas.hwpts.splice(hwpt.ioas.hwpts.indexOf(hwpt), 1);
    hwpt.ioas.table.removeDomain(hwpt.domain);
    hwpt.domain.free();
    hwpt.ioas.users--;
  }

  #destroyIoas(ioas: Ioas): void {
    this.objects.remove(ioas);
    ioas.table.destroy();
  }

  // Live update.

  /**
   * Has live updates keep a HWPT from now on. There is no way back.
   *
   * @param token - free in this context
   * @throws {KernelError} EINVAL it is the previous kernel's; EBUSY it is marked, or a live update has the context
   *   already; EADDRINUSE another HWPT has the token
   */
  mark(hwpt: Hwpt, token: bigint, op: string): void {
    if (hwpt.ioas === null)
      throw new KernelError("EINVAL", op, "it is the previous kernel's; swap it for a new one");
    if (this.#preserved !== null)
      throw new KernelError("EBUSY", op, "the iommufd is preserved for a live update already");
    for (const other of this.objects.values())
      if (other.type === "hwpt" && other.ioas !== null && other.token === token)
        throw new KernelError("EADDRINUSE", op, `hwpt ${other.id} has ${hex(token)}`);
    if (hwpt.token !== null)
      throw new KernelError("EBUSY", op, `hwpt ${hwpt.id} is marked as ${hex(hwpt.token)}`);
    hwpt.token = token;
  }

  /** HWPTs of the previous kernel that are left. */
  restoredHwpts(): RestoredHwpt[] {
    const restored: RestoredHwpt[] = [];
    for (const object of this.objects.values())
      if (object.type === "hwpt" && object.ioas === null) restored.push(object);
    return restored;
  }

  /** What a live update would keep: marked HWPTs, and no-IOMMU ones with a device, marked or not. */
  hwptsToPreserve(): PagingHwpt[] {
    const hwpts: PagingHwpt[] = [];
    for (const object of this.objects.values())
      if (
        object.type === "hwpt" &&
        object.ioas !== null &&
        (object.token !== null || (object.domain.type === "noiommu" && object.users > 1))
      )
        hwpts.push(object);
    return hwpts.sort((a, b) => a.id - b.id);
  }

  /** From here on no HWPT can be marked, and these, with their IOASes, are fixed. */
  beginPreserved(hwpts: readonly PagingHwpt[]): void {
    assert(this.#preserved === null, "an iommufd is preserved twice");
    this.#preserved = hwpts;
    for (const hwpt of hwpts) {
      hwpt.users++;
      hwpt.ioas.table.fix();
    }
  }

  /** Undoes {@link beginPreserved}. */
  endPreserved(): void {
    assert(this.#preserved !== null, "an iommufd is not preserved");
    for (const hwpt of this.#preserved) {
      hwpt.ioas.table.unfix();
      hwpt.users--;
      if (hwpt.isAuto && hwpt.users === 1) this.#destroyHwpt(hwpt);
    }
    this.#preserved = null;
  }

  /** Place in the handover of the HWPT that a device is attached to, or -1 when that is not preserved. */
  preservedIndexOf(device: Device): number {
    if (device.hwpt?.ioas == null) return -1;
    return this.#preserved?.indexOf(device.hwpt) ?? -1;
  }

  /**
   * Adds a HWPT of the previous kernel, which this context owns from here on.
   *
   * @param index - its place in the handover
   */
  addRestored(index: number, token: bigint | null, domain: RestoredDomain | RestoredNoiommu): void {
    this.objects.add((id) => ({ type: "hwpt", id, users: 1, ioas: null, domain, token, index }));
  }

  /** Whether a device that was retrieved still uses a HWPT of the previous kernel. */
  get usesRestored(): boolean {
    return this.restoredHwpts().some((hwpt) => hwpt.users > 1);
  }

  /** Frees what is left of the previous kernel's HWPTs; no retrieved device may use them. */
  freeRestored(): void {
    for (const hwpt of this.restoredHwpts()) this.#destroyHwpt(hwpt);
  }

  /** Forgets the previous kernel's HWPTs without freeing them: undoes the addRestored calls. */
  forgetRestored(): void {
    for (const hwpt of this.restoredHwpts()) this.objects.remove(hwpt);
  }

  /** The HWPT that the previous kernel kept under a token, or null. */
  restoredHwpt(token: bigint): RestoredHwpt | null {
    return this.restoredHwpts().find((hwpt) => hwpt.token === token) ?? null;
  }
}
