import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { MergedRanges } from "./merged-ranges.ts";

describe("MergedRanges", () => {
  it("contains what lies in the union of its ranges, as a set of single addresses does", () => {
    const range = fc.record({ start: fc.nat(60), lengthBytes: fc.nat(12) });
    fc.assert(
      fc.property(fc.array(range, { maxLength: 8 }), (ranges) => {
        const merged = new MergedRanges(ranges);
        const all = new Set<number>();
        for (const { start, lengthBytes } of ranges)
          for (let i = 0; i < lengthBytes; i++) all.add(start + i);
        for (let start = 0; start < 75; start++)
          for (let lengthBytes = 1; lengthBytes < 20; lengthBytes++) {
            let isIn = true;
            for (let i = 0; i < lengthBytes; i++) isIn &&= all.has(start + i);
            assert.equal(merged.contains(start, lengthBytes), isIn, `${start}+${lengthBytes}`);
          }
      }),
      { numRuns: 100 },
    );
  });
});
