/**
 * Which inodes are part of a live update, over all sessions.
 *
 * Why: a file that two sessions preserve would have two owners in the next kernel. So an inode is preserved
 * once, and one that came from the previous kernel is not preserved again before its session is finished.
 * An inode may still be counted twice: a file of a filesystem can be preserved by one session and then be
 * retrieved by another, and that retrieval must not fail.
 * Source: Linux 7.3 kernel/liveupdate/luo_file.c luo_preserved_files
 * @module
 */
import { assert } from "../../base/assert.ts";
import type { File } from "../vfs/file.ts";

export class PreservedInodes {
  readonly #counts = new Map<object, number>();

  has(file: File): boolean {
    return this.#counts.has(file.inode);
  }

  add(file: File): void {
    this.#counts.set(file.inode, (this.#counts.get(file.inode) ?? 0) + 1);
  }

  remove(file: File): void {
    const count = this.#counts.get(file.inode);
    assert(count !== undefined, `a ${file.kind} file that was not preserved is given up`);
    if (count === 1) this.#counts.delete(file.inode);
    else this.#counts.set(file.inode, count - 1);
  }

  get size(): number {
    return this.#counts.size;
  }
}
