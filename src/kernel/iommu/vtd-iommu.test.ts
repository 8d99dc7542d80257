import assert from "node:assert/strict";
import { describe, test } from "node:test";
import {
  FAULT_CONTEXT_NOT_PRESENT,
  FAULT_READ,
  FAULT_ROOT_NOT_PRESENT,
  FAULT_WRITE,
} from "../../abi/vtd/faults.ts";
import {
  GCMD_REG,
  GCMD_SRTP,
  GCMD_WBF,
  GRANULARITY_DEVICE,
  GRANULARITY_DOMAIN,
  GSTS_QIES,
  GSTS_REG,
  GSTS_TES,
} from "../../abi/vtd/registers.ts";
import {
  contextEntry,
  contextEntryAddress,
  rootEntry,
  rootEntryAddress,
  TT_MULTI_LEVEL,
} from "../../abi/vtd/root-context.ts";
import { BugError } from "../../base/assert.ts";
import { type ErrnoCode, isKernelError, KernelError } from "../../base/errno.ts";
import { GIB, MIB, PAGE_SIZE } from "../../base/units.ts";
import type { VtdCapabilities } from "../../machine/embedded/vtd/capabilities.ts";
import { blockAll } from "./block-all.ts";
import { IOMMU_READ, IOMMU_WRITE } from "./domain.ts";
import { levelsAddressWidth } from "./remapping-unit.ts";
import { capabilities, pciFunction, Rig, type TestKernel } from "./test-rig.ts";

const RW = IOMMU_READ | IOMMU_WRITE;
const NIC = pciFunction(0, 0x0100);
const NIC2 = pciFunction(0, 0x0208);
const EDU = pciFunction(0, 0x0008);
const RMRRS = [
  { segment: 0, bdf: EDU.bdf, start: 0x1_0000, lengthBytes: 0x3000 },
  { segment: 0, bdf: EDU.bdf, start: 0x2_0000, lengthBytes: 0x1000 },
];
const TARGET = 32 * MIB;
/** DIDs are given out from 1. */
const FIRST_DID = 1;

function errno(code: ErrnoCode, text = /./) {
  return (error: unknown) => isKernelError(error, code) && text.test(error.message);
}

/** Kinds of units on which everything must work. */
const UNITS: readonly [string, VtdCapabilities][] = [
  ["an ordinary unit", capabilities({})],
  ["a unit with 3-level tables only", capabilities({ sagaw: 0b010, mgaw: 39 })],
  ["a unit without superpages", capabilities({ sllps: 0 })],
  ["a unit without queued invalidation", capabilities({}, { qi: false })],
  ["a unit without page-selective invalidation", capabilities({ psi: false })],
  ["a unit with small address masks", capabilities({ mamv: 2 })],
  ["a unit in caching mode", capabilities({ cm: true })],
  ["a unit in caching mode without queued invalidation", capabilities({ cm: true }, { qi: false })],
  ["a unit that needs write-buffer flushes", capabilities({ rwbf: true })],
];

