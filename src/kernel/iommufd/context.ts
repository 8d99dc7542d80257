/**
 * An open /dev/iommu: its objects, what ioctls do to them, and what drivers of devices do.
 *
 * Invariants: an object goes only when nothing uses it; what fails changes nothing; a device leaves its domain
 * for the blocking one or, in one step, for another.
 * Differs from Linux: each PCI function is its own group; a new HWPT is filled before a device moves to it, not
 * after; pages are pinned when they are mapped (pinned-pages.ts); IOVAs end at 2^52.
 * Source: Linux 7.3 drivers/iommu/iommufd/{main,ioas,hw_pagetable,device}.c
 * @module
 */

import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import * as uapi from "../../abi/uapi/iommufd.ts";
import { ByteWords } from "../../abi/words.ts";
import { assert } from "../../base/assert.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { hex } from "../../base/units.ts";
import { IOMMU_READ, IOMMU_WRITE, type RestoredDomain } from "../iommu/domain.ts";
import type { PciFunction } from "../pci/function.ts";
import { type FdTable, File } from "../vfs/file.ts";
import { copyStructFromUser, copyStructToUser, userBuffer } from "../vfs/user-argument.ts";
import type { Interval } from "./disjoint-intervals.ts";
import { type FollowingDomain, IoPageTable } from "./io-pagetable.ts";
import type { Iommufd } from "./iommufd.ts";
import { IOVA_END, NoiommuDomain } from "./noiommu-domain.ts";
import { type Device, type Hwpt, type Ioas, ObjectTable, type PagingHwpt } from "./objects.ts";
import { PinnedPages } from "./pinned-pages.ts";
import type { RestoredNoiommu } from "./restored-noiommu.ts";

const MAP_FLAGS =
  uapi.IOMMU_IOAS_MAP_FIXED_IOVA | uapi.IOMMU_IOAS_MAP_WRITEABLE | uapi.IOMMU_IOAS_MAP_READABLE;
/** What a u64 of all ones, or nearly, reads as. */
const U64_MAX = 2 ** 64;

export class IommufdFile extends File {
  readonly kind = "iommufd";
  readonly #core: Iommufd;
  readonly #objects: ObjectTable;
  /** What a live update has of it, in the order of the handover; null: nothing is preserved. */
  #preserved: readonly PagingHwpt[] | null = null;

  constructor(core: Iommufd) {
    super();
    this.#core = core;
    this.#objects = new ObjectTable(core.faults);
  }

  override ioctl(request: number, argument: UserArgument, fds: FdTable): number {
    switch (request) {
      case uapi.IOMMU_DESTROY:
        return this.#destroy(argument);
      case uapi.IOMMU_IOAS_ALLOC:
        return this.#ioasAlloc(argument);
      case uapi.IOMMU_IOAS_ALLOW_IOVAS:
        return this.#ioasAllowIovas(argument);
      case uapi.IOMMU_IOAS_IOVA_RANGES:
        return this.#ioasIovaRanges(argument);
      case uapi.IOMMU_IOAS_MAP_FILE:
        return this.#ioasMapFile(argument, fds);
      case uapi.IOMMU_IOAS_COPY:
        return this.#ioasCopy(argument);
      case uapi.IOMMU_IOAS_UNMAP:
        return this.#ioasUnmap(argument);
      case uapi.IOMMU_IOAS_NOIOMMU_GET_PA:
        return this.#ioasNoiommuGetPa(argument);
      case uapi.IOMMU_OPTION:
        return this.#option(argument);
      case uapi.IOMMU_HWPT_ALLOC:
        return this.#hwptAlloc(argument);
      case uapi.IOMMU_GET_HW_INFO:
        return this.#getHwInfo(argument);
      case uapi.IOMMU_HWPT_LIVEUPDATE_MARK_PRESERVE:
        return this.#hwptMarkPreserve(argument);
      case uapi.IOMMU_HWPT_LIVEUPDATE_RETRIEVE:
        return this.#hwptRetrieve(argument);
      default:
        return super.ioctl(request, argument, fds);
    }
  }

  /** Drivers hold a reference for each bound device, so only HWPTs and IOASes are left here. */
  protected override release(): void {
    for (const object of [...this.#objects.values()])
      if (object.type === "hwpt") this.#destroyHwpt(object);
    for (const object of [...this.#objects.values()]) {
      assert(object.type === "ioas", "a released iommufd has a device");
      this.#destroyIoas(object);
    }
  }

  /** Objects, for leak checks. */
  get objectCount(): number {
    return this.#objects.size;
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
    const device = this.#objects.add<Device>((id) => ({
      type: "device",
      id,
      // The table and the driver.
      users: 2,
      pci,
      isNoiommu,
      hwpt: null,
      isPreserved: false,
    }));
    this.get();
    return device;
  }

