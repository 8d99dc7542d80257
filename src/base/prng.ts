/**
 * A seeded generator of pseudo-random numbers: the only source of chance below `host`.
 *
 * Source: xoshiro128** 1.1 (Blackman and Vigna, 2018), seeded by splitmix32.
 * @module
 */
export class Prng {
  readonly #state = new Uint32Array(4);

  /** @param seed - any integer; its low 32 bits count */
  constructor(seed: number) {
    let z = seed >>> 0;
    for (let i = 0; i < 4; i++) {
      z = (z + 0x9e3779b9) >>> 0;
      let x = z;
      x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
      x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
      this.#state[i] = x ^ (x >>> 15);
    }
  }

  /** The next 32 bits, unsigned. */
  next(): number {
    const s = this.#state;
    const x = Math.imul(s[1], 5);
    const result = Math.imul((x << 7) | (x >>> 25), 9) >>> 0;
    const t = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 11) | (s[3] >>> 21);
    return result;
  }

  /** An integer in 0 .. `end` - 1; `end` in 1 .. 2^32. The bias is below 2^-32 · end. */
  below(end: number): number {
    return Math.floor((this.next() / 2 ** 32) * end);
  }

  /** True once in `n` calls on average. */
  oneIn(n: number): boolean {
    return this.below(n) === 0;
  }
}
