import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { HandoverError } from "../../abi/handover-error.ts";
import {
  IOMMU_DEVICE_SER,
  IOMMU_DOMAIN_SER,
  IOMMU_SER,
  IOMMU_UNIT_SER,
  iommuRecordAddress,
} from "../../abi/iommu-luo.ts";
import {
  GCMD_QIE,
  GCMD_REG,
  GCMD_SRTP,
  GCMD_TE,
  GSTS_QIES,
  GSTS_REG,
  GSTS_TES,
  IQA_REG,
  IQT_REG,
  RTADDR_REG,
} from "../../abi/vtd/registers.ts";
import { contextEntryAddress, rootEntryAddress, tableAddress } from "../../abi/vtd/root-context.ts";
import { ssAddress } from "../../abi/vtd/second-stage.ts";
import { BugError } from "../../base/assert.ts";
import { type ErrnoCode, isKernelError, KernelError } from "../../base/errno.ts";
import { MIB, PAGE_SIZE } from "../../base/units.ts";
import type { KhoBootParameters } from "../../machine/machine.ts";
import { IncomingHandover } from "../kho/incoming-handover.ts";
import type { PciFunction } from "../pci/function.ts";
import { IOMMU_READ, IOMMU_WRITE, type PagingDomain } from "./domain.ts";
import { HandoverDecoder } from "./handover-decoder.ts";
import { RemappingUnit } from "./remapping-unit.ts";
import { rmrrFunctions } from "./rmrr.ts";
import { SecondStageDomain } from "./second-stage-domain.ts";
import { adopt, capabilities, pciFunction, Rig, type TestKernel } from "./test-rig.ts";

const RW = IOMMU_READ | IOMMU_WRITE;
const NIC = pciFunction(0, 0x0100);
const NIC2 = pciFunction(0, 0x0208);
const FAR_NIC = pciFunction(1, 0x0300);
const EDU = pciFunction(0, 0x0008);
const RMRR = { segment: 0, bdf: EDU.bdf, start: 0x1_0000, lengthBytes: 0x2000 };
const IOVA = 0x4000_0000;
const GUEST_BYTES = 2 * MIB;

function errno(code: ErrnoCode, text = /./) {
  return (error: unknown) => isKernelError(error, code) && text.test(error.message);
}

/** Preserved memory for a guest. */
function guestMemory({ mm, kho }: TestKernel): number {
  const pa = mm.alloc(9);
  kho.preserve(pa, 9);
  return pa;
}

/** Guest memory in the next kernel. */
function keepGuestMemory({ kho }: TestKernel, pa: number): void {
  kho.restore(pa, 9);
  kho.preserve(pa, 9);
}

function attachGuest(kernel: TestKernel, pci: PciFunction, guest: number): PagingDomain {
  const domain = kernel.iommu.allocDomain(pci);
  domain.map(IOVA, guest, GUEST_BYTES, RW);
  kernel.iommu.attach(pci, domain);
  return domain;
}

/** What the handlers of iommufd and VFIO do. */
function preserve(kernel: TestKernel, devices: readonly PciFunction[]): bigint {
  const { iommu } = kernel;
  const data = iommu.flb.preserve();
  const domains = new Set(devices.map((pci) => iommu.domainOf(pci)));
  for (const domain of domains) {
    assert.ok(domain?.type === "paging");
    iommu.preserveDomain(domain);
  }
  for (const pci of devices) iommu.preserveDevice(pci);
  return data;
}

/** From a restored domain to an ordinary one, and the end of the restored one. */
function swap(kernel: TestKernel, pci: PciFunction, guest: number): PagingDomain {
  const old = kernel.iommu.domainOf(pci);
  assert.ok(old?.type === "restored");
  const domain = attachGuest(kernel, pci, guest);
  if (old.attachedCount === 0) old.free();
  return domain;
}

