/** (a) map and unmap, (b) translation: beside the same loops in C. @module */
import { GCMD_REG, GCMD_SRTP, GCMD_TE, RTADDR_REG } from "../src/abi/vtd/registers.ts";
import {
  AW_48_BIT,
  contextEntry,
  contextEntryAddress,
  rootEntry,
  rootEntryAddress,
  TT_MULTI_LEVEL,
} from "../src/abi/vtd/root-context.ts";
import { SS_R, SS_TABLE_ENTRIES, SS_W } from "../src/abi/vtd/second-stage.ts";
import { assert } from "../src/base/assert.ts";
import { FaultInjector } from "../src/base/fault-injector.ts";
import { Prng } from "../src/base/prng.ts";
import { GIB, MIB, PAGE_SIZE } from "../src/base/units.ts";
import { SecondStageTable } from "../src/kernel/iommu/second-stage-table.ts";
import { walkToPhys } from "../src/kernel/iommu/second-stage-walk.ts";
import { BuddyAllocator } from "../src/kernel/mm/buddy-allocator.ts";
import { VtdUnit } from "../src/machine/embedded/vtd/vtd-unit.ts";
import { createSharedRam, Ram } from "../src/machine/physical-memory.ts";
import { bestSeconds, perSecond, seconds } from "./measure.ts";
import type { ReferenceRates } from "./reference.ts";
import type { Row } from "./report.ts";

const SIZES = [
  { name: "4K", bytes: PAGE_SIZE, count: 262144 },
  { name: "2M", bytes: 2 * MIB, count: 65536 },
  { name: "1G", bytes: GIB, count: 1024 },
] as const;
/** For each case. */
const BUDGET_MS = 400;
/** Walks in a round: about a millisecond. */
const WALKS = 16384;
const RIGHTS = SS_R | SS_W;
/** Of the function whose DMA is translated: bus 1, device 0. */
const SOURCE_ID = 0x100;
/** So few pages stay in the IOTLB for good. */
const HIT_PAGES = 64;
const REGISTERS = 0xfed9_0000;
const RAM_BYTES = 64 * MIB;

/** A table whose leaves are all of one size. */
function tableOf(leafBytes: number): SecondStageTable {
  const memory = new Ram(createSharedRam([{ start: 0, lengthBytes: RAM_BYTES }]));
  const firmware = {
    memory: [{ start: 0, lengthBytes: RAM_BYTES - MIB, node: 0 }],
    nodeCount: 1,
  };
  const faults = new FaultInjector();
  const mm = new BuddyAllocator({ memory, firmware, faults });
  return new SecondStageTable({
    memory,
    mm,
    faults,
    levels: 4,
    pageSizes: leafBytes === PAGE_SIZE ? PAGE_SIZE : PAGE_SIZE | leafBytes,
    apertureEnd: 2 ** 48,
    flush: () => {},
  });
}

/** Entries per second, and C's beside them. */
export function mapRows(reference: ReferenceRates | null): Row[] {
  return SIZES.flatMap(({ name, bytes, count }) => {
    const table = tableOf(bytes);
    const total = count * bytes;
    const tableBytes = SS_TABLE_ENTRIES * bytes;
    let unmap = Number.POSITIVE_INFINITY;
    const map = bestSeconds(BUDGET_MS, () => {
      const mapped = seconds(() => table.map(0, 0, total, RIGHTS));
      // All entries of each table but one: a whole table would be unlinked without a look at its entries.
      const unmapped = seconds(() => {
        for (let at = 0; at < total; at += tableBytes) table.unmap(at, tableBytes - bytes);
      });
      unmap = Math.min(unmap, unmapped);
      table.unmap(0, total);
      return mapped;
    });
    const cleared = (count / SS_TABLE_ENTRIES) * (SS_TABLE_ENTRIES - 1);
    return [
      compared(`map ${name}`, count / map, reference?.[`map${name}`], 0.25),
      compared(`unmap ${name}`, cleared / unmap, reference?.[`unmap${name}`], 0.25),
    ];
  });
}

/** The kernel's walks per second of random addresses. */
export function walkRows(reference: ReferenceRates | null): Row[] {
  return SIZES.map(({ name, bytes, count }) => {
    const table = tableOf(bytes);
    table.map(0, 0, count * bytes, RIGHTS);
    const iovas = randomPages((count * bytes) / PAGE_SIZE);
    let sum = 0;
    const best = bestSeconds(BUDGET_MS, () =>
      seconds(() => {
        for (let i = 0; i < WALKS; i++) sum += walkToPhys(table, iovas[i]) ?? 0;
      }),
    );
    assert(sum > 0, "something was translated");
    return compared(`walk ${name}`, WALKS / best, reference?.[`walk${name}`], null);
  });
}

/** What the remapping unit of the machine translates: from its IOTLB, and by a walk that fills it. */
export function unitRows(reference: ReferenceRates | null): Row[] {
  const unit = unitOf(tableOf(PAGE_SIZE));
  const cases = [
    { name: "unit, IOTLB hit", pages: HIT_PAGES },
    { name: "unit, IOTLB miss", pages: GIB / PAGE_SIZE },
  ];
  return cases.map(({ name, pages }) => {
    const iovas = randomPages(pages);
    const before = unit.statistics;
    let sum = 0;
    const best = bestSeconds(BUDGET_MS, () =>
      seconds(() => {
        for (let i = 0; i < WALKS; i++) sum += unit.translate(SOURCE_ID, iovas[i], true);
      }),
    );
    const { translations, iotlbHits, faults } = unit.statistics;
    const hits = (iotlbHits - before.iotlbHits) / (translations - before.translations);
    assert(sum > 0 && faults === 0, "everything was translated");
    assert(pages === HIT_PAGES ? hits > 0.99 : hits < 0.01, `${hits} of ${name} are hits`);
    return compared(name, WALKS / best, reference?.walk4K, null);
  });
}

/** A unit that translates one function by these tables, of 1 GiB in pages of 4 KiB. */
function unitOf(table: SecondStageTable): VtdUnit {
  table.map(0, 0, GIB, RIGHTS);
  const memory = table.memory;
  const [root, contexts] = [RAM_BYTES - 2 * PAGE_SIZE, RAM_BYTES - PAGE_SIZE];
  const store = (pa: number, words: readonly number[]) => {
    for (const [i, word] of words.entries()) memory.store32(pa + 4 * i, word >>> 0);
  };
  store(rootEntryAddress(root, SOURCE_ID), rootEntry(contexts));
  store(
    contextEntryAddress(contexts, SOURCE_ID),
    contextEntry({
      translationType: TT_MULTI_LEVEL,
      secondStageTable: table.top,
      addressWidth: AW_48_BIT,
      domainId: 1,
    }),
  );
  const unit = new VtdUnit({ memory, registerBase: REGISTERS });
  unit.write(RTADDR_REG, 4, root);
  unit.write(GCMD_REG, 4, GCMD_SRTP);
  unit.write(GCMD_REG, 4, GCMD_TE);
  return unit;
}

function randomPages(pages: number): Float64Array {
  const prng = new Prng(1);
  return Float64Array.from({ length: WALKS }, () => prng.below(pages) * PAGE_SIZE);
}

function compared(
  name: string,
  value: number,
  other: number | undefined,
  least: number | null,
): Row {
  const ratio = other === undefined ? null : value / other;
  return {
    name,
    value: perSecond(value),
    against: other === undefined ? "no C compiler found" : `C ${perSecond(other)}`,
    ratio,
    limit: least === null ? "" : `at least ${least} of C`,
    holds: least === null || ratio === null ? null : ratio >= least,
  };
}
