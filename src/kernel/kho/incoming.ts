/**
 * What the previous kernel left in memory, as decoders see it: words to read, and the right to claim
 * preserved pages, each once.
 *
 * Why: a handover is checked as a whole before any byte of it is used. Decoders of all subsystems run
 * over this view first; every page they name must be preserved, and must not be named twice.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import type { WordReader } from "../../abi/words.ts";

export interface IncomingMemory {
  readonly memory: WordReader;
  /** Whether all bytes lie in RAM and in preserved pages. Safe on any number. */
  isPreserved(pa: number, lengthBytes: number): boolean;
  /**
   * The order of the preserved block that starts exactly at `pa`, or null when none does. Safe on any number.
   * For formats that name a page without its size, as upstream's memfd does.
   */
  preservedOrder(pa: number): number | null;
  /**
   * Claims one preserved block for the field that names it.
   * @throws {HandoverError} when the address is unaligned, outside RAM, not preserved with exactly this
   *   order, or claimed already (the message names both fields)
   */
  claim(pa: number, order: number, field: string): void;
  /**
   * Claims a record (src/abi/kho-record.ts) of that length for the field that names it: one that shares a page, or the
   * block that it has for itself.
   * @throws {HandoverError} as {@link claim}; when it reaches beyond its page, overlaps another record, or the page is
   *   claimed as a whole
   */
  claimRecord(pa: number, lengthBytes: number, field: string): void;
  /**
   * Takes a broken rule that leaves other parts readable, for who looks at a handover and does not use it
   * (src/inspect). A kernel has none: it refuses the whole by the first broken rule.
   */
  readonly report?: (error: HandoverError, place: Place) => void;
  /** Of the same reader: the parts that are being decoded, the innermost last. Kept by {@link apart}. */
  readonly places?: Place[];
}

/** A structure in memory: where it is, and the offsets of its fields if it is one of `abi`. */
export interface Place {
  readonly pa: number;
  readonly struct?: { readonly offset: Readonly<Record<string, number>> };
}

/**
 * Decodes a part of a handover whose neighbours can be read without it.
 *
 * @returns what `decode` returns; null only where a broken rule of it was reported, never in a kernel
 * @throws {HandoverError} where nobody takes reports
 */
export function apart<T>(incoming: IncomingMemory, place: Place, decode: () => T): T | null {
  if (incoming.report === undefined) return decode();
  incoming.places?.push(place);
  try {
    return decode();
  } catch (error) {
    if (!(error instanceof HandoverError)) throw error;
    incoming.report(error, place);
    return null;
  } finally {
    incoming.places?.pop();
  }
}
