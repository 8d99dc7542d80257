/**
 * The name space: file systems mounted on directories of one another.
 *
 * Path look-up is textual: without symbolic links a path has one meaning, and the longest mount point on it
 * decides which file system sees the rest. A directory at or above a mount point can therefore not be renamed
 * or removed (EBUSY; Linux allows the rename of a directory above one).
 * Not modelled: stacked mounts (a second mount on a mount point is EBUSY), permissions, a working directory.
 * Source: Linux 7.3 fs/namei.c, fs/namespace.c, fs/open.c
 * @module
 */
import {
  O_ACCMODE,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_PATH,
  O_RDONLY,
  O_TRUNC,
} from "../../abi/uapi/fs.ts";
import { assert } from "../../base/assert.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { isIndex } from "../../base/units.ts";
import { DirectoryFile } from "./directory-file.ts";
import type { File, FileStat } from "./file.ts";
import type { Filesystem, FilesystemStat } from "./filesystem.ts";
import { joinPath, type Path, parsePath } from "./path.ts";
import { describe } from "./user-value.ts";

interface Mount {
  readonly target: string;
  readonly filesystem: Filesystem;
  openDirectories: number;
}

interface Place {
  readonly mount: Mount;
  /** Absolute within the mount. */
  readonly inner: string;
  /** Absolute in the name space. */
  readonly absolute: string;
}

export class Vfs {
  readonly #mounts = new Map<string, Mount>();

  constructor(root: Filesystem) {
    this.#mounts.set("/", { target: "/", filesystem: root, openDirectories: 0 });
  }

