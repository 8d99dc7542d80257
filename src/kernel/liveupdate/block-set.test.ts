import assert from "node:assert/strict";
import { test } from "node:test";
import { readBlocks } from "../../abi/kho-block.ts";
import { KernelError } from "../../base/errno.ts";
import { BlockSet } from "./block-set.ts";
import { Rig } from "./test-rig.ts";

const ENTRY_BYTES = 80;

function makeSet() {
  const rig = Rig.cold();
  const { ram: memory, mm, kho, faults } = rig;
  return { rig, set: new BlockSet({ memory, mm, kho, faults }, ENTRY_BYTES) };
}

test("entries fill one block after another, and no block is empty", () => {
  const { rig, set } = makeSet();
  for (const [count, blocks] of [
    [0, []],
    [1, [1]],
    [51, [51]],
    [52, [51, 1]],
    [153, [51, 51, 51]],
  ] as const) {
    set.grow(count);
    set.shrink(count);
    set.publish(count);
    const claimable = { memory: rig.ram, claim: () => {} };
    const read = readBlocks(claimable, set.headPa, ENTRY_BYTES, "set");
    assert.deepEqual(
      read.map((block) => block.count),
      blocks,
    );
    if (count > 0)
      assert.equal(set.entryPa(count - 1), read.at(-1)!.pa + 16 + ((count - 1) % 51) * 80);
  }
  assert.throws(() => set.entryPa(153), /has no block/);
});

test("grow() fails with ENOSPC above 10,000 blocks, and then has as many as before", () => {
  const { set } = makeSet();
  set.grow(51 * 9_999);
  assert.throws(
    () => set.grow(51 * 10_000 + 1),
    (error: unknown) => error instanceof KernelError && error.code === "ENOSPC",
  );
  assert.equal(set.blockCount, 9_999);
  set.grow(51 * 10_000);
  assert.equal(set.blockCount, 10_000);
});

test("grow() that fails half-way gives back what it had, and the chain ends where it did", () => {
  const { rig, set } = makeSet();
  set.grow(1);
  set.publish(1);
  const before = rig.usage();
  const points = rig.faults.record(() => set.grow(200));
  assert.equal(points.length, 9, "three blocks, three steps each");
  set.shrink(1);
  assert.deepEqual(rig.usage(), before);
  for (let i = 0; i < points.length; i++) {
    rig.faults.arm(i, (point) => new KernelError("ENOMEM", "test", point));
    assert.throws(() => set.grow(200), KernelError);
    assert.equal(rig.faults.disarm(), true, "the armed step was reached");
    assert.deepEqual(rig.usage(), before);
    const claimable = { memory: rig.ram, claim: () => {} };
    assert.equal(readBlocks(claimable, set.headPa, ENTRY_BYTES, "set").length, 1);
  }
});

test("clear() forgets entries and keeps blocks; destroy() gives up all", () => {
  const { rig, set } = makeSet();
  const before = rig.usage();
  set.grow(60);
  rig.ram.store64(set.entryPa(59), 12345);
  set.publish(60);
  set.clear();
  assert.equal(set.blockCount, 2);
  assert.equal(rig.ram.load64(set.entryPa(59)), 0);
  assert.equal(rig.ram.load64(set.headPa + 8), 0);
  set.destroy();
  assert.equal(set.headPa, 0);
  assert.deepEqual(rig.usage(), before);
});
