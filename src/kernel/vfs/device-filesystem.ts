/**
 * /dev: the nodes that drivers register, each with what opens it.
 *
 * Directories come and go with the nodes below them. Only drivers change anything here: calls of userspace
 * that would are EPERM.
 * Source: Linux 7.3 drivers/base/devtmpfs.c
 * @module
 */
import { O_CREAT, O_EXCL } from "../../abi/uapi/fs.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { File, FileStat } from "./file.ts";
import type { Filesystem, FilesystemStat } from "./filesystem.ts";

/** Opens a device. @throws {KernelError} what open(2) then returns */
export type DeviceOpener = (flags: number) => File;

export class DeviceFilesystem implements Filesystem {
  readonly type = "devtmpfs";
  readonly #devices = new Map<string, { readonly inode: number; readonly open: DeviceOpener }>();
  #nextInode = 2;

  /**
   * Makes a node.
   *
   * @param path - below /dev, as "vfio/devices/vfio0"; not taken, and no directory of other nodes
   */
  register(path: string, open: DeviceOpener): void {
    const key = `/${path}`;
    assert(
      !path.startsWith("/") && !this.#devices.has(key),
      `device "${path}" is registered twice`,
    );
    assert(!this.#isDirectory(key), `device "${path}" is a directory of others`);
    this.#devices.set(key, { inode: this.#nextInode++, open });
  }

  /** Removes a node; files that are open stay so. */
  unregister(path: string): void {
    assert(this.#devices.delete(`/${path}`), `device "${path}" is not registered`);
  }

  open(path: string, flags: number): File {
    const device = this.#devices.get(path);
    if (device === undefined) {
      if (this.#isDirectory(path))
        throw new KernelError("EISDIR", "open", `"/dev${path}" is a directory`);
      this.#checkParent(path, "open");
      throw new KernelError(
        (flags & O_CREAT) === 0 ? "ENOENT" : "EACCES",
        "open",
        `there is no device "/dev${path}"`,
      );
    }
    if ((flags & O_CREAT) !== 0 && (flags & O_EXCL) !== 0)
      throw new KernelError("EEXIST", "open", `"/dev${path}" exists already`);
    return device.open(flags);
  }

  mkdir(path: string): void {
    this.#refuse(path, "mkdir");
  }
  rmdir(path: string): void {
    this.#refuse(path, "rmdir");
  }
  unlink(path: string): void {
    this.#refuse(path, "unlink");
  }
  rename(from: string): void {
    this.#refuse(from, "rename");
  }

  readdir(path: string): readonly string[] {
    if (this.#devices.has(path))
      throw new KernelError("ENOTDIR", "readdir", `"/dev${path}" is a device`);
    const prefix = path === "/" ? "/" : `${path}/`;
    const names = new Set<string>();
    for (const key of this.#devices.keys())
      if (key.startsWith(prefix)) names.add(key.slice(prefix.length).split("/")[0]);
    if (names.size === 0 && path !== "/") this.#missing(path, "readdir");
    return [...names].sort();
  }

  stat(path: string): FileStat {
    const device = this.#devices.get(path);
    if (device !== undefined)
      return {
        kind: "device",
        inode: device.inode,
        sizeBytes: 0,
        allocatedBytes: 0,
        linkCount: 1,
      };
    if (!this.#isDirectory(path)) this.#missing(path, "stat");
    return { kind: "directory", inode: 1, sizeBytes: 0, allocatedBytes: 0, linkCount: 2 };
  }

  statfs(): FilesystemStat {
    return { type: this.type, totalBytes: 0, freeBytes: 0, inodes: this.#devices.size + 1 };
  }

  #isDirectory(path: string): boolean {
    if (path === "/") return true;
    for (const key of this.#devices.keys()) if (key.startsWith(`${path}/`)) return true;
    return false;
  }

  #checkParent(path: string, op: string): void {
    const parent = path.slice(0, path.lastIndexOf("/")) || "/";
    if (this.#devices.has(parent))
      throw new KernelError("ENOTDIR", op, `"/dev${parent}" is a device`);
    if (!this.#isDirectory(parent)) this.#missing(parent, op);
  }

  #missing(path: string, op: string): never {
    if (path !== "/") this.#checkParent(path, op);
    throw new KernelError("ENOENT", op, `"/dev${path}" does not exist`);
  }

  #refuse(path: string, op: string): never {
    throw new KernelError("EPERM", op, `"/dev${path}": nodes of /dev are made by drivers`);
  }
}
