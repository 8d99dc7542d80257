import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { HandoverError } from "../../abi/handover-error.ts";
import { BugError } from "../../base/assert.ts";
import { isKernelError } from "../../base/errno.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { GIB, MIB, orderBytes, PAGE_SIZE, TIB } from "../../base/units.ts";
import type { FirmwareMemory } from "../../machine/machine.ts";
import { createSharedRam, Ram } from "../../machine/physical-memory.ts";
import { BuddyAllocator, type BuddyAllocatorOptions } from "./buddy-allocator.ts";

type Change = Partial<Omit<BuddyAllocatorOptions, "memory" | "firmware">>;

function make(memory: readonly FirmwareMemory[], change: Change = {}) {
  const ram = new Ram(createSharedRam(memory));
  const nodeCount = Math.max(...memory.map((range) => range.node)) + 1;
  const faults = new FaultInjector();
  return new BuddyAllocator({ memory: ram, firmware: { memory, nodeCount }, faults, ...change });
}

function blockList(blocks: readonly (readonly [pa: number, order: number])[]) {
  return {
    count: blocks.length,
    pa: (i: number) => blocks[i][0],
    order: (i: number) => blocks[i][1],
  };
}

const TWO_NODES: readonly FirmwareMemory[] = [
  { start: 0, lengthBytes: 6 * MIB, node: 0 },
  { start: 16 * MIB, lengthBytes: 8 * MIB, node: 1 },
];

/** Pages of the machine, each owned by one block, free, or not the allocator's. */
class PageModel {
  /** Zone of each page that the allocator manages, -1 for others. */
  readonly zoneOf: number[] = [];
  readonly nodeOfZone: number[] = [];
  readonly owner = new Map<number, number>();

  addZone(start: number, end: number, node: number): void {
    const zone = this.nodeOfZone.push(node) - 1;
    for (let page = start / PAGE_SIZE; page < end / PAGE_SIZE; page++) this.zoneOf[page] = zone;
  }

  isFreeBlock(page: number, order: number): boolean {
    for (let p = page; p < page + 2 ** order; p++)
      if (this.zoneOf[p] === undefined || this.zoneOf[p] !== this.zoneOf[page] || this.owner.has(p))
        return false;
    return true;
  }

  /** Whether some aligned block of that order is all free: then alloc must not fail. */
  hasFreeBlock(order: number, node: number | null): boolean {
    for (let page = 0; page < this.zoneOf.length; page += 2 ** order) {
      const zone = this.zoneOf[page];
      if (zone === undefined || (node !== null && this.nodeOfZone[zone] !== node)) continue;
      if (this.isFreeBlock(page, order)) return true;
    }
    return false;
  }

  take(pa: number, order: number): void {
    const page = pa / PAGE_SIZE;
    assert.ok(page % 2 ** order === 0, "aligned");
    assert.ok(this.isFreeBlock(page, order), "was free, in one zone");
    for (let p = page; p < page + 2 ** order; p++) this.owner.set(p, pa);
  }

  give(pa: number, order: number): void {
    for (let p = pa / PAGE_SIZE; p < pa / PAGE_SIZE + 2 ** order; p++) this.owner.delete(p);
  }
}

