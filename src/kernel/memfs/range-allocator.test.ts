import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { BugError } from "../../base/assert.ts";
import { MIB, orderBytes } from "../../base/units.ts";
import { RangeAllocator } from "./range-allocator.ts";

const START = 6 * MIB;
const END = 20 * MIB;

test("blocks are aligned, inside the range and never given out twice; all of it comes back", () => {
  const step = fc.record({ order: fc.constantFrom(0, 0, 9), free: fc.boolean(), pick: fc.nat() });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const allocator = new RangeAllocator(START, END, []);
      const held: { pa: number; order: number }[] = [];
      for (const { order, free, pick } of steps) {
        if (free && held.length > 0) {
          const [block] = held.splice(pick % held.length, 1);
          allocator.free(block.pa, block.order);
        } else {
          const pa = allocator.alloc(order);
          if (pa === null) continue;
          assert.equal(pa % orderBytes(order), 0);
          assert.ok(pa >= START && pa + orderBytes(order) <= END);
          for (const other of held)
            assert.ok(
              pa >= other.pa + orderBytes(other.order) || pa + orderBytes(order) <= other.pa,
            );
          held.push({ pa, order });
        }
        const used = held.reduce((sum, block) => sum + orderBytes(block.order), 0);
        assert.equal(allocator.freeBytes, END - START - used);
      }
      // Filled anew from what is in use, it gives out the same memory.
      const used = held
        .map(({ pa, order }) => ({ pa, lengthBytes: orderBytes(order) }))
        .sort((a, b) => a.pa - b.pa);
      const again = new RangeAllocator(START, END, used);
      assert.equal(again.freeBytes, allocator.freeBytes);
      assert.equal(again.alloc(9), allocator.alloc(9));
      for (const { pa, order } of held) again.free(pa, order);
    }),
  );
});

test("huge blocks are found as long as single pages come from the top", () => {
  const allocator = new RangeAllocator(START, END, []);
  for (let i = 0; i < 512; i++) assert.equal(allocator.alloc(0), END - 2 * MIB + i * orderBytes(0));
  for (let i = 0; i < 6; i++) assert.equal(allocator.alloc(9), START + i * 2 * MIB);
  assert.equal(allocator.alloc(0), null);
  assert.equal(allocator.alloc(9), null);
});

test("free() of a free block is a bug", () => {
  const allocator = new RangeAllocator(START, END, []);
  const pa = allocator.alloc(9) ?? 0;
  allocator.free(pa, 9);
  assert.throws(() => allocator.free(pa, 9), BugError);
  assert.throws(() => allocator.free(pa + 1, 0), BugError);
});