describe("a kexec", () => {
  test("keeps preserved functions translated at every store of both kernels, and adopts them", () => {
    const rig = new Rig({ rmrrs: [RMRR] });
    const first = rig.coldBoot();
    const guest = guestMemory(first);
    attachGuest(first, NIC, guest);
    let dmas = 0;
    const faults = rig.units[0].statistics.faults;
    rig.beforeStore = () => {
      if (dmas % 2 === 0) rig.dropCaches();
      const offset = (dmas++ * 0x1_1000) % GUEST_BYTES;
      assert.equal(rig.dma(NIC, IOVA + offset), guest + offset);
      assert.equal(rig.dma(EDU, RMRR.start), RMRR.start);
    };
    const second = rig.kexec(first, preserve(first, [NIC]));
    keepGuestMemory(second, guest);
    const restored = second.iommu.domainOf(NIC);
    assert.ok(restored?.type === "restored");
    assert.equal(restored.iovaToPhys(IOVA + 5), guest + 5);
    assert.equal(restored.attachedCount, 1);
    assert.equal(second.iommu.restoredDomain(restored.id), restored);
    assert.equal(second.iommu.restoredCount, 1);
    swap(second, NIC, guest);
    assert.equal(second.iommu.restoredCount, 0);
    rig.beforeStore = () => undefined;
    assert.equal(rig.dma(NIC, IOVA), guest);
    assert.ok(dmas > 500, `${dmas} DMAs`);
    assert.equal(rig.units[0].statistics.faults, faults, "no DMA was blocked");
    second.iommu.flb.finish(second.adopted);
  });

  test("blocks functions that are not preserved, also those that share a domain with one that is", () => {
    const rig = new Rig();
    const first = rig.coldBoot();
    const guest = guestMemory(first);
    const domain = attachGuest(first, NIC, guest);
    first.iommu.attach(NIC2, domain);
    assert.equal(rig.dma(NIC2, IOVA), guest);
    const data = preserve(first, [NIC]);
    const frozen = first.iommu.flb.freeze?.(data) ?? data;
    const status = () => rig.units[0].read(GSTS_REG, 4);
    assert.ok((status() & GSTS_QIES) !== 0);
    first.iommu.shutdown();
    assert.equal(status() & GSTS_QIES, 0, "the queue's page is not preserved");
    assert.ok((status() & GSTS_TES) !== 0);
    assert.equal(rig.dma(NIC2, IOVA), -1);
    assert.equal(rig.dma(NIC, IOVA), guest);
    const second = rig.boot(rig.jump(first));
    adopt(second, frozen);
    second.iommu.start();
    assert.equal(rig.dma(NIC2, IOVA), -1);
    assert.equal(second.iommu.domainOf(NIC2)?.type, "blocking");
    assert.equal(rig.dma(NIC, IOVA), guest);
  });

  test("defers attaching: writes no entry that hardware can reach until userspace attaches", () => {
    const { rig, parameters, data, pages, contexts, guest } = handedOver();
    const next = rig.boot(parameters);
    const before = next.mm.counts().allocated;
    const touched = new Set<number>();
    rig.beforeStore = (pa) => touched.add(pa - (pa % PAGE_SIZE));
    adopt(next, data);
    next.iommu.start();
    assert.ok(touched.size > 0, "the new queue was written");
    for (const page of pages) assert.ok(!touched.has(page), `page ${page} was written`);
    const { allocated } = next.mm.counts();
    // Per tree a table of each level, one more for the NIC's page, one for the RMRR's; the queue; not the record.
    assert.equal(allocated - before, 1 + 3 + (5 + 3 + 4) + 2);
    assert.equal(
      next.iommu.ownPages,
      allocated - before - (5 + 3),
      "restored tables are not its own",
    );
    // The owner comes back and builds its mappings anew: still nothing. Then it attaches: one store, of its entry alone.
    const domain = next.iommu.allocDomain(NIC);
    domain.map(0, guest, 3 * PAGE_SIZE, RW);
    domain.map(IOVA, guest, GUEST_BYTES, RW);
    for (const page of pages) assert.ok(!touched.has(page), `page ${page} was written`);
    const stores: number[] = [];
    rig.beforeStore = (pa) => {
      if (pages.some((page) => pa >= page && pa < page + PAGE_SIZE)) stores.push(pa);
    };
    next.iommu.attach(NIC, domain);
    rig.beforeStore = () => undefined;
    assert.deepEqual(stores, [contextEntryAddress(contexts[0], NIC.bdf)]);
    assert.equal(next.iommu.domainOf(NIC2)?.type, "restored");
  });

  test("flushes what the previous kernel may have left in caches", () => {
    const rig = new Rig();
    const first = rig.coldBoot();
    const guest = guestMemory(first);
    const domain = attachGuest(first, NIC, guest);
    first.iommu.attach(NIC2, domain);
    assert.equal(rig.dma(NIC2, IOVA), guest);
    const data = preserve(first, [NIC, NIC2]);
    first.iommu.unpreserveDevice(NIC2);
    const frozen = first.iommu.flb.freeze?.(data) ?? data;
    // A kernel that clears an entry and forgets to flush.
    const { root } = tablesOf(rig, 0);
    const context = contextTable(rig, root, NIC2.bdf);
    rig.ram.fill(contextEntryAddress(context, NIC2.bdf), 16, 0);
    command(rig, GCMD_TE);
    assert.equal(rig.dma(NIC2, IOVA), guest, "stale");
    const second = rig.boot(rig.jump(first));
    adopt(second, frozen);
    assert.equal(rig.dma(NIC2, IOVA), -1);
    assert.equal(rig.dma(NIC, IOVA), guest);
  });

  test("ten times in a row, on two units, leaves no page, id or domain", () => {
    const rig = new Rig({
      units: [capabilities({}), capabilities({ sagaw: 0b010, mgaw: 39, sllps: 1 }, { qi: false })],
      rmrrs: [RMRR],
    });
    let kernel = rig.coldBoot();
    const guest = guestMemory(kernel);
    const devices = [NIC, NIC2, FAR_NIC];
    let domains = devices.map((pci) => attachGuest(kernel, pci, guest));
    let before: number | null = null;
    for (let update = 0; update < 10; update++) {
      const next = rig.kexec(kernel, preserve(kernel, devices));
      keepGuestMemory(next, guest);
      for (const pci of [...devices, EDU])
        assert.equal(
          rig.dma(pci, pci === EDU ? RMRR.start : IOVA),
          pci === EDU ? RMRR.start : guest,
        );
      domains = devices.map((pci) => swap(next, pci, guest));
      next.iommu.flb.finish(next.adopted);
      assert.equal(next.iommu.restoredCount, 0);
      assert.equal(next.iommu.domainCount, domains.length);
      assert.equal(next.iommu.domainIdCount, devices.length + 1);
      assert.equal(next.kho.unrestoredPages(), 0);
      const { allocated } = next.mm.counts();
      before ??= allocated;
      assert.equal(allocated, before, `update ${update}`);
      kernel = next;
    }
    assert.deepEqual(kernel.iommu.readFaults(), []);
    for (const pci of devices) kernel.iommu.block(pci);
    for (const domain of domains) domain.free();
    assert.equal(kernel.iommu.domainIdCount, 1);
  });

  test("hands over hundreds of functions and domains", () => {
    const rig = new Rig();
    const first = rig.coldBoot();
    const guest = guestMemory(first);
    const devices = Array.from({ length: 300 }, (_, i) => pciFunction(0, 0x100 + i));
    for (const pci of devices) attachGuest(first, pci, guest);
    const second = rig.kexec(first, preserve(first, devices));
    assert.equal(second.iommu.restoredCount, 300);
    for (const pci of devices) assert.equal(rig.dma(pci, IOVA), guest);
    assert.equal(second.kho.unrestoredPages(), 512, "only the guest's memory");
    second.iommu.flb.finish(second.adopted);
    for (const pci of devices) assert.equal(rig.dma(pci, IOVA), -1);
    assert.equal(second.iommu.restoredCount, 0);
    assert.equal(second.iommu.domainIdCount, 0);
  });

  test("keeps ids of domains that have no function, and of those around an unused one", () => {
    const rig = new Rig();
    const first = rig.coldBoot();
    const guest = guestMemory(first);
    const { iommu } = first;
    const domains = [0, 1, 2].map((i) => {
      const domain = iommu.allocDomain(NIC);
      domain.map(i * MIB, guest, MIB, RW);
      return domain;
    });
    const data = iommu.flb.preserve();
    const ids = domains.map((domain) => iommu.preserveDomain(domain));
    iommu.unpreserveDomain(domains[1]);
    const second = rig.kexec(first, data);
    assert.equal(second.iommu.restoredDomain(ids[1]), null);
    for (const i of [0, 2]) {
      const restored = second.iommu.restoredDomain(ids[i]);
      assert.equal(restored?.iovaToPhys(i * MIB), guest);
      restored?.free();
      assert.equal(second.iommu.restoredDomain(ids[i]), null);
    }
    assert.equal(second.kho.unrestoredPages(), 512, "only the guest's memory");
  });
});

