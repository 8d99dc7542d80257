/** Where a file's bytes lie in physical memory (memfs) or on a device. @module */
import { FIEMAP, FIEMAP_EXTENT, FIEMAP_EXTENT_LAST, FS_IOC_FIEMAP } from "../abi/uapi/fiemap.ts";
import { ByteWords } from "../abi/words.ts";
import type { Host } from "./host.ts";

/** A run of a file's bytes that is contiguous where it lies. */
export interface FileRun {
  readonly offsetBytes: number;
  readonly physical: number;
  readonly lengthBytes: number;
}

const BATCH = 64;

/** All runs of a file, in order, neighbours merged. @throws {KernelError} EOPNOTSUPP or ENOTTY when the file has no map */
export function fiemap(host: Host, fd: number): FileRun[] {
  const runs: FileRun[] = [];
  let start = 0;
  for (;;) {
    const bytes = new Uint8Array(FIEMAP.sizeBytes + BATCH * FIEMAP_EXTENT.sizeBytes);
    const words = new ByteWords(bytes);
    FIEMAP.write(words, 0, {
      fm_start: start,
      fm_length: Number.MAX_SAFE_INTEGER - start,
      fm_flags: 0,
      fm_mapped_extents: 0,
      fm_extent_count: BATCH,
      fm_reserved: 0,
    });
    host.ioctl(fd, FS_IOC_FIEMAP, { bytes });
    const count = FIEMAP.read(words, 0).fm_mapped_extents;
    for (let i = 0; i < count; i++) {
      const extent = FIEMAP_EXTENT.read(words, FIEMAP.sizeBytes + i * FIEMAP_EXTENT.sizeBytes);
      const last = runs.at(-1);
      if (
        last !== undefined &&
        last.offsetBytes + last.lengthBytes === extent.fe_logical &&
        last.physical + last.lengthBytes === extent.fe_physical
      ) {
        runs[runs.length - 1] = { ...last, lengthBytes: last.lengthBytes + extent.fe_length };
      } else {
        runs.push({
          offsetBytes: extent.fe_logical,
          physical: extent.fe_physical,
          lengthBytes: extent.fe_length,
        });
      }
      start = extent.fe_logical + extent.fe_length;
      if ((extent.fe_flags & FIEMAP_EXTENT_LAST) !== 0) return runs;
    }
    if (count === 0) return runs;
  }
}
