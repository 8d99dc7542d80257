import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type AddressRequest, AddressSpace, pack, placeAll } from "./address-space.ts";

const requestSizes = fc.array(
  fc.record({ lg2: fc.integer({ min: 4, max: 24 }), extra: fc.integer({ min: 1, max: 3 }) }),
  { maxLength: 12 },
);

/** Requests whose places are recorded in `placed`. */
function requestsOf(
  sizes: readonly { lg2: number; extra: number }[],
  placed: Map<string, { start: number; end: number; align: number }>,
): AddressRequest[] {
  return sizes.map(({ lg2, extra }, i) => ({
    name: `r${i}`,
    sizeBytes: extra * 2 ** lg2,
    alignBytes: 2 ** lg2,
    place(address) {
      assert.ok(!placed.has(`r${i}`), "placed once");
      placed.set(`r${i}`, { start: address, end: address + extra * 2 ** lg2, align: 2 ** lg2 });
    },
  }));
}

function checkPlaces(places: Iterable<{ start: number; end: number; align: number }>): void {
  const sorted = [...places].sort((a, b) => a.start - b.start);
  for (const [i, place] of sorted.entries()) {
    assert.equal(place.start % place.align, 0);
    if (i > 0) assert.ok(sorted[i - 1].end <= place.start);
  }
}

test("pack() places everything aligned, apart, and within what it asks for", () => {
  fc.assert(
    fc.property(requestSizes, fc.integer({ min: 1, max: 100 }), (sizes, base) => {
      const placed = new Map<string, { start: number; end: number; align: number }>();
      const whole = pack(requestsOf(sizes, placed));
      if (sizes.length === 0) return assert.equal(whole, null);
      assert.ok(whole !== null);
      const start = base * whole.alignBytes;
      whole.place(start);
      assert.equal(placed.size, sizes.length);
      checkPlaces(placed.values());
      for (const { start: s, end } of placed.values())
        assert.ok(s >= start && end <= start + whole.sizeBytes);
    }),
  );
});

test("placeAll() places each in a free place or gives it back", () => {
  fc.assert(
    fc.property(requestSizes, fc.nat(2 ** 26), (sizes, lengthBytes) => {
      const placed = new Map<string, { start: number; end: number; align: number }>();
      const windows = [
        { start: 0x10000000, lengthBytes },
        { start: 0x40000000, lengthBytes: 2 ** 20 },
      ];
      const rest = placeAll(
        requestsOf(sizes, placed),
        windows.map((w) => new AddressSpace([w])),
      );
      assert.equal(rest.length + placed.size, sizes.length);
      checkPlaces(placed.values());
      for (const { start, end } of placed.values())
        assert.ok(windows.some((w) => start >= w.start && end <= w.start + w.lengthBytes));
    }),
  );
});

test("take() makes addresses unavailable, and alloc() finds the lowest that are left", () => {
  const space = new AddressSpace([{ start: 0x1000, lengthBytes: 0x4000 }]);
  space.take(0x2000, 0x1000);
  assert.ok(space.isFree(0x1000, 0x1000));
  assert.ok(!space.isFree(0x1800, 0x1000));
  assert.ok(space.isFree(0x3000, 0x2000));
  assert.equal(space.alloc(0x2000, 0x1000), 0x3000);
  assert.equal(space.alloc(0x1000, 0x1000), 0x1000);
  assert.equal(space.alloc(1, 1), null);
});
