import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { BlockHeads } from "./block-heads.ts";

const PAGES = 100_000;

describe("BlockHeads", () => {
  it("behaves like an array of bytes with one block at a page", () => {
    const block = fc.record({ order: fc.nat({ max: 18 }), index: fc.nat() });
    fc.assert(
      fc.property(fc.array(block, { maxLength: 60 }), (blocks) => {
        const heads = new BlockHeads(PAGES);
        const model = new Map<number, { order: number; head: number }>();
        for (const { order, index } of blocks) {
          const page = (index % Math.ceil(PAGES / 2 ** order)) * 2 ** order;
          const there = model.get(page);
          if (there !== undefined) {
            heads.set(page, there.order, 0);
            model.delete(page);
          }
          assert.equal(heads.get(page), 0);
          heads.set(page, order, order + 1);
          model.set(page, { order, head: order + 1 });
          for (const [at, { head }] of model) assert.equal(heads.get(at), head);
          for (const near of [page + 1, page + 511, page + 512])
            if (near < PAGES) assert.equal(heads.get(near), model.get(near)?.head ?? 0);
        }
      }),
      { numRuns: 200 },
    );
  });

  it("a terabyte of large blocks costs a byte for each 2 MiB", () => {
    const pages = 2 ** 28;
    const before = process.memoryUsage().arrayBuffers;
    const heads = new BlockHeads(pages);
    for (let page = 0; page < pages; page += 2 ** 18) heads.set(page, 18, 19);
    const grown = process.memoryUsage().arrayBuffers - before;
    assert.ok(grown < 1024 * 1024, `${grown} bytes`);
    assert.equal(heads.get(pages - 2 ** 18), 19);
    assert.equal(heads.metadataBytes, pages + pages / 512);
  });
});
