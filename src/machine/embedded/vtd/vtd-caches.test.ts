import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  FAULT_CONTEXT_NOT_PRESENT,
  FAULT_PAGING_ENTRY_RESERVED,
  FAULT_READ,
  FAULT_ROOT_NOT_PRESENT,
  FAULT_WRITE,
} from "../../../abi/vtd/faults.ts";
import { iotlbDescriptor } from "../../../abi/vtd/invalidation.ts";
import {
  GCMD_WBF,
  GRANULARITY_DEVICE,
  GRANULARITY_DOMAIN,
  GRANULARITY_GLOBAL,
  GRANULARITY_PAGE,
  GSTS_REG,
  GSTS_WBFS,
  IVA_LOW_IH,
} from "../../../abi/vtd/registers.ts";
import { SS_R, SS_W, ssAddress, ssEntryLow, ssSpanBytes } from "../../../abi/vtd/second-stage.ts";
import { GIB, MIB } from "../../../base/units.ts";
import { DEFAULT_VTD_CAPABILITIES, type VtdCapabilities } from "./capabilities.ts";
import { ContextCache } from "./context-cache.ts";
import { Iotlb } from "./iotlb.ts";
import { VtdRig } from "./test-rig.ts";

const SID = 0x0128;

function withCap(cap: Partial<VtdCapabilities["cap"]>): VtdCapabilities {
  return { ...DEFAULT_VTD_CAPABILITIES, cap: { ...DEFAULT_VTD_CAPABILITIES.cap, ...cap } };
}

test("a translation that changes without a flush stays in use, and each granularity ends that", () => {
  const flushes: ((rig: VtdRig) => number)[] = [
    (rig) => rig.flushIotlb(GRANULARITY_GLOBAL),
    (rig) => rig.flushIotlb(GRANULARITY_DOMAIN, 3),
    (rig) => rig.flushIotlb(GRANULARITY_PAGE, 3, 0x5000, 0),
    (rig) => rig.flushIotlb(GRANULARITY_PAGE, 3, 0x4000, 2),
    (rig) => rig.flushIotlb(GRANULARITY_PAGE, 3, 0, 18),
  ];
  for (const flush of flushes) {
    const rig = new VtdRig();
    const { leaf } = rig.simple(SID, 0x5000, 0x9000, 3);
    assert.equal(rig.outcome(SID, 0x5000), "0x9000");
    rig.memory.exchange64(leaf, ssEntryLow(0xa000, SS_R | SS_W), 0);
    assert.equal(rig.outcome(SID, 0x5123), "0x9123");
    rig.memory.retract64(leaf);
    assert.equal(rig.outcome(SID, 0x5000, true), "0x9000");
    // Nothing that aims elsewhere helps.
    assert.equal(rig.flushIotlb(GRANULARITY_DOMAIN, 2), GRANULARITY_DOMAIN);
    rig.flushIotlb(GRANULARITY_PAGE, 2, 0x5000, 0);
    rig.flushIotlb(GRANULARITY_PAGE, 3, 0x6000, 1);
    rig.flushIotlb(GRANULARITY_PAGE, 3, 0x4000, 0);
    rig.flushContexts(GRANULARITY_GLOBAL);
    assert.equal(rig.outcome(SID, 0x5000), "0x9000");
    assert.notEqual(flush(rig), 0);
    assert.equal(rig.outcome(SID, 0x5000), FAULT_READ);
  }
});

test("a page-selective flush of one 4 KiB page drops the superpage around it", () => {
  for (const level of [1, 2]) {
    const rig = new VtdRig();
    const { top } = rig.simple(SID, 0x5000, 0x9000);
    const leaf = rig.map(top, 3, 4 * GIB, 8 * GIB, level);
    const inside = 4 * GIB + MIB + 0x3000;
    assert.equal(rig.outcome(SID, inside), "0x200103000");
    rig.memory.retract64(leaf);
    assert.equal(rig.outcome(SID, 4 * GIB), "0x200000000");
    rig.flushIotlb(GRANULARITY_PAGE, 1, 4 * GIB - 4096, 0);
    assert.equal(rig.outcome(SID, 4 * GIB), "0x200000000");
    rig.flushIotlb(GRANULARITY_PAGE, 1, inside, 0);
    assert.equal(rig.outcome(SID, 4 * GIB), FAULT_READ);
  }
});

