/**
 * A file mapped into userspace, addressed by offset.
 *
 * Why: a mapping is in pieces (an extent, or at most 1 GiB of it, each), and what lies in it is shared with
 * devices and other threads, so words that publish something are loaded and stored atomically.
 * @module
 */
import { KernelError } from "../base/errno.ts";
import { hex } from "../base/units.ts";
import type { FileMapping } from "../kernel/vfs/file.ts";

interface Piece {
  readonly start: number;
  readonly end: number;
  readonly bytes: Uint8Array;
  readonly words: Uint32Array;
}

/** Offsets are in bytes from the start of the mapping; words are aligned to 4. */
export class MappedMemory {
  readonly lengthBytes: number;
  readonly #mapping: FileMapping;
  readonly #pieces: readonly Piece[];
  /** The piece of the last access: accesses cluster. */
  #last: Piece;

  /** @param mapping - its pieces are in order and without gaps, as `Host.mmap` gives them */
  constructor(mapping: FileMapping) {
    this.#mapping = mapping;
    const base = mapping.pieces[0]?.offsetBytes ?? 0;
    this.#pieces = mapping.pieces.map(({ offsetBytes, bytes }) => ({
      start: offsetBytes - base,
      end: offsetBytes - base + bytes.length,
      bytes,
      words: new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >>> 2),
    }));
    this.#last = this.#pieces[0];
    this.lengthBytes = this.#pieces.at(-1)?.end ?? 0;
  }

  /** A 32-bit word, unsigned; nothing that was stored before it was published is missed afterwards. */
  load32(offset: number): number {
    const piece = this.#pieceAt(offset, 4);
    return Atomics.load(piece.words, (offset - piece.start) >>> 2);
  }

  /** Stores a 32-bit word after everything that was stored before. */
  store32(offset: number, value: number): void {
    const piece = this.#pieceAt(offset, 4);
    Atomics.store(piece.words, (offset - piece.start) >>> 2, value >>> 0);
  }

  /** A 32-bit word without any order. */
  get32(offset: number): number {
    const piece = this.#pieceAt(offset, 4);
    return piece.words[(offset - piece.start) >>> 2];
  }

  /** Stores a 32-bit word without any order. */
  set32(offset: number, value: number): void {
    const piece = this.#pieceAt(offset, 4);
    piece.words[(offset - piece.start) >>> 2] = value;
  }

  /** The bytes themselves where they lie in one piece, otherwise a copy. */
  bytes(offset: number, lengthBytes: number): Uint8Array {
    const piece = this.#pieceAt(offset, 1);
    const from = offset - piece.start;
    if (offset + lengthBytes <= piece.end) return piece.bytes.subarray(from, from + lengthBytes);
    const copy = new Uint8Array(lengthBytes);
    for (let done = 0; done < lengthBytes; ) {
      const at = this.#pieceAt(offset + done, 1);
      const length = Math.min(at.end - offset - done, lengthBytes - done);
      const start = offset + done - at.start;
      copy.set(at.bytes.subarray(start, start + length), done);
      done += length;
    }
    return copy;
  }

  /** Copies bytes in. @throws {KernelError} EFAULT when they do not all lie in the mapping; nothing is written */
  write(offset: number, bytes: Uint8Array): void {
    if (bytes.length > 0) this.#pieceAt(offset + bytes.length - 1, 1);
    for (let done = 0; done < bytes.length; ) {
      const piece = this.#pieceAt(offset + done, 1);
      const length = Math.min(piece.end - offset - done, bytes.length - done);
      piece.bytes.set(bytes.subarray(done, done + length), offset + done - piece.start);
      done += length;
    }
  }

  /** Ends the mapping. */
  unmap(): void {
    this.#mapping.unmap();
  }

  #pieceAt(offset: number, lengthBytes: number): Piece {
    const last = this.#last;
    if (last !== undefined && offset >= last.start && offset + lengthBytes <= last.end) return last;
    let low = 0;
    let high = this.#pieces.length - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const piece = this.#pieces[middle];
      if (offset < piece.start) high = middle - 1;
      else if (offset >= piece.end) low = middle + 1;
      else {
        this.#last = piece;
        return piece;
      }
    }
    throw new KernelError(
      "EFAULT",
      "access",
      `${hex(offset)} lies outside the mapping of ${this.lengthBytes} bytes`,
    );
  }
}
