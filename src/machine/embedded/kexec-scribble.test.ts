import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { GIB, MIB, PAGE_SIZE } from "../../base/units.ts";
import type { MemoryRange } from "../machine.ts";
import { createSharedRam, Ram } from "../physical-memory.ts";
import { scribble, scribblePattern } from "./kexec-scribble.ts";

const PAGES = 3 * 512;
const RANGE = { start: GIB - 2 * MIB, lengthBytes: PAGES * PAGE_SIZE };

/** Pages to sorted ranges that do not touch. */
function toRanges(pages: ReadonlySet<number>): MemoryRange[] {
  const ranges: MemoryRange[] = [];
  for (let page = 0; page < PAGES; page++) {
    if (!pages.has(page)) continue;
    const first = page;
    while (pages.has(page + 1)) page++;
    const start = RANGE.start + first * PAGE_SIZE;
    ranges.push({ start, lengthBytes: (page + 1 - first) * PAGE_SIZE });
  }
  return ranges;
}

describe("scribble()", () => {
  it("overwrites every page that is not kept and no byte of one that is", () => {
    const run = fc.tuple(fc.nat({ max: PAGES - 1 }), fc.integer({ min: 1, max: 700 }));
    fc.assert(
      fc.property(fc.array(run, { maxLength: 8 }), fc.nat(), (runs, seed) => {
        const ram = new Ram(createSharedRam([RANGE]));
        ram.fill(RANGE.start, RANGE.lengthBytes, 0x5a);
        const kept = new Set<number>();
        for (const [first, count] of runs)
          for (let page = first; page < Math.min(PAGES, first + count); page++) kept.add(page);
        const overwritten = scribble(ram, [RANGE], toRanges(kept), scribblePattern(seed));
        assert.equal(overwritten, (PAGES - kept.size) * PAGE_SIZE);
        const words = new Uint32Array(PAGE_SIZE / 4);
        for (let page = 0; page < PAGES; page++) {
          ram.read(RANGE.start + page * PAGE_SIZE, new Uint8Array(words.buffer));
          let unchanged = 0;
          for (let i = 0; i < words.length; i++) if (words[i] === 0x5a5a5a5a) unchanged++;
          assert.equal(unchanged, kept.has(page) ? words.length : 0, `page ${page}`);
        }
      }),
      { numRuns: 40 },
    );
  });

  it("leaves alone what lies outside the ranges, and what was never stored to", () => {
    const ram = new Ram(createSharedRam([{ start: 0, lengthBytes: 16 * MIB }]));
    ram.fill(0, 2 * MIB, 1);
    ram.store8(9 * MIB, 1);
    const ranges = [{ start: MIB, lengthBytes: 15 * MIB }];
    assert.equal(scribble(ram, ranges, [], scribblePattern(1)), 3 * MIB);
    assert.equal(ram.load8(MIB - 1), 1);
    assert.notEqual(ram.load32(MIB), 0x01010101);
    assert.notEqual(ram.load32(8 * MIB), 0);
    assert.equal(ram.isTouched(4 * MIB), false);
    assert.equal(ram.load32(4 * MIB), 0);
  });

  it("writes other bytes for another seed, and lets devices run after each piece", () => {
    const bytes = (seed: number) => {
      const ram = new Ram(createSharedRam([RANGE]));
      ram.fill(RANGE.start, RANGE.lengthBytes, 1);
      let pieces = 0;
      scribble(ram, [RANGE], [], scribblePattern(seed), () => pieces++);
      assert.equal(pieces, 3);
      return ram.load32(RANGE.start);
    };
    assert.equal(bytes(1), bytes(1));
    assert.notEqual(bytes(1), bytes(2));
  });

  it("goes over kept memory in one step, whatever of it was stored to", () => {
    const ram = new Ram(createSharedRam([{ start: 0, lengthBytes: 16 * GIB }]));
    for (let at = 0; at < 16 * GIB; at += GIB) ram.view(at, GIB);
    const keep = [{ start: PAGE_SIZE, lengthBytes: 16 * GIB - 2 * PAGE_SIZE }];
    let pieces = 0;
    const range = { start: 0, lengthBytes: 16 * GIB };
    assert.equal(
      scribble(ram, [range], keep, scribblePattern(1), () => pieces++),
      2 * PAGE_SIZE,
    );
    assert.equal(pieces, 2);
    assert.equal(ram.load32(GIB), 0);
    assert.notEqual(ram.load32(16 * GIB - 4), 0);
  });

  it("goes at memory bandwidth over touched memory (figure only)", (t) => {
    const ram = new Ram(createSharedRam([{ start: 0, lengthBytes: 512 * GIB }]));
    ram.fill(0, 64 * MIB, 1);
    const pattern = scribblePattern(1);
    const start = process.hrtime.bigint();
    scribble(ram, [{ start: 0, lengthBytes: 512 * GIB }], [], pattern);
    t.diagnostic(`64 MiB touched of 512 GiB: ${Number(process.hrtime.bigint() - start) / 1e6} ms`);
    assert.equal(ram.isTouched(64 * MIB), false);
  });
});
