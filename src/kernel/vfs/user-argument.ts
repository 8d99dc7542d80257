/**
 * Extensible ioctl structures, copied in and out as liveupdate and iommufd agree.
 *
 * The first field of each is its u32 size as userspace knows it: smaller than the kernel's minimum is
 * EINVAL; larger than the kernel's structure is fine while the rest is zero, otherwise E2BIG.
 * Source: Linux 7.3 lib/usercopy.c copy_struct_from_user(); include/uapi/linux/iommufd.h "General ioctl format"
 * @module
 */
import type { FieldType, Struct, StructValue } from "../../abi/struct.ts";
import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import { ByteWords } from "../../abi/words.ts";
import { KernelError } from "../../base/errno.ts";

type Fields = Record<string, FieldType<unknown>>;

/**
 * Copies an extensible structure in; fields past the caller's size read as zero.
 *
 * @param minBytes - the size of the structure's first version
 * @throws {KernelError} EFAULT when the bytes are shorter than the size they claim (or than 4); EINVAL when the
 *   size is below `minBytes`; E2BIG when bytes past the kernel's structure are not zero
 */
export function copyStructFromUser<F extends Fields>(
  layout: Struct<F>,
  argument: UserArgument,
  minBytes: number,
  op: string,
): StructValue<F> {
  const bytes = argument?.bytes;
  if (!(bytes instanceof Uint8Array) || bytes.length < 4)
    throw new KernelError("EFAULT", op, "the argument is not readable memory");
  const sizeBytes = new ByteWords(bytes).load32(0);
  if (sizeBytes < minBytes)
    throw new KernelError("EINVAL", op, `size ${sizeBytes} is below the minimum, ${minBytes}`);
  if (sizeBytes > bytes.length)
    throw new KernelError(
      "EFAULT",
      op,
      `size ${sizeBytes} exceeds the ${bytes.length} bytes given`,
    );
  for (let i = layout.sizeBytes; i < sizeBytes; i++)
    if (bytes[i] !== 0)
      throw new KernelError(
        "E2BIG",
        op,
        `byte ${i} is set, this kernel knows ${layout.sizeBytes} bytes`,
      );
  const copy = new Uint8Array(layout.sizeBytes);
  copy.set(bytes.subarray(0, Math.min(sizeBytes, layout.sizeBytes)));
  return layout.read(new ByteWords(copy), 0);
}

/** Copies a structure back to userspace, as much of it as userspace's size holds. */
export function copyStructToUser<F extends Fields>(
  layout: Struct<F>,
  argument: UserArgument,
  value: StructValue<F>,
): void {
  const copy = new Uint8Array(layout.sizeBytes);
  layout.write(new ByteWords(copy), 0, value);
  const sizeBytes = new ByteWords(argument.bytes).load32(0);
  argument.bytes.set(copy.subarray(0, Math.min(sizeBytes, layout.sizeBytes)));
}

/** The buffer behind the pointer at `pointerOffset`; EFAULT when there is none. */
export function userBuffer(argument: UserArgument, pointerOffset: number, op: string): Uint8Array {
  const buffer = argument.buffers?.find((b) => b.pointerOffset === pointerOffset);
  if (!(buffer?.bytes instanceof Uint8Array))
    throw new KernelError("EFAULT", op, `no memory at the pointer of offset ${pointerOffset}`);
  return buffer.bytes;
}
