/**
 * Ioctl numbers and arguments as userspace passes them.
 *
 * Source: Linux 7.3 include/uapi/asm-generic/ioctl.h
 * @module
 */

/** `_IO(type, number)`: the only encoding that liveupdate, iommufd and VFIO use. */
export function ioctlNumber(type: number, number: number): number {
  return (type << 8) | number;
}

/**
 * The argument of an ioctl: the bytes of its structure, which the kernel reads and writes in place.
 * Where the structure holds a pointer, the buffer that it points to is given by the pointer's offset; the
 * 64-bit pointer word itself is then ignored here (on real Linux it is set to the buffer's address).
 */
export interface UserArgument {
  readonly bytes: Uint8Array;
  readonly buffers?: readonly UserBuffer[];
}

export interface UserBuffer {
  /** Where in the structure the pointer to it stands. */
  readonly pointerOffset: number;
  readonly bytes: Uint8Array;
}
