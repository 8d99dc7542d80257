import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { BugError } from "../../base/assert.ts";
import { PAGE_SIZE } from "../../base/units.ts";
import { FolioMap } from "./folio-map.ts";

test("a folio of any order is found at each of its pages, and gone when removed", () => {
  for (const [order, index] of [
    [0, 0],
    [0, 513],
    [3, 8],
    [8, 256],
    [9, 512],
    [10, 1024],
    [18, 2 ** 18],
  ] as const) {
    const map = new FolioMap();
    const pa = 2 ** 45 + index * PAGE_SIZE;
    map.insert(index, pa, order);
    assert.equal(map.pageCount, 2 ** order);
    for (const offset of [0, 2 ** order - 1, (2 ** order) >> 1]) {
      assert.equal(map.addressAt(index + offset), pa + offset * PAGE_SIZE);
      assert.equal(map.orderAt(index + offset), order);
    }
    assert.equal(map.addressAt(index + 2 ** order), -1);
    assert.equal(map.orderAt(index + 2 ** order), -1);
    if (order > 0) assert.throws(() => map.remove(index + 1), BugError);
    map.remove(index);
    assert.equal(map.pageCount, 0);
    assert.equal(map.addressAt(index), -1);
    assert.equal(map.isRegionEmpty(index), true);
  }
});

test("insert() refuses to cover a folio, or to be unaligned", () => {
  const map = new FolioMap();
  map.insert(3, PAGE_SIZE, 0);
  assert.throws(() => map.insert(3, 2 * PAGE_SIZE, 0), BugError);
  assert.throws(() => map.insert(0, 2 * PAGE_SIZE, 2), BugError);
  assert.throws(() => map.insert(0, 2 * PAGE_SIZE, 9), BugError);
  assert.throws(() => map.insert(2, 2 * PAGE_SIZE, 2), BugError);
});

test("forEach() costs what is backed, not what the range spans", () => {
  const map = new FolioMap();
  for (const index of [2 ** 38, 5, 2 ** 30]) map.insert(index, index * PAGE_SIZE, 0);
  const seen: number[] = [];
  map.forEach(0, 2 ** 40, (index) => seen.push(index));
  assert.deepEqual(seen, [5, 2 ** 30, 2 ** 38]);
});

test("behaves as an array of pages: random inserts, removals and walks", () => {
  const ORDERS = [0, 1, 4, 9, 10];
  const PAGES = 4096;
  const step = fc.record({
    order: fc.constantFrom(...ORDERS),
    at: fc.integer({ min: 0, max: PAGES - 1 }),
    end: fc.integer({ min: 0, max: PAGES }),
    remove: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const map = new FolioMap();
      /** Head page and order of the folio at each page. */
      const model: ({ head: number; order: number; pa: number } | undefined)[] = Array(PAGES);
      let nextPa = PAGE_SIZE;
      for (const { order, at, end, remove } of steps) {
        const there = model[at];
        if (remove && there !== undefined) {
          map.remove(there.head);
          model.fill(undefined, there.head, there.head + 2 ** there.order);
        } else if (!remove) {
          const head = at - (at % 2 ** order);
          if (model.slice(head, head + 2 ** order).every((one) => one === undefined)) {
            const folio = { head, order, pa: nextPa };
            nextPa += 2 ** 40;
            map.insert(head, folio.pa, order);
            model.fill(folio, head, head + 2 ** order);
          }
        }
        const seen: unknown[] = [];
        map.forEach(at, end, (head, pa, folioOrder) => seen.push([head, pa, folioOrder]));
        const expected = [...new Set(model.slice(at, Math.max(at, end)))]
          .filter((one) => one !== undefined)
          .map((one) => [one.head, one.pa, one.order]);
        assert.deepEqual(seen, expected);
        const folio = model[at];
        const pa = folio === undefined ? -1 : folio.pa + (at - folio.head) * PAGE_SIZE;
        assert.equal(map.addressAt(at), pa);
      }
      assert.equal(map.pageCount, model.filter((one) => one !== undefined).length);
    }),
    { numRuns: 60 },
  );
});
