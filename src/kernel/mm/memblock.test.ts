import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { isKernelError } from "../../base/errno.ts";
import { Memblock } from "./memblock.ts";

const MEMORY = [
  { start: 0x10000, lengthBytes: 0x10000, node: 1 },
  { start: 0, lengthBytes: 0x8000, node: 0 },
];

describe("Memblock", () => {
  it("alloc() takes the lowest range that fits, aligned, of the node asked for", () => {
    const memblock = new Memblock(MEMORY);
    memblock.reserve({ start: 0, lengthBytes: 0x1000 });
    assert.equal(memblock.alloc(0x1000, 0x2000), 0x2000);
    assert.equal(memblock.alloc(0x1000, 0x1000), 0x1000);
    assert.equal(memblock.alloc(0x1000, 0x1000, { node: 1 }), 0x10000);
    assert.equal(memblock.alloc(0x8000, 0x1000), 0x11000);
    assert.equal(memblock.freeBytes(), 0x5000 + 0x7000);
    assert.equal(memblock.freeBytes(1), 0x7000);
  });

  it("alloc() fails with ENOMEM when no range fits, below the limit, on that node", () => {
    const memblock = new Memblock(MEMORY);
    for (const options of [{ end: 0x10fff }, { node: 0 }, { node: 2 }])
      assert.throws(
        () => memblock.alloc(0x9000, 0x1000, options),
        (error) => isKernelError(error, "ENOMEM"),
      );
    assert.equal(memblock.freeBytes(), 0x18000);
  });

  it("reserve() splits, trims and removes ranges, and is idempotent", () => {
    const memblock = new Memblock(MEMORY);
    for (let i = 0; i < 2; i++) {
      memblock.reserve({ start: 0x2000, lengthBytes: 0x1000 });
      assert.equal(memblock.freeBytes(), 0x17000);
    }
    memblock.reserve({ start: 0x7000, lengthBytes: 0xa000 });
    assert.equal(memblock.freeBytes(0), 0x6000);
    assert.equal(memblock.freeBytes(1), 0xf000);
    memblock.reserve({ start: 0, lengthBytes: 0x20000 });
    assert.equal(memblock.freeBytes(), 0);
  });
});
