/**
 * Read-only files in one directory, whose text is made anew at each open, as in procfs and debugfs.
 * @module
 */
import { encodeUtf8 } from "../../abi/struct.ts";
import {
  O_ACCMODE,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_RDONLY,
  O_TRUNC,
  SEEK_CUR,
  SEEK_END,
  SEEK_SET,
} from "../../abi/uapi/fs.ts";
import { KernelError } from "../../base/errno.ts";
import { File, type FileStat } from "./file.ts";
import type { Filesystem, FilesystemStat } from "./filesystem.ts";

const ROOT_INODE = 1;

/** Read-only: every call that would change something fails with EROFS. */
export class TextFilesystem implements Filesystem {
  readonly type: string;
  readonly #names: readonly string[];
  readonly #texts: readonly (() => string)[];

  /**
   * @param type - as in /proc/mounts
   * @param files - by name: what makes the text
   */
  constructor(type: string, files: ReadonlyMap<string, () => string>) {
    this.type = type;
    this.#names = [...files.keys()];
    this.#texts = [...files.values()];
  }

  /**
   * @throws {KernelError} ENOENT no such file; EEXIST; EISDIR the root; ENOTDIR a directory was asked for; EROFS
   *   to create, write or truncate
   */
  open(path: string, flags: number): File {
    const exists = path === "/" || this.#indexOf(path) >= 0;
    const isExclusive = (flags & O_CREAT) !== 0 && (flags & O_EXCL) !== 0;
    if (exists && isExclusive) throw new KernelError("EEXIST", "open", `"${path}" exists`);
    if (!exists && (flags & O_CREAT) !== 0) throw readOnly("open", path);
    if (path === "/") throw new KernelError("EISDIR", "open", `"${path}" is a directory`);
    const index = this.#find("open", path);
    if ((flags & O_DIRECTORY) !== 0)
      throw new KernelError("ENOTDIR", "open", `"${path}" is not a directory`);
    if ((flags & O_ACCMODE) !== O_RDONLY || (flags & O_TRUNC) !== 0) throw readOnly("open", path);
    return new TextFile(this.type, this.#bytes(index), this.#inode(index));
  }

  readdir(path: string): readonly string[] {
    if (path === "/") return this.#names;
    this.#find("readdir", path);
    throw new KernelError("ENOTDIR", "readdir", `"${path}" is not a directory`);
  }

  stat(path: string): FileStat {
    if (path === "/")
      return {
        kind: "directory",
        inode: ROOT_INODE,
        sizeBytes: 0,
        allocatedBytes: 0,
        linkCount: 2,
      };
    const index = this.#find("stat", path);
    const sizeBytes = this.#bytes(index).length;
    return {
      kind: "file",
      inode: this.#inode(index),
      sizeBytes,
      allocatedBytes: 0,
      linkCount: 1,
    };
  }

  statfs(): FilesystemStat {
    return { type: this.type, totalBytes: 0, freeBytes: 0, inodes: this.#names.length + 1 };
  }

  mkdir(path: string): void {
    throw readOnly("mkdir", path);
  }
  rmdir(path: string): void {
    throw readOnly("rmdir", path);
  }
  unlink(path: string): void {
    throw readOnly("unlink", path);
  }
  rename(from: string, _to: string): void {
    throw readOnly("rename", from);
  }

  #indexOf(path: string): number {
    return this.#names.findIndex((name) => path === `/${name}`);
  }

  #find(op: string, path: string): number {
    const index = this.#indexOf(path);
    if (index < 0) throw new KernelError("ENOENT", op, `there is no "${path}"`);
    return index;
  }

  #bytes(index: number): Uint8Array {
    return encodeUtf8(this.#texts[index]());
  }

  #inode(index: number): number {
    return ROOT_INODE + 1 + index;
  }
}

function readOnly(op: string, path: string): KernelError {
  return new KernelError("EROFS", op, `"${path}" is on a read-only file system`);
}

class TextFile extends File {
  readonly kind: string;
  readonly #bytes: Uint8Array;
  readonly #inode: number;
  #position = 0;

  constructor(kind: string, bytes: Uint8Array, inode: number) {
    super();
    this.kind = kind;
    this.#bytes = bytes;
    this.#inode = inode;
  }

  override read(target: Uint8Array): number {
    const count = this.pread(target, this.#position);
    this.#position += count;
    return count;
  }

  override pread(target: Uint8Array, offset: number): number {
    if (!Number.isInteger(offset) || offset < 0)
      throw new KernelError("EINVAL", "pread", `${offset} is not an offset`);
    const bytes = this.#bytes.subarray(offset, offset + target.length);
    target.set(bytes);
    return bytes.length;
  }

  override seek(offset: number, whence: number): number {
    const bases = new Map([
      [SEEK_SET, 0],
      [SEEK_CUR, this.#position],
      [SEEK_END, this.#bytes.length],
    ]);
    const target = (bases.get(whence) ?? Number.NaN) + offset;
    if (!Number.isInteger(target) || target < 0)
      throw new KernelError("EINVAL", "lseek", `${offset} from ${whence} is not a position`);
    this.#position = target;
    return target;
  }

  override stat(): FileStat {
    return {
      kind: "file",
      inode: this.#inode,
      sizeBytes: this.#bytes.length,
      allocatedBytes: 0,
      linkCount: 1,
    };
  }

  protected override release(): void {}
}