  /** All mounts, as /proc/mounts: target and type, in the order of mounting. */
  get mounts(): readonly { readonly target: string; readonly type: string }[] {
    return [...this.#mounts.values()].map((m) => ({
      target: m.target,
      type: m.filesystem.type,
    }));
  }

  /**
   * @param flags - O_*; those that Linux does not know are ignored, as it does
   * @returns the file, with one reference for the caller
   * @throws {KernelError} EFAULT, EINVAL, ENOENT, ENAMETOOLONG on a bad path; ENOTDIR on the way, or for O_DIRECTORY;
   *   EISDIR for a directory with O_CREAT or to be written; EEXIST for O_EXCL; EINVAL for flags that are no number,
   *   O_CREAT with O_DIRECTORY, and O_PATH (not supported); else what the file system gives
   */
  open(path: unknown, flags: number): File {
    if (!isIndex(flags, 0x7fffffff) || (flags & O_ACCMODE) === O_ACCMODE)
      throw new KernelError("EINVAL", "open", `flags ${describe(flags)} are no open flags`);
    if ((flags & O_PATH) !== 0 || ((flags & O_CREAT) !== 0 && (flags & O_DIRECTORY) !== 0))
      throw new KernelError("EINVAL", "open", "O_PATH, or O_CREAT with O_DIRECTORY");
    const parsed = parsePath(path, "open");
    const place = this.#resolve(parsed, "open");
    const found = this.#statIfThere(place);
    if (found?.kind === "directory") {
      if ((flags & O_CREAT) !== 0 && (flags & O_EXCL) !== 0)
        throw new KernelError("EEXIST", "open", `"${place.absolute}" exists already`);
      if ((flags & (O_CREAT | O_TRUNC)) !== 0 || (flags & O_ACCMODE) !== O_RDONLY)
        throw new KernelError("EISDIR", "open", `"${place.absolute}" is a directory`);
      const { mount, inner } = place;
      mount.openDirectories++;
      return new DirectoryFile(
        () => mount.filesystem.stat(inner),
        () => mount.openDirectories--,
      );
    }
    if (found === null && (flags & O_CREAT) !== 0 && parsed.mustBeDirectory)
      throw new KernelError("EISDIR", "open", `"${place.absolute}/" names a directory`);
    if (found !== null && (parsed.mustBeDirectory || (flags & O_DIRECTORY) !== 0))
      throw new KernelError("ENOTDIR", "open", `"${place.absolute}" is not a directory`);
    return place.mount.filesystem.open(place.inner, flags);
  }

  mkdir(path: unknown): void {
    const parsed = parsePath(path, "mkdir");
    const place = this.#resolve(parsed, "mkdir");
    if (parsed.last !== "name" || this.#mounts.has(place.absolute))
      throw new KernelError("EEXIST", "mkdir", `"${place.absolute}" exists already`);
    place.mount.filesystem.mkdir(place.inner);
  }

  /** @throws {KernelError} EBUSY for a mount point or what is above one; EINVAL for "."; ENOTEMPTY for ".." */
  rmdir(path: unknown): void {
    const parsed = parsePath(path, "rmdir");
    const place = this.#resolve(parsed, "rmdir");
    if (parsed.last === "dot") throw new KernelError("EINVAL", "rmdir", 'the last name is "."');
    if (parsed.last === "dotdot")
      throw new KernelError("ENOTEMPTY", "rmdir", 'the last name is ".."');
    this.#refuseMountPoint(place, "rmdir");
    place.mount.filesystem.rmdir(place.inner);
  }

  unlink(path: unknown): void {
    const parsed = parsePath(path, "unlink");
    const place = this.#resolve(parsed, "unlink");
    const found = place.mount.filesystem.stat(place.inner);
    if (found.kind === "directory")
      throw new KernelError("EISDIR", "unlink", `"${place.absolute}" is a directory`);
    if (parsed.mustBeDirectory)
      throw new KernelError("ENOTDIR", "unlink", `"${place.absolute}" is not a directory`);
    place.mount.filesystem.unlink(place.inner);
  }

  /** @throws {KernelError} EXDEV between two mounts; EBUSY for a mount point, what is above one, "." and ".." */
  rename(from: unknown, to: unknown): void {
    const parsedFrom = parsePath(from, "rename");
    const parsedTo = parsePath(to, "rename");
    const source = this.#resolve(parsedFrom, "rename");
    const target = this.#resolve(parsedTo, "rename");
    if (source.mount !== target.mount && !this.#mounts.has(target.absolute))
      throw new KernelError("EXDEV", "rename", "the two paths lie on different mounts");
    for (const parsed of [parsedFrom, parsedTo])
      if (parsed.last !== "name")
        throw new KernelError("EBUSY", "rename", 'the last name is ".", ".." or the root');
    this.#refuseMountPoint(source, "rename");
    this.#refuseMountPoint(target, "rename");
    if (parsedFrom.mustBeDirectory || parsedTo.mustBeDirectory) {
      const found = source.mount.filesystem.stat(source.inner);
      if (found.kind !== "directory")
        throw new KernelError("ENOTDIR", "rename", `"${source.absolute}" is not a directory`);
    }
    source.mount.filesystem.rename(source.inner, target.inner);
  }

  readdir(path: unknown): readonly string[] {
    const place = this.#resolve(parsePath(path, "readdir"), "readdir");
    return place.mount.filesystem.readdir(place.inner);
  }

  stat(path: unknown): FileStat {
    const parsed = parsePath(path, "stat");
    const place = this.#resolve(parsed, "stat");
    const found = place.mount.filesystem.stat(place.inner);
    if (parsed.mustBeDirectory && found.kind !== "directory")
      throw new KernelError("ENOTDIR", "stat", `"${place.absolute}" is not a directory`);
    return found;
  }

  statfs(path: unknown): FilesystemStat {
    const place = this.#resolve(parsePath(path, "statfs"), "statfs");
    place.mount.filesystem.stat(place.inner);
    return place.mount.filesystem.statfs();
  }

  /**
   * Mounts a file system on a directory.
   *
   * @param make - makes the file system once the target has been found good
   * @throws {KernelError} ENOENT, ENOTDIR when the target is no directory; EBUSY when it is a mount point
   */
  mount(target: unknown, make: () => Filesystem): void {
    const place = this.#resolve(parsePath(target, "mount"), "mount");
    const found = place.mount.filesystem.stat(place.inner);
    if (found.kind !== "directory")
      throw new KernelError("ENOTDIR", "mount", `"${place.absolute}" is not a directory`);
    if (this.#mounts.has(place.absolute))
      throw new KernelError("EBUSY", "mount", `"${place.absolute}" is a mount point already`);
    const filesystem = make();
    this.#mounts.set(place.absolute, { target: place.absolute, filesystem, openDirectories: 0 });
  }

  /**
   * @throws {KernelError} EINVAL when the target is not a mount point, or the root; EBUSY when something is
   *   mounted below it or files of it are open
   */
  umount(target: unknown): void {
    const { absolute } = this.#resolve(parsePath(target, "umount"), "umount");
    const mount = this.#mounts.get(absolute);
    if (mount === undefined || absolute === "/")
      throw new KernelError("EINVAL", "umount", `"${absolute}" is not a mount point to unmount`);
    if (mount.openDirectories !== 0)
      throw new KernelError("EBUSY", "umount", `directories of "${absolute}" are open`);
    for (const other of this.#mounts.keys())
      if (other.startsWith(`${absolute}/`))
        throw new KernelError("EBUSY", "umount", `"${other}" is mounted below it`);
    mount.filesystem.unmount?.();
    this.#mounts.delete(absolute);
  }

  #resolve(path: Path, op: string): Place {
    let names: string[] = [];
    for (const name of path.names) {
      if (name !== "..") {
        names.push(name);
        continue;
      }
      // Only a directory has a "..".
      const here = this.#place(names);
      if (here.mount.filesystem.stat(here.inner).kind !== "directory")
        throw new KernelError("ENOTDIR", op, `"${here.absolute}" is not a directory`);
      names = names.slice(0, -1);
    }
    return this.#place(names);
  }

  #place(names: readonly string[]): Place {
    for (let depth = names.length; depth >= 0; depth--) {
      const mount = this.#mounts.get(joinPath(names.slice(0, depth)));
      if (mount !== undefined)
        return { mount, inner: joinPath(names.slice(depth)), absolute: joinPath(names) };
    }
    assert(false, "the root is always mounted");
  }

  #statIfThere(place: Place): FileStat | null {
    try {
      return place.mount.filesystem.stat(place.inner);
    } catch (error) {
      if (isKernelError(error, "ENOENT")) return null;
      throw error;
    }
  }

  #refuseMountPoint(place: Place, op: string): void {
    for (const target of this.#mounts.keys())
      if (place.absolute === "/" || `${target}/`.startsWith(`${place.absolute}/`))
        throw new KernelError("EBUSY", op, `"${target}" is a mount point`);
  }
}
