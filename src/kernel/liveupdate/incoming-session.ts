/**
 * A session of the previous kernel: files that wait to be taken over.
 *
 * Lifecycle: decoded at boot; retrieved by name, which gives it a descriptor; its files retrieved by token, in
 * any order; finished as a whole or not at all. Closed unfinished, it finishes by itself; where a file refuses
 * that, it can be retrieved again by name with all that it has (upstream loses it, although its uAPI says
 * that finish may be tried again).
 * A session never becomes outgoing: for the next update a new one is created.
 * Source: Linux 7.3 kernel/liveupdate/luo_file.c luo_retrieve_file, luo_file_finish
 * @module
 */
import { isKernelError, KernelError } from "../../base/errno.ts";
import { hex } from "../../base/units.ts";
import type { File } from "../vfs/file.ts";
import type { FileDecoder, FileHandler, SessionView } from "./file-handler.ts";
import type { LiveUpdateCore } from "./live-update-core.ts";

/** A file of the previous kernel, decoded and checked. */
export interface DecodedFile<H extends FileDecoder = FileHandler> {
  readonly handler: H;
  readonly token: bigint;
  readonly data: unknown;
}

type Retrieval =
  | { readonly state: "none" }
  /** Its handler is at work. */
  | { readonly state: "running" }
  /** The session holds one reference until it is finished. */
  | { readonly state: "done"; readonly file: File }
  | { readonly state: "failed"; readonly error: KernelError };

interface IncomingFile extends DecodedFile {
  retrieval: Retrieval;
}

const OP = "LIVEUPDATE_SESSION_RETRIEVE_FD";

export class IncomingSession implements SessionView {
  readonly name: string;
  /** Whether somebody has a descriptor of it. */
  retrieved = false;
  readonly #core: LiveUpdateCore;
  readonly #files: IncomingFile[];

  constructor(core: LiveUpdateCore, name: string, files: readonly DecodedFile[]) {
    this.name = name;
    this.#core = core;
    this.#files = files.map((file) => ({ ...file, retrieval: { state: "none" } }));
  }

  /** Files that are not finished. */
  get fileCount(): number {
    return this.#files.length;
  }

  contains(file: File): boolean {
    return this.#files.some(
      ({ retrieval }) => retrieval.state === "done" && retrieval.file.inode === file.inode,
    );
  }

  tokenOf(_file: File): null {
    return null;
  }

  /**
   * The open file of a token, made now if this is the first time; the session keeps its reference.
   * Passes the fault point "luo.retrieve:handler".
   *
   * @throws {KernelError} ENOENT no such token (or the session is finished); EINVAL its handler needs the file
   *   that it is about to make; otherwise what the handler throws, and the same at every later try
   */
  incomingFile(token: bigint): File {
    const one = this.#files.find((file) => file.token === token);
    if (one === undefined)
      throw new KernelError("ENOENT", OP, `session "${this.name}" has no token ${hex(token)}`);
    if (one.retrieval.state === "done") return one.retrieval.file;
    if (one.retrieval.state === "failed") {
      const { error } = one.retrieval;
      const detail = `token ${hex(token)} has failed before`;
      throw new KernelError(error.code, OP, detail, { cause: error });
    }
    if (one.retrieval.state === "running")
      throw new KernelError("EINVAL", OP, `token ${hex(token)} depends on itself`);

    one.retrieval = { state: "running" };
    let file: File;
    try {
      this.#core.faults.point("luo.retrieve:handler");
      file = one.handler.retrieve({ session: this, data: one.data, token });
    } catch (error) {
      one.retrieval = isKernelError(error) ? { state: "failed", error } : { state: "none" };
      throw error;
    }
    one.retrieval = { state: "done", file };
    this.#core.inodes.add(file);
    return file;
  }

  /**
   * Gives all files up to their users, last first; files that nobody retrieved are discarded. Passes the fault
   * point "luo.finish:check" once for each file, before anything changes. Finished already: nothing happens.
   *
   * @throws {KernelError} EBUSY when a file cannot be finished yet; nothing is then changed
   */
  finish(): void {
    const { faults, flbs, inodes } = this.#core;
    for (const { handler, data, token, retrieval } of this.#files) {
      faults.point("luo.finish:check");
      const file = retrieval.state === "done" ? retrieval.file : null;
      if (handler.canFinish?.({ data, file }) === false)
        throw new KernelError(
          "EBUSY",
          "LIVEUPDATE_SESSION_FINISH",
          `session "${this.name}": ${handler.compatible} token ${hex(token)} is still in use`,
        );
    }
    for (let one = this.#files.at(-1); one !== undefined; one = this.#files.at(-1)) {
      const { handler, data, retrieval } = one;
      const file = retrieval.state === "done" ? retrieval.file : null;
      handler.finish({ data, file });
      this.#files.pop();
      flbs.finish(handler.flbs);
      if (file !== null) {
        inodes.remove(file);
        file.put();
      }
    }
  }
}
