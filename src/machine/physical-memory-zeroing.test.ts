import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { GIB, MIB, PAGE_SIZE } from "../base/units.ts";
import { createSharedRam, ObservedRam, Ram } from "./physical-memory.ts";

describe("Ram.fill() with 0", () => {
  it("zeroes what was stored to, to the byte, across 2 MiB and 1 GiB boundaries", () => {
    const ram = new Ram(createSharedRam([{ start: 0, lengthBytes: 2 * GIB }]));
    const start = GIB - 3 * MIB + 5;
    const length = 6 * MIB + 11;
    ram.fill(start - 100, length + 200, 0x77);
    ram.fill(start, length, 0);
    assert.equal(ram.load8(start - 1), 0x77);
    assert.equal(ram.load8(start + length), 0x77);
    const bytes = new Uint8Array(length);
    ram.read(start, bytes);
    assert.ok(bytes.every((byte) => byte === 0));
  });

  it("neither touches nor backs memory that nothing was stored to", () => {
    const ram = new Ram(createSharedRam([{ start: 0, lengthBytes: 8 * GIB }]));
    ram.store8(3 * GIB + 5, 1);
    const before = process.memoryUsage().rss;
    ram.fill(0, 8 * GIB, 0);
    assert.ok(process.memoryUsage().rss - before < 64 * MIB);
    assert.equal(ram.load8(3 * GIB + 5), 0);
    assert.ok(!ram.isTouched(GIB) && ram.isTouched(3 * GIB));
  });

  it("is refused outside RAM as any fill is", () => {
    const ram = new Ram(createSharedRam([{ start: 0, lengthBytes: MIB }]));
    for (const value of [0, 1]) assert.throws(() => ram.fill(0, MIB + 1, value), /outside RAM/);
  });
});

describe("ObservedRam.fill() with 0", () => {
  it("tells of the pages that it stores to, and of no others", () => {
    const told: number[] = [];
    const shared = createSharedRam([{ start: 0, lengthBytes: 16 * MIB }]);
    const ram = new ObservedRam(shared, (pa) => told.push(pa));
    new Ram(shared).fill(5 * MIB, PAGE_SIZE, 9);
    ram.fill(MIB, 8 * MIB, 0);
    assert.equal(told.length, (2 * MIB) / PAGE_SIZE);
    assert.equal(told[0], 4 * MIB);
    assert.equal(ram.load8(5 * MIB), 0);
  });
});