test("a superpage over cached small pages leaves them and their table in use until they are flushed", () => {
  const rig = new VtdRig();
  const { top } = rig.simple(SID, 0x20_5000, 0x9000);
  assert.equal(rig.outcome(SID, 0x20_5000), "0x9000");
  rig.map(top, 3, 0x20_0000, 0x4000_0000, 1);
  assert.equal(
    rig.outcome(SID, 0x20_6000),
    FAULT_READ,
    "a walk begins at the table of small pages",
  );
  rig.flushIotlb(GRANULARITY_PAGE, 1, 0x20_6000, 0);
  assert.equal(rig.outcome(SID, 0x20_6000), "0x40006000");
  assert.equal(rig.outcome(SID, 0x20_5000), "0x9000");
  rig.flushIotlb(GRANULARITY_PAGE, 1, 0x20_0000, 9);
  assert.equal(rig.outcome(SID, 0x20_5000), "0x40005000");
});

/** Two pages in one table, of which the first was translated; then an entry above them goes. */
function unlinked(level: number): VtdRig {
  const rig = new VtdRig();
  const { top } = rig.simple(SID, 0x5000, 0x9000);
  rig.map(top, 3, 0x6000, 0xa000);
  let entry = top;
  for (let l = 3; l > level; l--)
    entry = ssAddress(rig.memory.load32(entry), rig.memory.load32(entry + 4));
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  rig.memory.retract64(entry);
  return rig;
}

test("a table that is unlinked without a flush leads on, to pages never translated before, at every level", () => {
  const flushes: ((rig: VtdRig) => void)[] = [
    (rig) => rig.flushIotlb(GRANULARITY_GLOBAL),
    (rig) => rig.flushIotlb(GRANULARITY_DOMAIN, 1),
    (rig) => rig.flushIotlb(GRANULARITY_PAGE, 1, 0x6000, 0),
  ];
  for (const level of [1, 2, 3])
    for (const flush of flushes) {
      const rig = unlinked(level);
      rig.flushContexts(GRANULARITY_GLOBAL);
      rig.flushIotlb(GRANULARITY_DOMAIN, 2);
      rig.flushIotlb(GRANULARITY_PAGE, 2, 0x6000, 0);
      rig.flushIotlb(GRANULARITY_PAGE, 1, 2 ** 40, 18);
      // The hint says that no table was unlinked.
      rig.flushIotlb(GRANULARITY_PAGE, 1, IVA_LOW_IH, 18);
      assert.equal(rig.outcome(SID, 0x6000), "0xa000", `level ${level}`);
      flush(rig);
      assert.equal(rig.outcome(SID, 0x6000), FAULT_READ, `level ${level}`);
    }
});

test("the queue's descriptors have the hint too that no table was unlinked", () => {
  const rig = unlinked(1);
  rig.startQueue();
  rig.submit(iotlbDescriptor(GRANULARITY_PAGE, 1, IVA_LOW_IH, 18));
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  rig.submit(iotlbDescriptor(GRANULARITY_PAGE, 1, 0, 18));
  assert.equal(rig.outcome(SID, 0x5000), FAULT_READ);
});

test("a cached table entry gives no more rights than the way to it", () => {
  const rig = new VtdRig();
  const { top } = rig.simple(SID, 0x5000, 0x9000);
  rig.map(top, 3, 0x6000, 0xa000);
  rig.memory.store32(top, rig.memory.load32(top) & ~SS_W);
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  assert.equal(rig.outcome(SID, 0x6000, true), FAULT_WRITE);
  assert.equal(rig.outcome(SID, 0x6000), "0xa000");
});