for (const [name, unit] of UNITS) {
  describe(name, () => {
    test("blocks everything after start, and translates what is attached", () => {
      const rig = new Rig({ units: [unit] });
      const { iommu } = rig.coldBoot();
      assert.equal(rig.dma(NIC, TARGET), -1);
      assert.equal(iommu.domainOf(NIC)?.type, "blocking");
      const domain = iommu.allocDomain(NIC);
      domain.map(GIB, TARGET, 4 * MIB + PAGE_SIZE, RW);
      domain.map(0, TARGET, PAGE_SIZE, IOMMU_READ);
      iommu.attach(NIC, domain);
      assert.equal(iommu.domainOf(NIC), domain);
      for (const offset of [0, 5, 2 * MIB, 4 * MIB + PAGE_SIZE - 1])
        assert.equal(rig.dma(NIC, GIB + offset), TARGET + offset);
      assert.equal(rig.dma(NIC, GIB + 4 * MIB + PAGE_SIZE), -1);
      assert.equal(rig.dma(NIC, 0, false), TARGET);
      assert.equal(rig.dma(NIC, 0, true), -1);
      assert.equal(rig.dma(NIC2, GIB), -1, "another function stays blocked");
    });

    test("forgets translations at unmap, block and replacement, for every function", () => {
      const rig = new Rig({ units: [unit] });
      const kernel = rig.coldBoot();
      const { iommu, mm } = kernel;
      const allocated = mm.counts().allocated;
      const domain = iommu.allocDomain(NIC);
      for (const pci of [NIC, NIC2]) iommu.attach(pci, domain);
      const sizes = [PAGE_SIZE, 3 * PAGE_SIZE, 2 * MIB, 6 * MIB];
      for (const lengthBytes of sizes) {
        const iova = GIB + 2 * MIB;
        domain.map(iova, TARGET, lengthBytes, RW);
        for (const pci of [NIC, NIC2])
          for (let at = 0; at < lengthBytes; at += PAGE_SIZE)
            assert.equal(rig.dma(pci, iova + at), TARGET + at);
        domain.unmap(iova, lengthBytes);
        for (const pci of [NIC, NIC2])
          for (let at = 0; at < lengthBytes; at += PAGE_SIZE)
            assert.equal(rig.dma(pci, iova + at), -1, `${lengthBytes} at ${at}`);
      }
      domain.map(0, TARGET, PAGE_SIZE, RW);
      const other = iommu.allocDomain(NIC);
      other.map(0, TARGET + PAGE_SIZE, PAGE_SIZE, RW);
      assert.equal(rig.dma(NIC, 0), TARGET);
      assert.equal(rig.dma(NIC2, 0), TARGET);
      iommu.attach(NIC, other);
      assert.equal(rig.dma(NIC, 0), TARGET + PAGE_SIZE);
      assert.equal(rig.dma(NIC2, 0), TARGET, "the other function stays where it was");
      iommu.block(NIC);
      iommu.block(NIC2);
      iommu.block(NIC2);
      assert.equal(rig.dma(NIC, 0), -1);
      assert.equal(rig.dma(NIC2, 0), -1);
      domain.free();
      other.free();
      assert.equal(iommu.domainIdCount, 0);
      assert.equal(iommu.domainCount, 0);
      assert.equal(mm.counts().allocated, allocated + 2, "two context tables stay");
    });
  });
}

describe("unmap()", () => {
  for (const [name, unit] of UNITS)
    test(`leaves ${name} no way through a table that is freed, to pages never translated before`, () => {
      const rig = new Rig({ units: [unit] });
      const { iommu } = rig.coldBoot();
      const domain = iommu.allocDomain(NIC);
      iommu.attach(NIC, domain);
      // Not aligned to 2 MiB, so that there are tables of 4 KiB pages; one is unlinked as a whole, others become empty.
      const pa = TARGET + PAGE_SIZE;
      for (const lengthBytes of [4 * MIB, 2 * PAGE_SIZE]) {
        domain.map(GIB, pa, lengthBytes, RW);
        for (let at = 0; at < lengthBytes; at += 2 * MIB)
          assert.equal(rig.dma(NIC, GIB + at), pa + at);
        domain.unmap(GIB, lengthBytes);
        for (let at = 0; at < lengthBytes; at += PAGE_SIZE)
          assert.equal(rig.dma(NIC, GIB + at), -1, `${at} of ${lengthBytes}`);
      }
    });
});

