import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { type ErrnoCode, isKernelError, KernelError } from "../../base/errno.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { GIB, MIB, PAGE_SIZE } from "../../base/units.ts";
import { createSharedRam, Ram } from "../../machine/physical-memory.ts";
import { BuddyAllocator } from "../mm/buddy-allocator.ts";
import { IOMMU_READ, IOMMU_WRITE } from "./domain.ts";
import { SecondStageTable } from "./second-stage-table.ts";
import { LeafCursor, walkToPhys } from "./second-stage-walk.ts";

const RW = IOMMU_READ | IOMMU_WRITE;
const ALL_SIZES = PAGE_SIZE + 2 * MIB + GIB;

function fixture(options: { levels?: number; pageSizes?: number } = {}) {
  const memory = new Ram(createSharedRam([{ start: 0, lengthBytes: 16 * MIB }]));
  const faults = new FaultInjector();
  const mm = new BuddyAllocator({
    memory,
    firmware: { memory: [{ start: 0, lengthBytes: 16 * MIB, node: 0 }], nodeCount: 1 },
    faults,
  });
  const flushes: { iova: number; lengthBytes: number; allocated: number }[] = [];
  const levels = options.levels ?? 4;
  const table = new SecondStageTable({
    memory,
    mm,
    faults,
    levels,
    pageSizes: options.pageSizes ?? ALL_SIZES,
    apertureEnd: 2 ** (12 + 9 * levels),
    flush: (iova, lengthBytes) =>
      flushes.push({ iova, lengthBytes, allocated: mm.counts().allocated }),
  });
  return { memory, faults, mm, table, flushes };
}

function errno(code: ErrnoCode) {
  return (error: unknown) => isKernelError(error, code);
}

/** Sizes of the leaves found, by cursor, one entry per run. */
function runs(table: SecondStageTable) {
  const cursor = new LeafCursor(table);
  const found: { iova: number; pa: number; lengthBytes: number; prot: number }[] = [];
  while (cursor.next())
    found.push({
      iova: cursor.iova,
      pa: cursor.pa,
      lengthBytes: cursor.lengthBytes,
      prot: cursor.prot,
    });
  return found;
}