test("a unit in caching mode keeps what was not present or wrong, until it is flushed", () => {
  const rig = new VtdRig(withCap({ cm: true }));
  const { top } = rig.simple(SID, 0x5000, 0x9000, 3);
  // A page.
  for (const isWrite of [false, true])
    assert.equal(rig.outcome(SID, 0x6000, isWrite), isWrite ? FAULT_WRITE : FAULT_READ);
  rig.map(top, 3, 0x6000, 0xa000);
  for (const isWrite of [false, true])
    assert.equal(rig.outcome(SID, 0x6000, isWrite), isWrite ? FAULT_WRITE : FAULT_READ);
  rig.flushIotlb(GRANULARITY_PAGE, 4, 0x6000, 0);
  assert.equal(rig.outcome(SID, 0x6000), FAULT_READ);
  rig.flushIotlb(GRANULARITY_PAGE, 3, 0x6000, 0);
  assert.equal(rig.outcome(SID, 0x6000), "0xa000");
  // An entry with a reserved bit.
  const wrong = rig.map(top, 3, 0x7000, 0xb000);
  rig.memory.store32(wrong + 4, 1 << 30);
  assert.equal(rig.outcome(SID, 0x7000), FAULT_PAGING_ENTRY_RESERVED);
  rig.memory.store32(wrong + 4, 0);
  assert.equal(rig.outcome(SID, 0x7000), FAULT_PAGING_ENTRY_RESERVED);
  rig.flushIotlb(GRANULARITY_DOMAIN, 3);
  assert.equal(rig.outcome(SID, 0x7000), "0xb000");
  // A page that can be read is in no cache because of a write.
  const readOnly = rig.map(top, 3, 0x8000, 0xc000, 0, SS_R);
  assert.equal(rig.outcome(SID, 0x8000, true), FAULT_WRITE);
  rig.memory.store32(readOnly, ssEntryLow(0xc000, SS_R | SS_W));
  assert.equal(rig.outcome(SID, 0x8000, true), "0xc000");
});

test("a unit in caching mode keeps context entries that were not present under domain-id 0", () => {
  for (const [sourceId, reason] of [
    [SID + 1, FAULT_CONTEXT_NOT_PRESENT],
    [0x0900, FAULT_ROOT_NOT_PRESENT],
  ] as const) {
    const rig = new VtdRig(withCap({ cm: true }));
    const { top } = rig.simple(SID, 0x5000, 0x9000, 3);
    assert.equal(rig.outcome(sourceId, 0x5000), reason);
    rig.setContext(sourceId, { secondStageTable: top, domainId: 3 });
    assert.equal(rig.outcome(sourceId, 0x5000), reason);
    rig.flushContexts(GRANULARITY_DEVICE, 3, sourceId);
    rig.flushContexts(GRANULARITY_DOMAIN, 3);
    assert.equal(rig.outcome(sourceId, 0x5000), reason);
    rig.flushContexts(GRANULARITY_DEVICE, 0, sourceId);
    assert.equal(rig.outcome(sourceId, 0x5000), "0x9000");
  }
});

test("a unit that needs write-buffer flushes sees stores to what it has read only after one", () => {
  const flushes: ((rig: VtdRig) => void)[] = [
    (rig) => {
      rig.command(GCMD_WBF);
      assert.equal(rig.outcome(SID, 0x6000), FAULT_READ, "it is not over before GSTS says so");
      assert.ok((rig.get32(GSTS_REG) & GSTS_WBFS) !== 0);
      assert.ok((rig.get32(GSTS_REG) & GSTS_WBFS) === 0);
    },
    (rig) => rig.flushContexts(GRANULARITY_DOMAIN, 9),
    (rig) => rig.flushIotlb(GRANULARITY_PAGE, 9, 0, 0),
  ];
  for (const flush of flushes) {
    const rig = new VtdRig(withCap({ rwbf: true }));
    const { top } = rig.simple(SID, 0x5000, 0x9000);
    assert.equal(rig.outcome(SID, 0x5000), "0x9000");
    rig.map(top, 3, 0x6000, 0xa000);
    assert.equal(rig.outcome(SID, 0x6000), FAULT_READ);
    flush(rig);
    assert.equal(rig.outcome(SID, 0x6000), "0xa000");
  }
});