describe("BuddyAllocator", () => {
  it("agrees with a naive model: no overlap, alignment, full merging, counts", () => {
    const step = fc.oneof(
      fc.record({
        order: fc.oneof(fc.nat(3), fc.nat(11)),
        node: fc.nat(1),
        thisNode: fc.boolean(),
      }),
      fc.record({ freeIndex: fc.nat() }),
    );
    fc.assert(
      fc.property(fc.array(step, { minLength: 10, maxLength: 120 }), (steps) => {
        const mm = make(TWO_NODES, {
          scratch: [{ start: 20 * MIB, lengthBytes: 1 * MIB }],
          carveOuts: [{ start: 17 * MIB, lengthBytes: 12 * PAGE_SIZE }],
          reserved: blockList([
            [0x3000, 0],
            [2 * MIB, 9],
            [23 * MIB, 4],
          ]),
        });
        const model = new PageModel();
        model.addZone(PAGE_SIZE, 6 * MIB, 0);
        model.addZone(16 * MIB, 17 * MIB, 1);
        model.addZone(17 * MIB + 12 * PAGE_SIZE, 20 * MIB, 1);
        model.addZone(21 * MIB, 24 * MIB, 1);
        for (const [pa, order] of [
          [0x3000, 0],
          [2 * MIB, 9],
          [23 * MIB, 4],
        ])
          model.take(pa, order);
        const reservedPages = 1 + 512 + 16;
        const blocks: { pa: number; order: number }[] = [];
        const check = () => {
          const counts = mm.counts();
          assert.equal(counts.total, model.zoneOf.filter((zone) => zone !== undefined).length);
          assert.equal(counts.reserved, reservedPages);
          assert.equal(counts.allocated, model.owner.size - reservedPages);
          assert.equal(counts.free + counts.allocated + counts.reserved, counts.total);
        };
        for (const s of steps) {
          if ("freeIndex" in s) {
            const [block] = blocks.splice(s.freeIndex % Math.max(1, blocks.length), 1);
            if (block === undefined) continue;
            mm.free(block.pa, block.order);
            model.give(block.pa, block.order);
          } else {
            const { order, node, thisNode } = s;
            try {
              const pa = mm.alloc(order, { node, thisNode, zero: false });
              const isElsewhere = mm.nodeOf(pa) !== node;
              if (isElsewhere)
                assert.ok(!thisNode && !model.hasFreeBlock(order, node), "its node was full");
              model.take(pa, order);
              blocks.push({ pa, order });
              assert.ok(mm.isAllocated(pa, order) && !mm.isAllocated(pa, order + 1));
            } catch (error) {
              if (!isKernelError(error, "ENOMEM")) throw error;
              assert.ok(!model.hasFreeBlock(order, thisNode ? node : null), "nothing was free");
            }
          }
          check();
        }
        for (const { pa, order } of blocks) {
          mm.free(pa, order);
          model.give(pa, order);
        }
        check();
        for (let order = 11; order >= 0; order--) {
          while (model.hasFreeBlock(order, null))
            model.take(mm.alloc(order, { zero: false }), order);
          assert.throws(
            () => mm.alloc(order),
            (error) => isKernelError(error, "ENOMEM"),
          );
        }
        assert.equal(mm.counts().free, 0);
      }),
      { numRuns: 60 },
    );
  });

  it("alloc() zeroes the block, unless told not to", () => {
    const ram = new Ram(createSharedRam(TWO_NODES));
    ram.fill(0, 6 * MIB, 0x5a);
    const mm = new BuddyAllocator({
      memory: ram,
      firmware: { memory: TWO_NODES, nodeCount: 2 },
      faults: new FaultInjector(),
    });
    const zeroed = mm.alloc(2);
    for (let i = 0; i < orderBytes(2); i += 4) assert.equal(ram.load32(zeroed + i), 0);
    assert.equal(ram.load32(mm.alloc(2, { zero: false })), 0x5a5a5a5a);
  });

  it("alloc() fails with ENOMEM rather than take another node's memory, if told so", () => {
    const mm = make(TWO_NODES);
    while (mm.counts(0).free >= 512) mm.alloc(9, { node: 0, thisNode: true });
    const isEnomem = (error: unknown) => isKernelError(error, "ENOMEM");
    assert.throws(() => mm.alloc(9, { node: 0, thisNode: true }), isEnomem);
    assert.equal(mm.nodeOf(mm.alloc(9, { node: 0 })), 1);
  });

  it("alloc() passes the fault point mm:alloc before anything is changed", () => {
    const faults = new FaultInjector();
    const mm = make(TWO_NODES, { faults });
    const before = mm.counts();
    faults.arm(0, (point) => new Error(point));
    assert.throws(() => mm.alloc(0), /mm:alloc/);
    assert.ok(faults.disarm());
    assert.deepEqual(mm.counts(), before);
  });

  it("never gives out the page at address 0", () => {
    const mm = make([{ start: 0, lengthBytes: 64 * PAGE_SIZE, node: 0 }]);
    assert.equal(mm.counts().total, 63);
    for (let i = 0; i < 63; i++) assert.notEqual(mm.alloc(0), 0);
  });

  it("keeps single pages together, and large blocks whole", () => {
    const mm = make([{ start: 0, lengthBytes: 8 * GIB, node: 0 }]);
    const pages: number[] = [];
    for (let i = 0; i < 20_000; i++) pages.push(mm.alloc(0, { zero: false }));
    // 20,000 pages are 79 MiB: in two regions of 128 MiB at most, so two leaves of KHO's tree.
    assert.ok(new Set(pages.map((pa) => Math.floor(pa / (128 * MIB)))).size <= 2);
    // Free every other one: new pages fill the gaps before they touch anything else.
    for (let i = 0; i < pages.length; i += 2) mm.free(pages[i], 0);
    for (let i = 0; i < 10_000; i++) assert.ok(mm.alloc(0, { zero: false }) <= pages.at(-1)!);
    let gigabytes = 0;
    try {
      for (;;) {
        mm.alloc(18, { zero: false });
        gigabytes++;
      }
    } catch (error) {
      if (!isKernelError(error, "ENOMEM")) throw error;
    }
    assert.equal(gigabytes, 7);
  });

  it("is made in no time for 1 TiB, with at most 8 bytes of books for a page", () => {
    const mm = make([
      { start: 0, lengthBytes: TIB / 2, node: 0 },
      { start: TIB / 2, lengthBytes: TIB / 2, node: 1 },
    ]);
    const rss = process.memoryUsage().rss;
    for (let i = 0; i < 1023; i++) mm.alloc(18);
    // Zeroing fresh memory backs none of it, and the books of a 1 GiB block are one byte and a few bits.
    assert.ok(process.memoryUsage().rss - rss < 256 * MIB);
    assert.ok(mm.metadataBytes() <= 8 * mm.counts().total);
    assert.ok(mm.metadataBytes() >= mm.counts().total);
  });

  it("has books of at most 8 bytes a page for memory of awkward shape too", () => {
    const mm = make([
      { start: 0x9f000, lengthBytes: 0x3000, node: 0 },
      { start: GIB - 4 * MIB, lengthBytes: 4 * MIB + PAGE_SIZE, node: 0 },
      { start: 7 * GIB - PAGE_SIZE, lengthBytes: GIB + 2 * PAGE_SIZE, node: 1 },
    ]);
    assert.ok(mm.metadataBytes() <= 8 * mm.counts().total);
    assert.equal(mm.alloc(18, { node: 1, zero: false }), 7 * GIB);
  });

  it("gives a node that has no memory the next one's", () => {
    const memory = [{ start: 0, lengthBytes: MIB, node: 1 }];
    assert.equal(make(memory).nodeOf(make(memory).alloc(0, { node: 0 })), 1);
  });
});

