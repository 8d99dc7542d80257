/**
 * How a kind of file takes part in a live update, and global state that lives as long as such files do.
 *
 * Lifecycle of a file:      preserve → freeze → (kexec) → decode → retrieve → canFinish → finish
 *   undone by:              unpreserve  unfreeze
 * Lifecycle of an FLB:      preserve with the first file that needs it, unpreserve with the last; after the
 *   kexec decode, then finish with the last file.
 * Source: Linux 7.3 include/linux/liveupdate.h, kernel/liveupdate/{luo_file,luo_flb}.c
 * @module
 */
import type { MemoryRange } from "../../machine/machine.ts";
import type { IncomingMemory } from "../kho/incoming.ts";
import type { File } from "../vfs/file.ts";

/** A session as a file handler may ask about it. */
export interface SessionView {
  readonly name: string;
  /** Whether a file of the same inode is preserved in this session (outgoing) or belongs to it (incoming). */
  contains(file: File): boolean;
  /** The incoming file with that token, retrieved now if it was not; as RETRIEVE_FD finds it. Holds no reference for the caller. */
  incomingFile(token: bigint): File;
  /** The token of an outgoing file of this session, or null. */
  tokenOf(file: File): bigint | null;
}

/** One preserved file, to its handler. */
export interface PreserveArgs {
  readonly session: SessionView;
  readonly file: File;
  readonly token: bigint;
}

/** One file of the previous kernel, to its handler. */
export interface RetrieveArgs<D> {
  readonly session: SessionView;
  readonly data: D;
  readonly token: bigint;
}

/** One file of the previous kernel whose session ends; null when it is not open. */
export interface FinishArgs<D> {
  readonly data: D;
  readonly file: File | null;
}

/** A session of the handover, decoded and not yet used. */
export interface DecodedSessionView {
  /** What the handler decoded for the file with that token; null when there is none, or another handler's. */
  dataOf(token: bigint, handler: FileDecoder): unknown;
  /** Whether there is a file with that token. */
  has(token: bigint): boolean;
  /** Whether files of the session keep all of this memory where it is until the session is finished. */
  keeps(pa: number, lengthBytes: number): boolean;
}

/**
 * The part of a handler that reads what another kernel has written: all that an inspector needs of it.
 *
 * @typeParam D - the decoded form of the handler's data, checked and trusted
 */
export interface FileDecoder<D = unknown> {
  /** At most 47 bytes; changes with the layout behind `data`. */
  readonly compatible: string;
  /** FLBs that must live while a file of this kind is preserved. */
  readonly flbs: readonly FlbDecoder[];
  /**
   * Reads and checks what the previous kernel handed over, and claims all its pages. Runs at boot, before any
   * part of the handover is used; allocates nothing, changes nothing.
   * @param field - how to name the place in errors: "session \"vm0\" token 0x2"
   * @throws {HandoverError}
   */
  decode(incoming: IncomingMemory, data: bigint, field: string): D;
  /**
   * Checks what the file says about others of its session, when all of them are decoded. As `decode`, it changes nothing.
   * @param field - as of `decode`
   * @throws {HandoverError}
   */
  checkLinks?(data: D, session: DecodedSessionView, field: string): void;
  /** Memory that the file keeps where it is until its session is finished: what devices may be given. Default none. */
  memoryOf?(data: D): Iterable<MemoryRange>;
}

export interface FileHandler<D = unknown> extends FileDecoder<D> {
  /** Whether this handler is for that file. The first registered that says yes takes it. */
  canPreserve(file: File): boolean;
  readonly flbs: readonly FileLifecycleBound[];
  /**
   * Makes the file's state survive a kexec.
   * @returns the u64 to hand over, usually the physical address of a preserved structure
   * @throws {KernelError} what PRESERVE_FD then returns; everything is undone
   */
  preserve(args: PreserveArgs): bigint;
  /** Undoes `preserve`. Must not fail. */
  unpreserve(args: PreserveArgs & { readonly data: bigint }): void;
  /** Last look before the jump; may hand over another `data`. A failure unwinds all. */
  freeze?(args: PreserveArgs & { readonly data: bigint }): bigint;
  /** Undoes `freeze`, of which `data` is the result; afterwards what `preserve` returned counts again. Must not fail. */
  unfreeze?(args: PreserveArgs & { readonly data: bigint }): void;
  /**
   * Makes the open file, with one reference for the caller. A failure leaves `data` as it was, for `finish`.
   * @throws {KernelError} what RETRIEVE_FD then returns, for ever
   */
  retrieve(args: RetrieveArgs<D>): File;
  /** Whether the session may be finished. Default yes. */
  canFinish?(args: FinishArgs<D>): boolean;
  /**
   * The session is finished. A file that nobody retrieved, or whose retrieval failed (null), is discarded: its
   * preserved pages are freed. Must not fail.
   */
  finish(args: FinishArgs<D>): void;
}

/** The part of an FLB that reads what another kernel has written. */
export interface FlbDecoder<D = unknown> {
  readonly compatible: string;
  /** As {@link FileDecoder.decode}; runs before the decoders of files. @throws {HandoverError} */
  decode(incoming: IncomingMemory, data: bigint, field: string): D;
  /**
   * All files have been decoded, and those that need a part of this have asked for it (`checkLinks`): refuses what nobody
   * will come for.
   * @param field - as of `decode`
   * @throws {HandoverError}
   */
  checkAsked?(data: D, field: string): void;
}

/** File-lifecycle-bound global state. */
export interface FileLifecycleBound<D = unknown> extends FlbDecoder<D> {
  /** Called with the first file that needs it. @returns the u64 to hand over */
  preserve(): bigint;
  /** Called with the last. Must not fail. */
  unpreserve(data: bigint): void;
  /** After all files are frozen: last changes to what is handed over. @returns the u64 to hand over */
  freeze?(data: bigint): bigint;
  /** Undoes `freeze`, of which `data` is the result; afterwards what `preserve` returned counts again. Must not fail. */
  unfreeze?(data: bigint): void;
  /** After the whole handover was found good, at boot, before any device is used: adopt it. */
  adopt(data: D): void;
  /** The last incoming file that needed it is finished. Must not fail. */
  finish(data: D): void;
}

/** Something that the next kernel must know to read what is preserved now. */
export interface HandoverRequirement {
  /** The format's `compatible` string. */
  readonly compatible: string;
  /** What uses it, for messages: "session \"vm0\" token 0x2". */
  readonly neededBy: string;
}