describe("allocDomain()", () => {
  test("has the format of the function's unit", () => {
    const rig = new Rig({
      units: [capabilities({}), capabilities({ sagaw: 0b010, mgaw: 39, sllps: 0 })],
    });
    const { iommu } = rig.coldBoot();
    const big = iommu.allocDomain(NIC);
    assert.equal(big.apertureEnd, 2 ** 48);
    assert.equal(big.pageSizes, PAGE_SIZE + 2 * MIB + GIB);
    const small = iommu.allocDomain(pciFunction(1, 0x100));
    assert.equal(small.apertureEnd, 2 ** 39);
    assert.equal(small.pageSizes, PAGE_SIZE);
  });

  test("maps with 4 KiB pages only when superpages are off", () => {
    const rig = new Rig();
    const kernel = rig.boot(null, false);
    kernel.iommu.start();
    const domain = kernel.iommu.allocDomain(NIC);
    assert.equal(domain.pageSizes, PAGE_SIZE);
    domain.map(GIB, TARGET, 2 * MIB, RW);
    // A page of 2 MiB could not lose one of its 4 KiB.
    domain.unmap(GIB + PAGE_SIZE, PAGE_SIZE);
    kernel.iommu.attach(NIC, domain);
    assert.equal(rig.dma(NIC, GIB), TARGET);
    assert.equal(rig.dma(NIC, GIB + PAGE_SIZE), -1);
  });

  test("fails with ENODEV for a function that is not translated", () => {
    const { iommu } = new Rig().coldBoot();
    const foreign = pciFunction(3, 0x100);
    assert.equal(iommu.isTranslated(foreign), false);
    assert.equal(iommu.isTranslated(NIC), true);
    assert.equal(iommu.domainOf(foreign), null);
    assert.throws(() => iommu.allocDomain(foreign), errno("ENODEV"));
    assert.throws(() => iommu.attach(foreign, iommu.allocDomain(NIC)), errno("ENODEV"));
    iommu.block(foreign);
  });

  test("fails with ENOMEM and leaves nothing", () => {
    const { iommu, mm, faults } = new Rig().coldBoot();
    const before = mm.counts().allocated;
    faults.arm(0, (point) => new KernelError("ENOMEM", "test", point));
    assert.throws(() => iommu.allocDomain(NIC), errno("ENOMEM"));
    faults.disarm();
    assert.equal(mm.counts().allocated, before);
    assert.equal(iommu.domainCount, 0);
  });
});