describe("BuddyAllocator.free()", () => {
  const isBug = (message: RegExp) => (error: unknown) =>
    error instanceof BugError && message.test(error.message);

  it("is a bug for a block that is free, of another order, unaligned, reserved or foreign", () => {
    const mm = make(TWO_NODES, {
      carveOuts: [{ start: 17 * MIB, lengthBytes: MIB }],
      scratch: [{ start: 4 * MIB, lengthBytes: MIB }],
      reserved: blockList([[2 * MIB, 9]]),
    });
    const pa = mm.alloc(3);
    const before = mm.counts();
    assert.throws(() => mm.free(pa, 2), isBug(/allocated block of order 3/));
    assert.throws(() => mm.free(pa, 4), BugError);
    assert.throws(() => mm.free(pa + PAGE_SIZE, 0), isBug(/no block starts there/));
    assert.throws(() => mm.free(pa + 8, 0), isBug(/not aligned/));
    assert.throws(() => mm.free(2 * MIB, 9), isBug(/reserved block of order 9/));
    for (const foreign of [0, 4 * MIB, 17 * MIB, 8 * MIB, 64 * MIB])
      assert.throws(() => mm.free(foreign, 0), isBug(/not memory of this allocator/));
    assert.throws(() => mm.free(pa, 19), BugError);
    assert.throws(() => mm.free(Number.NaN, 0), BugError);
    assert.deepEqual(mm.counts(), before);
    mm.free(pa, 3);
    assert.throws(() => mm.free(pa, 3), isBug(/no block starts there/));
  });
});

