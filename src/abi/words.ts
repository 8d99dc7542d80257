/**
 * Little-endian words at addresses: all that a layout needs to be read or written.
 *
 * Why: `abi` stands below the machine, so its decoders name what they need of a memory; physical memory
 * is one, the bytes of an ioctl argument are another.
 * @module
 */

/** Loads. Addresses are aligned to the size of the access. */
export interface WordReader {
  load8(at: number): number;
  load16(at: number): number;
  /** 32 bits, unsigned. */
  load32(at: number): number;
  /** 64 bits as a number: exact up to 2^53, otherwise rounded, and so above every valid limit. */
  load64(at: number): number;
  /** 64 bits, exact. For tokens and other opaque words. */
  loadBig64(at: number): bigint;
}

/** Stores, in program order, for words that nobody reads yet. */
export interface WordWriter {
  store8(at: number, value: number): void;
  store16(at: number, value: number): void;
  store32(at: number, value: number): void;
  /** 64 bits from a safe integer, low half first. */
  store64(at: number, value: number): void;
  storeBig64(at: number, value: bigint): void;
}

/** Words in a byte array, at offsets from its start; unaligned access is allowed. */
export class ByteWords implements WordReader, WordWriter {
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  load8(at: number): number {
    return this.#view.getUint8(at);
  }
  load16(at: number): number {
    return this.#view.getUint16(at, true);
  }
  load32(at: number): number {
    return this.#view.getUint32(at, true);
  }
  load64(at: number): number {
    return this.load32(at + 4) * 2 ** 32 + this.load32(at);
  }
  loadBig64(at: number): bigint {
    return this.#view.getBigUint64(at, true);
  }
  store8(at: number, value: number): void {
    this.#view.setUint8(at, value);
  }
  store16(at: number, value: number): void {
    this.#view.setUint16(at, value, true);
  }
  store32(at: number, value: number): void {
    this.#view.setUint32(at, value, true);
  }
  store64(at: number, value: number): void {
    this.store32(at, value % 2 ** 32);
    this.store32(at + 4, Math.floor(value / 2 ** 32));
  }
  storeBig64(at: number, value: bigint): void {
    this.#view.setBigUint64(at, value, true);
  }
}
