/**
 * Typed callers of iommufd's ioctls, as a VMM uses them.
 *
 * Every function throws the {@link KernelError} of the call; errnos: kernel/iommufd, and on Linux
 * Documentation/userspace-api/iommufd.rst.
 * @module
 */
import type { FieldType, Struct, StructValue } from "../abi/struct.ts";
import type { UserBuffer } from "../abi/uapi/ioctl.ts";
import * as uapi from "../abi/uapi/iommufd.ts";
import { ByteWords } from "../abi/words.ts";
import { isKernelError } from "../base/errno.ts";
import type { Host } from "./host.ts";

/** What of a Host these calls need. */
export type IommufdHost = Pick<Host, "ioctl">;

/** Makes an empty address space. @returns its id */
export function ioasAlloc(host: IommufdHost, iommufd: number): number {
  return call(host, iommufd, uapi.IOMMU_IOAS_ALLOC, uapi.iommu_ioas_alloc, {
    flags: 0,
    out_ioas_id: 0,
  }).out_ioas_id;
}

/** Allows or forbids an address space to map by pages larger than 4 KiB; not while a HWPT has areas mapped. */
export function ioasSetHugePages(
  host: IommufdHost,
  iommufd: number,
  ioasId: number,
  isAllowed: boolean,
): void {
  call(host, iommufd, uapi.IOMMU_OPTION, uapi.iommu_option, {
    option_id: uapi.IOMMU_OPTION_HUGE_PAGES,
    op: uapi.IOMMU_OPTION_OP_SET,
    __reserved: 0,
    object_id: ioasId,
    val64: isAllowed ? 1 : 0,
  });
}

/** A range of a file to be mapped. */
export interface FileMapping {
  readonly ioasId: number;
  readonly fileFd: number;
  /** File offset of the first byte. */
  readonly start: number;
  readonly lengthBytes: number;
  /** Absent: the kernel finds room. */
  readonly iova?: number;
  /** Whether devices may write; reading is always allowed. */
  readonly writable: boolean;
}

/** Maps and pins a range of a file. @returns its IOVA */
export function ioasMapFile(host: IommufdHost, iommufd: number, mapping: FileMapping): number {
  return call(host, iommufd, uapi.IOMMU_IOAS_MAP_FILE, uapi.iommu_ioas_map_file, {
    flags: mapFlags(mapping.iova !== undefined, mapping.writable),
    ioas_id: mapping.ioasId,
    fd: mapping.fileFd,
    start: mapping.start,
    length: mapping.lengthBytes,
    iova: mapping.iova ?? 0,
  }).iova;
}

/** Unmaps all areas within a range. @returns bytes unmapped */
export function ioasUnmap(
  host: IommufdHost,
  iommufd: number,
  range: { readonly ioasId: number; readonly iova: number; readonly lengthBytes: number },
): number {
  return call(host, iommufd, uapi.IOMMU_IOAS_UNMAP, uapi.iommu_ioas_unmap, {
    ioas_id: range.ioasId,
    iova: range.iova,
    length: range.lengthBytes,
  }).length;
}

/** Shows what one address space maps in another too. @returns the IOVA there */
export function ioasCopy(
  host: IommufdHost,
  iommufd: number,
  copy: {
    readonly fromIoasId: number;
    readonly fromIova: number;
    readonly lengthBytes: number;
    readonly toIoasId: number;
    /** Absent: the kernel finds room. */
    readonly toIova?: number;
    readonly writable: boolean;
  },
): number {
  return call(host, iommufd, uapi.IOMMU_IOAS_COPY, uapi.iommu_ioas_copy, {
    flags: mapFlags(copy.toIova !== undefined, copy.writable),
    dst_ioas_id: copy.toIoasId,
    src_ioas_id: copy.fromIoasId,
    length: copy.lengthBytes,
    dst_iova: copy.toIova ?? 0,
    src_iova: copy.fromIova,
  }).dst_iova;
}

/** IOVAs that can be mapped, as closed ranges in order, and what they must be multiples of. */
export function iovaRanges(
  host: IommufdHost,
  iommufd: number,
  ioasId: number,
): { readonly ranges: readonly uapi.IommuIovaRange[]; readonly alignment: number } {
  const item = uapi.iommu_iova_range;
  for (let room = 8; ; ) {
    const bytes = new Uint8Array(room * item.sizeBytes);
    const layout = uapi.iommu_ioas_iova_ranges;
    const pointerOffset = layout.offset.allowed_iovas;
    const argument = encode(layout, {
      ioas_id: ioasId,
      num_iovas: room,
      __reserved: 0,
      allowed_iovas: 0,
      out_iova_alignment: 0,
    });
    try {
      host.ioctl(iommufd, uapi.IOMMU_IOAS_IOVA_RANGES, {
        bytes: argument,
        buffers: [{ pointerOffset, bytes }],
      });
    } catch (error) {
      if (!isKernelError(error, "EMSGSIZE")) throw error;
      room = layout.read(new ByteWords(argument), 0).num_iovas;
      continue;
    }
    const answer = layout.read(new ByteWords(argument), 0);
    const words = new ByteWords(bytes);
    return {
      ranges: Array.from({ length: answer.num_iovas }, (_, i) =>
        item.read(words, i * item.sizeBytes),
      ),
      alignment: answer.out_iova_alignment,
    };
  }
}

