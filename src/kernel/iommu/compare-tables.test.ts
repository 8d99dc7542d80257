import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { FaultInjector } from "../../base/fault-injector.ts";
import { GIB, MIB, PAGE_SIZE } from "../../base/units.ts";
import { createSharedRam, Ram } from "../../machine/physical-memory.ts";
import { BuddyAllocator } from "../mm/buddy-allocator.ts";
import { compareTables } from "./compare-tables.ts";
import { IOMMU_READ, IOMMU_WRITE } from "./domain.ts";
import { SecondStageTable } from "./second-stage-table.ts";

const RW = IOMMU_READ | IOMMU_WRITE;
const PAGE_SIZES = [PAGE_SIZE, PAGE_SIZE + 2 * MIB, PAGE_SIZE + 2 * MIB + GIB];

/** Makes trees in one memory. */
function trees(lengthBytes = 16 * MIB) {
  const memory = new Ram(createSharedRam([{ start: 0, lengthBytes }]));
  const faults = new FaultInjector();
  const mm = new BuddyAllocator({
    memory,
    firmware: { memory: [{ start: 0, lengthBytes, node: 0 }], nodeCount: 1 },
    faults,
  });
  return (pageSizes: number) =>
    new SecondStageTable({
      memory,
      mm,
      faults,
      levels: 4,
      pageSizes,
      apertureEnd: 2 ** 48,
      flush: () => undefined,
    });
}

