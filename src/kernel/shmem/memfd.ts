/**
 * memfd_create(2).
 *
 * MFD_HUGETLB is refused with EINVAL, as by a Linux without hugetlbfs pages of that size: pages of 2 MiB are used
 * without asking, those of 1 GiB are memfs's. It could not be preserved either (nor can it on Linux).
 * Source: Linux 7.3 mm/memfd.c
 * @module
 */
import { encodeUtf8 } from "../../abi/struct.ts";
import {
  F_SEAL_EXEC,
  F_SEAL_SEAL,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  MFD_EXEC,
  MFD_NAME_MAX_LEN,
  MFD_NOEXEC_SEAL,
} from "../../abi/uapi/fs.ts";
import { KernelError } from "../../base/errno.ts";
import { MemfdFile } from "./memfd-file.ts";
import { type ShmemDependencies, ShmemInode } from "./shmem-inode.ts";

const KNOWN_FLAGS = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL | MFD_EXEC;

/** Makes memfds. */
export class Shmem {
  readonly #dependencies: ShmemDependencies;
  #nextInode = 1;
  #pinCount = 0;

  constructor(dependencies: ShmemDependencies) {
    this.#dependencies = dependencies;
  }

  /** Pinned ranges of memfds, for leak checks: mappings, DMA, sessions. Those of files that are gone count too. */
  get pinCount(): number {
    return this.#pinCount;
  }

  /**
   * Makes an empty memfd, with one reference for the caller.
   *
   * @param name - for people only; at most 249 bytes
   * @throws {KernelError} EINVAL unknown flags, MFD_HUGETLB, both MFD_EXEC and MFD_NOEXEC_SEAL, a name too long
   */
  memfdCreate(name: string, flags: number): MemfdFile {
    if (!Number.isInteger(flags) || (flags & ~KNOWN_FLAGS) !== 0)
      throw new KernelError("EINVAL", "memfd_create", `flags ${flags} are not supported`);
    if ((flags & MFD_EXEC) !== 0 && (flags & MFD_NOEXEC_SEAL) !== 0)
      throw new KernelError("EINVAL", "memfd_create", "MFD_EXEC and MFD_NOEXEC_SEAL");
    if (encodeUtf8(name).length > MFD_NAME_MAX_LEN)
      throw new KernelError("EINVAL", "memfd_create", `the name exceeds ${MFD_NAME_MAX_LEN} bytes`);
    if ((flags & MFD_NOEXEC_SEAL) !== 0) return this.#make(F_SEAL_EXEC, false);
    return this.#make((flags & MFD_ALLOW_SEALING) !== 0 ? 0 : F_SEAL_SEAL, true);
  }

  /**
   * Makes an empty memfd with the seals of one that was preserved. One that is sealed with F_SEAL_EXEC but not
   * against writing had no execute bits; upstream restores those bits, and so loses the right to write.
   */
  restoreMemfd(seals: number): MemfdFile {
    return this.#make(seals, (seals & F_SEAL_EXEC) === 0);
  }

  #make(seals: number, isExecutable: boolean): MemfdFile {
    const inode = new ShmemInode(
      this.#dependencies,
      this.#nextInode++,
      seals,
      isExecutable,
      (change) => {
        this.#pinCount += change;
      },
    );
    return new MemfdFile(this.#dependencies.memory, inode);
  }
}