describe("attach()", () => {
  test("shares a domain between two units, and unmap flushes both", () => {
    const rig = new Rig({ units: [capabilities({}), capabilities({ psi: false })] });
    const { iommu } = rig.coldBoot();
    const other = pciFunction(1, NIC.bdf);
    const domain = iommu.allocDomain(NIC);
    iommu.attach(NIC, domain);
    iommu.attach(other, domain);
    domain.map(0, TARGET, PAGE_SIZE, RW);
    assert.equal(rig.dma(NIC, 0), TARGET);
    assert.equal(rig.dma(other, 0), TARGET);
    domain.unmap(0, PAGE_SIZE);
    assert.equal(rig.dma(NIC, 0), -1);
    assert.equal(rig.dma(other, 0), -1);
  });

  test("fails with EINVAL when the unit cannot walk the tables", () => {
    const rig = new Rig({
      units: [
        capabilities({}),
        capabilities({ sagaw: 0b010, mgaw: 39 }),
        capabilities({ sllps: 0 }),
      ],
    });
    const { iommu } = rig.coldBoot();
    const domain = iommu.allocDomain(NIC);
    assert.throws(() => iommu.attach(pciFunction(1, 8), domain), errno("EINVAL"));
    assert.throws(() => iommu.attach(pciFunction(2, 8), domain), errno("EINVAL"));
    assert.equal(iommu.domainOf(pciFunction(1, 8))?.type, "blocking");
    assert.equal(iommu.domainIdCount, 0);
  });

  test("fails with EBUSY for a function with RMRRs", () => {
    const { iommu } = new Rig({ rmrrs: RMRRS }).coldBoot();
    assert.throws(() => iommu.attach(EDU, iommu.allocDomain(EDU)), errno("EBUSY"));
  });

  test("fails with ENOSPC when the unit has no domain id left", () => {
    const { iommu } = new Rig({ units: [capabilities({ nd: 0 })] }).coldBoot();
    const domain = iommu.allocDomain(NIC);
    for (let i = 0; i < 15; i++) iommu.attach(pciFunction(0, 0x100 + i), domain);
    assert.throws(() => iommu.attach(pciFunction(0, 0x1ff), domain), errno("ENOSPC"));
    iommu.block(pciFunction(0, 0x103));
    iommu.attach(pciFunction(0, 0x1ff), domain);
  });

  test("leaves the function as it was when it fails at any step", () => {
    const rig = new Rig();
    const { iommu, mm, faults } = rig.coldBoot();
    const domain = iommu.allocDomain(NIC);
    domain.map(0, TARGET, PAGE_SIZE, RW);
    const before = mm.counts().allocated;
    const points = ["iommu:attach", "mm:alloc"];
    for (let i = 0; i < points.length; i++) {
      faults.arm(i, (point) => {
        assert.equal(point, points[i]);
        return new KernelError("ENOMEM", "test", point);
      });
      assert.throws(() => iommu.attach(NIC, domain), errno("ENOMEM"));
      assert.ok(faults.disarm());
      assert.equal(rig.dma(NIC, 0), -1);
      assert.equal(iommu.domainIdCount, 0);
      assert.equal(mm.counts().allocated, before);
    }
    assert.deepEqual(
      faults.record(() => iommu.attach(NIC, domain)),
      points,
    );
    const other = iommu.allocDomain(NIC);
    faults.arm(0, (point) => new KernelError("ENOMEM", "test", point));
    assert.throws(() => iommu.attach(NIC, other), errno("ENOMEM"));
    faults.disarm();
    assert.equal(iommu.domainOf(NIC), domain);
    assert.equal(rig.dma(NIC, 0), TARGET);
  });

  for (const caches of ["warm", "cold"]) {
    test(`moves a function under DMA, at every store, with ${caches} caches, without a fault or a wrong address`, () => {
      const rig = new Rig();
      const { iommu } = rig.coldBoot();
      const first = iommu.allocDomain(NIC);
      const second = iommu.allocDomain(NIC);
      first.map(GIB, TARGET, 2 * MIB, RW);
      // The same translation in pages of another size.
      for (let at = 0; at < 2 * MIB; at += MIB) second.map(GIB + at, TARGET + at, MIB, RW);
      iommu.attach(NIC, first);
      const faultsBefore = rig.units[0].statistics.faults;
      let checks = 0;
      rig.beforeStore = () => {
        if (caches === "cold") rig.dropCaches();
        const offset = (checks++ * 0x11000) % (2 * MIB);
        assert.equal(rig.dma(NIC, GIB + offset), TARGET + offset);
      };
      for (let i = 0; i < 6; i++) {
        iommu.attach(NIC, i % 2 === 0 ? second : first);
        rig.beforeStore(0);
      }
      assert.ok(checks > 50, `${checks} DMAs between stores`);
      assert.equal(rig.units[0].statistics.faults, faultsBefore);
    });
  }

  test("is one store of the context entry: DMA sees the old tables before it and none of them after", () => {
    const rig = new Rig();
    const { iommu } = rig.coldBoot();
    const first = iommu.allocDomain(NIC);
    const second = iommu.allocDomain(NIC);
    first.map(0, TARGET, PAGE_SIZE, RW);
    second.map(0, TARGET + MIB, PAGE_SIZE, RW);
    iommu.attach(NIC, first);
    const seen: number[] = [];
    rig.beforeStore = () => seen.push(rig.dma(NIC, 0));
    iommu.attach(NIC, second);
    rig.beforeStore = () => undefined;
    assert.equal(seen[0], TARGET);
    assert.ok(
      seen.every((pa) => pa === TARGET || pa === TARGET + MIB),
      "never blocked",
    );
    assert.equal(rig.dma(NIC, 0), TARGET + MIB);
  });

  for (const caches of ["warm", "cold"]) {
    test(`never shows half an entry while one appears or goes, with ${caches} caches`, () => {
      const rig = new Rig({ units: [capabilities({ nfr: 64 })] });
      const { iommu } = rig.coldBoot();
      const domain = iommu.allocDomain(NIC);
      const targets = new Set<number>();
      const reasons = new Set<number>();
      rig.beforeStore = () => {
        if (caches === "cold") rig.dropCaches();
        for (let at = 0; at < 3 * MIB; at += 64 * PAGE_SIZE) {
          const pa = rig.dma(NIC, at);
          if (pa !== -1) targets.add(pa - at);
        }
        for (const { reason } of iommu.readFaults()) reasons.add(reason);
      };
      for (let i = 0; i < 3; i++) {
        iommu.attach(NIC, domain);
        domain.map(0, TARGET, 2 * MIB, RW);
        domain.map(2 * MIB, TARGET + 2 * MIB, MIB, RW);
        domain.unmap(0, 2 * MIB);
        iommu.block(NIC);
        domain.unmap(2 * MIB, MIB);
      }
      assert.deepEqual([...targets], [TARGET]);
      assert.equal(iommu.faultOverflows, 0);
      assert.deepEqual(
        [...reasons].sort(),
        [FAULT_ROOT_NOT_PRESENT, FAULT_CONTEXT_NOT_PRESENT, FAULT_WRITE],
        "only what is meant to be absent is missing",
      );
    });
  }

  test("and block leave nothing behind in 50 rounds", () => {
    const rig = new Rig();
    const { iommu, mm } = rig.coldBoot();
    const round = () => {
      const domains = [0, 1, 2].map(() => iommu.allocDomain(NIC));
      for (const domain of domains) {
        domain.map(GIB, TARGET, 2 * MIB + PAGE_SIZE, RW);
        iommu.attach(NIC, domain);
        iommu.attach(NIC2, domain);
        assert.equal(rig.dma(NIC2, GIB), TARGET);
      }
      iommu.block(NIC);
      iommu.block(NIC2);
      for (const domain of domains) domain.free();
    };
    round();
    const before = mm.counts().allocated;
    for (let i = 0; i < 50; i++) round();
    assert.equal(mm.counts().allocated, before);
    assert.equal(iommu.domainIdCount, 0);
  });

  test("a domain with attached functions cannot be freed", () => {
    const { iommu } = new Rig().coldBoot();
    const domain = iommu.allocDomain(NIC);
    iommu.attach(NIC, domain);
    assert.throws(() => domain.free(), BugError);
  });
});

