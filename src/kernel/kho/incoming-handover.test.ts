import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { HandoverError } from "../../abi/handover-error.ts";
import { KHO_KEXEC_METADATA } from "../../abi/kexec-metadata.ts";
import { encodeKhoFdt, type KhoSubtree } from "../../abi/kho.ts";
import { ByteWords } from "../../abi/words.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { GIB, MIB, PAGE_SIZE } from "../../base/units.ts";
import type { KhoBootParameters } from "../../machine/machine.ts";
import { createSharedRam, ObservedRam, Ram } from "../../machine/physical-memory.ts";
import { BuddyAllocator } from "../mm/buddy-allocator.ts";
import { IncomingHandover } from "./incoming-handover.ts";
import { RadixTree } from "./radix-tree.ts";
import { Scratch } from "./scratch.ts";

const RAM_BYTES = 5 * GIB;
const FIRMWARE = { memory: [{ start: 0, lengthBytes: RAM_BYTES, node: 0 }], nodeCount: 1 };

/** A handover made by hand, so that it can be wrong in any way that a kernel of ours never is. */
function handMade(blocks: readonly (readonly [pa: number, order: number])[] = []) {
  const shared = createSharedRam(FIRMWARE.memory);
  const memory = new Ram(shared);
  const scratch = Scratch.reserve(FIRMWARE);
  const options = { memory, firmware: FIRMWARE, scratch: scratch.ranges };
  const mm = new BuddyAllocator({ ...options, faults: new FaultInjector() });
  const tree = new RadixTree(memory, mm);
  const own = () => {
    const pa = mm.alloc(0);
    tree.add(pa, 0);
    return pa;
  };
  const fdtPa = own();
  const metadataPa = own();
  scratch.write(memory);
  for (const [pa, order] of blocks) tree.add(pa, order);
  const metadata = (version: number, count = 3) => {
    const bytes = new Uint8Array(KHO_KEXEC_METADATA.sizeBytes);
    KHO_KEXEC_METADATA.write(new ByteWords(bytes), 0, {
      version,
      previous_release: "old",
      kexec_count: count,
    });
    memory.write(metadataPa, bytes);
  };
  metadata(1);
  const subtree = { name: "kexec-metadata", pa: metadataPa, sizeBytes: 73 };
  const writeFdt = (subtrees: readonly KhoSubtree[] = [subtree], memoryMapPa = tree.root) =>
    memory.write(fdtPa, encodeKhoFdt({ memoryMapPa, subtrees }));
  writeFdt();
  const parameters: KhoBootParameters = {
    fdtAddress: fdtPa,
    fdtSizeBytes: PAGE_SIZE,
    scratchAddress: scratch.arrayPa,
    scratchSizeBytes: scratch.arraySizeBytes,
  };
  /** Reads it on memory that refuses every store: whatever is wrong, nothing is changed. */
  const read = (change: Partial<KhoBootParameters> = {}) => {
    const frozen = new ObservedRam(shared, (pa) => assert.fail(`store to ${pa}`));
    return IncomingHandover.read(frozen, { ...parameters, ...change });
  };
  const refuses = (message: RegExp, change: Partial<KhoBootParameters> = {}) =>
    assert.throws(
      () => read(change),
      (error) => error instanceof HandoverError && message.test(error.message),
    );
  return {
    memory,
    mm,
    tree,
    scratch,
    fdtPa,
    metadataPa,
    subtree,
    metadata,
    writeFdt,
    read,
    refuses,
  };
}

function refusesClaim(action: () => void, message: RegExp): void {
  assert.throws(action, (error) => error instanceof HandoverError && message.test(error.message));
}