  /** Undoes {@link bindDevice}; detaches first. May release this file. */
  unbindDevice(device: Device): void {
    assert(!device.isPreserved, "a preserved device is unbound");
    if (device.hwpt !== null) this.detachDevice(device);
    device.users--;
    this.#objects.remove(device);
    this.put();
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
    const target = this.#objects.find(ptId);
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
      const hwpt = this.#makeHwpt(ioas, device, op);
      undo(() => this.#destroyHwpt(hwpt));
      this.#moveDevice(device, hwpt, op);
      hwpt.isAuto = true;
      return hwpt;
    });
  }

  #makeHwpt(ioas: Ioas, device: Device, op: string): PagingHwpt {
    return withUndo((undo) => {
      const domain: FollowingDomain = device.isNoiommu
        ? new NoiommuDomain()
        : this.#core.iommu.allocDomain(device.pci);
      undo(() => domain.free());
      ioas.table.addDomain(domain, op);
      undo(() => ioas.table.removeDomain(domain));
      const hwpt = this.#objects.add<PagingHwpt>((id) => ({
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

  #destroyHwpt(hwpt: Hwpt): void {
    this.#objects.remove(hwpt);
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
    this.#objects.remove(ioas);
    ioas.table.destroy();
  }

  #destroy(argument: UserArgument): number {
    const op = "IOMMU_DESTROY";
    const { id } = copyStructFromUser(uapi.iommu_destroy, argument, 8, op);
    const object = this.#objects.find(id);
    if (object === null) throw new KernelError("ENOENT", op, `no object has id ${id}`);
    if (object.users > 1) throw new KernelError("EBUSY", op, `${object.type} ${id} is in use`);
    if (object.type === "hwpt") {
      // A device that nobody has retrieved yet uses it too.
      if (object.domain.type === "restored" && object.domain.attachedCount > 0)
        throw new KernelError("EBUSY", op, `hwpt ${id} has a device of the previous kernel`);
      this.#destroyHwpt(object);
    } else {
      assert(object.type === "ioas", "a bound device has one user");
      this.#destroyIoas(object);
    }
    return 0;
  }

  // IOAS.

  #ioasAlloc(argument: UserArgument): number {
    const op = "IOMMU_IOAS_ALLOC";
    const command = copyStructFromUser(uapi.iommu_ioas_alloc, argument, 12, op);
    if (command.flags !== 0) throw unknownFlags(op, command.flags);
    const ioas = this.#objects.add<Ioas>((id) => ({
      type: "ioas",
      id,
      users: 1,
      table: new IoPageTable(this.#core.faults),
      hwpts: [],
    }));
    copyStructToUser(uapi.iommu_ioas_alloc, argument, { ...command, out_ioas_id: ioas.id });
    return 0;
  }

  #ioasAllowIovas(argument: UserArgument): number {
    const op = "IOMMU_IOAS_ALLOW_IOVAS";
    const layout = uapi.iommu_ioas_allow_iovas;
    const command = copyStructFromUser(layout, argument, 24, op);
    if (command.__reserved !== 0) throw unknownFlags(op, command.__reserved);
    const { table } = this.#objects.get(command.ioas_id, "ioas", op);
    const ranges: Interval[] = [];
    if (command.num_iovas > 0) {
      const bytes = userBuffer(argument, layout.offset.allowed_iovas, op);
      const words = new ByteWords(bytes);
      const itemBytes = uapi.iommu_iova_range.sizeBytes;
      if (command.num_iovas > bytes.length / itemBytes)
        throw new KernelError("EFAULT", op, `${command.num_iovas} ranges exceed their memory`);
      for (let i = 0; i < command.num_iovas; i++) {
        const range = uapi.iommu_iova_range.read(words, i * itemBytes);
        ranges.push({ start: range.start, last: Math.min(range.last, IOVA_END - 1) });
      }
    }
    table.allow(ranges, op);
    return 0;
  }

  #ioasIovaRanges(argument: UserArgument): number {
    const op = "IOMMU_IOAS_IOVA_RANGES";
    const layout = uapi.iommu_ioas_iova_ranges;
    const command = copyStructFromUser(layout, argument, 32, op);
    if (command.__reserved !== 0) throw unknownFlags(op, command.__reserved);
    const { table } = this.#objects.get(command.ioas_id, "ioas", op);
    const ranges = table.usableRanges();
    const room = command.num_iovas;
    const itemBytes = uapi.iommu_iova_range.sizeBytes;
    const count = Math.min(room, ranges.length);
    if (count > 0) {
      const bytes = userBuffer(argument, layout.offset.allowed_iovas, op);
      if (bytes.length < count * itemBytes)
        throw new KernelError("EFAULT", op, `${room} ranges exceed their memory`);
      const words = new ByteWords(bytes);
      for (let i = 0; i < count; i++) uapi.iommu_iova_range.write(words, i * itemBytes, ranges[i]);
    }
    copyStructToUser(layout, argument, {
      ...command,
      num_iovas: ranges.length,
      out_iova_alignment: table.iovaAlignment,
    });
    if (ranges.length > room)
      throw new KernelError("EMSGSIZE", op, `${ranges.length} ranges, room for ${room}`);
    return 0;
  }

  #ioasMapFile(argument: UserArgument, fds: FdTable): number {
    const op = "IOMMU_IOAS_MAP_FILE";
    const command = copyStructFromUser(uapi.iommu_ioas_map_file, argument, 40, op);
    const prot = protOf(command.flags, op);
    if (command.iova >= U64_MAX || command.length >= U64_MAX)
      throw new KernelError("EOVERFLOW", op, "the IOVA or the length is 2^64 - 1");
    if (prot === 0) throw new KernelError("EINVAL", op, "neither READABLE nor WRITEABLE");
    const { table } = this.#objects.get(command.ioas_id, "ioas", op);
    if (command.length === 0) throw new KernelError("EINVAL", op, "the length is 0");
    if (command.start + command.length > Number.MAX_SAFE_INTEGER)
      throw new KernelError("EOVERFLOW", op, "the range goes past every file's end");
    const file = fds.get(command.fd);
    const isFixed = (command.flags & uapi.IOMMU_IOAS_MAP_FIXED_IOVA) !== 0;
    // Before pinning, which may allocate all of the range.
    const place = table.place(command.start, command.length, isFixed ? command.iova : null, op);
    const iova = withUndo((undo) => {
      this.#core.faults.point("iommufd:pin");
      const isWritable = (prot & IOMMU_WRITE) !== 0;
      const pages = new PinnedPages(file, command.start, command.length, isWritable);
      undo(() => pages.put());
      const startByte = command.start - pages.fileOffset;
      return table.map([{ pages, startByte, lengthBytes: command.length }], place, prot, op);
    });
    copyStructToUser(uapi.iommu_ioas_map_file, argument, { ...command, iova });
    return 0;
  }

  #ioasCopy(argument: UserArgument): number {
    const op = "IOMMU_IOAS_COPY";
    const command = copyStructFromUser(uapi.iommu_ioas_copy, argument, 40, op);
    const prot = protOf(command.flags, op);
    if (command.length >= U64_MAX || command.src_iova >= U64_MAX || command.dst_iova >= U64_MAX)
      throw new KernelError("EOVERFLOW", op, "an IOVA or the length is 2^64 - 1");
    if (prot === 0) throw new KernelError("EINVAL", op, "neither READABLE nor WRITEABLE");
    const source = this.#objects.get(command.src_ioas_id, "ioas", op).table;
    const iova = withUndo((undo) => {
      const slices = source.slices(command.src_iova, command.length, op);
      undo(() => {
        for (const slice of slices) slice.pages.put();
      });
      const { table } = this.#objects.get(command.dst_ioas_id, "ioas", op);
      const fixed = (command.flags & uapi.IOMMU_IOAS_MAP_FIXED_IOVA) !== 0;
      return table.map(slices, fixed ? command.dst_iova : null, prot, op);
    });
    copyStructToUser(uapi.iommu_ioas_copy, argument, { ...command, dst_iova: iova });
    return 0;
  }

  #ioasUnmap(argument: UserArgument): number {
    const op = "IOMMU_IOAS_UNMAP";
    const command = copyStructFromUser(uapi.iommu_ioas_unmap, argument, 24, op);
    const { iova, length } = command;
    const { table } = this.#objects.get(command.ioas_id, "ioas", op);
    let unmapped: number;
    if (iova === 0 && length >= U64_MAX) unmapped = table.unmap(0, IOVA_END - 1, op);
    else {
      if (iova >= U64_MAX || length >= U64_MAX || iova + length > U64_MAX)
        throw new KernelError("EOVERFLOW", op, "the range goes past the last IOVA");
      if (length === 0) throw new KernelError("EINVAL", op, "the length is 0");
      unmapped = table.unmap(iova, iova + length - 1, op);
      if (unmapped === 0)
        throw new KernelError("ENOENT", op, `nothing is mapped from iova ${hex(iova)} on`);
    }
    copyStructToUser(uapi.iommu_ioas_unmap, argument, { ...command, length: unmapped });
    return 0;
  }

  #ioasNoiommuGetPa(argument: UserArgument): number {
    const op = "IOMMU_IOAS_NOIOMMU_GET_PA";
    const command = copyStructFromUser(uapi.iommu_ioas_noiommu_get_pa, argument, 40, op);
    if (command.flags !== 0 || command.__reserved !== 0) throw unknownFlags(op, command.flags);
    if (command.length === 0) throw new KernelError("EINVAL", op, "the length is 0");
    if (command.iova >= U64_MAX) throw new KernelError("EOVERFLOW", op, "the IOVA is 2^64 - 1");
    const { table } = this.#objects.get(command.ioas_id, "ioas", op);
    const run = table.physicalAt(command.iova, command.length);
    if (run === null)
      throw new KernelError("ENOENT", op, `iova ${hex(command.iova)} is not mapped`);
    if (!table.hasNoiommuDomain)
      throw new KernelError("EOPNOTSUPP", op, "no device without IOMMU uses this IOAS");
    copyStructToUser(uapi.iommu_ioas_noiommu_get_pa, argument, {
      ...command,
      length: run.lengthBytes,
      out_phys: run.pa,
    });
    return 0;
  }

  /** Both options exist with the one value that this kernel knows: no pin accounting, large pages on. */
  #option(argument: UserArgument): number {
    const op = "IOMMU_OPTION";
    const command = copyStructFromUser(uapi.iommu_option, argument, 24, op);
    const { option_id, object_id } = command;
    if (command.__reserved !== 0) throw unknownFlags(op, command.__reserved);
    let value: number;
    if (option_id === uapi.IOMMU_OPTION_RLIMIT_MODE) {
      if (object_id !== 0)
        throw new KernelError("EOPNOTSUPP", op, "RLIMIT_MODE is not an object's option");
      value = 0;
    } else if (option_id === uapi.IOMMU_OPTION_HUGE_PAGES) {
      this.#objects.get(object_id, "ioas", op);
      value = 1;
    } else throw new KernelError("EOPNOTSUPP", op, `no option has id ${option_id}`);
    if (command.op === uapi.IOMMU_OPTION_OP_SET) {
      if (option_id === uapi.IOMMU_OPTION_RLIMIT_MODE && this.#objects.size > 0)
        throw new KernelError("EBUSY", op, "RLIMIT_MODE is set before any object is made");
      if (command.val64 > 1) throw new KernelError("EINVAL", op, "the value is not 0 or 1");
      if (command.val64 !== value)
        throw new KernelError("EOPNOTSUPP", op, `this kernel has it fixed at ${value}`);
    } else if (command.op !== uapi.IOMMU_OPTION_OP_GET)
      throw new KernelError("EOPNOTSUPP", op, `no operation has number ${command.op}`);
    copyStructToUser(uapi.iommu_option, argument, { ...command, val64: value });
    return 0;
  }

  // HWPT.

  #hwptAlloc(argument: UserArgument): number {
    const op = "IOMMU_HWPT_ALLOC";
    const command = copyStructFromUser(uapi.iommu_hwpt_alloc, argument, 24, op);
    if (command.__reserved !== 0) throw unknownFlags(op, command.__reserved);
    if ((command.data_type === uapi.IOMMU_HWPT_DATA_NONE) !== (command.data_len === 0))
      throw new KernelError("EINVAL", op, "data_type and data_len contradict one another");
    const device = this.#objects.get(command.dev_id, "device", op);
    const parent = this.#objects.find(command.pt_id);
    if (parent === null || parent.type === "device")
      throw new KernelError("EINVAL", op, `no IOAS has id ${command.pt_id}`);
    if (parent.type === "hwpt")
      throw new KernelError("EOPNOTSUPP", op, "no HWPT can be nested on another");
    if (command.flags !== 0 || command.data_len !== 0) throw unknownFlags(op, command.flags);
    const hwpt = this.#makeHwpt(parent, device, op);
    copyStructToUser(uapi.iommu_hwpt_alloc, argument, { ...command, out_hwpt_id: hwpt.id });
    return 0;
  }

  #getHwInfo(argument: UserArgument): number {
    const op = "IOMMU_GET_HW_INFO";
    const layout = uapi.iommu_hw_info;
    const command = copyStructFromUser(layout, argument, 32, op);
    if ((command.flags & ~uapi.IOMMU_HW_INFO_FLAG_INPUT_TYPE) !== 0)
      throw unknownFlags(op, command.flags);
    if ((command.__reserved0 | command.__reserved1 | command.__reserved2) !== 0)
      throw unknownFlags(op, command.__reserved0);
    const device = this.#objects.get(command.dev_id, "device", op);
    if (device.isNoiommu) throw new KernelError("EOPNOTSUPP", op, "the device has no IOMMU");
    if (command.data_len > 0) {
      const bytes = userBuffer(argument, layout.offset.data_uptr, op);
      if (bytes.length < command.data_len)
        throw new KernelError("EFAULT", op, `${command.data_len} bytes exceed their memory`);
      bytes.fill(0, 0, command.data_len);
    }
    copyStructToUser(layout, argument, {
      ...command,
      data_len: 0,
      out_data_type: uapi.IOMMU_HW_INFO_TYPE_NONE,
      out_max_pasid_log2: 0,
      out_capabilities: uapi.IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED,
    });
    return 0;
  }

  // Live update.

  #hwptMarkPreserve(argument: UserArgument): number {
    const op = "IOMMU_HWPT_LIVEUPDATE_MARK_PRESERVE";
    const layout = uapi.iommu_hwpt_liveupdate_mark_preserve;
    const command = copyStructFromUser(layout, argument, 16, op);
    const hwpt = this.#objects.get(command.hwpt_id, "hwpt", op);
    if (hwpt.ioas === null)
      throw new KernelError("EINVAL", op, "it is the previous kernel's; swap it for a new one");
    if (this.#preserved !== null)
      throw new KernelError("EBUSY", op, "the iommufd is preserved for a live update already");
    for (const other of this.#objects.values())
      if (other.type === "hwpt" && other.ioas !== null && other.token === command.hwpt_token)
        throw new KernelError("EADDRINUSE", op, `hwpt ${other.id} has ${hex(command.hwpt_token)}`);
    if (hwpt.token !== null)
      throw new KernelError("EBUSY", op, `hwpt ${hwpt.id} is marked as ${hex(hwpt.token)}`);
    hwpt.token = command.hwpt_token;
    return 0;
  }

  #hwptRetrieve(argument: UserArgument): number {
    const op = "IOMMU_HWPT_LIVEUPDATE_RETRIEVE";
    const layout = uapi.iommu_hwpt_liveupdate_retrieve;
    const command = copyStructFromUser(layout, argument, 16, op);
    const hwpt = this.#restoredHwpt(command.hwpt_token);
    if (hwpt === null)
      throw new KernelError("ENOENT", op, `no HWPT was preserved as ${hex(command.hwpt_token)}`);
    copyStructToUser(layout, argument, { ...command, out_hwpt_id: hwpt.id });
    return 0;
  }

  /** HWPTs of the previous kernel that are left. */
  restoredHwpts(): Extract<Hwpt, { ioas: null }>[] {
    const restored: Extract<Hwpt, { ioas: null }>[] = [];
    for (const object of this.#objects.values())
      if (object.type === "hwpt" && object.ioas === null) restored.push(object);
    return restored;
  }

  /** What a live update would keep: marked HWPTs, and no-IOMMU ones with a device, marked or not. */
  hwptsToPreserve(): PagingHwpt[] {
    const hwpts: PagingHwpt[] = [];
    for (const object of this.#objects.values())
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
    this.#objects.add((id) => ({ type: "hwpt", id, users: 1, ioas: null, domain, token, index }));
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
    for (const hwpt of this.restoredHwpts()) this.#objects.remove(hwpt);
  }

  #restoredHwpt(token: bigint): Extract<Hwpt, { ioas: null }> | null {
    return this.restoredHwpts().find((hwpt) => hwpt.token === token) ?? null;
  }
}

function unknownFlags(op: string, flags: number): KernelError {
  return new KernelError("EOPNOTSUPP", op, `flags or reserved fields ${hex(flags)} are not known`);
}

function protOf(flags: number, op: string): number {
  if ((flags & ~MAP_FLAGS) !== 0) throw unknownFlags(op, flags);
  return (
    ((flags & uapi.IOMMU_IOAS_MAP_READABLE) !== 0 ? IOMMU_READ : 0) |
    ((flags & uapi.IOMMU_IOAS_MAP_WRITEABLE) !== 0 ? IOMMU_WRITE : 0)
  );
}
