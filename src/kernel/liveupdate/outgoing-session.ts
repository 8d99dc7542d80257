/**
 * A session on its way out: files that are preserved for the next kernel.
 *
 * Lifecycle: created empty; files preserved one by one; frozen at reboot(2), which unfreezes again if anything
 * fails; unpreserved as a whole, last file first, when its descriptor is closed.
 * Invariants: the blocks always have room for all files; each file holds one reference on its open file and one
 * on each FLB that its handler names.
 * Source: Linux 7.3 kernel/liveupdate/luo_file.c luo_preserve_file, luo_file_freeze, luo_file_unpreserve_files
 * @module
 */
import { LUO_FILE_SER } from "../../abi/luo.ts";
import { KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { hex } from "../../base/units.ts";
import type { File } from "../vfs/file.ts";
import { BlockSet } from "./block-set.ts";
import type { FileHandler, HandoverRequirement, SessionView } from "./file-handler.ts";
import type { LiveUpdateCore } from "./live-update-core.ts";

interface OutgoingFile {
  readonly handler: FileHandler;
  readonly file: File;
  readonly token: bigint;
  /** What is handed over: of `preserve`, and while frozen of `freeze`. */
  data: bigint;
}

export class OutgoingSession implements SessionView {
  readonly name: string;
  readonly #core: LiveUpdateCore;
  readonly #files: OutgoingFile[] = [];
  readonly #blocks: BlockSet;

  constructor(core: LiveUpdateCore, name: string) {
    this.name = name;
    this.#core = core;
    this.#blocks = new BlockSet(core, LUO_FILE_SER.sizeBytes);
  }

  get fileCount(): number {
    return this.#files.length;
  }

  contains(file: File): boolean {
    return this.#files.some((one) => one.file.inode === file.inode);
  }

  tokenOf(file: File): bigint | null {
    return this.#files.find((one) => one.file.inode === file.inode)?.token ?? null;
  }

  incomingFile(token: bigint): File {
    throw new KernelError(
      "ENOENT",
      "retrieve",
      `session "${this.name}" is not from the previous kernel: no file ${hex(token)}`,
    );
  }

  /**
   * Preserves a file under a token.
   *
   * @param getFile - looks the file up; its error comes after that of a used token, as upstream's
   * @throws {KernelError} EEXIST the token is used in this session; ENOSPC or ENOMEM no room for one more; what
   *   `getFile` throws (EBADF); ENOENT no handler takes such a file; EBUSY its inode is preserved already, here or
   *   in another session, or was retrieved and is not finished; what FLBs and the handler throw. Nothing is left
   *   of a failed call.
   */
  preserve(getFile: () => File, token: bigint): void {
    const { flbs, handlers, inodes, faults } = this.#core;
    const op = "LIVEUPDATE_SESSION_PRESERVE_FD";
    if (this.#files.some((one) => one.token === token))
      throw new KernelError("EEXIST", op, `session "${this.name}" has a token ${hex(token)}`);
    withUndo((undo) => {
      this.#blocks.grow(this.#files.length + 1);
      undo(() => this.#blocks.shrink(this.#files.length));
      const file = getFile();
      const handler = handlers.forFile(file);
      if (handler === undefined)
        throw new KernelError("ENOENT", op, `no handler preserves such a ${file.kind} file`);
      if (inodes.has(file))
        throw new KernelError(
          "EBUSY",
          op,
          `the ${file.kind} file is part of a live update already`,
        );
      inodes.add(file);
      undo(() => inodes.remove(file));
      flbs.get(handler.flbs);
      undo(() => flbs.put(handler.flbs));
      faults.point("luo.preserve:handler");
      const data = handler.preserve({ session: this, file, token });
      this.#files.push({ handler, file: file.get(), token, data });
    });
  }

  /** Unpreserves everything, last first, and gives up the session's memory. */
  unpreserveAll(): void {
    for (let one = this.#files.at(-1); one !== undefined; one = this.#files.at(-1)) {
      one.handler.unpreserve({ session: this, ...one });
      // The session lists a file as long as its handler has it.
      this.#files.pop();
      this.#core.flbs.put(one.handler.flbs);
      this.#core.inodes.remove(one.file);
      this.#blocks.shrink(this.#files.length);
      one.file.put();
    }
    this.#blocks.destroy();
  }

  /**
   * Freezes the files in the order in which they were preserved, each after the fault point "luo.freeze:file",
   * and writes their entries.
   *
   * @param undo - gets what undoes each step
   * @returns what the session's own entry says
   */
  freeze(undo: (step: () => void) => void): { readonly files: number; readonly count: number } {
    const { memory, faults } = this.#core;
    undo(() => this.#blocks.clear());
    this.#files.forEach((one, index) => {
      faults.point("luo.freeze:file");
      const { handler, data, token } = one;
      if (handler.freeze !== undefined) {
        one.data = handler.freeze({ session: this, ...one });
        undo(() => {
          const frozen = one.data;
          one.data = data;
          handler.unfreeze?.({ session: this, file: one.file, token, data: frozen });
        });
      }
      LUO_FILE_SER.write(memory, this.#blocks.entryPa(index), {
        compatible: handler.compatible,
        data: one.data,
        token,
      });
    });
    this.#blocks.publish(this.#files.length);
    return { files: this.#blocks.headPa, count: this.#files.length };
  }

  /** Formats that the next kernel must know to take this session over. */
  *requirements(): Generator<HandoverRequirement> {
    for (const { handler, token } of this.#files) {
      const neededBy = `session "${this.name}" token ${hex(token)}`;
      yield { compatible: handler.compatible, neededBy };
      for (const flb of handler.flbs) yield { compatible: flb.compatible, neededBy };
    }
  }
}