describe("IncomingHandover.read()", () => {
  it("reads scratch, subtrees, metadata and blocks, sorted by address", () => {
    const { read, scratch, fdtPa, metadataPa, subtree } = handMade([
      [3 * GIB, 18],
      [2 * GIB, 9],
      [2 * GIB - PAGE_SIZE, 0],
    ]);
    const incoming = read();
    assert.deepEqual(incoming.scratch.areas, scratch.areas);
    assert.deepEqual(incoming.subtrees, [subtree]);
    assert.deepEqual(incoming.metadata, { previousRelease: "old", kexecCount: 3 });
    assert.deepEqual(incoming.ownPages, [fdtPa, metadataPa]);
    const { blocks } = incoming;
    const list = Array.from({ length: blocks.count }, (_, i) => [blocks.pa(i), blocks.order(i)]);
    assert.deepEqual(
      list.filter(([pa]) => pa >= GIB),
      [
        [2 * GIB - PAGE_SIZE, 0],
        [2 * GIB, 9],
        [3 * GIB, 18],
      ],
    );
    assert.equal(blocks.count, 5);
    assert.equal(incoming.untakenPages(), 2 ** 18 + 2 ** 9 + 3);
    assert.equal(incoming.unclaimedPages(), 2 ** 18 + 2 ** 9 + 1);
  });

  it("takes a handover without metadata, as upstream does", () => {
    const { read, writeFdt } = handMade();
    writeFdt([]);
    assert.equal(read().metadata, null);
  });

  it("refuses boot parameters that are wrong", () => {
    const { refuses } = handMade();
    refuses(/kho_data.fdt_addr/, { fdtAddress: RAM_BYTES });
    refuses(/kho_data.fdt_addr/, { fdtAddress: 8 });
    refuses(/kho_data.fdt_size/, { fdtSizeBytes: 0 });
    refuses(/fdt_header.totalsize/, { fdtSizeBytes: 64 });
    refuses(/kho_data.scratch_addr/, { scratchAddress: RAM_BYTES });
    refuses(/kho_data.scratch_addr/, { scratchAddress: 1.5 });
    refuses(/kho_data.scratch_size/, { scratchSizeBytes: 8 });
    refuses(/kho_scratch/, { scratchAddress: 0 });
  });

  it("refuses an FDT whose own page is not preserved", () => {
    const { tree, fdtPa, refuses } = handMade();
    tree.delete(fdtPa, 0);
    refuses(/kho_data.fdt_addr: .* is not preserved/);
  });

  it("refuses metadata that is of another version, not preserved, or of a wrong size", () => {
    const other = handMade();
    other.metadata(2);
    other.refuses(/kho_kexec_metadata.version: 2/);
    const none = handMade();
    none.metadata(1, 0);
    none.refuses(/kho_kexec_metadata.kexec_count/);
    const lost = handMade();
    lost.tree.delete(lost.metadataPa, 0);
    lost.refuses(/fdt:\/kexec-metadata.preserved-data: .* is not preserved/);
    for (const sizeBytes of [72, 4097]) {
      const sized = handMade();
      sized.writeFdt([{ ...sized.subtree, sizeBytes }]);
      sized.refuses(/metadata/);
    }
  });

  it("refuses blocks that overlap", () => {
    for (const blocks of [
      [
        [2 * GIB, 9],
        [2 * GIB, 0],
      ],
      [
        [2 * GIB, 18],
        [3 * GIB - PAGE_SIZE, 0],
      ],
      [
        [2 * GIB + 2 * MIB, 3],
        [2 * GIB + 2 * MIB, 4],
      ],
    ] as const)
      handMade(blocks).refuses(/preserved-memory-map: block .* overlaps block/);
  });

  it("refuses blocks that overlap scratch", () => {
    const { scratch } = handMade();
    for (const [index, { addr, size }] of scratch.areas.entries())
      for (const pa of [addr, addr + size - PAGE_SIZE])
        handMade([[pa, 0]]).refuses(new RegExp(`block .* overlaps kho_scratch\\[${index}\\]`));
  });

  it("refuses blocks that overlap a node of the tree, and nodes in scratch", () => {
    const overlapping = handMade();
    overlapping.tree.add(overlapping.tree.root, 0);
    overlapping.refuses(/overlaps the tree's node/);

    const { memory, tree, scratch, writeFdt, refuses } = handMade();
    const inScratch = scratch.areas[1].addr;
    const root = new Uint8Array(PAGE_SIZE);
    memory.read(tree.root, root);
    memory.write(inScratch, root);
    writeFdt(undefined, inScratch);
    refuses(/the tree's node .* lies in scratch/);
  });

  it("refuses a block of an order that this kernel has no pages of", () => {
    handMade([[2 * GIB, 19]]).refuses(/order 19, above 18/);
  });

  it("refuses blocks that exceed all RAM before it has read them all", () => {
    // Five blocks are all of RAM already; the FDT's page is one more.
    handMade([0, 1, 2, 3, 4].map((i) => [i * GIB, 18])).refuses(/blocks exceed all RAM/);
  });
});

describe("IncomingHandover.isPreserved()", () => {
  it("agrees with a page by page model, across adjacent blocks", () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.nat(63), { maxLength: 40 }),
        fc.array(fc.tuple(fc.nat(70 * 4), fc.nat(40 * 4)), { minLength: 20, maxLength: 20 }),
        (pages, queries) => {
          const base = 2 * GIB;
          const incoming = handMade(pages.map((page) => [base + page * PAGE_SIZE, 0])).read();
          const model = new Set(pages);
          for (const [start, length] of queries) {
            const from = base + start * 1024;
            const lengthBytes = length * 1024 + 1;
            let expected = true;
            for (let at = from; at < from + lengthBytes; at += 1024)
              expected &&= model.has(Math.floor((at - base) / PAGE_SIZE));
            expected &&= model.has(Math.floor((from + lengthBytes - 1 - base) / PAGE_SIZE));
            assert.equal(incoming.isPreserved(from, lengthBytes), expected);
          }
        },
      ),
      { numRuns: 25 },
    );
  });

  it("is false for any number that is no address", () => {
    const incoming = handMade([[2 * GIB, 0]]).read();
    for (const pa of [-1, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60, RAM_BYTES])
      assert.equal(incoming.isPreserved(pa, 1), false);
    for (const length of [-1, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60])
      assert.equal(incoming.isPreserved(2 * GIB, length), false);
    assert.equal(incoming.isPreserved(2 * GIB, PAGE_SIZE), true);
  });
});