describe("BuddyAllocator.adopt()", () => {
  it("turns a reserved block into an allocated one, once, and free() gives it back", () => {
    const mm = make(TWO_NODES, { reserved: blockList([[2 * MIB, 9]]) });
    assert.deepEqual([mm.counts().reserved, mm.counts().allocated], [512, 0]);
    assert.equal(mm.isAllocated(2 * MIB, 9), false);
    assert.throws(() => mm.adopt(2 * MIB, 8), BugError);
    assert.throws(() => mm.adopt(3 * MIB, 0), BugError);
    mm.adopt(2 * MIB, 9);
    assert.deepEqual([mm.counts().reserved, mm.counts().allocated], [0, 512]);
    assert.throws(() => mm.adopt(2 * MIB, 9), BugError);
    mm.free(2 * MIB, 9);
    assert.equal(mm.counts().free, mm.counts().total);
  });
});

describe("new BuddyAllocator()", () => {
  it("refuses a reserved block outside one node's memory", () => {
    const adjacent = [
      { start: 0, lengthBytes: 3 * MIB, node: 0 },
      { start: 3 * MIB, lengthBytes: 5 * MIB, node: 1 },
    ];
    for (const block of [
      [2 * MIB, 9],
      [0, 0],
      [8 * MIB, 0],
    ] as const) {
      const memory = [{ start: 0, lengthBytes: 16 * MIB }];
      const ram = new Ram(createSharedRam(memory));
      assert.throws(
        () =>
          new BuddyAllocator({
            memory: ram,
            firmware: { memory: adjacent, nodeCount: 2 },
            reserved: blockList([block]),
            faults: new FaultInjector(),
          }),
        (error) => error instanceof HandoverError && error.field === "preserved-memory-map",
      );
    }
  });

  it("passes over reserved blocks in carve-outs, and refuses those that are half in one", () => {
    const carveOuts = [{ start: 18 * MIB, lengthBytes: 3 * MIB }];
    const reserved = (pa: number) => blockList([[pa, 9]]);
    const mm = make(TWO_NODES, { carveOuts, reserved: reserved(18 * MIB) });
    assert.equal(mm.counts().reserved, 0);
    assert.ok(mm.isCarvedOut(18 * MIB) && mm.isCarvedOut(21 * MIB - 1));
    assert.ok(!mm.isCarvedOut(21 * MIB) && !mm.isCarvedOut(18 * MIB - 1));
    assert.throws(
      () => make(TWO_NODES, { carveOuts, reserved: reserved(20 * MIB) }),
      HandoverError,
    );
  });

  it("refuses carve-outs with EINVAL that are unaligned, empty, not RAM or overlap something", () => {
    const scratch = [{ start: 20 * MIB, lengthBytes: 4 * MIB }];
    const good = { start: 18 * MIB, lengthBytes: MIB };
    for (const bad of [
      { start: 18 * MIB + 8, lengthBytes: MIB },
      { start: 16 * MIB, lengthBytes: 100 },
      { start: 16 * MIB, lengthBytes: 0 },
      { start: 0, lengthBytes: MIB },
      { start: 5 * MIB, lengthBytes: 2 * MIB },
      { start: 19 * MIB, lengthBytes: 2 * MIB },
      { start: 17 * MIB, lengthBytes: 2 * MIB },
    ])
      assert.throws(
        () => make(TWO_NODES, { scratch, carveOuts: [good, bad] }),
        (error) => isKernelError(error, "EINVAL"),
        JSON.stringify(bad),
      );
  });
});