/** Restricts where the kernel finds room; devices can then not take these ranges away. None: everywhere. */
export function ioasAllowIovas(
  host: IommufdHost,
  iommufd: number,
  ioasId: number,
  ranges: readonly uapi.IommuIovaRange[],
): void {
  const item = uapi.iommu_iova_range;
  const bytes = new Uint8Array(ranges.length * item.sizeBytes);
  const words = new ByteWords(bytes);
  ranges.forEach((range, i) => {
    item.write(words, i * item.sizeBytes, range);
  });
  const layout = uapi.iommu_ioas_allow_iovas;
  call(
    host,
    iommufd,
    uapi.IOMMU_IOAS_ALLOW_IOVAS,
    layout,
    { ioas_id: ioasId, num_iovas: ranges.length, __reserved: 0, allowed_iovas: 0 },
    [{ pointerOffset: layout.offset.allowed_iovas, bytes }],
  );
}

/** Makes a hardware page table for a device that shows an address space. @returns its id */
export function hwptAlloc(
  host: IommufdHost,
  iommufd: number,
  { deviceId, ptId }: { readonly deviceId: number; readonly ptId: number },
): number {
  return call(host, iommufd, uapi.IOMMU_HWPT_ALLOC, uapi.iommu_hwpt_alloc, {
    flags: 0,
    dev_id: deviceId,
    pt_id: ptId,
    out_hwpt_id: 0,
    __reserved: 0,
    data_type: uapi.IOMMU_HWPT_DATA_NONE,
    data_len: 0,
    data_uptr: 0,
    fault_id: 0,
    __reserved2: 0,
  }).out_hwpt_id;
}

/** Has live updates keep a HWPT, under a token that is free in its iommufd. For good: there is no unmark. */
export function hwptMarkPreserve(
  host: IommufdHost,
  iommufd: number,
  hwptId: number,
  token: bigint,
): void {
  call(
    host,
    iommufd,
    uapi.IOMMU_HWPT_LIVEUPDATE_MARK_PRESERVE,
    uapi.iommu_hwpt_liveupdate_mark_preserve,
    { hwpt_id: hwptId, hwpt_token: token },
  );
}

/** The id of the HWPT that the previous kernel kept under a token. */
export function hwptRetrieve(host: IommufdHost, iommufd: number, token: bigint): number {
  return call(
    host,
    iommufd,
    uapi.IOMMU_HWPT_LIVEUPDATE_RETRIEVE,
    uapi.iommu_hwpt_liveupdate_retrieve,
    { out_hwpt_id: 0, hwpt_token: token },
  ).out_hwpt_id;
}

/** Destroys an object that nothing uses. */
export function destroy(host: IommufdHost, iommufd: number, id: number): void {
  call(host, iommufd, uapi.IOMMU_DESTROY, uapi.iommu_destroy, { id });
}

/** Physical address behind an IOVA of an address space that a device without IOMMU is attached to. */
export function noiommuGetPa(
  host: IommufdHost,
  iommufd: number,
  ioasId: number,
  iova: number,
  limitBytes: number = 2 ** 52,
): { readonly physical: number; readonly lengthBytes: number } {
  const answer = call(
    host,
    iommufd,
    uapi.IOMMU_IOAS_NOIOMMU_GET_PA,
    uapi.iommu_ioas_noiommu_get_pa,
    { flags: 0, ioas_id: ioasId, __reserved: 0, iova, length: limitBytes, out_phys: 0 },
  );
  return { physical: answer.out_phys, lengthBytes: answer.length };
}

function mapFlags(isFixed: boolean, writable: boolean): number {
  return (
    uapi.IOMMU_IOAS_MAP_READABLE |
    (writable ? uapi.IOMMU_IOAS_MAP_WRITEABLE : 0) |
    (isFixed ? uapi.IOMMU_IOAS_MAP_FIXED_IOVA : 0)
  );
}

type Sized = Record<string, FieldType<unknown>> & { readonly size: FieldType<number> };

function encode<F extends Sized>(
  layout: Struct<F>,
  value: Omit<StructValue<F>, "size">,
): Uint8Array {
  const bytes = new Uint8Array(layout.sizeBytes);
  const sized = { ...value, size: layout.sizeBytes } as unknown as StructValue<F>;
  layout.write(new ByteWords(bytes), 0, sized);
  return bytes;
}

/** Fills in the size, makes the call, returns the structure as the kernel left it. */
function call<F extends Sized>(
  host: IommufdHost,
  iommufd: number,
  request: number,
  layout: Struct<F>,
  value: Omit<StructValue<F>, "size">,
  buffers: readonly UserBuffer[] = [],
): StructValue<F> {
  const bytes = encode(layout, value);
  host.ioctl(iommufd, request, { bytes, buffers });
  return layout.read(new ByteWords(bytes), 0);
}
