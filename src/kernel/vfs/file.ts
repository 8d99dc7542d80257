/**
 * An open file of this kernel: Linux's `struct file` with its operations.
 *
 * Lifecycle: made with one reference; a file descriptor, a session, an IOAS each hold one; the last `put`
 * releases it.
 * Invariant: an operation that a file does not have fails with the errno that Linux gives for it.
 * @module
 */
import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";

/** A run of a file's bytes that is contiguous in physical memory. */
export interface FileExtent {
  readonly offsetBytes: number;
  readonly pa: number;
  readonly lengthBytes: number;
}

/** File pages held in place: they cannot move, shrink away or be punched until unpinned. */
export interface PinnedRange {
  /** In file order, without holes, covering exactly what was asked for. */
  readonly extents: readonly FileExtent[];
  unpin(): void;
}

export interface FileStat {
  readonly kind: "file" | "directory" | "device" | "anonymous";
  readonly inode: number;
  readonly sizeBytes: number;
  /** Bytes of memory that back it. */
  readonly allocatedBytes: number;
  readonly linkCount: number;
}

/** A mapping of a file into userspace. */
export interface FileMapping {
  /** The file's memory, shared, in file order; each piece at most 1 GiB. */
  readonly pieces: readonly { readonly offsetBytes: number; readonly bytes: Uint8Array }[];
  unmap(): void;
}

/**
 * The file descriptors of the process that makes a call, for ioctls that take or return descriptors.
 */
export interface FdTable {
  /**
   * The open file behind a descriptor. Holds no reference for the caller: take one with `get` to keep it.
   * @throws {KernelError} EBADF when `fd` is not an open descriptor; safe on any number
   */
  get(fd: number): File;
  /**
   * Says before the work is done whether its result could be installed, as Linux reserves a descriptor first.
   * @throws {KernelError} EMFILE when no descriptor is free; otherwise the next `install` of this call succeeds
   */
  ensureRoom(): void;
  /**
   * Puts a file under the lowest free descriptor, which takes over the caller's reference.
   * @returns the descriptor
   * @throws {KernelError} EMFILE when none is free; the caller keeps its reference
   */
  install(file: File): number;
}

export abstract class File {
  /** What kind of file: "memfs", "memfd", "iommufd", "vfio", "liveupdate", "session", "eventfd". */
  abstract readonly kind: string;
  #references = 1;

  /** What two open files of the same inode have in common; compared by identity. */
  get inode(): object {
    return this;
  }

  /** Takes one more reference. */
  get(): this {
    assert(this.#references > 0, `get of a released ${this.kind} file`);
    this.#references++;
    return this;
  }

  /** Drops one reference; the last one releases the file. */
  put(): void {
    assert(this.#references > 0, `put of a released ${this.kind} file`);
    if (--this.#references === 0) this.release();
  }

  /** References held, for leak checks. */
  get references(): number {
    return this.#references;
  }

  /** The last reference is gone. */
  protected abstract release(): void;

  /**
   * @param fds - the descriptors of the calling process
   * @returns what ioctl(2) returns, 0 or more
   */
  ioctl(request: number, _argument: UserArgument, _fds: FdTable): number {
    throw new KernelError("ENOTTY", "ioctl", `${this.kind} has no request ${request}`);
  }
  /** Reads at the file position. */
  read(_target: Uint8Array): number {
    throw new KernelError("EINVAL", "read", `${this.kind} cannot be read`);
  }
  /** Writes at the file position. */
  write(_bytes: Uint8Array): number {
    throw new KernelError("EINVAL", "write", `${this.kind} cannot be written`);
  }
  pread(_target: Uint8Array, _offset: number): number {
    throw new KernelError("ESPIPE", "pread", `${this.kind} has no positions`);
  }
  pwrite(_bytes: Uint8Array, _offset: number): number {
    throw new KernelError("ESPIPE", "pwrite", `${this.kind} has no positions`);
  }
  seek(_offset: number, _whence: number): number {
    throw new KernelError("ESPIPE", "lseek", `${this.kind} has no positions`);
  }
  mmap(_offset: number, _lengthBytes: number): FileMapping {
    throw new KernelError("ENODEV", "mmap", `${this.kind} cannot be mapped`);
  }
  truncate(_lengthBytes: number): void {
    throw new KernelError("EINVAL", "ftruncate", `${this.kind} has no size`);
  }
  fallocate(_mode: number, _offset: number, _lengthBytes: number): void {
    throw new KernelError("ENODEV", "fallocate", `${this.kind} has no blocks`);
  }
  fcntl(command: number, _argument: number): number {
    throw new KernelError("EINVAL", "fcntl", `${this.kind} has no command ${command}`);
  }
  stat(): FileStat {
    return { kind: "anonymous", inode: 0, sizeBytes: 0, allocatedBytes: 0, linkCount: 1 };
  }
  /**
   * Holds a range in place for DMA, allocating its holes first.
   * @throws {KernelError} EINVAL when this kind of file cannot back DMA or the range is outside the file;
   *   ENOMEM when a hole cannot be filled
   */
  pin(_offset: number, _lengthBytes: number): PinnedRange {
    throw new KernelError("EINVAL", "pin", `${this.kind} cannot back DMA`);
  }
}
