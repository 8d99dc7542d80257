import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BugError } from "../../base/assert.ts";
import type { MmioRegion } from "./hardware.ts";
import { MmioBus } from "./mmio-bus.ts";

function region(base: number, lengthBytes: number, log: string[]): MmioRegion {
  return {
    base,
    lengthBytes,
    read: (offset, size) => {
      log.push(`r${size} ${base.toString(16)}+${offset.toString(16)}`);
      return -2;
    },
    write: (offset, size, value) => {
      log.push(`w${size} ${base.toString(16)}+${offset.toString(16)} ${value.toString(16)}`);
    },
  };
}

describe("MmioBus", () => {
  it("routes each access to the region that it lies in, first and last byte included", () => {
    const log: string[] = [];
    const bus = new MmioBus([region(0x8000, 0x1000, log), region(0x1000, 0x1000, log)]);
    assert.equal(bus.read(0x1000, 4), 0xfffffffe);
    bus.read(0x1fff, 1);
    bus.write(0x8ffe, 2, 0x1_2345);
    assert.deepEqual(log, ["r4 1000+0", "r1 1000+fff", "w2 8000+ffe 2345"]);
  });

  it("reads all ones and ignores writes where nothing is", () => {
    const log: string[] = [];
    const bus = new MmioBus([region(0x1000, 0x1000, log)]);
    for (const pa of [0, 0xffc, 0x2000, 2 ** 40]) {
      assert.equal(bus.read(pa, 1), 0xff);
      assert.equal(bus.read(pa, 2), 0xffff);
      assert.equal(bus.read(pa, 4), 0xffffffff);
      bus.write(pa, 4, 1);
    }
    assert.deepEqual(log, []);
    assert.equal(new MmioBus([]).read(0, 4), 0xffffffff);
  });

  it("refuses unaligned accesses as the bug that they are", () => {
    const bus = new MmioBus([]);
    assert.throws(() => bus.read(2, 4), BugError);
    assert.throws(() => bus.write(1, 2, 0), BugError);
  });

  it("refuses regions that overlap", () => {
    assert.throws(
      () => new MmioBus([region(0x1000, 0x1001, []), region(0x2000, 0x1000, [])]),
      BugError,
    );
  });
});
