/**
 * memfs files in live-update sessions.
 *
 * The memory of a memfs file is handed over in any case, by its store. A session adds a token to find it by, and
 * holds the file as it is, from `preserve` on to `finish` in the next kernel. So there is nothing to serialise but
 * which file it is: store, inode number and generation, packed in the u64 itself.
 * A file that nobody retrieves is not discarded by `finish`: it has a name, and is there by it. One without a name,
 * unlinked while open, goes then.
 * @module
 */
import { MEMFS_FILE_COMPATIBLE } from "../../abi/memfs.ts";
import { assert } from "../../base/assert.ts";
import type { MemoryRange } from "../../machine/machine.ts";
import type { IncomingMemory } from "../kho/incoming.ts";
import type { FileHandler, PreserveArgs, SessionView } from "../liveupdate/file-handler.ts";
import type { File } from "../vfs/file.ts";
import type { Memfs, RetainedFile } from "./memfs.ts";
import { MemfsFile } from "./memfs-file.ts";

export class MemfsFileHandler implements FileHandler<RetainedFile> {
  readonly compatible = MEMFS_FILE_COMPATIBLE;
  readonly flbs = [];
  readonly #memfs: Memfs;

  constructor(memfs: Memfs) {
    this.#memfs = memfs;
  }

  canPreserve(file: File): boolean {
    return file instanceof MemfsFile;
  }

  /** @throws {KernelError} EBUSY when a session relies on the file already */
  preserve({ file }: PreserveArgs): bigint {
    assert(file instanceof MemfsFile, "canPreserve is asked first");
    return this.#memfs.retain(file);
  }

  unpreserve({ data }: { readonly data: bigint }): void {
    this.#memfs.release(data);
  }

  decode(_incoming: IncomingMemory, data: bigint, field: string): RetainedFile {
    return this.#memfs.claimIncoming(data, field);
  }

  memoryOf(data: RetainedFile): Iterable<MemoryRange> {
    return data.memory;
  }

  retrieve({ data }: { readonly session: SessionView; readonly data: RetainedFile }): File {
    return this.#memfs.openRetained(data.data);
  }

  finish({ data }: { readonly data: RetainedFile; readonly file: File | null }): void {
    this.#memfs.release(data.data);
  }
}