describe("attach() from a restored domain", () => {
  function restored() {
    const rig = new Rig();
    const first = rig.coldBoot();
    const guest = guestMemory(first);
    attachGuest(first, NIC, guest);
    const second = rig.kexec(first, preserve(first, [NIC]));
    return { rig, second, guest };
  }

  test("fails with EINVAL naming the IOVA when a translation would break, and stays", () => {
    const { rig, second, guest } = restored();
    const { iommu } = second;
    const domain = iommu.allocDomain(NIC);
    const refused = (text: RegExp) => {
      assert.throws(() => iommu.attach(NIC, domain), errno("EINVAL", text));
      assert.equal(iommu.domainOf(NIC)?.type, "restored");
      assert.equal(rig.dma(NIC, IOVA + MIB), guest + MIB);
    };
    refused(/0x40000000.* is not mapped/);
    domain.map(IOVA, guest, MIB, RW);
    refused(/0x40100000.* is not mapped/);
    domain.map(IOVA + MIB, guest, MIB, RW);
    refused(/0x40100000.* leads to another address/);
    domain.unmap(IOVA + MIB, MIB);
    domain.map(IOVA + MIB, guest + MIB, MIB, IOMMU_READ);
    refused(/0x40100000.* has fewer rights/);
    domain.unmap(IOVA + MIB, MIB);
    domain.map(IOVA + MIB, guest + MIB, MIB, RW);
    iommu.attach(NIC, domain);
    assert.equal(iommu.domainOf(NIC), domain);
  });

  test("flushes: no translation of the old tables is used once they may be freed", () => {
    const { rig, second, guest } = restored();
    const { iommu, mm } = second;
    for (let at = 0; at < GUEST_BYTES; at += PAGE_SIZE) rig.dma(NIC, IOVA + at);
    const before = mm.counts().allocated;
    const domain = swap(second, NIC, guest);
    assert.equal(mm.counts().allocated, before, "as many tables freed as made");
    domain.unmap(IOVA, GUEST_BYTES);
    assert.equal(rig.dma(NIC, IOVA), -1);
    assert.equal(iommu.restoredCount, 0);
  });

  test("keeps the width of the tables, and refuses another", () => {
    const rig = new Rig();
    const first = rig.coldBoot();
    const guest = guestMemory(first);
    const narrow = new SecondStageDomain({
      memory: first.machine.memory,
      mm: first.mm,
      faults: first.faults,
      unit: unitsOf(rig, first)[0],
      levels: 3,
      pageSizes: unitsOf(rig, first)[0].pageSizes,
      onFree: () => undefined,
    });
    narrow.map(IOVA, guest, GUEST_BYTES, RW);
    first.iommu.attach(NIC, narrow);
    const second = rig.kexec(first, preserve(first, [NIC]));
    const wide = second.iommu.allocDomain(NIC2);
    assert.equal(wide.apertureEnd, 2 ** 48);
    wide.map(IOVA, guest, GUEST_BYTES, RW);
    assert.throws(() => second.iommu.attach(NIC, wide), errno("EINVAL", /3 levels/));
    const domain = swap(second, NIC, guest);
    assert.equal(domain.apertureEnd, 2 ** 39);
    assert.equal(rig.dma(NIC, IOVA), guest);
  });

  test("moves functions that share the domain one by one", () => {
    const rig = new Rig();
    const first = rig.coldBoot();
    const guest = guestMemory(first);
    const shared = attachGuest(first, NIC, guest);
    first.iommu.attach(NIC2, shared);
    const second = rig.kexec(first, preserve(first, [NIC, NIC2]));
    const old = second.iommu.domainOf(NIC);
    assert.ok(old?.type === "restored");
    assert.equal(second.iommu.domainOf(NIC2), old);
    assert.equal(old.attachedCount, 2);
    const domain = swap(second, NIC, guest);
    assert.equal(old.attachedCount, 1);
    assert.equal(rig.dma(NIC2, IOVA), guest);
    assert.throws(() => old.free(), BugError);
    second.iommu.attach(NIC2, domain);
    old.free();
    for (const pci of [NIC, NIC2]) assert.equal(rig.dma(pci, IOVA + MIB), guest + MIB);
    domain.unmap(IOVA, GUEST_BYTES);
    for (const pci of [NIC, NIC2]) assert.equal(rig.dma(pci, IOVA + MIB), -1);
  });

  test("block() ends the restored domain's last use too", () => {
    const { rig, second } = restored();
    const old = second.iommu.domainOf(NIC);
    assert.ok(old?.type === "restored");
    assert.throws(() => old.free(), BugError);
    second.iommu.block(NIC);
    assert.equal(rig.dma(NIC, IOVA), -1);
    assert.equal(old.attachedCount, 0);
    old.free();
  });

  test("a function in a restored domain cannot be preserved again: EINVAL", () => {
    const { second } = restored();
    second.iommu.flb.preserve();
    assert.throws(() => second.iommu.preserveDevice(NIC), errno("EINVAL"));
  });
});