describe("IncomingHandover.claim()", () => {
  it("gives each block to one field", () => {
    const incoming = handMade([
      [2 * GIB, 9],
      [3 * GIB, 0],
    ]).read();
    assert.equal(incoming.preservedOrder(2 * GIB), 9);
    assert.equal(incoming.preservedOrder(2 * GIB + PAGE_SIZE), null);
    assert.equal(incoming.preservedOrder(Number.NaN), null);
    incoming.claim(2 * GIB, 9, "first");
    refusesClaim(() => incoming.claim(2 * GIB, 9, "second"), /second: .* claimed by first already/);
    incoming.claimRecord(3 * GIB + 64, 64, "third");
    assert.equal(incoming.unclaimedPages(), 0);
    assert.deepEqual([...incoming.claims()].slice(-2), [
      { lengthBytes: 2 * MIB, field: "first", isRecordPage: false },
      { lengthBytes: PAGE_SIZE, field: "third", isRecordPage: true },
    ]);
  });

  it("refuses what is unaligned, not RAM, not preserved, of another order or of none", () => {
    const incoming = handMade([[2 * GIB, 9]]).read();
    const claim = (pa: number, order: number) => () => incoming.claim(pa, order, "f");
    refusesClaim(claim(2 * GIB + 8, 0), /f: .* is not aligned/);
    refusesClaim(claim(2 * GIB + PAGE_SIZE, 9), /is not aligned/);
    refusesClaim(claim(-4096, 0), /is not aligned/);
    refusesClaim(claim(Number.NaN, 0), /is not aligned/);
    refusesClaim(claim(RAM_BYTES, 0), /is not in RAM/);
    refusesClaim(claim(2 ** 52, 0), /is not in RAM/);
    refusesClaim(claim(3 * GIB, 0), /is not preserved/);
    refusesClaim(claim(2 * GIB + PAGE_SIZE, 0), /is not preserved/);
    refusesClaim(claim(2 * GIB, 0), /with order 9, not 0/);
    for (const order of [-1, 19, 0.5, Number.NaN]) refusesClaim(claim(2 * GIB, order), /order/);
    refusesClaim(claim(incoming.ownPages[0], 0), /claimed by kho_data.fdt_addr/);
  });
});

describe("IncomingHandover.takeOver()", () => {
  it("takes each block once, with its order", () => {
    const incoming = handMade([[2 * GIB, 9]]).read();
    for (const [pa, order] of [
      [2 * GIB, 0],
      [2 * GIB + PAGE_SIZE, 0],
      [3 * GIB, 0],
      [Number.NaN, 0],
    ])
      assert.equal(incoming.takeOver(pa, order), false);
    assert.equal(incoming.takeOver(2 * GIB, 9), true);
    assert.equal(incoming.takeOver(2 * GIB, 9), false);
    assert.equal(incoming.untakenPages(), 2);
  });
});