describe("compareTables()", () => {
  test("accepts the same translations in other page sizes, with more beside them", () => {
    const make = trees();
    const old = make(PAGE_SIZE);
    const replacement = make(PAGE_SIZES[2]);
    old.map(GIB, 2 * GIB, 4 * MIB, IOMMU_READ);
    old.map(GIB + 6 * MIB, 2 * GIB + 6 * MIB, MIB, RW);
    replacement.map(0, 0, PAGE_SIZE, RW);
    replacement.map(GIB, 2 * GIB, GIB, RW);
    replacement.map(2 ** 47, 0, PAGE_SIZE, RW);
    assert.equal(compareTables(old, replacement), null);
  });

  test("accepts anything in place of an empty tree", () => {
    const make = trees();
    assert.equal(compareTables(make(PAGE_SIZE), make(PAGE_SIZE)), null);
  });

  test("names the first IOVA that is not mapped, leads elsewhere or has fewer rights", () => {
    const make = trees();
    const old = make(PAGE_SIZES[1]);
    old.map(0, 8 * MIB, 4 * MIB, RW);
    const check = (build: (t: SecondStageTable) => void, iova: number, problem: string) => {
      const replacement = make(PAGE_SIZES[1]);
      build(replacement);
      assert.deepEqual(compareTables(old, replacement), { iova, problem });
      replacement.free();
    };
    check(() => undefined, 0, "is not mapped");
    check((t) => t.map(0, 8 * MIB, 3 * MIB, RW), 3 * MIB, "is not mapped");
    check(
      (t) => {
        t.map(0, 8 * MIB, MIB, RW);
        t.map(MIB + PAGE_SIZE, 9 * MIB + PAGE_SIZE, 3 * MIB - PAGE_SIZE, RW);
      },
      MIB,
      "is not mapped",
    );
    check(
      (t) => {
        t.map(0, 8 * MIB, 2 * MIB, RW);
        t.map(2 * MIB, 12 * MIB, 2 * MIB, RW);
      },
      2 * MIB,
      "leads to another address",
    );
    check(
      (t) => {
        t.map(0, 8 * MIB, 2 * MIB, RW);
        t.map(2 * MIB, 10 * MIB, 2 * MIB, IOMMU_READ);
      },
      2 * MIB,
      "has fewer rights",
    );
  });

  test("agrees with a comparison page by page for any layouts and page sizes", () => {
    interface Area {
      iova: number;
      pa: number;
      pages: number;
      prot: number;
    }
    const area = fc.record({
      slot: fc.nat({ max: 5 }),
      offset: fc.constantFrom(0, 1, 510, 511),
      pages: fc.constantFrom(1, 2, 3, 512, 513, 700),
      target: fc.constantFrom(0, 1, 512, 1024),
      prot: fc.constantFrom(IOMMU_READ, IOMMU_WRITE, RW),
    });
    const change = fc.constantFrom("same", "drop", "shrink", "move", "weaken", "widen", "split");
    let equal = 0;
    let broken = 0;
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.tuple(area, change), { maxLength: 6, selector: ([a]) => a.slot }),
        fc.constantFrom(...PAGE_SIZES),
        fc.constantFrom(...PAGE_SIZES),
        (list, oldSizes, newSizes) => {
          const make = trees();
          const old = make(oldSizes);
          const replacement = make(newSizes);
          const expected = new Map<number, { pa: number; prot: number }>();
          const put = (table: SecondStageTable, a: Area) => {
            table.map(a.iova, a.pa, a.pages * PAGE_SIZE, a.prot);
            if (table !== replacement) return;
            for (let i = 0; i < a.pages; i++)
              expected.set(a.iova + i * PAGE_SIZE, { pa: a.pa + i * PAGE_SIZE, prot: a.prot });
          };
          const areas: Area[] = list.map(([a]) => ({
            iova: GIB - 2 * MIB + (a.slot * 2048 + a.offset) * PAGE_SIZE,
            pa: 4 * GIB - 4 * MIB + (a.slot * 2048 + a.offset + a.target) * PAGE_SIZE,
            pages: a.pages,
            prot: a.prot,
          }));
          for (const a of areas) put(old, a);
          for (const [i, a] of areas.entries()) {
            const what = list[i][1];
            if (what === "same") put(replacement, a);
            else if (what === "shrink" && a.pages > 1)
              put(replacement, { ...a, pages: a.pages - 1 });
            else if (what === "move") put(replacement, { ...a, pa: a.pa + PAGE_SIZE });
            else if (what === "weaken") put(replacement, { ...a, prot: IOMMU_READ });
            else if (what === "widen") put(replacement, { ...a, pages: a.pages + 3, prot: RW });
            else if (what === "split") {
              const half = Math.ceil(a.pages / 2);
              put(replacement, { ...a, pages: half });
              const rest = { iova: a.iova + half * PAGE_SIZE, pa: a.pa + half * PAGE_SIZE };
              if (a.pages > half) put(replacement, { ...a, ...rest, pages: a.pages - half });
            }
          }
          let first: { iova: number; problem: string } | null = null;
          for (const a of areas.toSorted((x, y) => x.iova - y.iova)) {
            for (let i = 0; i < a.pages && first === null; i++) {
              const iova = a.iova + i * PAGE_SIZE;
              const found = expected.get(iova);
              if (found === undefined) first = { iova, problem: "is not mapped" };
              else if (found.pa !== a.pa + i * PAGE_SIZE)
                first = { iova, problem: "leads to another address" };
              else if ((a.prot & ~found.prot) !== 0) first = { iova, problem: "has fewer rights" };
            }
          }
          assert.deepEqual(compareTables(old, replacement), first);
          if (first === null) equal++;
          else broken++;
        },
      ),
      { numRuns: 200 },
    );
    assert.ok(equal > 10 && broken > 10, `both cases were met: ${equal} equal, ${broken} broken`);
  });

  test("visits leaves, not pages: a terabyte of 1 GiB leaves takes few loads", () => {
    const make = trees();
    const old = make(PAGE_SIZES[2]);
    const replacement = make(PAGE_SIZES[2]);
    old.map(0, 0, 1024 * GIB, RW);
    replacement.map(0, 0, 1024 * GIB, RW);
    let loads = 0;
    const counting = (table: SecondStageTable) => ({
      top: table.top,
      levels: table.levels,
      memory: {
        load8: (at: number) => table.memory.load8(at),
        load16: (at: number) => table.memory.load16(at),
        load32: (at: number) => {
          loads++;
          return table.memory.load32(at);
        },
        load64: (at: number) => table.memory.load64(at),
        loadBig64: (at: number) => table.memory.loadBig64(at),
      },
    });
    assert.equal(compareTables(counting(old), counting(replacement)), null);
    assert.ok(loads < 4 * 1024 * 2, `${loads} loads for 2048 leaves`);
  });
});
