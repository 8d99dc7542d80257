/** (a) map and unmap, (b) translation: beside the same loops in C. @module */
import { FaultInjector } from "../src/base/fault-injector.ts";
import { Prng } from "../src/base/prng.ts";
import { GIB, MIB, PAGE_SIZE } from "../src/base/units.ts";
import { SecondStageTable } from "../src/kernel/iommu/second-stage-table.ts";
import { walkToPhys } from "../src/kernel/iommu/second-stage-walk.ts";
import { BuddyAllocator } from "../src/kernel/mm/buddy-allocator.ts";
import { createSharedRam, Ram } from "../src/machine/physical-memory.ts";
import { perSecond, rate } from "./measure.ts";
import type { ReferenceRates } from "./reference.ts";
import type { Row } from "./report.ts";

const SIZES = [
  { name: "4K", bytes: PAGE_SIZE, count: 262144 },
  { name: "2M", bytes: 2 * MIB, count: 65536 },
  { name: "1G", bytes: GIB, count: 1024 },
] as const;
const ROUNDS = 15;

/** A table whose leaves are all of one size. */
function tableOf(leafBytes: number): SecondStageTable {
  const memory = new Ram(createSharedRam([{ start: 0, lengthBytes: 64 * MIB }]));
  const firmware = { memory: [{ start: 0, lengthBytes: 64 * MIB, node: 0 }], nodeCount: 1 };
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
    // One gigabyte leaves are few: repeat them so that the clock can see them.
    const repeat = Math.ceil(262144 / count);
    let mapSeconds = 0;
    let unmapSeconds = 0;
    rate(1, ROUNDS, () => {
      let map = 0n;
      let unmap = 0n;
      for (let i = 0; i < repeat; i++) {
        const start = process.hrtime.bigint();
        table.map(0, 0, total, 3);
        const middle = process.hrtime.bigint();
        table.unmap(0, total);
        unmap += process.hrtime.bigint() - middle;
        map += middle - start;
      }
      const entries = repeat * count;
      mapSeconds = best(mapSeconds, Number(map) / 1e9 / entries);
      unmapSeconds = best(unmapSeconds, Number(unmap) / 1e9 / entries);
    });
    return [
      compared(`map ${name}`, 1 / mapSeconds, reference?.[`map${name}`], 0.25),
      compared(`unmap ${name}`, 1 / unmapSeconds, reference?.[`unmap${name}`], 0.25),
    ];
  });
}

/** Walks per second of random addresses. */
export function walkRows(reference: ReferenceRates | null): Row[] {
  return SIZES.map(({ name, bytes, count }) => {
    const table = tableOf(bytes);
    table.map(0, 0, count * bytes, 3);
    const prng = new Prng(1);
    const pages = (count * bytes) / PAGE_SIZE;
    const iovas = Float64Array.from({ length: 65536 }, () => prng.below(pages) * PAGE_SIZE);
    let sum = 0;
    const walks = rate(iovas.length, ROUNDS, () => {
      for (const iova of iovas) sum += walkToPhys(table, iova) ?? 0;
    });
    if (!(sum > 0)) throw new Error("nothing was translated");
    return compared(`walk ${name}`, walks, reference?.[`walk${name}`], null);
  });
}

function best(seconds: number, candidate: number): number {
  return seconds === 0 ? candidate : Math.min(seconds, candidate);
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
