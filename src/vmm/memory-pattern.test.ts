import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { PAGE_SIZE } from "../base/units.ts";
import { MemoryPattern } from "./memory-pattern.ts";

function page(pattern: MemoryPattern, number: number, round: number): Uint8Array {
  // Not zero, so that a byte that is left alone shows.
  const bytes = new Uint8Array(PAGE_SIZE).fill(0xaa);
  pattern.fill(bytes, number, round);
  return bytes;
}

const equalBytes = (a: Uint8Array, b: Uint8Array) =>
  a.reduce((equal, byte, i) => equal + (byte === b[i] ? 1 : 0), 0);

test("roundOf() counts what pageOfWrite() has gone to", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 40 }), fc.nat(200), (pages, count) => {
      const pattern = new MemoryPattern(1, pages);
      const rounds = new Array<number>(pages).fill(0);
      for (let write = 0; write < count; write++) rounds[pattern.pageOfWrite(write)]++;
      assert.deepEqual(
        rounds.map((_, number) => pattern.roundOf(number, count)),
        rounds,
      );
    }),
  );
});

test("fill() gives the same bytes to who has the same numbers", () => {
  const [one, again] = [new MemoryPattern(7, 100), new MemoryPattern(7, 100)];
  for (const number of [0, 1, 60, 61, 99])
    for (const round of [0, 1, 61, 2 ** 32, 2 ** 40])
      assert.deepEqual(page(one, number, round), page(again, number, round));
});

test("fill() tells seed, page and round apart, neighbours in nearly every byte", () => {
  const pattern = new MemoryPattern(7, 2 ** 40);
  for (const [number, round] of [
    [0, 0],
    [5, 3],
    [2 ** 33 + 1, 2 ** 35],
  ]) {
    const bytes = page(pattern, number, round);
    const neighbours = [
      page(pattern, number + 1, round),
      page(pattern, number + 512, round),
      page(pattern, number, round + 1),
      page(new MemoryPattern(8, 2 ** 40), number, round),
    ];
    // One byte in 256 is the same by chance.
    for (const other of neighbours) assert.ok(equalBytes(bytes, other) < PAGE_SIZE / 64);
    // The templates come round, and the high halves of numbers count.
    for (const [far, later] of [
      [number + 61, round],
      [number, round + 61],
      [number + 61 * 2 ** 32, round],
      [number, round + 61 * 2 ** 32],
    ])
      assert.notDeepEqual(page(pattern, far, later), bytes, `page ${far} round ${later}`);
  }
});
