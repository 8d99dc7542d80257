/**
 * /dev/liveupdate in the agent's hands: it makes and retrieves sessions, and never leaves an empty block behind.
 *
 * Why: Linux up to 7.3 serialises sessions into blocks of 51, and CREATE_SESSION adds the block that one more session may
 * need before it looks whether the name is in use. With 51·k sessions (k from 1 on) and a name in use, the block stays,
 * nothing is ever written into it, and the next kernel panics over its count of 0. EEXIST is the only way to it: every
 * other failure of CREATE comes before the block or takes the session away again.
 * Way out: taking any outgoing session away drops all blocks that those left do not need (in a loop, by count, whichever
 * session it was). So a session that is made and closed at once leaves exactly the blocks that are needed: while the empty
 * block is there it needs no other, and its end takes the block with it. What happens later keeps that true: a session
 * that is made grows the blocks to just what is needed, one that is closed shrinks them to it, in whatever process. An
 * empty block that another process left, before this one had the device, goes in the same way.
 * Source: Linux 7.3 kernel/liveupdate/luo_session.c luo_session_insert, luo_session_remove; kho_block.c
 *   kho_block_set_grow, kho_block_set_shrink, kho_block_set_restore
 * @module
 */
import { isKernelError, KernelError } from "../base/errno.ts";
import type { Host } from "../host/host.ts";
import { createSession, retrieveSession } from "../host/liveupdate.ts";

/** Names of the session that is made to be closed: another one where somebody else has it. */
const THROWAWAY_NAMES = ["holdfast-probe", "holdfast-probe-1", "holdfast-probe-2"] as const;

export class LiveUpdateDevice {
  readonly #host: Host;
  readonly #fd: number;

  private constructor(host: Host, fd: number) {
    this.#host = host;
    this.#fd = fd;
  }

  /**
   * @throws {KernelError} EBUSY somebody else has it open; ENOENT the kernel has no live update, or it is off; EIO what the
   *   previous kernel handed over cannot be read
   */
  static open(host: Host): LiveUpdateDevice {
    return new LiveUpdateDevice(host, host.open("/dev/liveupdate", 0));
  }

  /** Sessions live on in those who have them open. */
  close(): void {
    this.#host.close(this.#fd);
  }

  /**
   * Creates a session.
   * @returns its descriptor
   * @throws {KernelError} EEXIST an outgoing session has this name, which somebody has open; else what CREATE_SESSION throws
   */
  create(name: string): number {
    try {
      return createSession(this.#host, this.#fd, name);
    } catch (error) {
      if (!isKernelError(error, "EEXIST")) throw error;
      this.withThrowaway(() => undefined);
      throw new KernelError(
        "EEXIST",
        "create session",
        `somebody has a session "${name}" open: whoever made it must close it first`,
        { cause: error },
      );
    }
  }

  /**
   * Retrieves a session.
   * @returns its descriptor; closing the last one finishes the session
   * @throws {KernelError} ENOENT no session of the previous kernel has this name; EINVAL it is retrieved already
   */
  retrieve(name: string): number {
    return retrieveSession(this.#host, this.#fd, name);
  }

  /**
   * Makes a session, gives it to `use`, and closes it, with all that is in it: to try something out, and to leave just the
   * blocks that are needed.
   * @throws {KernelError} EEXIST all its names are in use; else what CREATE_SESSION and `use` throw
   */
  withThrowaway<T>(use: (session: number) => T): T {
    const session = this.#createThrowaway();
    try {
      return use(session);
    } finally {
      this.#host.close(session);
    }
  }

  #createThrowaway(): number {
    for (const name of THROWAWAY_NAMES) {
      try {
        return createSession(this.#host, this.#fd, name);
      } catch (error) {
        if (!isKernelError(error, "EEXIST")) throw error;
      }
    }
    throw new KernelError(
      "EEXIST",
      "create session",
      `others have the sessions ${THROWAWAY_NAMES.join(", ")}: at least one must be closed`,
    );
  }
}