describe("preserve", () => {
  function running(rmrr = true) {
    const rig = new Rig({ rmrrs: rmrr ? [RMRR] : [] });
    const kernel = rig.coldBoot();
    const guest = guestMemory(kernel);
    const domain = attachGuest(kernel, NIC, guest);
    return { rig, kernel, guest, domain };
  }

  test("fixes the domain: map and unmap fail with EBUSY until it is undone", () => {
    const { rig, kernel, guest, domain } = running();
    const { iommu } = kernel;
    const data = iommu.flb.preserve();
    iommu.preserveDomain(domain);
    assert.throws(() => domain.map(0, guest, PAGE_SIZE, RW), errno("EBUSY"));
    assert.throws(() => domain.unmap(IOVA, GUEST_BYTES), errno("EBUSY"));
    iommu.preserveDevice(NIC);
    assert.throws(() => iommu.attach(NIC, iommu.allocDomain(NIC)), errno("EBUSY"));
    assert.throws(() => iommu.block(NIC), BugError);
    assert.throws(() => iommu.unpreserveDomain(domain), BugError);
    iommu.unpreserveDevice(NIC);
    iommu.unpreserveDomain(domain);
    iommu.flb.unpreserve(data);
    domain.unmap(IOVA, GUEST_BYTES);
    assert.equal(rig.dma(NIC, IOVA), -1);
  });

  test("of a function fails with EINVAL when its domain is not preserved", () => {
    const { kernel } = running();
    kernel.iommu.flb.preserve();
    assert.throws(() => kernel.iommu.preserveDevice(NIC), errno("EINVAL"));
    assert.throws(() => kernel.iommu.preserveDevice(NIC2), errno("EINVAL"));
    assert.throws(() => kernel.iommu.preserveDevice(EDU), errno("EINVAL"));
  });

  test("undone leaves nothing, and a failure at any step leaves what was before", () => {
    const { rig, kernel, domain } = running();
    const { iommu, mm, kho, faults } = kernel;
    const all = () => {
      const data = iommu.flb.preserve();
      const undo: (() => void)[] = [() => iommu.flb.unpreserve(data)];
      try {
        iommu.preserveDomain(domain);
        undo.push(() => iommu.unpreserveDomain(domain));
        iommu.preserveDevice(NIC);
        undo.push(() => iommu.unpreserveDevice(NIC));
        // A context table that appears meanwhile is preserved as well.
        iommu.attach(NIC2, domain);
        undo.push(() => iommu.block(NIC2));
        iommu.flb.freeze?.(data);
        undo.push(() => iommu.flb.unfreeze?.(data));
      } finally {
        for (const step of undo.reverse()) step();
      }
    };
    const state = () => [mm.counts().allocated, JSON.stringify(kho.sizes()), iommu.domainIdCount];
    // Once for pages that stay: tree nodes of KHO, the second context table.
    all();
    const before = state();
    const points = faults.record(all);
    for (const point of [
      "iommu:preserve-units",
      "iommu:preserve-domain",
      "iommu:preserve-device",
      "iommu:freeze",
      "kho:preserve",
      "mm:alloc",
    ])
      assert.ok(points.includes(point), point);
    for (let i = 0; i < points.length; i++) {
      faults.arm(i, (point) => new KernelError("ENOMEM", "test", point));
      assert.throws(all, errno("ENOMEM"), points[i]);
      assert.ok(faults.disarm());
      assert.deepEqual(state(), before, `${i}: ${points[i]}`);
    }
    all();
    assert.deepEqual(state(), before);
    domain.unmap(IOVA, GUEST_BYTES);
    assert.equal(rig.dma(NIC, IOVA), -1);
  });

  test("keeps a context table that appears while the handover is open, or leaves none", () => {
    const { rig, kernel, domain } = running(false);
    const { iommu, faults, mm } = kernel;
    const data = preserve(kernel, [NIC]);
    const before = mm.counts().allocated;
    faults.arm(2, (point) => {
      assert.equal(point, "kho:preserve");
      return new KernelError("ENOMEM", "test", point);
    });
    assert.throws(() => iommu.attach(NIC2, domain), errno("ENOMEM"));
    assert.ok(faults.disarm());
    assert.equal(mm.counts().allocated, before);
    iommu.attach(NIC2, domain);
    iommu.preserveDevice(NIC2);
    const second = rig.kexec(kernel, data);
    assert.equal(second.iommu.domainOf(NIC2)?.type, "restored");
  });

  test("costs by tables, not by pages mapped", () => {
    const { kernel, guest } = running(false);
    const { iommu, faults } = kernel;
    iommu.flb.preserve();
    const domain = iommu.allocDomain(NIC);
    for (let i = 0; i < 256; i++) domain.map(i * 2 * MIB, guest, 2 * MIB, RW);
    const points = faults.record(() => iommu.preserveDomain(domain));
    assert.equal(points.filter((point) => point === "kho:preserve").length, 3);
  });

  test("shutdown without freeze is a bug", () => {
    const { kernel } = running();
    preserve(kernel, [NIC]);
    assert.throws(() => kernel.iommu.shutdown(), BugError);
  });
});

