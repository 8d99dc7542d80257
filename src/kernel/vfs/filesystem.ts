/**
 * A mounted filesystem, as path look-up sees it. Paths are absolute within the mount: "/", "/vm0/ram".
 * @module
 */
import type { File, FileStat } from "./file.ts";

export interface Filesystem {
  /** The filesystem's name, as in /proc/mounts. */
  readonly type: string;
  /** @throws {KernelError} ENOENT, EEXIST, EISDIR, ENOTDIR, ENAMETOOLONG, ENOMEM, ENOSPC as open(2) */
  open(path: string, flags: number): File;
  mkdir(path: string): void;
  rmdir(path: string): void;
  unlink(path: string): void;
  /** Replaces an existing file; EBUSY when that one is pinned. */
  rename(from: string, to: string): void;
  readdir(path: string): readonly string[];
  stat(path: string): FileStat;
  statfs(): FilesystemStat;
  /** The mount goes away. @throws {KernelError} EBUSY while files of it are open */
  unmount?(): void;
}

export interface FilesystemStat {
  readonly type: string;
  readonly totalBytes: number;
  readonly freeBytes: number;
  readonly inodes: number;
}
