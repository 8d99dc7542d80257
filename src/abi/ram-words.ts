/**
 * Words of a machine's RAM, as the decoders of a handover see them: at addresses that nobody has checked.
 * @module
 */
import { ByteWords, type WordReader } from "./words.ts";

/** Physical memory is one; a RAM image on disk is another. */
export interface RamWords extends WordReader {
  /** Whether all bytes lie in RAM. Safe on any number. Loads outside RAM are not. */
  contains(pa: number, lengthBytes: number): boolean;
}

/** RAM of which each preserved block may be taken once. The kernel's `IncomingMemory` is one. */
export interface ClaimableWords {
  readonly memory: WordReader;
  /**
   * Takes the preserved block of 2^order pages at `pa` for the field that names it.
   * @throws {HandoverError} when no such block was preserved, or another field has it
   */
  claim(pa: number, order: number, field: string): void;
}

/** RAM as an array of bytes, byte 0 at address 0: an image of a small machine. */
export class ByteRam extends ByteWords implements RamWords {
  readonly #lengthBytes: number;

  constructor(bytes: Uint8Array) {
    super(bytes);
    this.#lengthBytes = bytes.length;
  }

  contains(pa: number, lengthBytes: number): boolean {
    return pa >= 0 && lengthBytes >= 0 && pa + lengthBytes <= this.#lengthBytes;
  }
}
