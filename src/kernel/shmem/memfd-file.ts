/**
 * An open memfd: a {@link ShmemInode} with a file position.
 *
 * Differs from Linux: a mapping must lie within the file (rounded up to a page), as there is no SIGBUS to send;
 * mappings are always shared and writable, so that F_SEAL_WRITE and F_SEAL_FUTURE_WRITE refuse them all.
 * Source: Linux 7.3 mm/memfd.c, mm/shmem.c
 * @module
 */
import {
  F_ADD_SEALS,
  F_GET_SEALS,
  SEEK_CUR,
  SEEK_DATA,
  SEEK_END,
  SEEK_HOLE,
  SEEK_SET,
} from "../../abi/uapi/fs.ts";
import { KernelError } from "../../base/errno.ts";
import { alignUp, GIB, PAGE_SIZE } from "../../base/units.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import { File, type FileMapping, type FileStat, type PinnedRange } from "../vfs/file.ts";
import { SHMEM_MAX_BYTES, type ShmemInode } from "./shmem-inode.ts";

export class MemfdFile extends File {
  readonly kind = "memfd";
  readonly shmem: ShmemInode;
  readonly #memory: PhysicalMemory;
  #position = 0;

  constructor(memory: PhysicalMemory, shmem: ShmemInode) {
    super();
    this.#memory = memory;
    this.shmem = shmem;
  }

  override get inode(): object {
    return this.shmem;
  }

  get position(): number {
    return this.#position;
  }

  /** Sets the position of a file that is being restored. */
  restorePosition(position: number): void {
    this.#position = position;
  }

  override read(target: Uint8Array): number {
    const count = this.shmem.read(target, this.#position);
    this.#position += count;
    return count;
  }

  /** @throws {KernelError} as {@link ShmemInode.write} */
  override write(bytes: Uint8Array): number {
    this.shmem.write(bytes, this.#position);
    this.#position += bytes.length;
    return bytes.length;
  }

  override pread(target: Uint8Array, offset: number): number {
    checkOffset("pread", offset);
    return this.shmem.read(target, offset);
  }

  override pwrite(bytes: Uint8Array, offset: number): number {
    checkOffset("pwrite", offset);
    this.shmem.write(bytes, offset);
    return bytes.length;
  }

  /** @throws {KernelError} EINVAL bad `whence` or a negative result; ENXIO no data, or no file, from there on */
  override seek(offset: number, whence: number): number {
    this.#position = this.#seekTarget(offset, whence);
    return this.#position;
  }

  #seekTarget(offset: number, whence: number): number {
    if (whence === SEEK_DATA || whence === SEEK_HOLE) {
      const inFile = Number.isInteger(offset) && offset >= 0 && offset < this.shmem.sizeBytes;
      const found = inFile ? this.shmem.seekData(offset, whence === SEEK_DATA) : -1;
      if (found < 0) throw new KernelError("ENXIO", "lseek", `there is nothing from ${offset} on`);
      return found;
    }
    const base = new Map([
      [SEEK_SET, 0],
      [SEEK_CUR, this.#position],
      [SEEK_END, this.shmem.sizeBytes],
    ]).get(whence);
    if (base === undefined) throw new KernelError("EINVAL", "lseek", `whence ${whence}`);
    const target = base + offset;
    if (!Number.isInteger(target) || target < 0 || target > SHMEM_MAX_BYTES)
      throw new KernelError("EINVAL", "lseek", `${target} is not a position`);
    return target;
  }

  override truncate(lengthBytes: number): void {
    this.shmem.truncate(lengthBytes);
  }

  override fallocate(mode: number, offset: number, lengthBytes: number): void {
    this.shmem.fallocate(mode, offset, lengthBytes);
  }

  /** @throws {KernelError} EINVAL another command; of F_ADD_SEALS as {@link ShmemInode.addSeals} */
  override fcntl(command: number, argument: number): number {
    if (command === F_GET_SEALS) return this.shmem.seals;
    if (command !== F_ADD_SEALS)
      throw new KernelError("EINVAL", "fcntl", `a memfd has no command ${command}`);
    this.shmem.addSeals(argument);
    return 0;
  }

  /**
   * Maps a range; the mapping keeps the file and its pages.
   * @throws {KernelError} EINVAL unaligned, empty, or past the file; EPERM sealed against writing; ENOMEM
   */
  override mmap(offset: number, lengthBytes: number): FileMapping {
    const end = alignUp(this.shmem.sizeBytes, PAGE_SIZE);
    if (
      !(offset >= 0 && offset % PAGE_SIZE === 0 && lengthBytes > 0 && offset + lengthBytes <= end)
    )
      throw new KernelError("EINVAL", "mmap", `${lengthBytes} bytes at ${offset} of ${end}`);
    if (this.shmem.isWriteSealed) throw new KernelError("EPERM", "mmap", "sealed against writing");
    const { extents, release } = this.shmem.hold(offset, lengthBytes);
    const pieces: { offsetBytes: number; bytes: Uint8Array }[] = [];
    for (const extent of extents) {
      // A view must not cross a 1 GiB boundary of physical memory.
      for (let done = 0; done < extent.lengthBytes; ) {
        const pa = extent.pa + done;
        const length = Math.min(extent.lengthBytes - done, GIB - (pa % GIB));
        const bytes = this.#memory.view(pa, length);
        pieces.push({ offsetBytes: extent.offsetBytes + done, bytes });
        done += length;
      }
    }
    return { pieces, unmap: this.#keepUntil(release) };
  }

  /**
   * Holds a range for DMA; the pin keeps the file and its pages.
   * @throws {KernelError} EINVAL empty or past the file; ENOMEM
   */
  override pin(offset: number, lengthBytes: number): PinnedRange {
    const isRange = Number.isInteger(offset) && Number.isInteger(lengthBytes);
    if (!isRange || offset < 0 || lengthBytes <= 0 || offset + lengthBytes > this.shmem.sizeBytes)
      throw new KernelError(
        "EINVAL",
        "pin",
        `${lengthBytes} bytes at ${offset} are not in the file`,
      );
    const { extents, release } = this.shmem.hold(offset, lengthBytes);
    return { extents, unpin: this.#keepUntil(release) };
  }

  /** Takes a reference that goes with `release`; a second call does nothing. */
  #keepUntil(release: () => void): () => void {
    this.get();
    let isHeld = true;
    return () => {
      if (!isHeld) return;
      isHeld = false;
      release();
      this.put();
    };
  }

  override stat(): FileStat {
    return {
      kind: "file",
      inode: this.shmem.number,
      sizeBytes: this.shmem.sizeBytes,
      allocatedBytes: this.shmem.allocatedBytes,
      linkCount: 0,
    };
  }

  protected override release(): void {
    this.shmem.destroy();
  }
}

function checkOffset(op: string, offset: number): void {
  if (!Number.isInteger(offset) || offset < 0)
    throw new KernelError("EINVAL", op, `${offset} is not an offset`);
}
