/**
 * An open VFIO device: what its ioctls and its file offsets mean.
 *
 * A file can do nothing until it has bound its device to an iommufd; the device has one such file at a time.
 * File offsets: region index · 2^40 + offset in the region.
 * Source: Linux 7.3 drivers/vfio/{device_cdev,vfio_main,iommufd}.c, drivers/vfio/pci/vfio_pci_{core,intrs,rdwr}.c
 * Not built: mmap of BARs, MSI-X, INTx, more than one MSI vector, PASIDs, device features, hot reset.
 * @module
 */
import { PCI_CAP_ID_MSI } from "../../abi/pci.ts";
import type { FieldType, Struct, StructValue } from "../../abi/struct.ts";
import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import * as uapi from "../../abi/uapi/vfio.ts";
import { ByteWords } from "../../abi/words.ts";
import { KernelError } from "../../base/errno.ts";
import { isIndex } from "../../base/units.ts";
import { IommufdFile } from "../iommufd/file.ts";
import type { PciBar } from "../pci/function.ts";
import { CharacterDeviceFile } from "../vfs/character-device-file.ts";
import { Eventfd } from "../vfs/eventfd.ts";
import type { FdTable } from "../vfs/file.ts";
import { copyStructFromUser, copyStructToUser } from "../vfs/user-argument.ts";
import { type Registers, readRegisters, writeRegisters } from "./bar-access.ts";
import type { VfioDevice } from "./device.ts";

type Fields = Record<string, FieldType<unknown>>;

const REGION_BYTES = 2 ** uapi.VFIO_PCI_OFFSET_SHIFT;
const S32_BYTES = 4;

export class VfioDeviceFile extends CharacterDeviceFile {
  readonly kind = "vfio";
  readonly device: VfioDevice;
  /** Whether the device is this file's. */
  #isBound: boolean;

  /** @param isBound - the device has been bound for this file, by retrieving it */
  constructor(device: VfioDevice, isBound: boolean) {
    super();
    this.device = device;
    this.#isBound = isBound;
  }

  get isBound(): boolean {
    return this.#isBound;
  }

  override get inode(): object {
    return this.device;
  }

  protected override release(): void {
    if (this.#isBound) this.device.close();
  }

  override ioctl(request: number, argument: UserArgument, fds: FdTable): number {
    if (request === uapi.VFIO_DEVICE_BIND_IOMMUFD) return this.#bindIommufd(argument, fds);
    this.#checkBound("ioctl");
    switch (request) {
      case uapi.VFIO_DEVICE_ATTACH_IOMMUFD_PT:
        return this.#attachPt(argument);
      case uapi.VFIO_DEVICE_DETACH_IOMMUFD_PT:
        return this.#detachPt(argument);
      case uapi.VFIO_DEVICE_GET_INFO:
        return this.#getInfo(argument);
      case uapi.VFIO_DEVICE_GET_REGION_INFO:
        return this.#getRegionInfo(argument);
      case uapi.VFIO_DEVICE_GET_IRQ_INFO:
        return this.#getIrqInfo(argument);
      case uapi.VFIO_DEVICE_SET_IRQS:
        return this.#setIrqs(argument, fds);
      case uapi.VFIO_DEVICE_RESET:
        this.device.reset();
        return 0;
      case uapi.VFIO_DEVICE_LIVEUPDATE_GET_DEVID:
        return this.#getDevid(argument);
      default:
        return super.ioctl(request, argument, fds);
    }
  }

  #checkBound(op: string): void {
    if (!this.#isBound)
      throw new KernelError("EINVAL", op, "the device is not bound to an iommufd by this file");
  }

  #bindIommufd(argument: UserArgument, fds: FdTable): number {
    const op = "VFIO_DEVICE_BIND_IOMMUFD";
    const layout = uapi.vfio_device_bind_iommufd;
    const bind = copyStructFromUser(layout, argument, 16, op);
    if (bind.iommufd < 0 || bind.flags !== 0)
      throw new KernelError("EINVAL", op, `iommufd ${bind.iommufd}, flags ${bind.flags}`);
    if (this.#isBound) throw new KernelError("EINVAL", op, "the file has bound its device already");
    const file = fds.get(bind.iommufd);
    if (!(file instanceof IommufdFile))
      throw new KernelError("EBADFD", op, `fd ${bind.iommufd} is a ${file.kind}, not an iommufd`);
    this.device.bind(file);
    this.#isBound = true;
    copyStructToUser(layout, argument, { ...bind, out_devid: this.device.handle.id });
    return 0;
  }

  #attachPt(argument: UserArgument): number {
    const op = "VFIO_DEVICE_ATTACH_IOMMUFD_PT";
    const layout = uapi.vfio_device_attach_iommufd_pt;
    const attach = readArgs(layout, argument, 12, op);
    if (hasPasid(attach, layout.sizeBytes, op)) this.device.attachPasid(attach.pt_id);
    const pt_id = this.device.attach(attach.pt_id);
    writeArgs(layout, argument, { ...attach, pt_id }, 12);
    return 0;
  }