/** Physical addresses of the tables that a unit uses. */
function tablesOf(rig: Rig, segment: number): { root: number } {
  const unit = rig.units[segment];
  return { root: tableAddress(unit.read(RTADDR_REG, 4), unit.read(RTADDR_REG + 4, 4)) };
}

function contextTable(rig: Rig, root: number, bdf: number): number {
  const at = rootEntryAddress(root, bdf);
  return tableAddress(rig.ram.load32(at), rig.ram.load32(at + 4));
}

/** Writes GCMD. */
function command(rig: Rig, value: number): void {
  rig.units[0].write(GCMD_REG, 4, value >>> 0);
}

function unitsOf(rig: Rig, kernel: TestKernel): RemappingUnit[] {
  const { machine, mm, kho } = kernel;
  return rig.firmware.drhds.map((drhd) => new RemappingUnit({ machine, mm, kho, drhd }));
}

/** Domains that nothing is attached to, enough for a record page beside the header page. */
const MANY = 40;

/**
 * A handover of two functions in a domain each, and an RMRR, after the jump.
 *
 * @param unattached - so many more domains
 */
function handedOver(unattached = 0) {
  const rig = new Rig({ rmrrs: [RMRR] });
  const kernel = rig.coldBoot();
  const guest = guestMemory(kernel);
  const domain = attachGuest(kernel, NIC, guest);
  attachGuest(kernel, NIC2, guest);
  domain.map(0, guest, 3 * PAGE_SIZE, RW);
  const data = preserve(kernel, [NIC, NIC2]);
  for (let i = 0; i < unattached; i++) kernel.iommu.preserveDomain(kernel.iommu.allocDomain(NIC));
  kernel.iommu.flb.freeze?.(data);
  kernel.iommu.shutdown();
  const parameters = rig.jump(kernel);
  const header = Number(data);
  const recordPages = Array.from({ length: IOMMU_SER.read(rig.ram, header).page_count }, (_, i) =>
    rig.ram.load64(header + IOMMU_SER.sizeBytes + 8 * i),
  );
  const record = (i: number) => iommuRecordAddress(header, recordPages, i);
  const { root } = tablesOf(rig, 0);
  const contexts = [NIC, NIC2, EDU].map((pci) => contextTable(rig, root, pci.bdf));
  const top = rig.ram.load64(record(2) + IOMMU_DOMAIN_SER.offset.top_table);
  const middle = ssAddress(rig.ram.load32(top), rig.ram.load32(top + 4));
  const leaf2M = ssAddress(rig.ram.load32(middle), rig.ram.load32(middle + 4));
  const leaf4K = ssAddress(rig.ram.load32(leaf2M), rig.ram.load32(leaf2M + 4));
  const units = unitsOf(rig, kernel);
  return {
    rig,
    parameters,
    data,
    guest,
    header,
    recordPages,
    record,
    root,
    contexts,
    tables: [top, middle, leaf2M, leaf4K],
    pages: [root, ...contexts, top, middle, leaf2M, leaf4K],
    units,
  };
}

