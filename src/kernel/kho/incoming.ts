/**
 * What the previous kernel left in memory, as decoders see it: words to read, and the right to claim
 * preserved pages, each once.
 *
 * Why: a handover is checked as a whole before any byte of it is used. Decoders of all subsystems run
 * over this view first; every page they name must be preserved, and must not be named twice.
 * @module
 */
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
}
