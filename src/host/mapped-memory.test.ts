import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isKernelError } from "../base/errno.ts";
import { MappedMemory } from "./mapped-memory.ts";

/** A mapping in pieces of these sizes, from `base` of its file on; and what it is, as one array. */
function mapping(sizes: readonly number[], base = 0) {
  let unmapped = 0;
  let offsetBytes = base;
  const pieces = sizes.map((size) => {
    // Behind something else, as a piece of physical memory is.
    const bytes = new Uint8Array(new SharedArrayBuffer(size + 64), 64, size);
    const piece = { offsetBytes, bytes };
    offsetBytes += size;
    return piece;
  });
  const memory = new MappedMemory({
    pieces,
    unmap: () => {
      unmapped++;
    },
  });
  const whole = () => Buffer.concat(pieces.map((piece) => piece.bytes));
  return { memory, pieces, whole, unmapped: () => unmapped };
}

const isFault = (error: unknown) => isKernelError(error, "EFAULT");

test("bytes and words go to the same places in one piece and in several", () => {
  const step = fc.record({
    kind: fc.constantFrom("write", "set32", "store32", "bytes", "load32", "get32"),
    offset: fc.nat(59),
    length: fc.nat(40),
    value: fc.integer({ min: 0, max: 0xffffffff }),
  });
  const sizes = fc.constantFrom([60], [4, 56], [20, 20, 20], [4, 4, 4, 8, 40]);
  fc.assert(
    fc.property(sizes, fc.array(step, { maxLength: 30 }), fc.nat(3), (cut, steps, page) => {
      const { memory, whole } = mapping(cut, 4096 * page);
      const model = Buffer.alloc(60);
      for (const { kind, offset, length, value } of steps) {
        const word = offset - (offset % 4);
        const end = Math.min(60, offset + length);
        switch (kind) {
          case "write": {
            const bytes = Buffer.alloc(end - offset, value & 0xff);
            memory.write(offset, bytes);
            bytes.copy(model, offset);
            break;
          }
          case "bytes":
            assert.deepEqual(
              Buffer.from(memory.bytes(offset, end - offset)),
              model.subarray(offset, end),
            );
            break;
          case "set32":
          case "store32":
            memory[kind](word, value);
            model.writeUInt32LE(value, word);
            break;
          default:
            assert.equal(memory[kind as "load32" | "get32"](word), model.readUInt32LE(word));
        }
        assert.deepEqual(whole(), model);
      }
    }),
  );
});

test("bytes() is the memory itself inside a piece, and a copy across a border", () => {
  const { memory, pieces } = mapping([16, 16]);
  memory.bytes(4, 12)[0] = 7;
  assert.equal(pieces[0].bytes[4], 7);
  const across = memory.bytes(12, 8);
  across[0] = 9;
  assert.equal(pieces[0].bytes[12], 0);
});

test("what lies outside the mapping is EFAULT, and nothing is written", () => {
  const { memory, whole } = mapping([16, 16]);
  assert.equal(memory.lengthBytes, 32);
  for (const offset of [-4, 32, 36, 2 ** 40]) {
    assert.throws(() => memory.load32(offset), isFault, `load32 at ${offset}`);
    assert.throws(() => memory.get32(offset), isFault, `get32 at ${offset}`);
    assert.throws(() => memory.store32(offset, 1), isFault, `store32 at ${offset}`);
    assert.throws(() => memory.set32(offset, 1), isFault, `set32 at ${offset}`);
    assert.throws(() => memory.bytes(offset, 4), isFault, `bytes at ${offset}`);
    assert.throws(() => memory.write(offset, Uint8Array.of(1)), isFault, `write at ${offset}`);
  }
  assert.throws(() => memory.bytes(28, 8), isFault);
  assert.throws(() => memory.write(28, new Uint8Array(8).fill(1)), isFault);
  assert.deepEqual(whole(), Buffer.alloc(32));
});

test("an empty mapping has no byte", () => {
  const { memory } = mapping([]);
  assert.equal(memory.lengthBytes, 0);
  assert.throws(() => memory.load32(0), isFault);
});

test("unmap() ends the mapping once", () => {
  const { memory, unmapped } = mapping([16]);
  memory.unmap();
  assert.equal(unmapped(), 1);
});