describe("RMRRs", () => {
  test("are identity mapped from the start, cannot be blocked, and are reserved", () => {
    const rig = new Rig({ rmrrs: RMRRS });
    const { iommu } = rig.coldBoot();
    assert.equal(rig.dma(EDU, 0x1_2fff), 0x1_2fff);
    assert.equal(rig.dma(EDU, 0x2_0000), 0x2_0000);
    assert.equal(rig.dma(EDU, 0x1_3000), -1);
    assert.equal(rig.dma(NIC, 0x1_0000), -1);
    iommu.block(EDU);
    assert.equal(rig.dma(EDU, 0x1_0000), 0x1_0000);
    const domain = iommu.domainOf(EDU);
    assert.ok(domain?.type === "paging");
    assert.throws(() => domain.unmap(0x1_0000, 0x3000), errno("EBUSY"));
    assert.deepEqual(iommu.reservedRegions(EDU), [
      { start: 0xfee00000, lengthBytes: 0x100000, kind: "msi" },
      { start: 0x1_0000, lengthBytes: 0x3000, kind: "rmrr" },
      { start: 0x2_0000, lengthBytes: 0x1000, kind: "rmrr" },
    ]);
    assert.equal(iommu.reservedRegions(NIC).length, 1);
  });

  test("that overlap or touch are merged", () => {
    const { iommu } = new Rig({
      rmrrs: [
        { segment: 0, bdf: 8, start: 0x2_0800, lengthBytes: 0x1000 },
        { segment: 0, bdf: 8, start: 0x1_0000, lengthBytes: 0x1000 },
        { segment: 0, bdf: 8, start: 0x1_1000, lengthBytes: 0x1000 },
      ],
    }).coldBoot();
    assert.deepEqual(iommu.reservedRegions(EDU).slice(1), [
      { start: 0x1_0000, lengthBytes: 0x2000, kind: "rmrr" },
      { start: 0x2_0000, lengthBytes: 0x2000, kind: "rmrr" },
    ]);
  });

  test("start() that fails at any step leaves no page", () => {
    const rig = new Rig({ rmrrs: RMRRS });
    const kernel = rig.boot(null);
    const before = kernel.mm.counts().allocated;
    const { iommu, faults, mm } = rig.boot(null);
    let steps = 0;
    for (; ; steps++) {
      faults.arm(steps, (point) => new KernelError("ENOMEM", "test", point));
      try {
        iommu.start();
        break;
      } catch (error) {
        if (!isKernelError(error, "ENOMEM")) throw error;
      }
      faults.disarm();
      assert.equal(mm.counts().allocated, before);
      assert.equal(iommu.domainIdCount, 0);
      assert.equal(rig.units[0].translate(EDU.bdf, 5, true), 5, "translation is still off");
    }
    faults.disarm();
    assert.ok(steps > 5, `${steps} steps failed`);
    assert.equal(rig.dma(EDU, 0x1_0000), 0x1_0000);
  });
});

