import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { BugError } from "../../base/assert.ts";
import { FreeBitmap } from "./free-bitmap.ts";

describe("FreeBitmap", () => {
  it("behaves like a set that knows its smallest member", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 70_000 }),
        fc.array(fc.nat(), { maxLength: 200 }),
        (blockCount, picks) => {
          const bitmap = new FreeBitmap(blockCount);
          const model = new Set<number>();
          for (const pick of picks) {
            // Picks cluster at word and level boundaries, where an error would sit.
            const block = Math.min(
              blockCount - 1,
              pick % 3 === 0 ? pick % 40 : (pick * 31) % 65_600,
            );
            if (model.delete(block)) bitmap.delete(block);
            else {
              model.add(block);
              bitmap.add(block);
            }
            assert.equal(bitmap.size, model.size);
            assert.equal(bitmap.first(), model.size === 0 ? -1 : Math.min(...model));
            assert.equal(bitmap.has(block), model.has(block));
          }
        },
      ),
      { numRuns: 200 },
    );
  });

  it("add() of a member and delete() of another block are bugs", () => {
    const bitmap = new FreeBitmap(100);
    bitmap.add(99);
    assert.throws(() => bitmap.add(99), BugError);
    assert.throws(() => bitmap.delete(98), BugError);
  });
});