describe("map()", () => {
  test("uses the largest pages that alignment and hardware allow", () => {
    const tables = (pageSizes: number, iova: number, pa: number) => {
      const { table } = fixture({ pageSizes });
      table.map(iova, pa, 2 * GIB, RW);
      assert.equal(walkToPhys(table, iova + GIB + 12345), pa + GIB + 12345);
      return table.tableCount;
    };
    assert.equal(tables(ALL_SIZES, GIB, 5 * GIB), 2, "1 GiB leaves");
    assert.equal(tables(PAGE_SIZE + 2 * MIB, GIB, 5 * GIB), 4, "2 MiB leaves");
    assert.equal(tables(ALL_SIZES, GIB, 5 * GIB + 2 * MIB), 4, "pa aligned to 2 MiB only");
    assert.equal(tables(PAGE_SIZE, GIB, 5 * GIB), 4 + 1024, "4 KiB leaves");
  });

  test("mixes page sizes around an unaligned range", () => {
    const { table } = fixture();
    table.map(GIB - 3 * PAGE_SIZE, 9 * GIB - 3 * PAGE_SIZE, GIB + 2 * MIB + 7 * PAGE_SIZE, RW);
    assert.deepEqual(
      runs(table).map((run) => [run.iova, run.lengthBytes]),
      [
        [GIB - 3 * PAGE_SIZE, 3 * PAGE_SIZE],
        [GIB, GIB],
        [2 * GIB, 2 * MIB],
        [2 * GIB + 2 * MIB, 4 * PAGE_SIZE],
      ],
    );
  });

  test("refuses bad ranges and rights with EINVAL and changes nothing", () => {
    const { table } = fixture({ levels: 3 });
    const bad: [number, number, number, number][] = [
      [1, 0, PAGE_SIZE, RW],
      [0, 1, PAGE_SIZE, RW],
      [0, 0, 1, RW],
      [0, 0, 0, RW],
      [-PAGE_SIZE, 0, PAGE_SIZE, RW],
      [Number.NaN, 0, PAGE_SIZE, RW],
      [2 ** 39 - PAGE_SIZE, 0, 2 * PAGE_SIZE, RW],
      [2 ** 39, 0, PAGE_SIZE, RW],
      [0, 2 ** 52, PAGE_SIZE, RW],
      [0, 0, PAGE_SIZE, 0],
      [0, 0, PAGE_SIZE, 4],
    ];
    for (const [iova, pa, lengthBytes, prot] of bad)
      assert.throws(() => table.map(iova, pa, lengthBytes, prot), errno("EINVAL"));
    assert.equal(table.tableCount, 1);
    table.map(2 ** 39 - PAGE_SIZE, 0, PAGE_SIZE, RW);
  });

  test("fails with EEXIST when anything of the range is mapped, and maps nothing of it", () => {
    const { table } = fixture();
    table.map(5 * MIB, 5 * MIB, PAGE_SIZE, RW);
    table.map(GIB, GIB, GIB, RW);
    const before = runs(table);
    const count = table.tableCount;
    assert.throws(() => table.map(4 * MIB, 4 * MIB, 2 * MIB, RW), errno("EEXIST"));
    assert.throws(() => table.map(GIB + 2 * MIB, 0, PAGE_SIZE, RW), errno("EEXIST"));
    assert.throws(() => table.map(0, 0, 512 * GIB, RW), errno("EEXIST"));
    assert.deepEqual(runs(table), before);
    assert.equal(table.tableCount, count);
  });

  test("leaves nothing mapped and nothing allocated when it fails at any step", () => {
    const { table, faults, mm, flushes } = fixture();
    // Tables that exist already, so that some of the new entries are in reach of devices at once.
    table.map(GIB + 4 * MIB + 8 * PAGE_SIZE, 0, PAGE_SIZE, RW);
    const before = runs(table);
    const allocated = mm.counts().allocated;
    const map = () =>
      table.map(GIB - 5 * PAGE_SIZE, 3 * GIB - 5 * PAGE_SIZE, 4 * MIB + 8 * PAGE_SIZE, RW);
    const points = faults.record(map);
    assert.ok(points.includes("mm:alloc") && points.includes("iommu:map"));
    table.unmap(GIB - 5 * PAGE_SIZE, 4 * MIB + 8 * PAGE_SIZE);
    assert.deepEqual(runs(table), before);
    let flushed = 0;
    for (let i = 0; i < points.length; i++) {
      flushes.length = 0;
      faults.arm(i, (point) => new KernelError("ENOMEM", "test", point));
      assert.throws(map, errno("ENOMEM"), points[i]);
      assert.equal(faults.disarm(), true);
      assert.deepEqual(runs(table), before, points[i]);
      assert.equal(mm.counts().allocated, allocated, points[i]);
      flushed += flushes.length;
    }
    assert.ok(flushed > 0, "entries that devices could have used were flushed");
  });
});

describe("unmap()", () => {
  test("frees empty tables, after the flush", () => {
    const { table, mm, flushes } = fixture();
    const empty = mm.counts().allocated;
    table.map(0, 0, 2 * GIB + 4 * MIB + PAGE_SIZE, RW);
    table.map(2 ** 47, 0, PAGE_SIZE, RW);
    const full = mm.counts().allocated;
    table.unmap(0, 2 * GIB + 4 * MIB + PAGE_SIZE);
    assert.equal(flushes[0].allocated, full, "nothing was freed before the flush");
    table.unmap(2 ** 47, PAGE_SIZE);
    assert.equal(mm.counts().allocated, empty);
    assert.equal(table.tableCount, 1);
  });

  test("fails with EINVAL when a page would be split, and changes nothing", () => {
    const { table } = fixture();
    table.map(0, 0, 2 * MIB, RW);
    table.map(GIB, 0, GIB, RW);
    const before = runs(table);
    assert.throws(() => table.unmap(0, PAGE_SIZE), errno("EINVAL"));
    assert.throws(() => table.unmap(PAGE_SIZE, 2 * MIB - PAGE_SIZE), errno("EINVAL"));
    assert.throws(() => table.unmap(0, GIB + 2 * MIB), errno("EINVAL"));
    assert.throws(() => table.unmap(0, 1), errno("EINVAL"));
    assert.throws(() => table.unmap(0, 2 ** 48 + PAGE_SIZE), errno("EINVAL"));
    assert.deepEqual(runs(table), before);
    table.unmap(0, 2 ** 48);
    assert.deepEqual(runs(table), []);
  });

  test("of a part keeps the rest", () => {
    const { table } = fixture({ pageSizes: PAGE_SIZE });
    table.map(0, 8 * MIB, 4 * MIB, RW);
    table.unmap(MIB, MIB);
    assert.equal(walkToPhys(table, MIB - 1), 9 * MIB - 1);
    assert.equal(walkToPhys(table, MIB), null);
    assert.equal(walkToPhys(table, 2 * MIB), 10 * MIB);
  });
});

