/**
 * Kexec handover: what other parts of the kernel may ask of it.
 *
 * Source: Linux 7.3 include/linux/kexec_handover.h, kernel/liveupdate/kexec_handover.c
 * @module
 */
import type { KhoBootParameters } from "../../machine/machine.ts";
import type { IncomingMemory } from "./incoming.ts";

/** Preservation of pages for the next kernel, and restoration of what the previous one preserved. */
export interface KexecHandover {
  /**
   * Marks an allocated block of 2^order pages to be kept through the next kexec.
   * @throws {KernelError} EINVAL when it overlaps scratch; ENOMEM when the tree cannot grow. Passes the fault
   *   point "kho:preserve".
   */
  preserve(pa: number, order: number): void;
  /** Undoes {@link preserve}; never fails on a preserved block. */
  unpreserve(pa: number, order: number): void;
  /** Whether this kernel has preserved exactly this block. */
  isPreserved(pa: number, order: number): boolean;

  /**
   * Names a blob for the next kernel. Its pages must be preserved by the caller.
   * @throws {KernelError} EEXIST when the name is taken; ENOMEM when the FDT is full
   */
  addSubtree(name: string, pa: number, sizeBytes: number): void;
  removeSubtree(name: string): void;

  /** The previous kernel's memory, or null on a cold boot. */
  readonly incoming: IncomingMemory | null;
  /** A blob that the previous kernel named. Untrusted. */
  incomingSubtree(name: string): { readonly pa: number; readonly sizeBytes: number } | null;
  /**
   * Takes a block over from the previous kernel: from here on it is allocated like any other (`mm.free`
   * frees it, `preserve` keeps it once more). Each block once.
   * @throws {KernelError} EINVAL when the previous kernel did not preserve exactly this block, or it was
   *   restored before
   */
  restore(pa: number, order: number): void;
  /**
   * Takes a record that shares a page (src/abi/kho-record.ts) over from the previous kernel, to give it up. Each once.
   * @returns true with the last that was claimed of its page: the page is restored then, and the caller's
   * @throws {KernelError} EINVAL when no decoder has claimed it with that length, or it was restored before
   */
  restoreRecord(pa: number, lengthBytes: number): boolean;
  /** Blocks preserved by the previous kernel that nobody has restored, in 4 KiB pages. */
  unrestoredPages(): number;

  /** Kexec boots since the last cold boot: 0 on a cold boot. */
  readonly kexecCount: number;
  /** Release of the previous kernel, or null on a cold boot. */
  readonly previousRelease: string | null;
  /** What to tell the next kernel. */
  bootParameters(): KhoBootParameters;
  /** Bytes of preserved pages by order, and of the tree and FDT themselves. */
  sizes(): { readonly preservedBytes: number; readonly metadataBytes: number };
}