test("rights are cached with the translation", () => {
  const rig = new VtdRig();
  const { leaf } = rig.simple(SID, 0x5000, 0x9000);
  rig.memory.store32(leaf, ssEntryLow(0x9000, SS_R));
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  rig.memory.store32(leaf, ssEntryLow(0x9000, SS_R | SS_W));
  assert.equal(rig.outcome(SID, 0x5000, true), FAULT_WRITE);
  rig.flushIotlb(GRANULARITY_PAGE, 1, 0x5000, 0);
  assert.equal(rig.outcome(SID, 0x5000, true), "0x9000");
});

test("what is not present is not cached", () => {
  const rig = new VtdRig();
  const { top } = rig.simple(SID, 0x5000, 0x9000);
  assert.equal(rig.outcome(SID, 0x6000), FAULT_READ);
  rig.map(top, 3, 0x6000, 0xa000);
  assert.equal(rig.outcome(SID, 0x6000), "0xa000");
  assert.equal(rig.outcome(0x0129, 0x6000), 2);
  rig.setContext(0x0129, { secondStageTable: top });
  assert.equal(rig.outcome(0x0129, 0x6000), "0xa000");
});

test("a context entry that changes without a flush stays in use, and each granularity ends that", () => {
  const flushes: ((rig: VtdRig) => number)[] = [
    (rig) => rig.flushContexts(GRANULARITY_GLOBAL),
    (rig) => rig.flushContexts(GRANULARITY_DOMAIN, 3),
    (rig) => rig.flushContexts(GRANULARITY_DEVICE, 3, SID),
    (rig) => rig.flushContexts(GRANULARITY_DEVICE, 3, SID ^ 0b100, 1),
    (rig) => rig.flushContexts(GRANULARITY_DEVICE, 3, SID ^ 0b110, 2),
    (rig) => rig.flushContexts(GRANULARITY_DEVICE, 3, SID ^ 0b111, 3),
  ];
  for (const flush of flushes) {
    const rig = new VtdRig();
    rig.simple(SID, 0x5000, 0x9000, 3);
    assert.equal(rig.outcome(SID, 0x5000), "0x9000");
    const other = rig.page();
    rig.map(other, 3, 0x5000, 0xb000);
    rig.setContext(SID, { secondStageTable: other, domainId: 4 });
    rig.flushIotlb(GRANULARITY_GLOBAL);
    assert.equal(rig.outcome(SID, 0x5000), "0x9000");
    // The entry in the cache is of the old domain, so the new one's id does not find it.
    rig.flushContexts(GRANULARITY_DOMAIN, 4);
    rig.flushContexts(GRANULARITY_DEVICE, 4, SID);
    rig.flushContexts(GRANULARITY_DEVICE, 3, SID ^ 0b100, 0);
    rig.flushContexts(GRANULARITY_DEVICE, 3, SID ^ 0b1000, 3);
    assert.equal(rig.outcome(SID, 0x5000), "0x9000");
    assert.notEqual(flush(rig), 0);
    assert.equal(rig.outcome(SID, 0x5000), "0xb000");
  }
});

test("a switch of the root in one store keeps the domain's old translations until the IOTLB is flushed", () => {
  const rig = new VtdRig();
  rig.simple(SID, 0x5000, 0x9000, 3);
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  const other = rig.page();
  rig.map(other, 3, 0x5000, 0xb000);
  rig.setContext(SID, { secondStageTable: other, domainId: 3 });
  rig.flushContexts(GRANULARITY_DEVICE, 3, SID);
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  rig.flushIotlb(GRANULARITY_DOMAIN, 3);
  assert.equal(rig.outcome(SID, 0x5000), "0xb000");
});