type HandedOver = ReturnType<typeof handedOver>;

/** Decodes without booting a kernel: reads only. */
function decode(handover: {
  rig: Rig;
  parameters: KhoBootParameters;
  data: bigint;
  units: readonly RemappingUnit[];
}) {
  const { rig, parameters, data, units } = handover;
  const incoming = IncomingHandover.read(rig.ram, parameters);
  const rmrrs = rmrrFunctions(rig.firmware.rmrrs);
  return new HandoverDecoder(incoming, "flb", units, rmrrs).decode(data);
}

describe("decode()", () => {
  test("takes a good handover and stores nothing", () => {
    const handover = handedOver();
    const { rig, parameters, data, guest } = handover;
    const decoded = decode(handover);
    assert.equal(decoded.devices.length, 3);
    assert.deepEqual(
      decoded.domains.map((domain) => domain?.kind),
      [2, 1, 1],
    );
    const kernel = rig.boot(parameters);
    rig.beforeStore = () => assert.fail("a store");
    assert.ok(kernel.kho.incoming !== null);
    kernel.iommu.flb.decode(kernel.kho.incoming, data, "flb");
    rig.beforeStore = () => undefined;
    assert.equal(rig.dma(NIC, IOVA), guest);
  });

  test("takes records beyond those in the header page, which is all that few of them need", () => {
    assert.deepEqual(handedOver().recordPages, []);
    const handover = handedOver(MANY);
    assert.equal(handover.recordPages.length, 1);
    const { rig, parameters, data, guest } = handover;
    const decoded = decode(handover);
    assert.deepEqual(decoded.pages, [handover.header, ...handover.recordPages]);
    assert.equal(decoded.domains.length, 3 + MANY);
    assert.deepEqual(
      decoded.devices.map(({ bdf }) => bdf),
      [EDU, NIC, NIC2].map(({ bdf }) => bdf),
    );
    const next = rig.boot(parameters);
    const { allocated } = next.mm.counts();
    const adopted = adopt(next, data);
    next.iommu.start();
    assert.equal(next.iommu.restoredCount, 2 + MANY);
    assert.equal(rig.dma(NIC, IOVA), guest);
    next.iommu.flb.finish(adopted);
    assert.equal(next.iommu.restoredCount, 0);
    assert.equal(next.mm.counts().allocated - allocated, next.iommu.ownPages);
  });

  const units = [0];
  const domains = [1, 2, 3];
  const devices = [4, 5, 6];
  const records = [
    ...units.map((index) => ({ layout: IOMMU_UNIT_SER, index })),
    ...domains.map((index) => ({ layout: IOMMU_DOMAIN_SER, index })),
    ...devices.map((index) => ({ layout: IOMMU_DEVICE_SER, index })),
  ];
  for (const { layout, index } of records) {
    test(`refuses ${layout.name} in record ${index} with any field changed, and names it`, () => {
      const handover = handedOver();
      const { ram } = handover.rig;
      let tried = 0;
      for (const [field, type] of Object.entries(layout.fields)) {
        const offset = (layout.offset as Record<string, number>)[field];
        const at = handover.record(index) + offset;
        const saved = new Uint8Array(type.sizeBytes);
        ram.read(at, saved);
        for (let byte = 0; byte < type.sizeBytes; byte++) {
          for (const flip of [1, 2, 4, 0x10, 0x80, 0xff]) {
            ram.store8(at + byte, saved[byte] ^ flip);
            assert.throws(
              () => decode(handover),
              (error) => error instanceof HandoverError && error.field.startsWith("flb."),
              `${field} byte ${byte} ^ ${flip}`,
            );
            tried++;
          }
          ram.store8(at + byte, saved[byte]);
        }
      }
      assert.equal(tried, 6 * layout.sizeBytes);
      decode(handover);
    });
  }

  test("refuses a header with any field changed, and names it", () => {
    const handover = handedOver(MANY);
    const { ram } = handover.rig;
    const at = (field: keyof typeof IOMMU_SER.offset) => handover.header + IOMMU_SER.offset[field];
    const refused = (address: number, value: number, field: RegExp) => {
      const saved = ram.load32(address);
      ram.store32(address, value);
      assert.throws(
        () => decode(handover),
        (error) => error instanceof HandoverError && field.test(error.field),
        `${field} = ${value}`,
      );
      ram.store32(address, saved);
    };
    for (const value of [0, 2, 2 ** 32 - 1]) refused(at("unit_count"), value, /unit_count/);
    refused(at("domain_count"), 2 ** 32 - 1, /domain_count/);
    refused(at("domain_count"), MANY + 2, /domain_ser|device_ser|unit_ser/);
    refused(at("domain_count"), MANY + 4, /domain_ser/);
    refused(at("device_count"), 2 ** 32 - 1, /device_count/);
    refused(at("device_count"), 2, /device_count|context entry/);
    refused(at("device_count"), 4, /device_ser\[3\]/);
    for (const value of [0, 383, 2 ** 32 - 1]) refused(at("page_count"), value, /page_count/);
    refused(at("page_count"), 2, /pages\[1\]/);
    const page = handover.header + IOMMU_SER.sizeBytes;
    for (const value of [0, handover.recordPages[0] + 8, handover.header, 2 ** 32 - 4096])
      refused(page, value, /pages\[0\]/);
    refused(page + 4, 2 ** 31, /pages\[0\]/);
    decode(handover);
  });

  test("refuses a header that is not a preserved page", () => {
    const handover = handedOver();
    for (const data of [0n, 8n, 2n ** 64n - 1n, 2n ** 40n, BigInt(handover.header + 4096)])
      assert.throws(() => decode({ ...handover, data }), HandoverError);
  });

  test("refuses root, context and page-table entries that nobody would have written", () => {
    const handover = handedOver();
    const { rig, root, contexts, tables, guest } = handover;
    const [top, middle, leaf2M, leaf4K] = tables;
    const { ram } = rig;
    const refused = (at: number, value: number, field: RegExp) => {
      const saved = ram.load32(at);
      assert.notEqual(saved, value);
      ram.store32(at, value);
      assert.throws(
        () => decode(handover),
        (error) => error instanceof HandoverError && field.test(error.message),
        `${field}`,
      );
      ram.store32(at, saved);
    };
    const rootAt = rootEntryAddress(root, NIC.bdf);
    refused(rootAt, 0, /context entry of 0000:01:00.0.*the record has the function/);
    refused(rootAt, ram.load32(rootAt) | 2, /root entry/);
    refused(rootAt, contexts[1] | 1, /claimed|root entry/);
    refused(rootAt, guest | 1, /root entry/);
    refused(rootAt + 4, 1, /root entry/);
    refused(rootAt + 8, 1, /root entry/);
    refused(rootEntryAddress(root, 0x9000), contexts[0] | 1, /root entry of bus 0x90/);
    const contextAt = contextEntryAddress(contexts[0], NIC.bdf);
    for (const [word, flips] of [
      [0, [1, 2, 4, 8, 0x10, 0x1000]],
      [1, [1, 0x8000_0000]],
      [2, [1, 2, 4, 8, 0x80, 0x100, 0x80_0000, 0x100_0000]],
      [3, [1, 0x8000_0000]],
    ] as const)
      for (const flip of flips)
        refused(
          contextAt + 4 * word,
          (ram.load32(contextAt + 4 * word) ^ flip) >>> 0,
          /context entry of 0000:01:00.0, word/,
        );
    // A function that is not in the record.
    refused(
      contextEntryAddress(contexts[0], NIC.bdf + 1),
      top | 1,
      /context entry of 0000:01:00.1/,
    );
    refused(contextEntryAddress(contexts[0], NIC.bdf + 1) + 8, 1, /context entry of 0000:01:00.1/);
    // Tables: a cycle, a page shared with another tree, not preserved, unknown bits, page sizes in the wrong level.
    refused(middle, top | 3, /claimed|named/);
    // Another kind of table: read as page tables first, and never taken for both.
    refused(top, contexts[0] | 3, /iommu_domain_ser\[1\]|root entry/);
    refused(leaf2M, guest | 3, /not preserved|order/);
    refused(top, ram.load32(top) | 0x80, /unknown bits/);
    refused(top, ram.load32(top) & ~2, /other bits/);
    refused(top, ram.load32(top) | 0x800, /other bits/);
    refused(top + 4, 0x8000_0000, /unknown bits/);
    refused(top + 8, 0x80, /not 0/);
    refused(leaf4K, 0x5000 | 3, /0x5000.* is not preserved memory/);
    refused(leaf4K, ram.load32(leaf4K) | 0x80, /unknown bits/);
    refused(leaf4K, ram.load32(leaf4K) | 0x800, /unknown bits/);
    refused(leaf4K + 4, 1, /not preserved memory/);
    refused(leaf4K, 0x3ff_f000 + 3, /not preserved memory/);
    refused(leaf4K + 8 * 5, 0x1000 | 4, /not 0/);
    const large = leaf2M + 8 * 7;
    refused(large, 0x83 | 0x1000, /not aligned/);
    refused(large, 0x83 + guest + GUEST_BYTES, /0x200000 is not preserved memory/);
    decode(handover);
  });

  test("refuses registers that do not agree", () => {
    const handover = handedOver();
    const { rig, root } = handover;
    const refused = (text: RegExp) =>
      assert.throws(
        () => decode(handover),
        (error) => error instanceof HandoverError && text.test(error.message),
      );
    command(rig, 0);
    refused(/iommu_unit_ser\[0\].*translation is off/);
    rig.units[0].write(RTADDR_REG, 4, root + PAGE_SIZE);
    command(rig, GCMD_TE | GCMD_SRTP);
    refused(/root_table.*RTADDR/);
    rig.units[0].write(RTADDR_REG, 4, root);
    command(rig, GCMD_TE | GCMD_SRTP);
    decode(handover);
    // A queue that stopped at a descriptor that does not exist.
    rig.ram.fill(0xf000, 32, 0xff);
    rig.units[0].write(IQA_REG, 4, 0xf000);
    command(rig, GCMD_TE | GCMD_QIE);
    decode(handover);
    rig.units[0].write(IQT_REG, 4, 16);
    refused(/has not run dry/);
  });

  test("refuses a handover whose functions with RMRRs are not those of this machine", () => {
    const handover = handedOver();
    const { rig, parameters, data, units: list } = handover;
    const attempt = (rmrrs: readonly (typeof RMRR)[]) => () =>
      new HandoverDecoder(
        IncomingHandover.read(rig.ram, parameters),
        "flb",
        list,
        rmrrFunctions(rmrrs),
      ).decode(data);
    attempt([RMRR])();
    const refusals: [readonly (typeof RMRR)[], RegExp][] = [
      [[], /is not preserved memory/],
      [[RMRR, { ...RMRR, bdf: 0x10 }], /0000:00:02.0 has RMRRs and is missing/],
      [[RMRR, { ...RMRR, bdf: NIC.bdf }], /the function has RMRRs/],
      [[{ ...RMRR, lengthBytes: 0x3000 }], /does not map exactly/],
      [[{ ...RMRR, lengthBytes: 0x1000 }], /is not preserved memory/],
      [[{ ...RMRR, bdf: 0x10 }], /the function has no RMRR/],
    ];
    for (const [rmrrs, text] of refusals)
      assert.throws(
        attempt(rmrrs),
        (error) => error instanceof HandoverError && text.test(error.message),
        `${text}`,
      );
  });

  test("meets any corruption with a HandoverError or a handover that is sound", () => {
    const handover: HandedOver = handedOver();
    const { ram } = handover.rig;
    const pages = [handover.header, handover.record(0), ...handover.pages];
    let refusals = 0;
    fc.assert(
      fc.property(
        fc.constantFrom(...pages),
        // Mostly where there is something.
        fc.oneof(fc.integer({ min: 0, max: 60 }), fc.integer({ min: 0, max: 1023 })),
        fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }),
        fc.constantFrom("set", "flip"),
        (page, word, value, how) => {
          const at = page + 4 * word;
          const saved = ram.load32(at);
          const bit = 2 ** (Math.abs(value) % 32);
          ram.store32(at, (how === "set" ? value : saved ^ bit) >>> 0);
          try {
            decode(handover);
          } catch (error) {
            if (!(error instanceof HandoverError)) throw error;
            refusals++;
          } finally {
            ram.store32(at, saved);
          }
        },
      ),
      { numRuns: 400 },
    );
    assert.ok(refusals > 100, `${refusals} refusals`);
    decode(handover);
  });
});
