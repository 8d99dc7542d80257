import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { HandoverError } from "./handover-error.ts";
import {
  blockCapacity,
  blockEntries,
  KHO_BLOCK_HEADER_SER,
  KHO_MAX_BLOCKS,
  readBlocks,
} from "./kho-block.ts";
import { ByteRam } from "./ram-words.ts";

const PAGES = 64;

/** RAM in which every page from 1 on is preserved; a chain of three blocks at pages 3, 1, 2. */
function chain() {
  const memory = new ByteRam(new Uint8Array(PAGES * 4096));
  const claimed = new Map<number, string>();
  KHO_BLOCK_HEADER_SER.write(memory, 0x3000, { next: 0x1000, count: 51 });
  KHO_BLOCK_HEADER_SER.write(memory, 0x1000, { next: 0x2000, count: 51 });
  KHO_BLOCK_HEADER_SER.write(memory, 0x2000, { next: 0, count: 1 });
  const incoming = {
    memory,
    claim(pa: number, order: number, field: string): void {
      const isPreserved = pa >= 4096 && pa % 4096 === 0 && memory.contains(pa, 4096);
      if (!isPreserved || order !== 0) throw new HandoverError(field, "is not preserved");
      if (claimed.has(pa)) throw new HandoverError(field, `is claimed by ${claimed.get(pa)}`);
      claimed.set(pa, field);
    },
  };
  return { memory, incoming, claimed };
}

function refuses(action: () => unknown, field: string): void {
  assert.throws(action, (error) => error instanceof HandoverError && error.field === field);
}

describe("readBlocks()", () => {
  it("reads a chain in its order and claims each block once", () => {
    const { incoming, claimed } = chain();
    const blocks = readBlocks(incoming, 0x3000, 80, "luo_ser.sessions_pa");
    assert.deepEqual(blocks, [
      { pa: 0x3000, count: 51 },
      { pa: 0x1000, count: 51 },
      { pa: 0x2000, count: 1 },
    ]);
    assert.deepEqual([...claimed.keys()], [0x3000, 0x1000, 0x2000]);
    const entries = [...blockEntries(blocks, 80)];
    assert.equal(entries.length, 103);
    assert.deepEqual([entries[0], entries[51], entries[102]], [0x3010, 0x1010, 0x2010]);
  });

  it("reads an empty chain", () => {
    assert.deepEqual(readBlocks(chain().incoming, 0, 80, "x"), []);
  });

  it("refuses each field of each header when it is wrong", () => {
    for (const [index, pa] of [0x3000, 0x1000, 0x2000].entries()) {
      const bad = { next: [0x4008, PAGES * 4096, 2 ** 52], count: [0, 52, 2 ** 40] };
      for (const name of Object.keys(KHO_BLOCK_HEADER_SER.fields) as ("next" | "count")[])
        for (const value of bad[name]) {
          const { memory, incoming } = chain();
          memory.store64(pa + KHO_BLOCK_HEADER_SER.offset[name], value);
          refuses(
            () => readBlocks(incoming, 0x3000, 80, "x"),
            `x: kho_block_header_ser[${index}].${name}`,
          );
        }
    }
  });

  it("refuses a cyclic chain", () => {
    for (const next of [0x3000, 0x1000, 0x2000]) {
      const { memory, incoming } = chain();
      memory.store64(0x2000, next);
      assert.throws(
        () => readBlocks(incoming, 0x3000, 80, "x"),
        /x: kho_block_header_ser\[2\].next.*cyclic/,
      );
    }
  });

  it("refuses a chain of more than 10,000 blocks", () => {
    const { memory } = chain();
    const endless = {
      claim: () => {},
      // Every page looks like a block whose next one follows it.
      memory: new Proxy(memory, {
        get: (target, name) =>
          name === "load64"
            ? (at: number) => (at % 4096 === 0 ? at + 4096 : 1)
            : Reflect.get(target, name),
      }),
    };
    refuses(
      () => readBlocks(endless, 4096, 80, "x"),
      `x: kho_block_header_ser[${KHO_MAX_BLOCKS - 1}].next`,
    );
  });

  it("refuses a head that is not preserved", () => {
    refuses(
      () => readBlocks(chain().incoming, 0x3010, 80, "luo_ser.sessions_pa"),
      "luo_ser.sessions_pa",
    );
  });
});

describe("blockCapacity()", () => {
  it("is upstream's for sessions and files", () => {
    assert.equal(blockCapacity(80), 51);
    assert.equal(blockCapacity(64), 63);
  });
});
