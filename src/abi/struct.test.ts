import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  byteArray,
  cString,
  encodeUtf8,
  s32,
  struct,
  token64,
  u8,
  u16,
  u32,
  u64,
} from "./struct.ts";
import { ByteWords } from "./words.ts";

const EVERYTHING = struct("everything", {
  a: u8,
  pad: byteArray(3),
  b: u32,
  c: u64,
  d: token64,
  e: u16,
  name: cString(6),
  f: s32,
});

test("fields follow one another without padding, little-endian, as in packed C", () => {
  assert.deepEqual(EVERYTHING.offset, { a: 0, pad: 1, b: 4, c: 8, d: 16, e: 24, name: 26, f: 32 });
  assert.equal(EVERYTHING.sizeBytes, 36);
  const bytes = new Uint8Array(40).fill(0xee);
  EVERYTHING.write(new ByteWords(bytes), 2, {
    a: 0x12,
    pad: Uint8Array.of(1, 2, 3),
    b: 0x89abcdef,
    c: 0x1_0203_0405,
    d: 0xfedcba9876543210n,
    e: 0xbeef,
    name: "né",
    f: -2,
  });
  assert.equal(
    Buffer.from(bytes).toString("hex"),
    "eeee12010203efcdab8905040302010000001032547698badcfeefbe6ec3a9000000feffffffeeee",
  );
});

test("what is written is read back, at any offset", () => {
  const value = fc.record(
    {
      a: fc.integer({ min: 0, max: 0xff }),
      pad: fc.uint8Array({ minLength: 3, maxLength: 3 }),
      b: fc.integer({ min: 0, max: 0xffffffff }),
      c: fc.maxSafeNat(),
      d: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      e: fc.integer({ min: 0, max: 0xffff }),
      name: fc
        .string({ maxLength: 5, unit: "binary" })
        .filter((text) => encodeUtf8(text).length <= 5 && !text.includes("\0")),
      f: fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
    },
    { noNullPrototype: true },
  );
  fc.assert(
    fc.property(value, fc.nat(7), (fields, at) => {
      const words = new ByteWords(new Uint8Array(48));
      EVERYTHING.write(words, at, fields);
      assert.deepEqual(EVERYTHING.read(words, at), fields);
    }),
  );
});

test("u64 beyond 2^53 reads as some number above every limit, never below", () => {
  const words = new ByteWords(new Uint8Array(8));
  for (const value of [2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 1n]) {
    words.storeBig64(0, value);
    assert.ok(u64.read(words, 0) > Number.MAX_SAFE_INTEGER);
  }
});

test("a string without NUL, or that is not UTF-8, reads as null; what follows the NUL does not count", () => {
  const field = cString(4);
  const read = (...bytes: number[]) => field.read(new ByteWords(Uint8Array.from(bytes)), 0);
  assert.equal(read(0x61, 0x62, 0x63, 0), "abc");
  assert.equal(read(0, 0xff, 0xff, 0xff), "");
  assert.equal(read(0x61, 0x62, 0x63, 0x64), null, "no NUL");
  for (const bad of [
    [0xff, 0, 0, 0],
    [0xc3, 0, 0, 0],
    // An overlong "/", and a surrogate.
    [0xc0, 0xaf, 0, 0],
    [0xed, 0xa0, 0x80, 0],
  ])
    assert.equal(read(...bad), null, bad.join(" "));
});

test("a string that does not fit with its NUL is refused", () => {
  const words = new ByteWords(new Uint8Array(8).fill(0xee));
  assert.throws(() => cString(4).write(words, 0, "abcd"), RangeError);
  assert.throws(() => cString(4).write(words, 0, "aé→"), RangeError);
  assert.equal(words.load32(0), 0xeeeeeeee, "nothing was written");
  cString(4).write(words, 0, null);
  assert.equal(words.load32(0), 0);
});

test("encodeUtf8() is UTF-8", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (text) => {
      assert.deepEqual(encodeUtf8(text), new Uint8Array(Buffer.from(text, "utf8")));
    }),
  );
});