test("two contexts of one domain share translations, those of two domains do not", () => {
  const rig = new VtdRig();
  const { top } = rig.simple(SID, 0x5000, 0x9000, 3);
  rig.setContext(0x200, { secondStageTable: top, domainId: 3 });
  rig.setContext(0x300, { secondStageTable: top, domainId: 4 });
  rig.outcome(SID, 0x5000);
  const before = rig.unit.statistics.iotlbHits;
  rig.outcome(0x200, 0x5000);
  assert.equal(rig.unit.statistics.iotlbHits, before + 1);
  rig.outcome(0x300, 0x5000);
  assert.equal(rig.unit.statistics.iotlbHits, before + 1);
});

test("statistics count requests and hits", () => {
  const rig = new VtdRig();
  rig.simple(SID, 0x5000, 0x9000);
  for (let i = 0; i < 10; i++) rig.outcome(SID, 0x5000 + i);
  rig.outcome(SID, 0x6000);
  assert.deepEqual(rig.unit.statistics, {
    translations: 11,
    faults: 1,
    contextHits: 10,
    iotlbHits: 9,
  });
});

test("an address mask above MAMV is refused, and page-selective flushes where CAP.PSI is 0", () => {
  const rig = new VtdRig();
  const { mamv } = DEFAULT_VTD_CAPABILITIES.cap;
  assert.equal(rig.flushIotlb(GRANULARITY_PAGE, 1, 0, mamv), GRANULARITY_PAGE);
  assert.equal(rig.flushIotlb(GRANULARITY_PAGE, 1, 0, mamv + 1), 0);
  assert.equal(rig.flushIotlb(0), 0);
  const without = new VtdRig({
    ...DEFAULT_VTD_CAPABILITIES,
    cap: { ...DEFAULT_VTD_CAPABILITIES.cap, psi: false, mamv: 0 },
  });
  assert.equal(without.flushIotlb(GRANULARITY_PAGE, 1, 0, 0), 0);
});

test("caches are bounded: the oldest of a set goes, and translations stay right", () => {
  const rig = new VtdRig({ ...DEFAULT_VTD_CAPABILITIES, iotlbEntries: 4, contextCacheEntries: 4 });
  const { top } = rig.simple(SID, 0x0000, 0x10_0000);
  for (let i = 1; i < 40; i++) rig.map(top, 3, i * 4096, 0x10_0000 + i * 4096);
  for (let i = 0; i < 20; i++) rig.setContext(0x200 + i, { secondStageTable: top });
  for (let round = 0; round < 3; round++)
    for (let i = 0; i < 40; i++)
      assert.equal(
        rig.outcome(0x200 + (i % 20), i * 4096),
        `0x${(0x10_0000 + i * 4096).toString(16)}`,
      );
  assert.equal(rig.unit.statistics.iotlbHits, 0);
  for (let i = 0; i < 4; i++) rig.outcome(SID, i * 4096);
  for (let i = 0; i < 4; i++) rig.outcome(SID, i * 4096);
  assert.equal(rig.unit.statistics.iotlbHits, 4);
});

/** One step on both the IOTLB and the list of all that was filled and not invalidated. */
type Step =
  | { kind: "fill"; domainId: number; level: number; page: number; pa: number }
  | { kind: "all" }
  | { kind: "domain"; domainId: number }
  | { kind: "pages"; domainId: number; page: number; addressMask: number };

