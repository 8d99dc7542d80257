/**
 * A running hash of what a machine did: two runs with the same hash did the same, in the same order.
 *
 * Why a hash and not a list: a run has millions of events. To find where two runs part, bisect on time.
 * Source: the mixing step of MurmurHash3 (Appleby, public domain), in two lanes of 32 bits.
 * @module
 */

/** What an event is; part of what is hashed. */
export const EVENT = {
  dmaRead: 1,
  dmaWrite: 2,
  mmioWrite: 3,
  msi: 4,
  serial: 5,
  kexec: 6,
  powerOff: 7,
  stop: 8,
  serialInput: 9,
} as const;

/** Order-dependent hash of 32-bit words. Not cryptographic. */
export class RunningHash {
  #a = 0x9747b28c;
  #b = 0x3c6ef372;

  /** Mixes the low 32 bits of `word` in. */
  mix(word: number): void {
    const k = Math.imul(word, 0xcc9e2d51);
    const mixed = Math.imul((k << 15) | (k >>> 17), 0x1b873593);
    this.#a ^= mixed;
    this.#a = (Math.imul((this.#a << 13) | (this.#a >>> 19), 5) + 0xe6546b64) | 0;
    this.#b ^= Math.imul(word ^ 0x85ebca6b, 0xc2b2ae35) ^ this.#a;
    this.#b = Math.imul((this.#b << 17) | (this.#b >>> 15), 0x27d4eb2f);
  }

  /** An address, a time or a length: a non-negative safe integer. */
  mixNumber(value: number): void {
    this.mix(value | 0);
    this.mix(Math.floor(value / 2 ** 32));
  }

  mixBytes(bytes: Uint8Array): void {
    this.mixNumber(bytes.length);
    let i = 0;
    for (; i + 4 <= bytes.length; i += 4)
      this.mix(bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24));
    for (; i < bytes.length; i++) this.mix(bytes[i]);
  }

  mixText(text: string): void {
    this.mixNumber(text.length);
    for (let i = 0; i < text.length; i++) this.mix(text.charCodeAt(i));
  }

  /** 16 hexadecimal digits. */
  digest(): string {
    return word(this.#a ^ (this.#a >>> 16)) + word(this.#b ^ (this.#b >>> 15));
  }
}

function word(value: number): string {
  return (value >>> 0).toString(16).padStart(8, "0");
}
