/**
 * The configuration registers of one function: bytes, and which of their bits software can change.
 *
 * Why: read-only, hardwired and BAR-size bits are all the same thing, a mask; kept as data, every header type and
 * capability is declared instead of programmed.
 * Source: PCI Local Bus 3.0 §6.1: reserved bits read as 0, and writes to them are dropped
 * @module
 */
import { PCI_CFG_SPACE_EXP_SIZE } from "../../../abi/pci.ts";

export class ConfigSpace {
  readonly #bytes = new Uint8Array(PCI_CFG_SPACE_EXP_SIZE);
  readonly #initial = new Uint8Array(PCI_CFG_SPACE_EXP_SIZE);
  readonly #writable = new Uint8Array(PCI_CFG_SPACE_EXP_SIZE);

  /** Declares a register: its value after reset, and the bits that a write can change. */
  define(offset: number, size: 1 | 2 | 4, value: number, writable = 0): void {
    for (let i = 0; i < size; i++) {
      this.#initial[offset + i] = value >>> (8 * i);
      this.#bytes[offset + i] = value >>> (8 * i);
      this.#writable[offset + i] = writable >>> (8 * i);
    }
  }

  /** Unsigned, little-endian. `offset` is aligned to `size`. */
  read(offset: number, size: 1 | 2 | 4): number {
    const b = this.#bytes;
    if (size === 1) return b[offset];
    const low = b[offset] | (b[offset + 1] << 8);
    return size === 2 ? low : (low | (b[offset + 2] << 16) | (b[offset + 3] << 24)) >>> 0;
  }

  write(offset: number, size: 1 | 2 | 4, value: number): void {
    for (let i = 0; i < size; i++) {
      const mask = this.#writable[offset + i];
      const byte = (value >>> (8 * i)) & 0xff;
      this.#bytes[offset + i] = (this.#bytes[offset + i] & ~mask) | (byte & mask);
    }
  }

  /** Clears bits whatever the mask says: for bits that hardware takes back. */
  clear(offset: number, size: 1 | 2 | 4, bits: number): void {
    for (let i = 0; i < size; i++) this.#bytes[offset + i] &= ~(bits >>> (8 * i));
  }

  /** Sets bits whatever the mask says: for status that hardware reports. */
  set(offset: number, size: 1 | 2 | 4, bits: number): void {
    for (let i = 0; i < size; i++) this.#bytes[offset + i] |= bits >>> (8 * i);
  }

  /** All registers to their values after reset. */
  reset(): void {
    this.#bytes.set(this.#initial);
  }
}