describe("readFaults()", () => {
  test("drains what was blocked, oldest first, with source, address and reason", () => {
    const rig = new Rig({ units: [capabilities({}), capabilities({})] });
    const { iommu } = rig.coldBoot();
    const domain = iommu.allocDomain(NIC);
    domain.map(0, TARGET, PAGE_SIZE, IOMMU_READ);
    domain.map(PAGE_SIZE, TARGET, PAGE_SIZE, IOMMU_WRITE);
    iommu.attach(NIC, domain);
    const other = pciFunction(1, 0x0300);
    rig.dma(NIC, 0x123, true);
    rig.dma(NIC, PAGE_SIZE, false);
    rig.dma(pciFunction(0, 0x0101), 0x8000_0000_0000 - 1, true);
    rig.dma(other, 0x5000, false);
    assert.deepEqual(iommu.readFaults(), [
      { segment: 0, sourceId: 0x0100, address: 0, isWrite: true, reason: FAULT_WRITE },
      { segment: 0, sourceId: 0x0100, address: 0x1000, isWrite: false, reason: FAULT_READ },
      {
        segment: 0,
        sourceId: 0x0101,
        address: 0x7fff_ffff_f000,
        isWrite: true,
        reason: FAULT_CONTEXT_NOT_PRESENT,
      },
      {
        segment: 1,
        sourceId: 0x0300,
        address: 0x5000,
        isWrite: false,
        reason: FAULT_ROOT_NOT_PRESENT,
      },
    ]);
    assert.deepEqual(iommu.readFaults(), []);
    assert.equal(iommu.faultOverflows, 0);
  });

  test("says when faults were lost, and records again afterwards", () => {
    const rig = new Rig({ units: [capabilities({ nfr: 2 })] });
    const { iommu } = rig.coldBoot();
    for (let i = 0; i < 5; i++) rig.dma(NIC, i * PAGE_SIZE);
    assert.equal(iommu.readFaults().length, 2);
    assert.equal(iommu.faultOverflows, 1);
    rig.dma(NIC, 0x9000);
    assert.deepEqual(
      iommu.readFaults().map(({ address }) => address),
      [0x9000],
    );
    assert.equal(iommu.faultOverflows, 1);
  });
});

describe("shutdown() with nothing preserved", () => {
  test("turns translation off, as Linux does", () => {
    const rig = new Rig();
    const { iommu } = rig.coldBoot();
    const domain = iommu.allocDomain(NIC);
    iommu.attach(NIC, domain);
    iommu.shutdown();
    assert.equal(rig.dma(NIC, 0x1000), 0x1000, "only bus mastering keeps devices quiet now");
    assert.equal(rig.units[0].read(GSTS_REG, 4) & (GSTS_TES | GSTS_QIES), 0);
    const next = rig.coldBoot();
    assert.equal(rig.dma(NIC, 0x1000), -1);
    assert.equal(next.iommu.restoredCount, 0);
  });
});

describe("a unit in caching mode", () => {
  test("is told of a new context entry: by domain id 0 for the entry, by its own for the domain", () => {
    const rig = new Rig({ units: [capabilities({ cm: true })] });
    const { iommu } = rig.coldBoot();
    const domain = iommu.allocDomain(NIC);
    const [unit] = rig.units;
    const told: string[] = [];
    // The queue calls the unit by these properties, so own ones stand in for the methods.
    const { invalidateContext, invalidateIotlb } = unit;
    unit.invalidateContext = (...request) => {
      told.push(`context ${request.join(" ")}`);
      return invalidateContext.apply(unit, request);
    };
    unit.invalidateIotlb = (...request) => {
      told.push(`iotlb ${request.slice(0, 2).join(" ")}`);
      return invalidateIotlb.apply(unit, request);
    };
    iommu.attach(NIC, domain);
    assert.deepEqual(told, [
      `context ${GRANULARITY_DEVICE} 0 ${NIC.bdf} 0`,
      `iotlb ${GRANULARITY_DOMAIN} ${FIRST_DID}`,
    ]);
  });
});

