/**
 * An open file of memfs.
 *
 * Guest memory is not the kernel's to read or write: read(2) and write(2) are EINVAL, as for files without these
 * operations on Linux; mmap(2) is the way in.
 * A mapping here is the memory itself and cannot be taken back, as Linux would by unmapping pages: so it pins its
 * range, and shrinking or punching the file below it is EBUSY where Linux would deliver SIGBUS later.
 * @module
 */

import { FS_IOC_FIEMAP } from "../../abi/uapi/fiemap.ts";
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  SEEK_CUR,
  SEEK_DATA,
  SEEK_END,
  SEEK_HOLE,
  SEEK_SET,
} from "../../abi/uapi/fs.ts";
import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { alignUp, GIB, PAGE_SIZE } from "../../base/units.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import {
  type FdTable,
  File,
  type FileMapping,
  type FileStat,
  type PinnedRange,
} from "../vfs/file.ts";
import { extentBytes } from "./change.ts";
import { fiemap } from "./fiemap.ts";
import { allocatedBytes, extentAt, type Inode } from "./inode.ts";
import type { Store } from "./store.ts";

export class MemfsFile extends File {
  readonly kind = "memfs";
  readonly store: Store;
  readonly #memory: PhysicalMemory;
  readonly #inode: Inode;
  readonly #onRelease: () => void;
  #position = 0;

  /** @param onRelease - called after the file has let go of its inode */
  constructor(memory: PhysicalMemory, store: Store, inode: Inode, onRelease: () => void) {
    super();
    assert(inode.kind === "file", "only files are opened");
    this.#memory = memory;
    this.store = store;
    this.#inode = inode;
    this.#onRelease = onRelease;
    store.hold(inode);
  }

  override get inode(): Inode {
    return this.#inode;
  }

  override stat(): FileStat {
    return statInode(this.#inode);
  }

  /** @throws {KernelError} as {@link fiemap}; ENOTTY for other requests */
  override ioctl(request: number, argument: UserArgument, fds: FdTable): number {
    if (request !== FS_IOC_FIEMAP) return super.ioctl(request, argument, fds);
    fiemap(this.#inode.extents, argument);
    return 0;
  }

  override pread(): number {
    throw new KernelError("EINVAL", "pread", "memfs cannot be read");
  }
  override pwrite(): number {
    throw new KernelError("EINVAL", "pwrite", "memfs cannot be written");
  }

  /** @throws {KernelError} EINVAL before the start or for another whence; ENXIO as lseek(2) for SEEK_DATA, SEEK_HOLE */
  override seek(offset: number, whence: number): number {
    const { sizeBytes } = this.#inode;
    let position = offset;
    if (whence === SEEK_CUR) position += this.#position;
    else if (whence === SEEK_END) position += sizeBytes;
    else if (whence === SEEK_DATA || whence === SEEK_HOLE)
      position = this.#seekExtent(offset, whence);
    else if (whence !== SEEK_SET) throw new KernelError("EINVAL", "lseek", `whence ${whence}`);
    if (position < 0 || !Number.isSafeInteger(position))
      throw new KernelError("EINVAL", "lseek", `position ${position}`);
    this.#position = position;
    return position;
  }

  /** @throws {KernelError} EBUSY, EFBIG as {@link Store.truncate} */
  override truncate(lengthBytes: number): void {
    this.store.truncate(this.#inode, lengthBytes);
  }

  /** @throws {KernelError} EOPNOTSUPP for other modes; else as {@link Store.allocate}, {@link Store.punch} */
  override fallocate(mode: number, offset: number, lengthBytes: number): void {
    if (mode === (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE))
      this.store.punch(this.#inode, offset, lengthBytes);
    else if (mode === 0 || mode === FALLOC_FL_KEEP_SIZE)
      this.store.allocate(this.#inode, offset, lengthBytes, mode === 0, "fallocate");
    else throw new KernelError("EOPNOTSUPP", "fallocate", `memfs has no mode ${mode}`);
  }

  /**
   * Maps a range, of which holes are filled first.
   * @throws {KernelError} EINVAL for a range past the last page (where Linux would give SIGBUS); ENOMEM, ENOSPC
   */
  override mmap(offset: number, lengthBytes: number): FileMapping {
    const { extents, unpin } = this.#pin("mmap", offset, lengthBytes);
    const pieces: FileMapping["pieces"][number][] = [];
    for (const { offsetBytes, pa, lengthBytes: bytes } of extents)
      for (let done = 0; done < bytes; ) {
        // No piece crosses a 1 GiB boundary of memory: see PhysicalMemory.view.
        const part = Math.min(bytes - done, GIB - ((pa + done) % GIB));
        pieces.push({
          offsetBytes: offsetBytes + done,
          bytes: this.#memory.view(pa + done, part),
        });
        done += part;
      }
    this.get();
    const unmap = () => {
      unpin();
      this.put();
    };
    return { pieces, unmap };
  }

  override pin(offset: number, lengthBytes: number): PinnedRange {
    return this.#pin("pin", offset, lengthBytes);
  }

  protected override release(): void {
    this.store.drop(this.#inode);
    this.#onRelease();
  }

  #pin(op: string, offset: number, lengthBytes: number): PinnedRange {
    const inode = this.#inode;
    const end = offset + lengthBytes;
    if (!(offset >= 0 && lengthBytes > 0 && end <= alignUp(inode.sizeBytes, PAGE_SIZE)))
      throw new KernelError(
        "EINVAL",
        op,
        `bytes ${offset} to ${end - 1} of a file of ${inode.sizeBytes} bytes`,
      );
    return withUndo((undo) => {
      // Pinned first: what is found to be there must not go away again.
      const unpin = this.store.pin(inode, offset, end);
      undo(unpin);
      this.store.allocate(inode, offset, lengthBytes, false, op);
      return { extents: this.store.runs(inode, offset, lengthBytes), unpin };
    });
  }

  #seekExtent(offset: number, whence: number): number {
    const { extents, sizeBytes } = this.#inode;
    if (offset < 0 || offset >= sizeBytes)
      throw new KernelError("ENXIO", "lseek", `${offset} is outside the file`);
    let at = offset;
    let i = extentAt(extents, at);
    if (whence === SEEK_DATA) {
      at = i < extents.length ? Math.max(at, extents[i].offset) : sizeBytes;
      if (at >= sizeBytes) throw new KernelError("ENXIO", "lseek", "only a hole follows");
    } else
      for (; i < extents.length && extents[i].offset <= at; i++)
        at = extents[i].offset + extentBytes(extents[i]);
    return Math.min(at, sizeBytes);
  }
}

export function statInode(inode: Inode): FileStat {
  let directories = 0;
  for (const child of inode.children.values()) if (child.kind === "directory") directories++;
  return {
    kind: inode.kind,
    inode: inode.ino,
    sizeBytes: inode.sizeBytes,
    allocatedBytes: allocatedBytes(inode),
    linkCount: inode.kind === "directory" ? 2 + directories : inode.isOrphan ? 0 : 1,
  };
}
