/**
 * The Live Update Orchestrator: sessions of files that outlive this kernel.
 *
 * Lifecycle, over two kernels:
 *   1. handlers and FLBs are registered; `decode` checks what came in; once the whole handover is known to be
 *      good, `adopt` takes it over and prepares the way out;
 *   2. userspace creates sessions on /dev/liveupdate and preserves files in them;
 *   3. reboot(KEXEC) calls `freeze`: files in order of preservation, sessions in order of creation, then FLBs; any
 *      failure undoes all of it, last step first, and everything can be used again;
 *   4. the next kernel decodes, adopts, and gives sessions and files back by name and token.
 * After a successful freeze Linux blocks every further call for ever. Here there is nobody to wait for, so such
 * a call fails with EBUSY, and a descriptor that is closed is released only if the freeze is undone.
 * Outgoing and incoming sessions have separate name spaces. Incoming sessions that nobody finishes are not
 * carried by the next kexec.
 * Source: Linux 7.3 kernel/liveupdate/{luo_core,luo_session}.c
 * @module
 */
import { KHO_FDT_COMPATIBLE } from "../../abi/kho.ts";
import {
  LUO_ABI_COMPATIBLE,
  LUO_KHO_ENTRY_NAME,
  LUO_SER,
  LUO_SESSION_NAME_LENGTH,
  LUO_SESSION_SER,
} from "../../abi/luo.ts";
import { encodeUtf8 } from "../../abi/struct.ts";
import { assert } from "../../base/assert.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import type { File } from "../vfs/file.ts";
import {
  allocPreservedPage,
  BlockSet,
  freePreservedPage,
  type PreservedPages,
} from "./block-set.ts";
import { DeviceFile } from "./device-file.ts";
import type { FileHandler, FileLifecycleBound, HandoverRequirement } from "./file-handler.ts";
import { FlbRegistry } from "./flb-registry.ts";
import { IncomingSession } from "./incoming-session.ts";
import { HandlerRegistry, type LiveUpdateCore } from "./live-update-core.ts";
import { type DecodedLiveUpdate, decodeLiveUpdate } from "./luo-decoder.ts";
import { OutgoingSession } from "./outgoing-session.ts";
import { PreservedInodes } from "./preserved-inodes.ts";
import { SessionFile } from "./session-file.ts";

export interface LiveUpdateDependencies extends PreservedPages {
  /** Takes warnings for the kernel's log. */
  readonly warn?: (line: string) => void;
}

/** All sessions frozen and written for the next kernel. */
export interface FrozenUpdate {
  /** Undoes the freeze; everything can be used again. */
  unfreeze(): void;
}

/** What is left to be accounted for: all zero when nobody uses live update. */
export interface LiveUpdateCounts {
  readonly outgoingSessions: number;
  readonly incomingSessions: number;
  readonly preservedInodes: number;
  readonly outgoingFlbs: number;
  readonly incomingFlbs: number;
}

/** The pages that this kernel hands over from its start on. */
interface Outgoing {
  readonly luoPa: number;
  readonly flbsPa: number;
}

export class LiveUpdate {
  readonly #core: LiveUpdateCore;
  readonly #warn: (line: string) => void;
  readonly #outgoing: OutgoingSession[] = [];
  readonly #incoming: IncomingSession[] = [];
  readonly #blocks: BlockSet;
  #decoded: DecodedLiveUpdate | null = null;
  #incomingNumber = 0;
  #state: Outgoing | null = null;
  #deviceInUse = false;
  #isFrozen = false;
  /** Releases of descriptors that were closed while all was frozen. */
  #deferred: (() => void)[] = [];

