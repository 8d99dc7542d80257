import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { EFD_NONBLOCK, EFD_SEMAPHORE } from "../../abi/uapi/fs.ts";
import { isKernelError } from "../../base/errno.ts";
import { Eventfd } from "./eventfd.ts";

function u64(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return bytes;
}

function take(file: Eventfd): bigint {
  const bytes = new Uint8Array(8);
  assert.equal(file.read(bytes), 8);
  return new DataView(bytes.buffer).getBigUint64(0, true);
}

const code = (expected: string) => (error: unknown) =>
  isKernelError(error) && error.code === expected;

test("read() takes the sum of all writes and signals, then fails with EAGAIN", () => {
  const file = new Eventfd(5, EFD_NONBLOCK);
  file.write(u64(7n));
  file.signal(2);
  assert.equal(file.isReadable, true);
  assert.equal(take(file), 14n);
  assert.equal(file.isReadable, false);
  assert.throws(() => take(file), code("EAGAIN"));
});

test("read() of a semaphore takes 1, also across 2^32", () => {
  const file = new Eventfd(0, EFD_SEMAPHORE);
  file.write(u64(0x1_0000_0000n));
  assert.equal(take(file), 1n);
  file.write(u64(0xfffffffffffffffen - 0xffffffffn));
  assert.throws(() => file.write(u64(1n)), code("EAGAIN"));
});

test("write() of 2^64 - 1 and short buffers fail with EINVAL; nothing changes", () => {
  const file = new Eventfd(3, 0);
  assert.throws(() => file.write(u64(0xffffffffffffffffn)), code("EINVAL"));
  assert.throws(() => file.write(new Uint8Array(7)), code("EINVAL"));
  assert.throws(() => file.read(new Uint8Array(7)), code("EINVAL"));
  assert.equal(take(file), 3n);
});

test("a full counter refuses write() with EAGAIN and stays full under signal()", () => {
  const file = new Eventfd(0, 0);
  file.write(u64(0xfffffffffffffffen));
  assert.throws(() => file.write(u64(1n)), code("EAGAIN"));
  file.signal(1);
  assert.equal(take(file), 0xffffffffffffffffn);
});

test("eventfd() fails with EINVAL on an unknown flag and on a value that is no u32", () => {
  for (const [initial, flags] of [
    [0, 2],
    [0, -1],
    [0, 0.5],
    [-1, 0],
    [2 ** 32, 0],
    [Number.NaN, 0],
  ])
    assert.throws(() => new Eventfd(initial, flags), code("EINVAL"));
});

test("the counter is a u64 for any sequence of writes", () => {
  fc.assert(
    fc.property(fc.array(fc.bigInt({ min: 0n, max: 2n ** 64n - 2n }), { maxLength: 8 }), (adds) => {
      const file = new Eventfd(0, 0);
      let model = 0n;
      for (const add of adds) {
        if (model + add > 2n ** 64n - 2n) assert.throws(() => file.write(u64(add)), code("EAGAIN"));
        else {
          file.write(u64(add));
          model += add;
        }
      }
      if (model === 0n) assert.throws(() => take(file), code("EAGAIN"));
      else assert.equal(take(file), model);
    }),
  );
});