test("the IOTLB never returns what was invalidated or never put in", () => {
  const domains = fc.constantFrom(0, 1, 2, 0xffff);
  const pages = fc.oneof(
    fc.integer({ min: 0, max: 40 }),
    fc.integer({ min: 2 ** 36 - 40, max: 2 ** 36 - 1 }),
    fc.integer({ min: 0, max: 2 ** 12 }).map((n) => n * 512),
  );
  const step: fc.Arbitrary<Step> = fc.oneof(
    {
      weight: 8,
      arbitrary: fc.record({
        kind: fc.constant("fill" as const),
        domainId: domains,
        level: fc.constantFrom(0, 0, 1, 2),
        page: pages,
        pa: fc.integer({ min: 0, max: 2 ** 20 }),
      }),
    },
    { weight: 1, arbitrary: fc.constant({ kind: "all" as const }) },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant("domain" as const), domainId: domains }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        kind: fc.constant("pages" as const),
        domainId: domains,
        page: pages,
        addressMask: fc.integer({ min: 0, max: 40 }),
      }),
    },
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), fc.constantFrom(4, 64), (steps, entries) => {
      const iotlb = new Iotlb(entries);
      // By "domain:level:page": physical address of the page.
      const model = new Map<string, { domainId: number; start: number; end: number; pa: number }>();
      for (const s of steps) {
        switch (s.kind) {
          case "fill": {
            const iova = s.page * 4096;
            if (iotlb.lookup(s.domainId, iova) >= 0) break;
            const span = ssSpanBytes(s.level);
            const start = Math.floor(iova / span) * span;
            const pa = s.pa * span;
            iotlb.fill(s.domainId, s.level, iova, pa, SS_R);
            model.set(`${s.domainId}:${s.level}:${start}`, {
              domainId: s.domainId,
              start,
              end: start + span,
              pa,
            });
            assert.ok(iotlb.lookup(s.domainId, iova) >= 0, "what was just put in is found");
            break;
          }
          case "all":
            iotlb.invalidateAll();
            model.clear();
            break;
          case "domain":
            iotlb.invalidateDomain(s.domainId);
            for (const [key, e] of model) if (e.domainId === s.domainId) model.delete(key);
            break;
          case "pages": {
            iotlb.invalidatePages(s.domainId, s.page * 4096, s.addressMask);
            const length = 4096n << BigInt(s.addressMask);
            const start = ((BigInt(s.page) * 4096n) / length) * length;
            for (const [key, e] of model)
              if (
                e.domainId === s.domainId &&
                BigInt(e.start) < start + length &&
                BigInt(e.end) > start
              )
                model.delete(key);
          }
        }
        for (const other of steps) {
          if (other.kind !== "fill") continue;
          const iova = other.page * 4096 + 0x123;
          const slot = iotlb.lookup(other.domainId, iova);
          if (slot < 0) continue;
          const pa = iova + iotlb.offset[slot];
          assert.ok(
            [...model.values()].some(
              (e) =>
                e.domainId === other.domainId &&
                iova >= e.start &&
                iova < e.end &&
                pa === e.pa + (iova - e.start),
            ),
            `stale translation of ${other.domainId}:${iova} to ${pa}`,
          );
        }
      }
    }),
    { numRuns: 300 },
  );
});

test("invalidations keep to their domain at both ends of its addresses", () => {
  const iotlb = new Iotlb(64);
  const last = (2 ** 36 - 1) * 4096;
  for (const domainId of [4, 5, 6]) {
    iotlb.fill(domainId, 0, 0, 0x1000, SS_R);
    iotlb.fill(domainId, 0, last, 0x2000, SS_R);
  }
  iotlb.invalidatePages(5, 0, 40);
  iotlb.invalidatePages(4, 2 ** 48, 0);
  iotlb.invalidateDomain(5);
  for (const domainId of [4, 6])
    for (const iova of [0, last]) assert.notEqual(iotlb.lookup(domainId, iova), -1);
  for (const iova of [0, last]) assert.equal(iotlb.lookup(5, iova), -1);
});

test("the context cache finds what was put in last, and nothing that was invalidated", () => {
  const cache = new ContextCache(16);
  for (let sourceId = 0; sourceId < 0x10000; sourceId += 0x101) {
    assert.equal(cache.lookup(sourceId), -1);
    const slot = cache.allocate(sourceId);
    cache.domainId[slot] = sourceId & 3;
    assert.equal(cache.lookup(sourceId), slot);
  }
  const cached = () => {
    let count = 0;
    for (let sourceId = 0; sourceId < 0x10000; sourceId++) if (cache.lookup(sourceId) >= 0) count++;
    return count;
  };
  assert.equal(cached(), 16);
  cache.invalidateDomain(1);
  for (let sourceId = 0; sourceId < 0x10000; sourceId++)
    if (cache.lookup(sourceId) >= 0) assert.notEqual(sourceId & 3, 1);
  cache.invalidateAll();
  assert.equal(cached(), 0);
});
