import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { HandoverError } from "./handover-error.ts";
import {
  KHO_VMALLOC,
  type KhoVmalloc,
  readVmalloc,
  VmallocReader,
  VmallocWords,
  vmallocChunkCount,
  writeVmalloc,
} from "./kho-vmalloc.ts";
import { ByteRam } from "./ram-words.ts";

const RAM_PAGES = 2048;

/** An array of `count` blocks, the blocks in falling order of address, chunks at pages 1 on. */
function make(count: number, order = 0) {
  const memory = new ByteRam(new Uint8Array(RAM_PAGES * 4096));
  const chunks = Array.from({ length: vmallocChunkCount(count) }, (_, i) => (i + 1) * 4096);
  const size = 4096 * 2 ** order;
  const pages = Array.from({ length: count }, (_, i) => RAM_PAGES * 4096 - (i + 1) * size);
  const descriptor = writeVmalloc(memory, chunks, pages, order);
  const claimed = new Set<number>();
  const incoming = {
    memory,
    claim(pa: number, claimOrder: number, field: string): void {
      const isRight = chunks.includes(pa) ? claimOrder === 0 : claimOrder === order;
      const isPreserved = isRight && pa > 0 && pa % 4096 === 0 && memory.contains(pa, 4096);
      if (!isPreserved) throw new HandoverError(field, "is not preserved");
      if (claimed.has(pa)) throw new HandoverError(field, "is claimed already");
      claimed.add(pa);
    },
  };
  const read = (change: Partial<KhoVmalloc> = {}, bytes = count * size) =>
    readVmalloc(incoming, { ...descriptor, ...change }, bytes, "folios");
  return { memory, chunks, pages, descriptor, claimed, read };
}

function refuses(action: () => unknown, field: string): void {
  assert.throws(action, (error) => error instanceof HandoverError && error.field === field);
}

describe("readVmalloc()", () => {
  for (const [count, order] of [
    [1, 0],
    [510, 0],
    [511, 0],
    [512, 0],
    [1100, 0],
    [3, 2],
  ])
    it(`reads what writeVmalloc() wrote: ${count} blocks of order ${order}`, () => {
      const { chunks, pages, claimed, read } = make(count, order);
      assert.deepEqual(read(), { chunks, pages, order });
      assert.equal(claimed.size, count + chunks.length);
    });

  it("has the layout of upstream's structures", () => {
    assert.equal(KHO_VMALLOC.sizeBytes, 16);
    assert.deepEqual(KHO_VMALLOC.offset, { first: 0, total_pages: 8, flags: 12, order: 14 });
    // As upstream, a chunk that is full is followed by one more.
    assert.deepEqual([1, 510, 511, 1022].map(vmallocChunkCount), [1, 1, 2, 3]);
    const { memory, pages, descriptor } = make(3, 2);
    assert.equal(memory.load64(4096 + 8), pages[0]);
    assert.deepEqual(descriptor, { first: 4096, total_pages: 12, flags: 3, order: 2 });
  });

  it("refuses each field of the descriptor when it is wrong", () => {
    const bad: Record<keyof KhoVmalloc, number[]> = {
      first: [0, 8, 0x3000 - 1, RAM_PAGES * 4096],
      total_pages: [0, 599, 601, 0xffffffff],
      flags: [4, 0x8000, 0xffff],
      order: [1, 19, 0xffff],
    };
    for (const name of Object.keys(KHO_VMALLOC.fields) as (keyof KhoVmalloc)[])
      for (const value of bad[name]) {
        // 600 pages are 300 blocks of order 1, but none of them was preserved so.
        const isPlausible = name === "order" && value === 1;
        const field = isPlausible ? "folios: kho_vmalloc_chunk[0].phys[0]" : `folios.${name}`;
        refuses(() => make(600).read({ [name]: value }), field);
      }
  });

  it("refuses an array that is shorter or longer than its user says", () => {
    refuses(() => make(2).read({}, 4096), "folios.total_pages");
    refuses(() => make(2).read({}, 3 * 4096), "folios.total_pages");
    assert.equal(make(2).read({}, 4097).pages.length, 2);
  });

  it("refuses chunks that name too few or too many pages", () => {
    const short = make(600);
    short.memory.store64(2 * 4096 + 8, 0);
    refuses(() => short.read(), "folios.total_pages");
    const long = make(600);
    long.memory.store64(2 * 4096 + 8 + 8 * 89, 0x100000);
    refuses(() => long.read(), "folios: kho_vmalloc_chunk[1].phys[89]");
  });

  it("refuses a page that is not preserved or named twice", () => {
    for (const value of [4096 * 1500 + 8, RAM_PAGES * 4096, 2 ** 52, (RAM_PAGES - 1) * 4096]) {
      const { memory, read } = make(600);
      memory.store64(4096 + 8 + 8 * 7, value);
      refuses(() => read(), "folios: kho_vmalloc_chunk[0].phys[7]");
    }
  });

  it("refuses a chunk list that is cyclic or goes on", () => {
    const cyclic = make(600);
    cyclic.memory.store64(2 * 4096, 4096);
    refuses(() => cyclic.read(), "folios: kho_vmalloc_chunk[1].hdr.next");
    const wild = make(600);
    wild.memory.store64(4096, 4096 * 3 + 16);
    refuses(() => wild.read(), "folios: kho_vmalloc_chunk[0].hdr.next");
  });
});

describe("VmallocWords", () => {
  it("reads and writes at offsets across scattered pages", () => {
    const { memory, pages, descriptor } = make(3);
    const words = new VmallocWords(memory, pages, descriptor.order);
    words.store64(4096, 0x12345678);
    words.store32(4092, 0xabcdef01);
    words.store16(8192, 0x1234);
    words.store8(8194, 0x56);
    words.storeBig64(8200, 2n ** 63n);
    assert.equal(memory.load64(pages[1]), 0x12345678);
    assert.equal(memory.load32(pages[0] + 4092), 0xabcdef01);
    const reader = new VmallocReader(memory, pages, descriptor.order);
    assert.equal(reader.load64(4096), 0x12345678);
    assert.equal(reader.load32(4092), 0xabcdef01);
    assert.equal(reader.load16(8192), 0x1234);
    assert.equal(reader.load8(8194), 0x56);
    assert.equal(reader.loadBig64(8200), 2n ** 63n);
    assert.throws(() => reader.load8(3 * 4096), /lies in the array/);
  });
});