describe("a unit that needs write-buffer flushes", () => {
  /** What is done to root table and write buffers, in order. */
  function commands(rig: Rig, action: () => void): string[] {
    const [unit] = rig.units;
    const write = unit.write.bind(unit);
    const seen: string[] = [];
    // The bus calls the unit by this property, so an own one stands in for the method.
    unit.write = (offset, size, value) => {
      if (offset === GCMD_REG && (value & GCMD_WBF) !== 0) seen.push("flush");
      if (offset === GCMD_REG && (value & GCMD_SRTP) !== 0) seen.push("root");
      write(offset, size, value);
    };
    action();
    unit.write = write;
    return seen;
  }

  for (const rwbf of [true, false])
    test(`${rwbf ? "gets one" : "is the only one that gets one"} before it takes a root table`, () => {
      const rig = new Rig({ units: [capabilities({ rwbf })] });
      const expected = rwbf ? ["flush", "root"] : ["root"];
      assert.deepEqual(
        commands(rig, () => rig.coldBoot()),
        expected,
      );
      const { machine, mm } = rig.boot(null);
      assert.deepEqual(
        commands(rig, () => blockAll(machine, mm.alloc(0))),
        expected,
      );
    });
});

describe("blockAll()", () => {
  /** A kernel that has left translation on, with a NIC attached, and no handover. */
  function abandoned(unit: VtdCapabilities): { rig: Rig; kernel: TestKernel } {
    const rig = new Rig({ units: [unit] });
    const kernel = rig.coldBoot();
    const domain = kernel.iommu.allocDomain(NIC);
    domain.map(0, TARGET, PAGE_SIZE, RW);
    kernel.iommu.attach(NIC, domain);
    assert.equal(rig.dma(NIC, 0), TARGET);
    return { rig, kernel };
  }

  for (const [name, unit] of UNITS) {
    test(`blocks all DMA of ${name}, also what was cached, and an ordinary start may follow`, () => {
      const { rig, kernel } = abandoned(unit);
      const page = kernel.mm.alloc(0);
      const next = rig.boot(null);
      blockAll(next.machine, page);
      assert.equal(rig.dma(NIC, 0), -1);
      next.iommu.start();
      assert.equal(rig.dma(NIC, 0), -1);
      const domain = next.iommu.allocDomain(NIC);
      domain.map(0, TARGET + MIB, PAGE_SIZE, RW);
      next.iommu.attach(NIC, domain);
      assert.equal(rig.dma(NIC, 0), TARGET + MIB);
    });
  }

  for (const [name, unit] of UNITS)
    test(`leaves nothing in the IOTLB of ${name}: who gets the same domain id next finds no old translation`, () => {
      const { rig, kernel } = abandoned(unit);
      const [root, contexts, top] = [0, 0, 0].map(() => kernel.mm.alloc(0));
      blockAll(rig.boot(null).machine, root);
      // An empty domain with the DID of the NIC's; nothing but blockAll() has flushed since.
      const put = (at: number, words: readonly number[]) => {
        for (const [i, word] of words.entries()) rig.ram.store32(at + 4 * i, word);
      };
      const levels = unit.cap.mgaw === 39 ? 3 : 4;
      const entry = contextEntry({
        translationType: TT_MULTI_LEVEL,
        secondStageTable: top,
        addressWidth: levelsAddressWidth(levels),
        domainId: FIRST_DID,
      });
      put(contextEntryAddress(contexts, NIC.bdf), entry);
      put(rootEntryAddress(root, NIC.bdf), rootEntry(contexts));
      assert.equal(rig.dma(NIC, 0), -1);
    });

  test("is not needed for start() to take over a unit and its queue from a kernel that has just stopped", () => {
    const { rig } = abandoned(capabilities({}));
    const next = rig.boot(null);
    next.iommu.start();
    assert.equal(rig.dma(NIC, 0), -1);
    const domain = next.iommu.allocDomain(NIC);
    next.iommu.attach(NIC, domain);
    domain.map(0, TARGET + MIB, PAGE_SIZE, RW);
    assert.equal(rig.dma(NIC, 0), TARGET + MIB);
    domain.unmap(0, PAGE_SIZE);
    assert.equal(rig.dma(NIC, 0), -1);
  });

  test("leaves a unit alone that does not translate", () => {
    const rig = new Rig();
    const { machine, mm } = rig.boot(null);
    blockAll(machine, mm.alloc(0));
    assert.equal(rig.dma(NIC, 0x5000), 0x5000);
  });
});
