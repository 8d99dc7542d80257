/** One mount of a store: what path look-up sees. @module */
import { O_ACCMODE, O_CREAT, O_EXCL, O_RDONLY, O_TRUNC } from "../../abi/uapi/fs.ts";
import { KernelError } from "../../base/errno.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { File, FileStat } from "../vfs/file.ts";
import type { Filesystem, FilesystemStat } from "../vfs/filesystem.ts";
import { MemfsFile, statInode } from "./memfs-file.ts";
import type { Store } from "./store.ts";

export class MemfsMount implements Filesystem {
  readonly type = "memfs";
  readonly #memory: PhysicalMemory;
  readonly #store: Store;
  readonly #onUnmount: () => void;
  #openFiles = 0;

  constructor(memory: PhysicalMemory, store: Store, onUnmount: () => void) {
    this.#memory = memory;
    this.#store = store;
    this.#onUnmount = onUnmount;
    store.mountCount++;
  }

  open(path: string, flags: number): File {
    const inode =
      (flags & O_CREAT) === 0
        ? this.#store.lookup(path, "open")
        : this.#lookupOrCreate(path, flags);
    if (inode.kind === "directory")
      throw new KernelError("EISDIR", "open", `"${path}" is a directory`);
    if ((flags & O_TRUNC) !== 0 && (flags & O_ACCMODE) !== O_RDONLY) this.#store.truncate(inode, 0);
    this.#openFiles++;
    return new MemfsFile(this.#memory, this.#store, inode, () => {
      this.#openFiles--;
    });
  }

  mkdir(path: string): void {
    this.#store.create(path, "directory", "mkdir");
  }
  rmdir(path: string): void {
    this.#store.rmdir(path);
  }
  unlink(path: string): void {
    this.#store.unlink(path);
  }
  rename(from: string, to: string): void {
    this.#store.rename(from, to);
  }

  /** @throws {KernelError} ENOENT, ENOTDIR */
  readdir(path: string): readonly string[] {
    const inode = this.#store.lookup(path, "readdir");
    if (inode.kind !== "directory")
      throw new KernelError("ENOTDIR", "readdir", `"${path}" is not a directory`);
    return [...inode.children.keys()];
  }

  stat(path: string): FileStat {
    return statInode(this.#store.lookup(path, "stat"));
  }
  statfs(): FilesystemStat {
    return this.#store.statfs();
  }

  /** @throws {KernelError} EBUSY while files opened through this mount are open */
  unmount(): void {
    if (this.#openFiles > 0)
      throw new KernelError("EBUSY", "umount", `${this.#openFiles} files are open`);
    this.#store.mountCount--;
    this.#onUnmount();
  }

  #lookupOrCreate(path: string, flags: number) {
    const existing = this.#store.lookupOrNull(path, "open");
    if (existing === null) return this.#store.create(path, "file", "open");
    if ((flags & O_EXCL) !== 0) throw new KernelError("EEXIST", "open", `"${path}" exists already`);
    return existing;
  }
}