  constructor({ memory, mm, kho, faults, warn = () => {} }: LiveUpdateDependencies) {
    this.#core = {
      memory,
      mm,
      kho,
      faults,
      handlers: new HandlerRegistry(),
      flbs: new FlbRegistry(faults),
      inodes: new PreservedInodes(),
    };
    this.#warn = warn;
    this.#blocks = new BlockSet(this.#core, LUO_SESSION_SER.sizeBytes);
  }

  /** Makes a kind of file preservable, and the FLBs that it names known. Before {@link decode}. */
  registerHandler(handler: FileHandler): void {
    assert(this.#state === null, "handlers are registered before the handover is adopted");
    this.#core.handlers.register(handler);
    for (const flb of handler.flbs) this.registerFlb(flb);
  }

  /** Makes an FLB known; handlers' own are so already. */
  registerFlb(flb: FileLifecycleBound): void {
    this.#core.flbs.register(flb);
  }

  /**
   * Reads and checks all that the previous kernel handed over; changes nothing but claims. Without an incoming
   * handover, or one without live update, there is nothing to do.
   * @throws {HandoverError} naming the field
   */
  decode(): void {
    const { kho, handlers, flbs } = this.#core;
    const blob = kho.incomingSubtree(LUO_KHO_ENTRY_NAME);
    if (kho.incoming === null || blob === null) return;
    this.#decoded = decodeLiveUpdate(kho.incoming, blob, handlers, flbs);
  }

  /**
   * Prepares what this kernel will hand over, then takes over what {@link decode} found: each FLB adopts its
   * state, and the orchestrator's own pages are freed.
   * @throws {KernelError} ENOMEM, EEXIST: nothing is taken over; it may be tried again
   */
  adopt(): void {
    assert(this.#state === null, "adopted once");
    const { kho, mm, flbs } = this.#core;
    const decoded = this.#decoded;
    this.#incomingNumber = decoded?.liveupdateNumber ?? 0;
    // First what can fail.
    this.#state = this.#setUpOutgoing();
    this.#decoded = null;
    if (decoded === null) return;
    for (const pa of decoded.pages) {
      kho.restore(pa, 0);
      mm.free(pa, 0);
    }
    flbs.adopt(decoded.flbs);
    for (const { name, files } of decoded.sessions)
      this.#incoming.push(new IncomingSession(this.#core, name, files));
  }

  #setUpOutgoing(): Outgoing {
    const { memory, kho, flbs } = this.#core;
    return withUndo((undo) => {
      const luoPa = allocPreservedPage(this.#core);
      undo(() => freePreservedPage(this.#core, luoPa));
      const flbsPa = allocPreservedPage(this.#core);
      undo(() => freePreservedPage(this.#core, flbsPa));
      flbs.serialise(memory, flbsPa);
      LUO_SER.write(memory, luoPa, {
        compatible: LUO_ABI_COMPATIBLE,
        liveupdate_num: this.liveupdateNumber + 1,
        sessions_pa: 0,
        flbs_pa: flbsPa,
      });
      kho.addSubtree(LUO_KHO_ENTRY_NAME, luoPa, LUO_SER.sizeBytes);
      return { luoPa, flbsPa };
    });
  }

  /** Live updates up to this kernel: 0 since a cold boot. */
  get liveupdateNumber(): number {
    return this.#incomingNumber;
  }

  /**
   * Opens /dev/liveupdate.
   * @throws {KernelError} EBUSY while somebody has it open
   */
  openDevice(): File {
    assert(this.#state !== null, "the device exists after adopt()");
    if (this.#deviceInUse) throw new KernelError("EBUSY", "open", "/dev/liveupdate is in use");
    this.#deviceInUse = true;
    return new DeviceFile(this, () => {
      this.#deviceInUse = false;
    });
  }

  /**
   * Creates a session and its file, with one reference for the caller.
   * @param name - 1 to 63 bytes of UTF-8
   * @throws {KernelError} EINVAL the name; EEXIST an outgoing session has it; ENOSPC, ENOMEM; EBUSY frozen
   */
  createSession(name: string): File {
    const op = "LIVEUPDATE_IOCTL_CREATE_SESSION";
    this.assertNotFrozen(op);
    const nameBytes = encodeUtf8(name).length;
    if (nameBytes === 0 || nameBytes >= LUO_SESSION_NAME_LENGTH || name.includes("\0"))
      throw new KernelError("EINVAL", op, `a name has 1 to ${LUO_SESSION_NAME_LENGTH - 1} bytes`);
    // Before the blocks grow: upstream does it after, and at 51·k sessions leaves an empty block behind that makes
    // the next kernel panic.
    if (this.#outgoing.some((session) => session.name === name))
      throw new KernelError("EEXIST", op, `there is a session "${name}"`);
    this.#blocks.grow(this.#outgoing.length + 1);
    const session = new OutgoingSession(this.#core, name);
    this.#outgoing.push(session);
    return new SessionFile(this, { direction: "outgoing", session }, () =>
      this.#unlessFrozen(() => {
        session.unpreserveAll();
        this.#outgoing.splice(this.#outgoing.indexOf(session), 1);
        this.#blocks.shrink(this.#outgoing.length);
      }),
    );
  }

  /**
   * Gives a session of the previous kernel a file, with one reference for the caller.
   * @throws {KernelError} ENOENT no such session; EINVAL it has a file already; EBUSY frozen
   */
  retrieveSession(name: string): File {
    const op = "LIVEUPDATE_IOCTL_RETRIEVE_SESSION";
    this.assertNotFrozen(op);
    const session = this.#incoming.find((one) => one.name === name);
    if (session === undefined)
      throw new KernelError("ENOENT", op, `no preserved session is called "${name}"`);
    if (session.retrieved)
      throw new KernelError("EINVAL", op, `session "${name}" was retrieved already`);
    session.retrieved = true;
    return new SessionFile(this, { direction: "incoming", session }, () =>
      this.#unlessFrozen(() => this.#closeIncoming(session)),
    );
  }

  #closeIncoming(session: IncomingSession): void {
    try {
      session.finish();
    } catch (error) {
      if (!isKernelError(error)) throw error;
      session.retrieved = false;
      this.#warn(`liveupdate: session "${session.name}" is closed unfinished: ${error.message}`);
      return;
    }
    this.#incoming.splice(this.#incoming.indexOf(session), 1);
  }

  /** A close cannot fail. What is frozen belongs to the next kernel, so that it waits for an unfreeze. */
  #unlessFrozen(release: () => void): void {
    if (this.#isFrozen) this.#deferred.push(release);
    else release();
  }

  /** @throws {KernelError} EBUSY when everything is frozen for the jump */
  assertNotFrozen(op: string): void {
    if (this.#isFrozen) throw new KernelError("EBUSY", op, "the live update is under way");
  }

  /**
   * Formats that the next kernel must know to take over what is preserved now: none without sessions.
   */
  *requirements(): Generator<HandoverRequirement> {
    for (const session of this.#outgoing) {
      const neededBy = `session "${session.name}"`;
      yield { compatible: KHO_FDT_COMPATIBLE, neededBy };
      yield { compatible: LUO_ABI_COMPATIBLE, neededBy };
      yield* session.requirements();
    }
  }

  /**
   * Freezes everything and writes it for the next kernel: the last step of a live update that can fail.
   * Fault points "luo.freeze:file", "luo.freeze:flb".
   *
   * @throws {KernelError} of a handler or an FLB: all is undone, last step first, and works as before. EBUSY
   *   frozen already
   */
  freeze(): FrozenUpdate {
    this.assertNotFrozen("freeze");
    const state = this.#state;
    assert(state !== null, "frozen after adopt()");
    const { memory, flbs } = this.#core;
    const steps: (() => void)[] = [];
    withUndo((undo) => {
      const remember = (step: () => void): void => {
        undo(step);
        steps.push(step);
      };
      remember(() => {
        this.#isFrozen = false;
        const deferred = this.#deferred;
        this.#deferred = [];
        for (const release of deferred) release();
      });
      this.#isFrozen = true;
      remember(() => this.#blocks.clear());
      this.#outgoing.forEach((session, index) => {
        const { files, count } = session.freeze(remember);
        const pa = this.#blocks.entryPa(index);
        LUO_SESSION_SER.write(memory, pa, { name: session.name, files, count });
      });
      this.#blocks.publish(this.#outgoing.length);
      flbs.freeze(remember);

      // Nothing can fail from here on. The address of the sessions comes last: whoever finds it finds them whole.
      const sessionsPa = luoSessionsPa(state.luoPa);
      remember(() => {
        memory.store64(sessionsPa, 0);
        flbs.clear(memory, state.flbsPa);
      });
      flbs.serialise(memory, state.flbsPa);
      memory.fence();
      memory.store64(sessionsPa, this.#blocks.headPa);
    });
    return {
      unfreeze() {
        for (let step = steps.pop(); step !== undefined; step = steps.pop()) step();
      },
    };
  }

  /** Pages that the orchestrator holds for itself. */
  get ownPages(): number {
    return (this.#state === null ? 0 : 2) + this.#blocks.blockCount;
  }

  counts(): LiveUpdateCounts {
    return {
      outgoingSessions: this.#outgoing.length,
      incomingSessions: this.#incoming.length,
      preservedInodes: this.#core.inodes.size,
      outgoingFlbs: this.#core.flbs.outgoing.length,
      incomingFlbs: this.#core.flbs.incomingCount,
    };
  }
}

/** Address of the word that publishes the sessions. */
function luoSessionsPa(luoPa: number): number {
  return luoPa + LUO_SER.offset.sessions_pa;
}
