import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  alignDown,
  alignUp,
  formatBytes,
  GIB,
  hex,
  isAligned,
  isIndex,
  KIB,
  MAX_ORDER,
  MIB,
  orderBytes,
  PAGE_SHIFT,
  PAGE_SIZE,
  TIB,
} from "./units.ts";

/** Addresses beyond 32 bits, where bit operations on numbers would be wrong. */
const address = fc.integer({ min: 0, max: 2 ** 52 });
const alignment = fc.integer({ min: 0, max: 30 }).map((lg2) => 2 ** lg2);

test("orderBytes() goes from 4 KiB to 1 GiB", () => {
  assert.equal(orderBytes(0), PAGE_SIZE);
  assert.equal(orderBytes(9), 2 * MIB);
  assert.equal(orderBytes(MAX_ORDER), GIB);
  assert.equal(2 ** PAGE_SHIFT, PAGE_SIZE);
});

test("alignDown() and alignUp() enclose a value, exactly, above 2^32 too", () => {
  fc.assert(
    fc.property(address, alignment, (value, step) => {
      const down = alignDown(value, step);
      const up = alignUp(value, step);
      assert.equal(BigInt(down), (BigInt(value) / BigInt(step)) * BigInt(step));
      assert.equal(up, isAligned(value, step) ? value : down + step);
      assert.ok(isAligned(down, step) && isAligned(up, step));
    }),
  );
});

test("isAligned() is exact above 2^32", () => {
  assert.equal(isAligned(2 ** 40, GIB), true);
  assert.equal(isAligned(2 ** 40 + 4096, GIB), false);
  assert.equal(isAligned(2 ** 51 + 1, 2), false);
});

test("isIndex() takes integers in range and nothing else", () => {
  for (const good of [0, 1, 7, -0]) assert.equal(isIndex(good, 7), true, String(good));
  const bad = [-1, 8, 0.5, Number.NaN, Number.POSITIVE_INFINITY, "1", 1n, null, undefined, [1]];
  for (const value of bad) assert.equal(isIndex(value, 7), false, String(value));
});

test("hex() writes numbers and tokens", () => {
  assert.equal(hex(0), "0x0");
  assert.equal(hex(2 ** 40 + 10), "0x1000000000a");
  assert.equal(hex(2n ** 64n - 1n), "0xffffffffffffffff");
});

test("formatBytes() takes the largest unit that leaves a whole number or one decimal", () => {
  for (const [bytes, text] of [
    [0, "0 B"],
    [1023, "1023 B"],
    [KIB, "1 KiB"],
    [1536, "1.5 KiB"],
    [512 * MIB, "512 MiB"],
    [1.5 * GIB, "1.5 GiB"],
    [TIB, "1 TiB"],
    [2048 * TIB, "2048 TiB"],
  ] as const)
    assert.equal(formatBytes(bytes), text);
});
