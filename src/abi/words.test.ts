import assert from "node:assert/strict";
import { test } from "node:test";
import { ByteWords } from "./words.ts";

test("ByteWords is little-endian, unaligned, and within its bytes", () => {
  const whole = new Uint8Array(16);
  const words = new ByteWords(whole.subarray(3, 14));
  words.store8(0, 0x101);
  words.store16(1, 0x2233);
  words.store64(3, 0x1a_2b3c_4d5e);
  assert.deepEqual(
    [...whole.subarray(3, 14)],
    [1, 0x33, 0x22, 0x5e, 0x4d, 0x3c, 0x2b, 0x1a, 0, 0, 0],
  );
  assert.deepEqual(
    [words.load8(0), words.load16(1), words.load32(3), words.load64(3), words.loadBig64(3)],
    [1, 0x2233, 0x2b3c4d5e, 0x1a2b3c4d5e, 0x1a2b3c4d5en],
  );
  words.storeBig64(3, 2n ** 64n - 1n);
  assert.equal(words.load32(7), 0xffffffff);
  assert.throws(() => words.load32(8), RangeError);
  assert.throws(() => words.store64(4, 0), RangeError);
  assert.throws(() => words.load8(-1), RangeError);
  assert.deepEqual([...whole.subarray(0, 3), ...whole.subarray(14)], [0, 0, 0, 0, 0]);
});
