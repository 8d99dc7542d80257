/**
 * An open node of /dev.
 *
 * Why: such a file was opened by a path, so that Linux lets it have positions; reading at one fails because there is
 * nothing to read (EINVAL), and not for want of a position (ESPIPE), as with files that have no path.
 * Source: Linux 7.3 fs/open.c do_dentry_open; fs/read_write.c ksys_pread64
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import { File, type FileStat } from "./file.ts";

export abstract class CharacterDeviceFile extends File {
  override pread(_target: Uint8Array, _offset: number): number {
    throw new KernelError("EINVAL", "pread", `${this.kind} cannot be read`);
  }

  override pwrite(_bytes: Uint8Array, _offset: number): number {
    throw new KernelError("EINVAL", "pwrite", `${this.kind} cannot be written`);
  }

  override stat(): FileStat {
    return { kind: "device", inode: 0, sizeBytes: 0, allocatedBytes: 0, linkCount: 1 };
  }
}
