/**
 * A process's file descriptors.
 *
 * A descriptor refers to an open file description (Linux's struct file): the file and the access it was opened
 * for. `dup` shares the description.
 * Source: Linux 7.3 fs/file.c
 * @module
 */
import { O_RDWR } from "../../abi/uapi/fs.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { isIndex } from "../../base/units.ts";
import type { FdTable, File } from "./file.ts";
import { describe } from "./user-value.ts";

/** What a descriptor refers to. */
export interface OpenFile {
  readonly file: File;
  /** O_RDONLY, O_WRONLY or O_RDWR, and the other flags given at open. */
  readonly flags: number;
}

export class DescriptorTable implements FdTable {
  readonly #limit: number;
  readonly #open: (OpenFile | undefined)[] = [];

  /** @param limit - RLIMIT_NOFILE: descriptors are 0 .. `limit` - 1; at most 65536 */
  constructor(limit: number) {
    assert(limit >= 1 && isIndex(limit, 65536), `a descriptor limit of ${limit}`);
    this.#limit = limit;
  }

  /** @throws {KernelError} EBADF; safe on any value */
  lookup(fd: unknown, op: string): OpenFile {
    const found = isIndex(fd, this.#limit - 1) ? this.#open[fd] : undefined;
    if (found === undefined)
      throw new KernelError("EBADF", op, `${describe(fd)} is not an open descriptor`);
    return found;
  }

  get(fd: number): File {
    return this.lookup(fd, "fget").file;
  }

  ensureRoom(): void {
    this.#lowestFree(0, "open");
  }

  install(file: File): number {
    return this.installOpen({ file, flags: O_RDWR }, 0, "open");
  }

  /**
   * Puts a description under the lowest free descriptor from `minimum` on; takes over one reference of its file.
   * @throws {KernelError} EMFILE; the caller keeps its reference
   */
  installOpen(open: OpenFile, minimum: number, op: string): number {
    const fd = this.#lowestFree(minimum, op);
    this.#open[fd] = open;
    return fd;
  }

  /** Takes a descriptor out; its reference passes to the caller. @throws {KernelError} EBADF */
  remove(fd: unknown): File {
    const { file } = this.lookup(fd, "close");
    this.#open[fd as number] = undefined;
    return file;
  }

  /** Descriptors that are open, in ascending order. */
  openDescriptors(): number[] {
    const fds: number[] = [];
    for (let fd = 0; fd < this.#open.length; fd++) if (this.#open[fd] !== undefined) fds.push(fd);
    return fds;
  }

  /** One above the largest descriptor there can be. */
  get limit(): number {
    return this.#limit;
  }

  #lowestFree(minimum: number, op: string): number {
    for (let fd = minimum; fd < this.#limit; fd++) if (this.#open[fd] === undefined) return fd;
    throw new KernelError("EMFILE", op, `all ${this.#limit} descriptors are in use`);
  }
}
