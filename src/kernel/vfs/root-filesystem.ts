/**
 * The root of the name space: directories to mount on, in kernel heap, and no files.
 *
 * It is empty again after a kexec, as an initramfs is; what must survive is in a memfs mounted on it.
 * @module
 */
import { O_CREAT } from "../../abi/uapi/fs.ts";
import { KernelError } from "../../base/errno.ts";
import type { File, FileStat } from "./file.ts";
import type { Filesystem, FilesystemStat } from "./filesystem.ts";
import { splitResolved } from "./path.ts";

interface Directory {
  readonly inode: number;
  readonly children: Map<string, Directory>;
}

export class RootFilesystem implements Filesystem {
  readonly type = "rootfs";
  readonly #root: Directory = { inode: 1, children: new Map() };
  #nextInode = 2;
  #count = 1;

  /** @param directories - made at once, each after its parent: "/dev", "/mnt" */
  constructor(directories: readonly string[]) {
    for (const path of directories) this.mkdir(path);
  }

  open(path: string, flags: number): File {
    if ((flags & O_CREAT) !== 0 && this.#find(path) === null) {
      this.#parent(path, "open");
      throw new KernelError("EACCES", "open", `"${path}": the root file system holds no files`);
    }
    // Directories are opened by the name space itself.
    this.#lookup(path, "open");
    throw new KernelError("EISDIR", "open", `"${path}" is a directory`);
  }

  mkdir(path: string): void {
    const { parent, name } = this.#parent(path, "mkdir");
    if (parent.children.has(name))
      throw new KernelError("EEXIST", "mkdir", `"${path}" exists already`);
    parent.children.set(name, { inode: this.#nextInode++, children: new Map() });
    this.#count++;
  }

  rmdir(path: string): void {
    const directory = this.#lookup(path, "rmdir");
    const { parent, name } = this.#parent(path, "rmdir");
    if (directory.children.size !== 0)
      throw new KernelError("ENOTEMPTY", "rmdir", `"${path}" is not empty`);
    parent.children.delete(name);
    this.#count--;
  }

  unlink(path: string): void {
    this.#lookup(path, "unlink");
    throw new KernelError("EISDIR", "unlink", `"${path}" is a directory`);
  }

  rename(from: string, to: string): void {
    const directory = this.#lookup(from, "rename");
    const source = this.#parent(from, "rename");
    const target = this.#parent(to, "rename");
    if (`${to}/`.startsWith(`${from}/`)) {
      if (from === to) return;
      throw new KernelError("EINVAL", "rename", `"${to}" lies below "${from}"`);
    }
    const replaced = target.parent.children.get(target.name);
    if (replaced !== undefined) {
      if (replaced.children.size !== 0)
        throw new KernelError("ENOTEMPTY", "rename", `"${to}" is not empty`);
      this.#count--;
    }
    source.parent.children.delete(source.name);
    target.parent.children.set(target.name, directory);
  }

  readdir(path: string): readonly string[] {
    return [...this.#lookup(path, "readdir").children.keys()];
  }

  stat(path: string): FileStat {
    const directory = this.#lookup(path, "stat");
    return {
      kind: "directory",
      inode: directory.inode,
      sizeBytes: 0,
      allocatedBytes: 0,
      linkCount: 2 + directory.children.size,
    };
  }

  statfs(): FilesystemStat {
    return { type: this.type, totalBytes: 0, freeBytes: 0, inodes: this.#count };
  }

  #find(path: string): Directory | null {
    let directory: Directory | undefined = this.#root;
    for (const name of splitResolved(path)) {
      directory = directory.children.get(name);
      if (directory === undefined) return null;
    }
    return directory;
  }

  #lookup(path: string, op: string): Directory {
    const directory = this.#find(path);
    if (directory === null) throw new KernelError("ENOENT", op, `"${path}" does not exist`);
    return directory;
  }

  #parent(path: string, op: string): { parent: Directory; name: string } {
    const names = splitResolved(path);
    const name = names.pop();
    if (name === undefined)
      throw new KernelError(op === "mkdir" ? "EEXIST" : "EBUSY", op, '"/" is the root');
    return { parent: this.#lookup(`/${names.join("/")}`, op), name };
  }
}
