import assert from "node:assert/strict";
import { test } from "node:test";
import { Prng } from "./prng.ts";

const MASK = 0xffffffffn;
const rotateLeft = (x: bigint, k: bigint) => ((x << k) | (x >> (32n - k))) & MASK;

/** xoshiro128** 1.1 in arbitrary precision, from its description: no 32-bit tricks shared with what is tested. */
function* xoshiro128StarStar(state: readonly bigint[]): Generator<number, never> {
  let [a, b, c, d] = state;
  for (;;) {
    yield Number((rotateLeft((b * 5n) & MASK, 7n) * 9n) & MASK);
    const t = (b << 9n) & MASK;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= t;
    d = rotateLeft(d, 11n);
  }
}

function* splitmix32(seed: bigint): Generator<bigint, never> {
  for (let z = seed & MASK; ; ) {
    z = (z + 0x9e3779b9n) & MASK;
    let x = z;
    x = ((x ^ (x >> 16n)) * 0x21f0aaadn) & MASK;
    x = ((x ^ (x >> 15n)) * 0x735a2d97n) & MASK;
    yield x ^ (x >> 15n);
  }
}

function take<T>(source: Iterator<T>, count: number): T[] {
  return Array.from({ length: count }, () => source.next().value as T);
}

test("the description agrees with the published sequence of xoshiro128** for the state 1, 2, 3, 4", () => {
  assert.deepEqual(
    take(xoshiro128StarStar([1n, 2n, 3n, 4n]), 6),
    [11520, 0, 5927040, 70819200, 2031721883, 1637235492],
  );
});

test("next() is xoshiro128** seeded by splitmix32", () => {
  for (const seed of [0, 1, 42, 0x7fffffff, 0x80000000, 0xffffffff]) {
    const state = take(splitmix32(BigInt(seed)), 4);
    const prng = new Prng(seed);
    const found = Array.from({ length: 1000 }, () => prng.next());
    assert.deepEqual(found, take(xoshiro128StarStar(state), 1000), `seed ${seed}`);
  }
});

test("only the low 32 bits of a seed count", () => {
  assert.equal(new Prng(-1).next(), new Prng(0xffffffff).next());
  assert.equal(new Prng(2 ** 32 + 5).next(), new Prng(5).next());
  assert.notEqual(new Prng(5).next(), new Prng(6).next());
});

test("below() reaches every value of its range, evenly, and none outside", () => {
  const prng = new Prng(7);
  const counts = new Array<number>(10).fill(0);
  for (let i = 0; i < 10_000; i++) counts[prng.below(10)]++;
  assert.equal(counts.length, 10);
  // 1000 expected, standard deviation 30.
  for (const [value, count] of counts.entries())
    assert.ok(Math.abs(count - 1000) < 150, `${count} times ${value}`);
  assert.equal(prng.below(1), 0);
  for (let i = 0; i < 1000; i++) assert.ok(prng.below(2 ** 32) < 2 ** 32);
});

test("oneIn() is true as often as it says", () => {
  const prng = new Prng(8);
  let hits = 0;
  for (let i = 0; i < 8000; i++) if (prng.oneIn(8)) hits++;
  assert.ok(Math.abs(hits - 1000) < 150, `${hits} of 8000`);
  for (let i = 0; i < 100; i++) assert.equal(prng.oneIn(1), true);
});
