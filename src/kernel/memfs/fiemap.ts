/**
 * FIEMAP on memfs: where in physical memory a file lies.
 *
 * Why: it is the way by which userspace can prove that a live update moved nothing.
 * Source: Linux 7.3 fs/ioctl.c ioctl_fiemap(); Documentation/filesystems/fiemap.rst
 * @module
 */

import { FIEMAP, FIEMAP_EXTENT, FIEMAP_EXTENT_LAST } from "../../abi/uapi/fiemap.ts";
import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import { ByteWords } from "../../abi/words.ts";
import { KernelError } from "../../base/errno.ts";
import { type Extent, extentBytes } from "./change.ts";

/**
 * Fills in the extents that overlap `fm_start` + `fm_length`, as many as there is room for; without room, their number.
 *
 * @param extents - of the file, in order
 * @throws {KernelError} EFAULT the argument is shorter than it says; EBADR-like EINVAL flags, which none are supported
 */
export function fiemap(extents: readonly Extent[], argument: UserArgument): void {
  const bytes = argument?.bytes;
  if (!(bytes instanceof Uint8Array) || bytes.length < FIEMAP.sizeBytes)
    throw new KernelError("EFAULT", "FS_IOC_FIEMAP", "the argument is not readable memory");
  const words = new ByteWords(bytes);
  const request = FIEMAP.read(words, 0);
  const room = request.fm_extent_count;
  if (FIEMAP.sizeBytes + room * FIEMAP_EXTENT.sizeBytes > bytes.length)
    throw new KernelError("EFAULT", "FS_IOC_FIEMAP", `there is no room for ${room} extents`);
  if (request.fm_flags !== 0)
    throw new KernelError("EINVAL", "FS_IOC_FIEMAP", `flags ${request.fm_flags}`);
  const end = request.fm_start + request.fm_length;
  const found = extents.filter(
    (e) => e.offset < end && e.offset + extentBytes(e) > request.fm_start,
  );
  const told = room === 0 ? [] : found.slice(0, room);
  for (const [i, extent] of told.entries())
    FIEMAP_EXTENT.write(words, FIEMAP.sizeBytes + i * FIEMAP_EXTENT.sizeBytes, {
      fe_logical: extent.offset,
      fe_physical: extent.pa,
      fe_length: extentBytes(extent),
      fe_reserved64_0: 0,
      fe_reserved64_1: 0,
      fe_flags: extent === extents.at(-1) ? FIEMAP_EXTENT_LAST : 0,
      fe_reserved_0: 0,
      fe_reserved_1: 0,
      fe_reserved_2: 0,
    });
  FIEMAP.write(words, 0, {
    ...request,
    fm_mapped_extents: room === 0 ? found.length : told.length,
  });
}
