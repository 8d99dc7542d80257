/**
 * A file's memory in this process.
 *
 * Why the end of a mapping leaves something behind: a store by an array that outlived munmap(2) would end the process, or go
 * into whatever is mapped there by then. So its place is taken by empty memory, for as long as an array is left.
 * As on every Linux, an access past the end of a file that has become shorter is SIGBUS: memory that is handed to VMs is
 * sealed against that (F_SEAL_SHRINK).
 * Source: mmap(2), madvise(2); Linux 7.3 Documentation/admin-guide/mm/transhuge.rst
 * @module
 */
import { KernelError } from "../base/errno.ts";
import { withUndo } from "../base/undo.ts";
import { GIB } from "../base/units.ts";
import type { FileMapping } from "../kernel/vfs/file.ts";
import { type Ffi, MADV_HUGEPAGE, MAP_SHARED, PROT_READ, PROT_WRITE } from "./ffi.ts";

export class MemoryMapping implements FileMapping {
  readonly #ffi: Ffi;
  readonly #address: bigint;
  readonly #lengthBytes: number;
  readonly #buffers: readonly ArrayBuffer[];
  readonly pieces: FileMapping["pieces"];
  #isMapped = true;

  /** Maps a range shared, readable and writable. @throws {KernelError} as mmap(2) */
  constructor(ffi: Ffi, fd: number, offset: number, lengthBytes: number) {
    this.#ffi = ffi;
    this.#lengthBytes = lengthBytes;
    const starts = Array.from({ length: Math.ceil(lengthBytes / GIB) }, (_, i) => i * GIB);
    [this.#address, this.#buffers] = withUndo((undo) => {
      const address = ffi.mmap(lengthBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
      undo(() => ffi.munmap(address, lengthBytes));
      const view = (start: number) =>
        ffi.view(address + BigInt(start), Math.min(GIB, lengthBytes - start));
      return [address, starts.map(view)];
    });
    this.pieces = this.#buffers.map((buffer, i) => ({
      offsetBytes: offset + starts[i],
      bytes: new Uint8Array(buffer),
    }));
  }

  /** Where it begins, for /proc/self/pagemap. */
  get address(): bigint {
    return this.#address;
  }

  /**
   * Asks for huge pages where this mapping's memory is first touched. shmem follows when
   * /sys/kernel/mm/transparent_hugepage/shmem_enabled says "advise" (or "always", and then without being asked).
   * @throws {KernelError} EINVAL when this kernel has no transparent huge pages, or it is unmapped
   */
  adviseHugePages(): void {
    if (!this.#isMapped)
      throw new KernelError("EINVAL", "madvise", "the mapping has ended: advise it before unmap");
    this.#ffi.madvise(this.#address, this.#lengthBytes, MADV_HUGEPAGE);
  }

  /** Again is fine. Arrays that are used after it read and write memory that is nobody's. */
  unmap(): void {
    if (!this.#isMapped) return;
    this.#ffi.retire(this.#address, this.#lengthBytes, this.#buffers);
    this.#isMapped = false;
  }
}