  #detachPt(argument: UserArgument): number {
    const op = "VFIO_DEVICE_DETACH_IOMMUFD_PT";
    const layout = uapi.vfio_device_detach_iommufd_pt;
    const detach = readArgs(layout, argument, 8, op);
    // No PASID can be attached.
    if (!hasPasid(detach, layout.sizeBytes, op)) this.device.detach();
    return 0;
  }

  #getDevid(argument: UserArgument): number {
    const op = "VFIO_DEVICE_LIVEUPDATE_GET_DEVID";
    const layout = uapi.vfio_device_liveupdate_get_devid;
    const command = readArgs(layout, argument, 12, op);
    if (command.flags !== 0) throw new KernelError("EINVAL", op, `flags ${command.flags}`);
    writeArgs(layout, argument, { ...command, out_devid: this.device.handle.id }, 12);
    return 0;
  }

  #getInfo(argument: UserArgument): number {
    const layout = uapi.vfio_device_info;
    const info = readArgs(layout, argument, 16, "VFIO_DEVICE_GET_INFO");
    const flags =
      uapi.VFIO_DEVICE_FLAGS_PCI | (this.device.canReset ? uapi.VFIO_DEVICE_FLAGS_RESET : 0);
    const num_regions = uapi.VFIO_PCI_NUM_REGIONS;
    const num_irqs = uapi.VFIO_PCI_NUM_IRQS;
    const { argsz } = info;
    const filled = { argsz, flags, num_regions, num_irqs, cap_offset: 0, pad: 0 };
    writeArgs(layout, argument, filled, Math.min(argsz, layout.sizeBytes));
    return 0;
  }

  #getRegionInfo(argument: UserArgument): number {
    const op = "VFIO_DEVICE_GET_REGION_INFO";
    const layout = uapi.vfio_region_info;
    const info = readArgs(layout, argument, layout.sizeBytes, op);
    const { index } = info;
    if (index >= uapi.VFIO_PCI_NUM_REGIONS || index === uapi.VFIO_PCI_VGA_REGION_INDEX)
      throw new KernelError("EINVAL", op, `there is no region ${index}`);
    const size =
      index === uapi.VFIO_PCI_CONFIG_REGION_INDEX
        ? this.device.config.sizeBytes
        : (this.#bar(index)?.sizeBytes ?? 0);
    const flags = size > 0 ? uapi.VFIO_REGION_INFO_FLAG_READ | uapi.VFIO_REGION_INFO_FLAG_WRITE : 0;
    const offset = index * REGION_BYTES;
    writeArgs(layout, argument, { ...info, flags, cap_offset: 0, size, offset }, layout.sizeBytes);
    return 0;
  }

  #getIrqInfo(argument: UserArgument): number {
    const op = "VFIO_DEVICE_GET_IRQ_INFO";
    const layout = uapi.vfio_irq_info;
    const info = readArgs(layout, argument, layout.sizeBytes, op);
    if (info.index >= uapi.VFIO_PCI_NUM_IRQS)
      throw new KernelError("EINVAL", op, `there is no interrupt index ${info.index}`);
    const count = this.#irqCount(info.index);
    const kind =
      info.index === uapi.VFIO_PCI_INTX_IRQ_INDEX
        ? uapi.VFIO_IRQ_INFO_MASKABLE | uapi.VFIO_IRQ_INFO_AUTOMASKED
        : uapi.VFIO_IRQ_INFO_NORESIZE;
    const flags = uapi.VFIO_IRQ_INFO_EVENTFD | kind;
    writeArgs(layout, argument, { ...info, flags, count }, layout.sizeBytes);
    return 0;
  }

  #irqCount(index: number): number {
    const hasMsi = this.device.pci.capability(PCI_CAP_ID_MSI) !== 0;
    return index === uapi.VFIO_PCI_MSI_IRQ_INDEX && hasMsi ? 1 : 0;
  }

  /**
   * @throws {KernelError} EINVAL no such interrupt, flags that contradict one another, a descriptor that is no
   *   eventfd, MSI is off and is not to be enabled; ENOTTY an action that MSI does not have; ERANGE enabling no
   *   interrupt; EBADF; EFAULT; ENOSPC no vector is free
   */
  #setIrqs(argument: UserArgument, fds: FdTable): number {
    const op = "VFIO_DEVICE_SET_IRQS";
    const layout = uapi.vfio_irq_set;
    const set = readArgs(layout, argument, layout.sizeBytes, op);
    const { flags, index, start, count } = set;
    const known = uapi.VFIO_IRQ_SET_DATA_TYPE_MASK | uapi.VFIO_IRQ_SET_ACTION_TYPE_MASK;
    const max = this.#irqCount(index);
    if (index >= uapi.VFIO_PCI_NUM_IRQS || start >= max || start + count > max)
      throw new KernelError("EINVAL", op, `index ${index} has no interrupts ${start}+${count}`);
    const type = flags & uapi.VFIO_IRQ_SET_DATA_TYPE_MASK;
    const itemBytes = DATA_BYTES.get(type);
    if ((flags & ~known) !== 0 || itemBytes === undefined)
      throw new KernelError("EINVAL", op, `flags ${flags} are not known`);
    if (set.argsz - layout.sizeBytes < count * itemBytes)
      throw new KernelError("EINVAL", op, `argsz ${set.argsz} has no room for ${count} values`);
    if (argument.bytes.length < layout.sizeBytes + count * itemBytes)
      throw new KernelError("EFAULT", op, "the values are not readable memory");
    if ((flags & uapi.VFIO_IRQ_SET_ACTION_TYPE_MASK) !== uapi.VFIO_IRQ_SET_ACTION_TRIGGER)
      throw new KernelError("ENOTTY", op, "MSI has no action but TRIGGER");

    const { device } = this;
    const data = new ByteWords(argument.bytes);
    if (type === uapi.VFIO_IRQ_SET_DATA_EVENTFD) {
      if (count === 0) {
        // MSI goes on, or cannot be enabled with no vector at all.
        if (!device.msiEnabled) throw new KernelError("ERANGE", op, "no interrupt is named");
        return 0;
      }
      const fd = data.load32(layout.sizeBytes) | 0;
      device.setMsiEventfd(fd < 0 ? null : eventfdOf(fds, fd, op));
      return 0;
    }
    if (!device.msiEnabled) throw new KernelError("EINVAL", op, "MSI is not enabled");
    if (type === uapi.VFIO_IRQ_SET_DATA_NONE && count === 0) {
      device.disableMsi();
      return 0;
    }
    if (count > 0 && (type === uapi.VFIO_IRQ_SET_DATA_NONE || data.load8(layout.sizeBytes) !== 0))
      device.triggerMsi();
    return 0;
  }

  override pread(target: Uint8Array, offset: number): number {
    return this.#access(offset, target.length, "pread", (registers, at, count) => {
      readRegisters(registers, at, target.subarray(0, count));
    });
  }

  override pwrite(bytes: Uint8Array, offset: number): number {
    return this.#access(offset, bytes.length, "pwrite", (registers, at, count) => {
      writeRegisters(registers, at, bytes.subarray(0, count));
    });
  }

  /**
   * @returns bytes accessed: less than `length` at the end of a BAR
   * @throws {KernelError} EINVAL not bound, no such region, or at or past a BAR's end; EFAULT past the end of config
   *   space; EIO the BARs are not enabled in the command register
   */
  #access(
    offset: number,
    length: number,
    op: string,
    run: (registers: Registers, at: number, count: number) => void,
  ): number {
    this.#checkBound(op);
    if (!isIndex(offset, Number.MAX_SAFE_INTEGER))
      throw new KernelError("EINVAL", op, `offset ${String(offset)} is not valid`);
    if (length === 0) return 0;
    const index = Math.floor(offset / REGION_BYTES);
    const at = offset % REGION_BYTES;
    const { config } = this.device;
    if (index === uapi.VFIO_PCI_CONFIG_REGION_INDEX) {
      if (at + length > config.sizeBytes)
        throw new KernelError("EFAULT", op, `config space has ${config.sizeBytes} bytes`);
      run(config, at, length);
      return length;
    }
    const bar = this.#bar(index);
    if (bar === null || at >= bar.sizeBytes)
      throw new KernelError("EINVAL", op, `region ${index} has no offset ${at}`);
    if (!config.memoryEnabled)
      throw new KernelError("EIO", op, "memory space is not enabled in the command register");
    const count = Math.min(length, bar.sizeBytes - at);
    run(this.device.barRegisters(bar), at, count);
    return count;
  }

  #bar(index: number): PciBar | null {
    return this.device.pci.bars.find((bar) => bar.index === index) ?? null;
  }
}