describe("a tree that was taken over", () => {
  test("can be changed and freed like any other", () => {
    const { table, memory, mm, faults } = fixture();
    const empty = mm.counts().allocated;
    table.map(0, 0, GIB + 4 * MIB + PAGE_SIZE, RW);
    const taken = new SecondStageTable({
      memory,
      mm,
      faults,
      levels: 4,
      pageSizes: ALL_SIZES,
      apertureEnd: 2 ** 48,
      flush: () => undefined,
      existing: { top: table.top, tableCount: table.tableCount },
    });
    taken.unmap(0, GIB + 4 * MIB + PAGE_SIZE);
    assert.equal(taken.tableCount, 1);
    assert.equal(mm.counts().allocated, empty);
    taken.free();
    assert.equal(mm.counts().allocated, empty - 1);
  });
});

describe("any sequence of map and unmap", () => {
  const operation = fc.record({
    isMap: fc.boolean(),
    // Around the borders of tables of every level.
    base: fc.constantFrom(0, 2 * MIB, GIB - 4 * PAGE_SIZE, 512 * GIB - 2 * MIB, 3 * GIB),
    pages: fc.integer({ min: 0, max: 6 }),
    length: fc.constantFrom(1, 2, 5, 511, 512, 513, 1024, 262144, 262145),
    pa: fc.constantFrom(0, PAGE_SIZE, 2 * MIB, GIB, 4 * GIB - PAGE_SIZE, 2 ** 40),
    prot: fc.constantFrom(IOMMU_READ, IOMMU_WRITE, RW),
  });

  for (const [levels, pageSizes] of [
    [4, ALL_SIZES],
    [3, PAGE_SIZE + 2 * MIB],
    [4, PAGE_SIZE + GIB],
  ]) {
    test(`agrees with a simple model, ${levels} levels, page sizes ${pageSizes}`, () => {
      fc.assert(
        fc.property(fc.array(operation, { maxLength: 20 }), (operations) => {
          const { table, mm } = fixture({ levels, pageSizes });
          const empty = mm.counts().allocated;
          /** Mapped ranges, in no order: they never overlap. */
          let model: { iova: number; end: number; pa: number; prot: number }[] = [];
          const end = 2 ** (12 + 9 * levels);
          for (const { isMap, base, pages, length, pa, prot } of operations) {
            const iova = base + pages * PAGE_SIZE;
            const bytes = length * PAGE_SIZE;
            const overlaps = model.filter((m) => m.iova < iova + bytes && iova < m.end);
            const isSound = iova + bytes <= end;
            if (isMap) {
              if (overlaps.length > 0 || !isSound)
                assert.throws(
                  () => table.map(iova, pa, bytes, prot),
                  errno(isSound ? "EEXIST" : "EINVAL"),
                );
              else {
                table.map(iova, pa, bytes, prot);
                model.push({ iova, end: iova + bytes, pa, prot });
              }
            } else {
              const whole = overlaps.every((m) => m.iova >= iova && m.end <= iova + bytes);
              if (!isSound) assert.throws(() => table.unmap(iova, bytes), errno("EINVAL"));
              else if (whole) {
                table.unmap(iova, bytes);
                model = model.filter((m) => !overlaps.includes(m));
              } else
                for (const m of overlaps) {
                  table.unmap(m.iova, m.end - m.iova);
                  model = model.filter((other) => other !== m);
                }
            }
            for (const m of model) {
              assert.equal(walkToPhys(table, m.iova), m.pa);
              assert.equal(walkToPhys(table, m.end - 1), m.pa + (m.end - 1 - m.iova));
            }
          }
          // The cursor sees exactly the model, run by run.
          const sorted = model.toSorted((a, b) => a.iova - b.iova);
          let at = 0;
          for (const run of runs(table)) {
            const m = sorted.find((candidate) => candidate.end > run.iova);
            assert.ok(m !== undefined && run.iova >= at);
            assert.equal(run.iova, Math.max(at, m.iova));
            assert.equal(run.pa - run.iova, m.pa - m.iova);
            assert.equal(run.prot, m.prot);
            at = run.iova + run.lengthBytes;
          }
          assert.equal(at, sorted.at(-1)?.end ?? 0);
          for (const m of model) table.unmap(m.iova, m.end - m.iova);
          assert.equal(mm.counts().allocated, empty);
        }),
        { numRuns: 120 },
      );
    });
  }
});
