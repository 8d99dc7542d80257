/**
 * An open /dev/iommu, as userspace sees it: every ioctl, decoded, checked, and done by the context.
 *
 * Source: Linux 7.3 drivers/iommu/iommufd/{main,ioas,hw_pagetable,device}.c
 * @module
 */

import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import * as uapi from "../../abi/uapi/iommufd.ts";
import { ByteWords } from "../../abi/words.ts";
import { KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { hex } from "../../base/units.ts";
import { IOMMU_READ, IOMMU_WRITE } from "../iommu/domain.ts";
import { CharacterDeviceFile } from "../vfs/character-device-file.ts";
import type { FdTable } from "../vfs/file.ts";
import { copyStructFromUser, copyStructToUser, userBuffer } from "../vfs/user-argument.ts";
import { IommufdContext } from "./context.ts";
import type { Interval } from "./disjoint-intervals.ts";
import { IoPageTable } from "./io-pagetable.ts";
import type { Iommufd } from "./iommufd.ts";
import { IOVA_END } from "./noiommu-domain.ts";
import type { Ioas } from "./objects.ts";
import { PinnedPages } from "./pinned-pages.ts";

const MAP_FLAGS =
  uapi.IOMMU_IOAS_MAP_FIXED_IOVA | uapi.IOMMU_IOAS_MAP_WRITEABLE | uapi.IOMMU_IOAS_MAP_READABLE;
/** What a u64 of all ones, or nearly, reads as. */
const U64_MAX = 2 ** 64;

export class IommufdFile extends CharacterDeviceFile {
  readonly kind = "iommufd";
  readonly context: IommufdContext;

  constructor(core: Iommufd) {
    super();
    this.context = new IommufdContext(core, this);
  }

  protected override release(): void {
    this.context.release();
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

  #destroy(argument: UserArgument): number {
    const op = "IOMMU_DESTROY";
    const { id } = copyStructFromUser(uapi.iommu_destroy, argument, 8, op);
    const object = this.context.objects.find(id);
    if (object === null) throw new KernelError("ENOENT", op, `no object has id ${id}`);
    this.context.destroy(object, op);
    return 0;
  }

  // IOAS.

  #ioasAlloc(argument: UserArgument): number {
    const op = "IOMMU_IOAS_ALLOC";
    const command = copyStructFromUser(uapi.iommu_ioas_alloc, argument, 12, op);
    if (command.flags !== 0) throw unknownFlags(op, command.flags);
    const ioas = this.context.objects.add<Ioas>((id) => ({
      type: "ioas",
      id,
      users: 1,
      table: new IoPageTable(this.context.faults),
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
    const { table } = this.context.objects.get(command.ioas_id, "ioas", op);
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
    const { table } = this.context.objects.get(command.ioas_id, "ioas", op);
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
    const { table } = this.context.objects.get(command.ioas_id, "ioas", op);
    if (command.length === 0) throw new KernelError("EINVAL", op, "the length is 0");
    if (command.start + command.length > Number.MAX_SAFE_INTEGER)
      throw new KernelError("EOVERFLOW", op, "the range goes past every file's end");
    const file = fds.get(command.fd);
    const isFixed = (command.flags & uapi.IOMMU_IOAS_MAP_FIXED_IOVA) !== 0;
    // Before pinning, which may allocate all of the range.
    const place = table.place(command.start, command.length, isFixed ? command.iova : null, op);
    const iova = withUndo((undo) => {
      this.context.faults.point("iommufd:pin");
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
    const source = this.context.objects.get(command.src_ioas_id, "ioas", op).table;
    const iova = withUndo((undo) => {
      const slices = source.slices(command.src_iova, command.length, op);
      undo(() => {
        for (const slice of slices) slice.pages.put();
      });
      const { table } = this.context.objects.get(command.dst_ioas_id, "ioas", op);
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
    const { table } = this.context.objects.get(command.ioas_id, "ioas", op);
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
    const { table } = this.context.objects.get(command.ioas_id, "ioas", op);
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

  #option(argument: UserArgument): number {
    const op = "IOMMU_OPTION";
    const command = copyStructFromUser(uapi.iommu_option, argument, 24, op);
    const { option_id, object_id } = command;
    if (command.__reserved !== 0) throw unknownFlags(op, command.__reserved);
    let option: { readonly value: number; set(value: number): void };
    if (option_id === uapi.IOMMU_OPTION_RLIMIT_MODE) {
      if (object_id !== 0)
        throw new KernelError("EOPNOTSUPP", op, "RLIMIT_MODE is not an object's option");
      option = { value: 0, set: (value) => this.#setRlimitMode(value, op) };
    } else if (option_id === uapi.IOMMU_OPTION_HUGE_PAGES) {
      const { table } = this.context.objects.get(object_id, "ioas", op);
      option = {
        value: table.largePages ? 1 : 0,
        set: (value) => {
          checkBoolean(value, op);
          table.setLargePages(value === 1, op);
        },
      };
    } else throw new KernelError("EOPNOTSUPP", op, `no option has id ${option_id}`);
    if (command.op === uapi.IOMMU_OPTION_OP_GET) {
      copyStructToUser(uapi.iommu_option, argument, { ...command, val64: option.value });
      return 0;
    }
    if (command.op !== uapi.IOMMU_OPTION_OP_SET)
      throw new KernelError("EOPNOTSUPP", op, `no operation has number ${command.op}`);
    option.set(command.val64);
    return 0;
  }

  /** This kernel does not account pinned memory to anybody, which is nearest to mode 0. */
  #setRlimitMode(value: number, op: string): void {
    if (this.context.objects.size > 0)
      throw new KernelError("EBUSY", op, "RLIMIT_MODE is set before any object is made");
    checkBoolean(value, op);
    if (value !== 0) throw new KernelError("EOPNOTSUPP", op, "this kernel has it fixed at 0");
  }

  // HWPT.

  #hwptAlloc(argument: UserArgument): number {
    const op = "IOMMU_HWPT_ALLOC";
    const command = copyStructFromUser(uapi.iommu_hwpt_alloc, argument, 24, op);
    if (command.__reserved !== 0) throw unknownFlags(op, command.__reserved);
    if ((command.data_type === uapi.IOMMU_HWPT_DATA_NONE) !== (command.data_len === 0))
      throw new KernelError("EINVAL", op, "data_type and data_len contradict one another");
    const device = this.context.objects.get(command.dev_id, "device", op);
    const parent = this.context.objects.find(command.pt_id);
    if (parent === null || parent.type === "device")
      throw new KernelError("EINVAL", op, `no IOAS has id ${command.pt_id}`);
    if (parent.type === "hwpt")
      throw new KernelError("EOPNOTSUPP", op, "no HWPT can be nested on another");
    if (command.flags !== 0 || command.data_len !== 0) throw unknownFlags(op, command.flags);
    const hwpt = this.context.makeHwpt(parent, device, op);
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
    const device = this.context.objects.get(command.dev_id, "device", op);
    const unit = this.context.capabilitiesOf(device);
    if (unit === null) throw new KernelError("EOPNOTSUPP", op, "the device has no IOMMU");
    const isAsked = (command.flags & uapi.IOMMU_HW_INFO_FLAG_INPUT_TYPE) !== 0;
    const type = isAsked ? command.out_data_type : uapi.IOMMU_HW_INFO_TYPE_DEFAULT;
    if (type !== uapi.IOMMU_HW_INFO_TYPE_DEFAULT && type !== uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD)
      throw new KernelError("EOPNOTSUPP", op, `the IOMMU tells nothing of type ${type}`);
    const info = new Uint8Array(uapi.iommu_hw_info_vtd.sizeBytes);
    uapi.iommu_hw_info_vtd.write(new ByteWords(info), 0, {
      flags: 0,
      __reserved: 0,
      cap_reg: unit.cap,
      ecap_reg: unit.ecap,
    });
    if (command.data_len > 0) {
      const bytes = userBuffer(argument, layout.offset.data_uptr, op);
      if (bytes.length < command.data_len)
        throw new KernelError("EFAULT", op, `${command.data_len} bytes exceed their memory`);
      bytes.fill(0, 0, command.data_len);
      bytes.set(info.subarray(0, command.data_len));
    }
    copyStructToUser(layout, argument, {
      ...command,
      data_len: info.length,
      out_data_type: uapi.IOMMU_HW_INFO_TYPE_INTEL_VTD,
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
    const hwpt = this.context.objects.get(command.hwpt_id, "hwpt", op);
    this.context.mark(hwpt, command.hwpt_token, op);
    return 0;
  }

  #hwptRetrieve(argument: UserArgument): number {
    const op = "IOMMU_HWPT_LIVEUPDATE_RETRIEVE";
    const layout = uapi.iommu_hwpt_liveupdate_retrieve;
    const command = copyStructFromUser(layout, argument, 16, op);
    const hwpt = this.context.restoredHwpt(command.hwpt_token);
    if (hwpt === null)
      throw new KernelError("ENOENT", op, `no HWPT was preserved as ${hex(command.hwpt_token)}`);
    copyStructToUser(layout, argument, { ...command, out_hwpt_id: hwpt.id });
    return 0;
  }
}

function unknownFlags(op: string, flags: number): KernelError {
  return new KernelError("EOPNOTSUPP", op, `flags or reserved fields ${hex(flags)} are not known`);
}

function checkBoolean(value: number, op: string): void {
  if (value > 1) throw new KernelError("EINVAL", op, `the value ${value} is not 0 or 1`);
}

function protOf(flags: number, op: string): number {
  if ((flags & ~MAP_FLAGS) !== 0) throw unknownFlags(op, flags);
  return (
    ((flags & uapi.IOMMU_IOAS_MAP_READABLE) !== 0 ? IOMMU_READ : 0) |
    ((flags & uapi.IOMMU_IOAS_MAP_WRITEABLE) !== 0 ? IOMMU_WRITE : 0)
  );
}