const DATA_BYTES = new Map([
  [uapi.VFIO_IRQ_SET_DATA_NONE, 0],
  [uapi.VFIO_IRQ_SET_DATA_BOOL, 1],
  [uapi.VFIO_IRQ_SET_DATA_EVENTFD, S32_BYTES],
]);

function eventfdOf(fds: FdTable, fd: number, op: string): Eventfd {
  const file = fds.get(fd);
  if (!(file instanceof Eventfd))
    throw new KernelError("EINVAL", op, `fd ${fd} is a ${file.kind}, not an eventfd`);
  return file;
}

/** Whether a PASID is named. @throws {KernelError} EINVAL unknown flags, or `argsz` has no room for the PASID */
function hasPasid(
  { argsz, flags }: { readonly argsz: number; readonly flags: number },
  withPasidBytes: number,
  op: string,
): boolean {
  if ((flags & ~uapi.VFIO_DEVICE_ATTACH_PASID) !== 0)
    throw new KernelError("EINVAL", op, `flags ${flags} are not known`);
  if (flags === 0) return false;
  if (argsz < withPasidBytes)
    throw new KernelError("EINVAL", op, `argsz ${argsz} has no room for a PASID`);
  return true;
}

/**
 * Copies a structure in as VFIO does: at least `minBytes` of it, whatever else the caller's `argsz` holds.
 *
 * @throws {KernelError} EFAULT when there are fewer bytes; EINVAL when `argsz` is smaller
 */
function readArgs<F extends Fields>(
  layout: Struct<F>,
  argument: UserArgument,
  minBytes: number,
  op: string,
): StructValue<F> {
  const bytes = argument?.bytes;
  if (!(bytes instanceof Uint8Array) || bytes.length < minBytes)
    throw new KernelError("EFAULT", op, "the argument is not readable memory");
  const argsz = new ByteWords(bytes).load32(0);
  if (argsz < minBytes)
    throw new KernelError("EINVAL", op, `argsz ${argsz} is below the minimum, ${minBytes}`);
  const copy = new Uint8Array(layout.sizeBytes);
  copy.set(bytes.subarray(0, minBytes));
  return layout.read(new ByteWords(copy), 0);
}

/** Copies the first `lengthBytes` bytes of a structure back. */
function writeArgs<F extends Fields>(
  layout: Struct<F>,
  argument: UserArgument,
  value: StructValue<F>,
  lengthBytes: number,
): void {
  const copy = new Uint8Array(layout.sizeBytes);
  layout.write(new ByteWords(copy), 0, value);
  argument.bytes.set(copy.subarray(0, Math.min(lengthBytes, argument.bytes.length)));
}
