import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  encodeTestFrame,
  TEST_FRAME_MAX_BYTES,
  TEST_FRAME_MIN_BYTES,
  testFrameSequence,
  verifyTestFrame,
} from "./test-frame.ts";

const A = Uint8Array.of(2, 0, 0, 0, 0, 1);
const B = Uint8Array.of(2, 0, 0, 0, 0, 2);

const length = fc.integer({ min: TEST_FRAME_MIN_BYTES, max: TEST_FRAME_MAX_BYTES });
const sequence = fc.nat(Number.MAX_SAFE_INTEGER);
const nic = fc.integer({ min: 0, max: 0xffffffff });

test("verifyTestFrame() takes what encodeTestFrame() wrote, and tells its sequence", () => {
  fc.assert(
    fc.property(length, nic, sequence, fc.nat(9), (bytes, id, seq, at) => {
      const memory = new Uint8Array(bytes + at + 3).fill(0xaa);
      encodeTestFrame(memory.subarray(at, at + bytes), A, B, id, seq);
      assert.equal(verifyTestFrame(memory, at, bytes, id), "");
      assert.equal(testFrameSequence(memory, at), seq);
    }),
  );
});

test("verifyTestFrame() finds any changed byte", () => {
  fc.assert(
    fc.property(
      length,
      nic,
      sequence,
      fc.nat(),
      fc.integer({ min: 1, max: 255 }),
      (n, id, s, i, x) => {
        const frame = new Uint8Array(n);
        encodeTestFrame(frame, A, B, id, s);
        frame[i % n] ^= x;
        assert.notEqual(verifyTestFrame(frame, 0, n, id), "");
      },
    ),
  );
});

test("verifyTestFrame() tells frames of another NIC and wrong lengths", () => {
  const frame = new Uint8Array(100);
  encodeTestFrame(frame, A, B, 7, 1);
  assert.equal(verifyTestFrame(frame, 0, 100, 8), "nic");
  assert.equal(verifyTestFrame(frame, 0, 99, 7), "length");
  assert.equal(verifyTestFrame(frame, 1, 100, 7), "length");
  assert.equal(verifyTestFrame(new Uint8Array(100), 0, 100, 7), "ethertype");
});

test("verifyTestFrame() finds a payload of another sequence under a right checksum", () => {
  const frame = new Uint8Array(100);
  encodeTestFrame(frame, A, B, 7, 1);
  const other = new Uint8Array(100);
  encodeTestFrame(other, A, B, 7, 2);
  // FNV-1a over 32-bit words, as the layout says.
  frame.set(other.subarray(28, 96), 28);
  let hash = 0x811c9dc5;
  const words = new DataView(frame.buffer);
  for (let i = 0; i < 96; i += 4) hash = Math.imul(hash ^ words.getInt32(i, true), 0x01000193);
  words.setInt32(96, hash, true);
  assert.equal(verifyTestFrame(frame, 0, 100, 7), "payload");
});
