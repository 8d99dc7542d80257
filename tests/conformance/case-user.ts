/**
 * The process that a case's calls come from.
 *
 * Why: all cases of a stage run in one process, so what a case leaves behind when it fails must not make others fail. A
 * descriptor that came from here is closed at the end of the stage, the last one first, unless it is carried on.
 * @module
 */
import assert from "node:assert/strict";
import { F_GET_SEALS, MFD_ALLOW_SEALING, O_RDWR, SEEK_CUR } from "../../src/abi/uapi/fs.ts";
import { ERRNO, type ErrnoCode, isKernelError } from "../../src/base/errno.ts";
import { withUndo } from "../../src/base/undo.ts";
import type { Host } from "../../src/host/host.ts";
import { createSession, retrieveFd, retrieveSession } from "../../src/host/liveupdate.ts";
import type {
  AllocationFaults,
  KernelName,
  KexecTarget,
  Outcome,
  Place,
} from "./conformance-case.ts";
import type { Divergence } from "./divergences.ts";

/** Where sessions are created and retrieved. */
export const LIVEUPDATE_DEVICE = "/dev/liveupdate";

export class CaseUser {
  readonly host: Host;
  readonly kernel: KernelName;
  readonly faults: AllocationFaults;
  readonly nextKernel: KexecTarget;
  readonly #open = new Set<number>();

  constructor(place: Place) {
    this.host = place.host;
    this.kernel = place.kernel;
    this.faults = place.faults;
    this.nextKernel = place.nextKernel;
  }

  /** What this kernel is to come to where the two differ on purpose. */
  expected<T>(divergence: Divergence<T>): T {
    return divergence[this.kernel];
  }

  /** Closes a descriptor at the end of the stage. @returns the descriptor */
  own(fd: number): number {
    this.#open.add(fd);
    return fd;
  }

  /** Leaves a descriptor open to the jump: its session is to be there after it. */
  carry(fd: number): void {
    this.#open.delete(fd);
  }

  close(fd: number): void {
    this.#open.delete(fd);
    this.host.close(fd);
  }

  /** The stage is over. */
  closeAll(): void {
    for (const fd of [...this.#open].reverse()) this.close(fd);
  }

  /** Opens /dev/liveupdate for as long as the action takes: it has one opener. */
  withDevice<T>(action: (device: number) => T): T {
    const device = this.own(this.host.open(LIVEUPDATE_DEVICE, O_RDWR));
    try {
      return action(device);
    } finally {
      this.close(device);
    }
  }

  /** Creates a session. */
  create(name: string): number {
    return this.own(this.withDevice((device) => createSession(this.host, device, name)));
  }

  /** Retrieves a session. */
  retrieve(name: string): number {
    return this.own(this.withDevice((device) => retrieveSession(this.host, device, name)));
  }

  /** Retrieves a file of a session. */
  retrieveFile(session: number, token: bigint): number {
    return this.own(retrieveFd(this.host, session, token));
  }

  /** Makes a memfd with bytes in it, its position behind them. */
  memfd(content: string | Uint8Array = "", flags: number = MFD_ALLOW_SEALING): number {
    const fd = this.own(this.host.memfdCreate("conformance", flags));
    const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
    for (let done = 0; done < bytes.length; )
      done += this.host.write(fd, bytes.subarray(done, done + 65_536));
    return fd;
  }

  /** Bytes of a file from an offset on; its position stays. */
  bytes(fd: number, offset: number, lengthBytes: number): Uint8Array {
    const target = new Uint8Array(lengthBytes);
    for (let done = 0; done < lengthBytes; ) {
      const got = this.host.pread(fd, target.subarray(done), offset + done);
      if (got === 0) return target.subarray(0, done);
      done += got;
    }
    return target;
  }

  /** All of a file. */
  text(fd: number): string {
    return new TextDecoder().decode(this.bytes(fd, 0, this.host.fstat(fd).sizeBytes));
  }

  position(fd: number): number {
    return this.host.lseek(fd, 0, SEEK_CUR);
  }

  seals(fd: number): number {
    return this.host.fcntl(fd, F_GET_SEALS, 0);
  }

  /** What a call comes to. */
  outcome(action: () => unknown): Outcome {
    try {
      action();
      return "ok";
    } catch (error) {
      if (!isKernelError(error)) throw error;
      return error.code;
    }
  }

  /** Asserts that a call fails with an errno. */
  fails(code: ErrnoCode, action: () => unknown): void {
    assert(code in ERRNO, `${code} is an errno`);
    assert.equal(this.outcome(action), code);
  }

  /** Runs an action while the process has no free descriptor. */
  withoutDescriptors(any: number, action: () => void): void {
    const taken: number[] = [];
    withUndo((undo) => {
      const release = () => {
        for (const fd of taken.splice(0)) this.close(fd);
      };
      undo(release);
      while (this.outcome(() => taken.push(this.own(this.host.dup(any)))) !== "EMFILE");
      action();
      release();
    });
  }

  /**
   * Runs an action with the first, the second, … allocation of the kernel failing, until none is left to fail. Each try
   * either succeeds, or fails with ENOMEM and has changed nothing.
   *
   * @param undo - gives up what a try that succeeded has made
   * @returns how many tries failed
   */
  failEachAllocation<T>(action: () => T, undo: (made: T) => void): number {
    let failures = 0;
    for (let nth = 1; ; nth++) {
      const made: T[] = [];
      let outcome = "ok" as Outcome;
      const reached = this.faults.during(nth, () => {
        outcome = this.outcome(() => made.push(action()));
      });
      assert(outcome === "ok" || outcome === "ENOMEM", `allocation ${nth}: ${outcome}`);
      for (const value of made) undo(value);
      if (outcome === "ENOMEM") failures++;
      if (reached) continue;
      assert.equal(outcome, "ok", "without a failed allocation");
      return failures;
    }
  }
}
