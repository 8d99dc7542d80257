import assert from "node:assert/strict";
import { test } from "node:test";
import { BugError } from "../../base/assert.ts";
import { isKernelError } from "../../base/errno.ts";
import { createInterruptState, InterruptController } from "../../machine/embedded/interrupts.ts";
import { VectorAllocator } from "./vectors.ts";

function make() {
  const interrupts = new InterruptController(createInterruptState());
  return { interrupts, vectors: new VectorAllocator(interrupts) };
}

test("alloc() gives each of 32 .. 255 once, then ENOSPC", () => {
  const { vectors } = make();
  const given = Array.from({ length: 224 }, () => vectors.alloc());
  assert.deepEqual(
    given,
    Array.from({ length: 224 }, (_, i) => 32 + i),
  );
  assert.throws(
    () => vectors.alloc(),
    (error) => isKernelError(error, "ENOSPC"),
  );
  vectors.free(100);
  assert.equal(vectors.alloc(), 100);
});

test("alloc() drops what a former owner raised; reserve() keeps it", () => {
  const { interrupts, vectors } = make();
  interrupts.raise(32);
  interrupts.raise(33);
  assert.ok(vectors.reserve(33));
  assert.equal(vectors.alloc(), 32);
  assert.equal(interrupts.take(32), false);
  assert.equal(interrupts.take(33), true);
});

test("reserve() refuses what is taken and what is no device's vector", () => {
  const { vectors } = make();
  for (const vector of [-1, 0, 31, 256, 1e9, 40.5, Number.NaN])
    assert.equal(vectors.reserve(vector), false, String(vector));
  assert.ok(vectors.reserve(40));
  assert.equal(vectors.reserve(40), false);
  assert.equal(vectors.usedCount, 1);
  vectors.free(40);
  assert.throws(() => vectors.free(40), BugError);
});
