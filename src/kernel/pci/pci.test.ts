import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { HandoverError } from "../../abi/handover-error.ts";
import * as reg from "../../abi/pci.ts";
import { PCI_FUNCTION_SER, PCI_SER, pciSerBytes } from "../../abi/pci-luo.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { GIB, MIB, orderBytes } from "../../base/units.ts";
import type { DmaPort, MmioRegion } from "../../machine/embedded/hardware.ts";
import type { PciBridge } from "../../machine/embedded/pci/bridge.ts";
import type { BarSpec, DeviceModel } from "../../machine/embedded/pci/device-model.ts";
import type { EndpointOptions, PciEndpoint } from "../../machine/embedded/pci/endpoint.ts";
import { PciFabric } from "../../machine/embedded/pci/fabric.ts";
import type { Firmware, Mmio } from "../../machine/machine.ts";
import { createSharedRam, Ram } from "../../machine/physical-memory.ts";
import type { KexecHandover } from "../kho/handover.ts";
import type { IncomingMemory } from "../kho/incoming.ts";
import { RecordClaims } from "../kho/record-claims.ts";
import { RecordPages } from "../kho/record-pages.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import type { PciFunction } from "./function.ts";
import { disableMsi, enableMsi, maskMsi, readMsi } from "./msi.ts";
import { PciCore } from "./pci.ts";
import { quiesceAll } from "./quiesce.ts";

const BAR_SMALL: BarSpec = { index: 0, sizeBytes: 4096, kind: "memory32", isPrefetchable: false };
const BAR_NIC: BarSpec = {
  index: 0,
  sizeBytes: 128 * 1024,
  kind: "memory32",
  isPrefetchable: false,
};
const BAR_64: BarSpec = { index: 2, sizeBytes: 16 * MIB, kind: "memory64", isPrefetchable: true };
const BAR_HUGE: BarSpec = { index: 0, sizeBytes: 8 * GIB, kind: "memory64", isPrefetchable: true };

/** Answers reads of BAR b with a number of its own, so that a test sees which device it has reached. */
class Probe implements DeviceModel {
  readonly identity = {
    vendorId: 0x8086,
    deviceId: 0x10d3,
    classCode: 0x020000,
    revisionId: 0,
    subsystemVendorId: 0x8086,
    subsystemId: 0,
  };
  readonly bars: readonly BarSpec[];
  readonly dma: DmaPort;
  readonly tag: number;
  resets = 0;
  constructor(dma: DmaPort, bars: readonly BarSpec[], tag: number) {
    this.dma = dma;
    this.bars = bars;
    this.tag = tag;
  }
  barRead(bar: number): number {
    return this.tag * 16 + bar;
  }
  barWrite(): void {}
  reset(): void {
    this.resets++;
  }
  step(): boolean {
    return false;
  }
  nextDueNs(): number {
    return Number.POSITIVE_INFINITY;
  }
}

/** What is plugged in: a list of BARs is an endpoint, a list of slots a bridge with those below. */
type Plug = { bars: readonly BarSpec[]; options?: EndpointOptions } | { below: readonly Plug[] };

const NIC: Plug = { bars: [BAR_NIC] };

/** Only behind a bridge to conventional PCI is there more than one device. */
function portTypeFor(below: readonly Plug[]): number | undefined {
  return below.length > 1 ? reg.PCI_EXP_TYPE_PCI_BRIDGE : undefined;
}

interface HardwareOptions {
  lastBus?: number;
  windows?: { start: number; lengthBytes: number }[];
}

/** The machine: what survives a kexec. One fabric for each list of plugs, device numbers in order. */
function hardware(segments: readonly (readonly Plug[])[], options: HardwareOptions = {}) {
  const ram = new Ram(createSharedRam([{ start: 0, lengthBytes: 16 * MIB }]));
  const raised: number[] = [];
  const models: Probe[] = [];
  const regions: MmioRegion[] = [];
  const endpoints: PciEndpoint[] = [];
  const segmentOf = new Map<PciEndpoint, number>();
  const firmware = {
    memory: [{ start: 0, lengthBytes: 16 * MIB, node: 0 }],
    nodeCount: 1,
    drhds: [],
    rmrrs: [],
    ecams: segments.map((_, segment) => ({
      segment,
      base: 0xc0000000 + segment * 64 * MIB,
      startBus: 0,
      lastBus: options.lastBus ?? 63,
    })),
    mmioWindows: segments.flatMap((_, segment) =>
      (
        options.windows ?? [{ start: 0xd0000000 + segment * 128 * MIB, lengthBytes: 128 * MIB }]
      ).map((w) => ({ ...w, segment })),
    ),
  } satisfies Firmware;
  const fabrics = segments.map((plugs, segment) => {
    const fabric = new PciFabric({
      ecam: firmware.ecams[segment],
      windows: firmware.mmioWindows.filter((w) => w.segment === segment),
      memory: ram,
      interrupts: { raise: (vector) => raised.push(vector) },
      remapper: null,
    });
    const plugIn = (list: readonly Plug[], parent: PciBridge | null) => {
      for (const [device, plug] of list.entries()) {
        const slot = { parent, device, function: 0 };
        if ("below" in plug) plugIn(plug.below, fabric.addBridge(slot, portTypeFor(plug.below)));
        else {
          const make = (dma: DmaPort) => {
            const model = new Probe(dma, plug.bars, models.length + 1);
            models.push(model);
            return model;
          };
          const endpoint = fabric.addEndpoint(slot, make, plug.options);
          endpoints.push(endpoint);
          segmentOf.set(endpoint, segment);
        }
      }
    };
    plugIn(plugs, null);
    regions.push(...fabric.regions);
    return fabric;
  });
  const writes: string[] = [];
  const find = (pa: number) => regions.find((r) => pa >= r.base && pa < r.base + r.lengthBytes);
  const mmio: Mmio = {
    read: (pa, size) => {
      const region = find(pa);
      return region?.read(pa - region.base, size) ?? 2 ** (8 * size) - 1;
    },
    write: (pa, size, value) => {
      writes.push(`${pa.toString(16)}/${size} = ${value.toString(16)}`);
      const region = find(pa);
      region?.write(pa - region.base, size, value);
    },
  };
  return { memory: ram, mmio, firmware, fabrics, models, endpoints, segmentOf, raised, writes };
}

type Hardware = ReturnType<typeof hardware>;
type Block = { pa: number; order: number };

/** Pages by a counter, and a handover that keeps a list of blocks: enough for PCI's record. */
class FakePages {
  readonly allocated = new Map<number, number>();
  readonly preserved = new Map<number, number>();
  readonly restored: Block[] = [];
  readonly faults: FaultInjector;
  readonly records: RecordPages;
  readonly #claims = new RecordClaims();
  readonly #incoming: ReadonlyMap<number, number>;
  #next: number;

  constructor(hw: Hardware, faults: FaultInjector, before: FakePages | null) {
    this.faults = faults;
    this.#next = before === null ? MIB : 8 * MIB;
    this.#incoming = before?.preserved ?? new Map();
    const isPreserved = (pa: number, lengthBytes: number) => {
      for (const [start, order] of this.#incoming)
        if (pa >= start && pa + lengthBytes <= start + orderBytes(order)) return true;
      return false;
    };
    this.incoming = {
      memory: hw.memory,
      isPreserved,
      preservedOrder: (pa) => this.#incoming.get(pa) ?? null,
      claim: (pa, order, field) => {
        if (this.#incoming.get(pa) !== order)
          throw new HandoverError(field, `not preserved with order ${order}`);
      },
      claimRecord: (pa, lengthBytes, field) => {
        // A test decodes the same handover more than once.
        this.#claims.clear();
        this.#claims.claim(pa, lengthBytes, field, this.incoming.claim);
      },
    };
    const { memory } = hw;
    this.records = new RecordPages({ memory, mm: this.mm, kho: this.kho, faults });
  }

  readonly incoming: IncomingMemory;

  readonly mm = {
    alloc: (order: number) => {
      this.faults.point("mm:alloc");
      const bytes = orderBytes(order);
      const pa = Math.ceil(this.#next / bytes) * bytes;
      this.#next = pa + bytes;
      this.allocated.set(pa, order);
      return pa;
    },
    free: (pa: number, order: number) => {
      assert.equal(this.allocated.get(pa), order, "freed what is allocated");
      this.allocated.delete(pa);
    },
  } as Partial<PageAllocator> as PageAllocator;

  readonly kho = {
    preserve: (pa: number, order: number) => {
      this.faults.point("kho:preserve");
      assert.equal(this.allocated.get(pa), order);
      this.preserved.set(pa, order);
    },
    unpreserve: (pa: number, order: number) => {
      assert.equal(this.preserved.get(pa), order);
      this.preserved.delete(pa);
    },
    restore: (pa: number, order: number) => {
      assert.equal(this.#incoming.get(pa), order);
      this.allocated.set(pa, order);
      this.restored.push({ pa, order });
    },
    restoreRecord: (pa: number, lengthBytes: number) => {
      assert.deepEqual(this.#claims.delete(pa, lengthBytes), { isLast: true });
      this.kho.restore(pa - (pa % 4096), 0);
      return true;
    },
  } as Partial<KexecHandover> as KexecHandover;
}

/** One kernel on a machine. */
function boot(hw: Hardware, before: FakePages | null = null) {
  const faults = new FaultInjector();
  const pages = new FakePages(hw, faults, before);
  const core = new PciCore({ machine: hw, records: pages.records, faults });
  return { core, pages, faults };
}

function coldBoot(hw: Hardware) {
  const kernel = boot(hw);
  kernel.core.enumerate();
  return kernel;
}

const at = (core: PciCore, bdf: number, segment = 0): PciFunction => {
  const found = core.find(segment, bdf);
  assert.ok(found !== null, `no function at ${bdf.toString(16)}`);
  return found;
};

const command = (pci: PciFunction) => pci.configRead(reg.PCI_COMMAND, 2);
const masters = (core: PciCore) =>
  core.functions
    .filter((f) => (command(f) & reg.PCI_COMMAND_MASTER) !== 0)
    .map((f) => f.bdf.toString(16));

/** Checks all that must hold of a hierarchy that is set up. */
function checkHierarchy(hw: Hardware, core: PciCore): void {
  const taken: { start: number; end: number; owner: string }[] = [];
  for (const f of core.functions) {
    const owner = `${f.segment}:${f.bdf.toString(16)}`;
    if (f.isBridge) {
      const numbers = f.configRead(reg.PCI_PRIMARY_BUS, 4);
      const [primary, secondary, subordinate] = [numbers, numbers >>> 8, numbers >>> 16].map(
        (n) => n & 0xff,
      );
      assert.equal(primary, f.bdf >> 8);
      assert.ok(secondary > primary && subordinate >= secondary, owner);
      const below = core.functions.filter((c) => c.parent === f);
      for (const child of below) assert.equal(child.bdf >> 8, secondary);
      if (f.parent !== null)
        assert.ok(subordinate <= f.parent.configRead(reg.PCI_SUBORDINATE_BUS, 1));
    }
    for (const bar of f.bars) {
      assert.equal(bar.address % bar.sizeBytes, 0, `${owner} is aligned`);
      assert.ok(
        hw.firmware.mmioWindows.some(
          (w) =>
            w.segment === f.segment &&
            bar.address >= w.start &&
            bar.address + bar.sizeBytes <= w.start + w.lengthBytes,
        ),
        `${owner} is in the window`,
      );
      taken.push({ start: bar.address, end: bar.address + bar.sizeBytes, owner });
      // The first and the last byte reach this device and no other: windows of all bridges above cover it.
      const model = hw.endpoints.find((e) => e.bdf === f.bdf && hw.segmentOf.get(e) === f.segment)
        ?.model as Probe;
      assert.equal(hw.mmio.read(bar.address, 4), model.tag * 16 + bar.index, owner);
      assert.equal(hw.mmio.read(bar.address + bar.sizeBytes - 4, 4), model.tag * 16 + bar.index);
    }
  }
  taken.sort((a, b) => a.start - b.start);
  for (let i = 1; i < taken.length; i++)
    assert.ok(taken[i].start >= taken[i - 1].end, `${taken[i].owner} and ${taken[i - 1].owner}`);
}

// --- Cold boot ---

test("enumerate() numbers buses depth first and gives every BAR an address of its own", () => {
  const hw = hardware([[NIC, { below: [NIC, { below: [NIC] }] }, { below: [NIC] }, NIC]]);
  const { core } = coldBoot(hw);
  assert.deepEqual(
    core.functions.map((f) => f.bdf.toString(16)),
    ["0", "8", "100", "108", "200", "10", "300", "18"],
  );
  assert.deepEqual(core.warnings, []);
  checkHierarchy(hw, core);
  assert.deepEqual(masters(core), [], "bus mastering is a driver's business");
  const nic = at(core, 0x200);
  assert.deepEqual(
    [nic.vendorId, nic.deviceId, nic.classCode, nic.isBridge, nic.isIncoming],
    [0x8086, 0x10d3, 0x020000, false, false],
  );
  assert.equal(nic.parent?.bdf, 0x108);
  assert.equal(nic.parent?.parent?.bdf, 0x8);
  assert.deepEqual(
    nic.bars.map((b) => [b.index, b.sizeBytes, b.is64]),
    [[0, 128 * 1024, false]],
  );
});

test("enumerate() sets up any hierarchy", () => {
  const endpoint = fc.subarray([BAR_SMALL, BAR_64]).map((bars): Plug => ({ bars }));
  const { plug } = fc.letrec<{ plug: Plug }>((tie) => ({
    plug: fc.oneof(
      { maxDepth: 3, withCrossShrink: true },
      endpoint,
      fc.record({ below: fc.array(tie("plug"), { maxLength: 3 }) }),
    ),
  }));
  fc.assert(
    fc.property(fc.array(plug, { maxLength: 5 }), fc.array(plug, { maxLength: 3 }), (a, b) => {
      const hw = hardware([a, b], {});
      const { core } = coldBoot(hw);
      if (core.warnings.length > 0) return;
      assert.equal(core.functions.filter((f) => !f.isBridge).length, hw.endpoints.length);
      checkHierarchy(hw, core);
    }),
    { numRuns: 60 },
  );
});

test("enumerate() sets up afresh what an earlier kernel has left", () => {
  const plugs: Plug[] = [{ below: [NIC] }, { below: [NIC, { bars: [BAR_64] }] }];
  const hw = hardware([plugs]);
  const first = coldBoot(hw).core;
  for (const f of first.functions) f.setBusMaster(true);
  // Both bridges lead to the same bus now, and the BARs are nowhere.
  at(first, 0x0).configWrite(reg.PCI_PRIMARY_BUS, 4, 0x3f0100);
  at(first, 0x8).configWrite(reg.PCI_PRIMARY_BUS, 4, 0x3f0100);
  const { core } = coldBoot(hw);
  assert.equal(core.functions.length, 5);
  checkHierarchy(hw, core);
  assert.deepEqual(masters(core), []);
});

test("enumerate() puts 64-bit prefetchable BARs above 4 GiB when there is a window", () => {
  const windows = [
    { start: 0xd0000000, lengthBytes: 16 * MIB },
    { start: 64 * GIB, lengthBytes: 64 * GIB },
  ];
  const hw = hardware([[{ below: [{ bars: [BAR_HUGE] }, NIC] }]], { windows });
  const { core } = coldBoot(hw);
  assert.deepEqual(core.warnings, []);
  assert.ok(at(core, 0x100).bars[0].address >= 64 * GIB);
  assert.ok(at(core, 0x108).bars[0].address < 4 * GIB);
  checkHierarchy(hw, core);
});

test("enumerate() leaves what does not fit without an address, and says so", () => {
  const windows = [{ start: 0xd0000000, lengthBytes: MIB }];
  const hw = hardware([[{ bars: [BAR_SMALL, BAR_64] }, NIC]], { windows });
  const { core } = coldBoot(hw);
  assert.equal(core.warnings.length, 1);
  assert.match(core.warnings[0], /no room for 16 MiB of 0000:00:00.0 BAR 2/);
  assert.equal(at(core, 0).bars.length, 1);
  assert.equal(command(at(core, 0)) & reg.PCI_COMMAND_MEMORY, 0, "no decoding at address 0");
  assert.equal(at(core, 8).bars.length, 1);
});

test("enumerate() leaves what is behind a bridge alone when there is no bus number left", () => {
  const hw = hardware([[{ below: [NIC] }, { below: [NIC] }]], { lastBus: 1 });
  const { core } = coldBoot(hw);
  assert.deepEqual(
    core.functions.map((f) => f.bdf.toString(16)),
    ["0", "100", "8"],
  );
  assert.match(core.warnings[0], /0000:00:01.0: no bus number left/);
});

test("find() keeps segment groups apart", () => {
  const hw = hardware([[NIC], [NIC, NIC]]);
  const { core } = coldBoot(hw);
  assert.equal(core.find(0, 8), null);
  assert.equal(at(core, 8, 1).segment, 1);
  assert.equal(core.find(2, 0), null);
  checkHierarchy(hw, core);
});

// --- Functions ---

test("setBusMaster() turns on every bridge above, and turns off the function alone", () => {
  const hw = hardware([[{ below: [{ below: [NIC] }, NIC] }]]);
  const { core } = coldBoot(hw);
  at(core, 0x200).setBusMaster(true);
  assert.deepEqual(masters(core), ["0", "100", "200"]);
  assert.ok(hw.models[0].dma.write(0x1000, Uint8Array.of(1)));
  at(core, 0x200).setBusMaster(false);
  assert.deepEqual(masters(core), ["0", "100"]);
  assert.equal(hw.models[0].dma.write(0x1000, Uint8Array.of(1)), false);
});

test("reset() resets the device and keeps BARs, command register and MSI", () => {
  for (const msiMaskable of [false, true]) {
    const hw = hardware([[{ below: [{ bars: [BAR_NIC, BAR_64], options: { msiMaskable } }] }]]);
    const { core } = coldBoot(hw);
    const nic = at(core, 0x100);
    nic.setBusMaster(true);
    enableMsi(nic, 0x45);
    const before = Array.from({ length: 64 }, (_, i) => nic.configRead(4 * i, 4));
    const resets = hw.models[0].resets;
    nic.reset();
    assert.equal(hw.models[0].resets, resets + 1);
    assert.deepEqual(
      Array.from({ length: 64 }, (_, i) => nic.configRead(4 * i, 4)),
      before,
    );
    hw.models[0].dma.signalMsi();
    assert.deepEqual(hw.raised, [0x45]);
  }
});

test("reset() waits for completions with bus mastering off, and resets one that never gets them", () => {
  for (const reads of [0, 5, Number.POSITIVE_INFINITY]) {
    const hw = hardware([[NIC]]);
    const nic = at(coldBoot(hw).core, 0);
    nic.setBusMaster(true);
    const status = nic.capability(reg.PCI_CAP_ID_EXP) + reg.PCI_EXP_DEVSTA;
    const [endpoint] = hw.endpoints;
    const configRead = endpoint.configRead.bind(endpoint);
    const resets = hw.models[0].resets;
    let left = reads;
    endpoint.configRead = (offset, size) => {
      if (offset !== status) return configRead(offset, size);
      assert.equal(hw.models[0].resets, resets, "not reset before");
      assert.ok(!endpoint.busMaster, "nothing new is asked for");
      return left-- > 0 ? reg.PCI_EXP_DEVSTA_TRPND : 0;
    };
    nic.reset();
    assert.equal(hw.models[0].resets, resets + 1);
    if (reads < 10) assert.equal(left, -1, "every answer but the last was that some are missing");
    assert.ok(endpoint.busMaster);
  }
});

test("reset() fails with ENOTTY without FLR, and with EBUSY while preserved", () => {
  const hw = hardware([[{ below: [NIC] }]]);
  const { core } = coldBoot(hw);
  assert.throws(
    () => at(core, 0).reset(),
    (e) => isKernelError(e, "ENOTTY"),
  );
  core.flb.preserve();
  core.preserve(at(core, 0x100));
  const resets = hw.models[0].resets;
  assert.throws(
    () => at(core, 0x100).reset(),
    (e) => isKernelError(e, "EBUSY"),
  );
  assert.equal(hw.models[0].resets, resets);
});

test("capability() survives a list that is a circle", () => {
  const hw = hardware([[NIC]]);
  const { core } = coldBoot(hw);
  const real = hw.mmio.read;
  const circle = at(core, 0);
  hw.mmio.read = (pa, size) => ((pa & 0xfff) === 0xd0 ? 0xd005 : real(pa, size));
  assert.equal(circle.capability(reg.PCI_CAP_ID_EXP), 0);
  assert.notEqual(circle.capability(reg.PCI_CAP_ID_MSI), 0);
});

test("MSI: enable, mask, disable, and what a next kernel reads of it", () => {
  for (const msiMaskable of [false, true]) {
    const hw = hardware([[{ bars: [BAR_NIC], options: { msiMaskable } }]]);
    const { core } = coldBoot(hw);
    const nic = at(core, 0);
    assert.deepEqual(readMsi(nic), { isEnabled: false, vector: null, isMasked: false });
    nic.setBusMaster(true);
    enableMsi(nic, 200);
    assert.deepEqual(readMsi(nic), { isEnabled: true, vector: 200, isMasked: false });
    assert.notEqual(command(nic) & reg.PCI_COMMAND_INTX_DISABLE, 0);
    const { dma } = hw.models[0];
    dma.signalMsi();
    maskMsi(nic, true);
    dma.signalMsi();
    assert.deepEqual(hw.raised, [200]);
    assert.equal(readMsi(nic)?.isMasked, msiMaskable);
    maskMsi(nic, false);
    assert.deepEqual(hw.raised, msiMaskable ? [200, 200] : [200]);
    disableMsi(nic);
    dma.signalMsi();
    assert.equal(hw.raised.length, msiMaskable ? 2 : 1);
    assert.deepEqual(readMsi(nic), { isEnabled: false, vector: 200, isMasked: false });
  }
});

test("enableMsi() fails with EINVAL for a function without MSI", () => {
  const { core } = coldBoot(hardware([[{ below: [] }]]));
  assert.throws(
    () => enableMsi(at(core, 0), 64),
    (e) => isKernelError(e, "EINVAL"),
  );
  assert.equal(readMsi(at(core, 0)), null);
});

// --- Live update ---

const PLUGS: Plug[] = [
  NIC,
  { below: [NIC, { below: [{ bars: [BAR_SMALL, BAR_64] }] }] },
  { below: [NIC] },
];

/** A first kernel that has preserved 01:00.0 and 02:00.0 and is about to jump. */
function update(hw: Hardware) {
  const kernel = coldBoot(hw);
  const { core } = kernel;
  for (const f of core.functions) f.setBusMaster(true);
  const data = core.flb.preserve();
  core.preserve(at(core, 0x100));
  core.preserve(at(core, 0x200));
  core.preserve(at(core, 0x200));
  const frozen = core.flb.freeze?.(data) ?? data;
  return { ...kernel, data: frozen };
}

/** The next kernel: decodes and adopts. */
function inheritFrom(hw: Hardware, pages: FakePages, data: bigint) {
  const next = boot(hw, pages);
  const state = next.core.flb.decode(next.pages.incoming, data, "flb");
  next.core.flb.adopt(state);
  next.core.enumerate();
  return next;
}

test("preserve() keeps the bridges above, as often as what is below", () => {
  const { core } = update(hardware([PLUGS]));
  const preserved = core.functions
    .filter((f) => core.isPreserved(f))
    .map((f) => f.bdf.toString(16));
  assert.deepEqual(preserved, ["8", "100", "108", "200"]);
  core.unpreserve(at(core, 0x200));
  core.unpreserve(at(core, 0x100));
  assert.ok(core.isPreserved(at(core, 0x108)));
  core.unpreserve(at(core, 0x200));
  assert.ok(core.functions.every((f) => !core.isPreserved(f)));
});

test("preserve() fails with EINVAL for a bridge", () => {
  const { core } = coldBoot(hardware([PLUGS]));
  core.flb.preserve();
  assert.throws(
    () => core.preserve(at(core, 8)),
    (e) => isKernelError(e, "EINVAL"),
  );
  assert.ok(!core.isPreserved(at(core, 8)));
});

test("shutdown() takes bus mastering from all but preserved functions and the bridges above", () => {
  const hw = hardware([PLUGS]);
  const { core } = update(hw);
  assert.equal(masters(core).length, core.functions.length);
  core.shutdown();
  assert.deepEqual(masters(core), ["8", "100", "108", "200"]);
  const works = hw.models.map(({ dma }) => dma.write(0x1000, Uint8Array.of(1)));
  assert.deepEqual(works, [false, true, true, false]);
});

test("the next kernel takes everything over without a single write", () => {
  const hw = hardware([PLUGS]);
  const { core, pages, data } = update(hw);
  core.shutdown();
  const left = core.functions.map((f) => [f.bdf, f.bars, command(f)]);
  hw.writes.length = 0;
  const next = inheritFrom(hw, pages, data);
  assert.deepEqual(hw.writes, []);
  assert.deepEqual(
    next.core.functions.map((f) => [f.bdf, f.bars, command(f)]),
    left,
  );
  assert.deepEqual(next.core.warnings, []);
  assert.deepEqual(
    next.core.functions.filter((f) => f.isIncoming).map((f) => f.bdf.toString(16)),
    ["8", "100", "108", "200"],
  );
  checkHierarchy(hw, next.core);
  assert.equal(next.pages.restored.length, 1, "the record's page was taken over");
  assert.equal(next.pages.allocated.size, 0, "and freed");
});

test("quiesceOthers() stops what is not preserved and still masters the bus, and says so", () => {
  const hw = hardware([PLUGS, [NIC]]);
  const { core, pages, data } = update(hw);
  core.shutdown();
  // A kernel that forgets functions: on the root bus, below a bridge that it forgets too, on another segment.
  const forgotten = [at(core, 0x0), at(core, 0x300), at(core, 0x0, 1)];
  for (const f of forgotten) f.setBusMaster(true);
  const dma = () => hw.models.map((model) => model.dma.write(0x1000, Uint8Array.of(1)));
  assert.deepEqual(dma(), [true, true, true, true, true]);
  const next = boot(hw, pages);
  next.core.flb.decode(next.pages.incoming, data, "flb");
  hw.writes.length = 0;
  assert.deepEqual(next.core.quiesceOthers(), [
    "0000:00:00.0",
    "0000:00:02.0",
    "0001:00:00.0",
    "0000:03:00.0",
  ]);
  assert.deepEqual(dma(), [false, true, true, false, false]);
  assert.equal(hw.writes.length, 4, "nothing else is written");
  assert.deepEqual(next.core.quiesceOthers(), []);
});

test("finish() makes functions ordinary, and a bridge when all below it are", () => {
  const hw = hardware([PLUGS]);
  const { pages, data } = update(hw);
  const { core } = inheritFrom(hw, pages, data);
  const incoming = () => core.functions.filter((f) => f.isIncoming).map((f) => f.bdf.toString(16));
  core.finish(at(core, 0x200));
  assert.deepEqual(incoming(), ["8", "100"]);
  core.finish(at(core, 0x100));
  assert.deepEqual(incoming(), []);
});

test("ten updates in a row leave bus numbers and BARs where they were, and no page behind", () => {
  const hw = hardware([PLUGS, [NIC]]);
  let kernel = update(hw);
  const bars = JSON.stringify(kernel.core.functions.map((f) => [f.segment, f.bdf, f.bars]));
  for (let i = 0; i < 10; i++) {
    kernel.core.shutdown();
    const next = inheritFrom(hw, kernel.pages, kernel.data);
    assert.equal(JSON.stringify(next.core.functions.map((f) => [f.segment, f.bdf, f.bars])), bars);
    for (const f of next.core.functions) if (f.isIncoming && !f.isBridge) next.core.finish(f);
    const data = next.core.flb.preserve();
    next.core.preserve(at(next.core, 0x200));
    next.core.flb.freeze?.(data);
    assert.equal(next.pages.allocated.size, 1, "this kernel's block only");
    kernel = { ...next, data };
  }
});

test("a function that the handover does not know gets free addresses, and nothing else is written", () => {
  const hw = hardware([PLUGS]);
  const { core, pages, data } = update(hw);
  core.shutdown();
  const window = at(core, 8).configRead(reg.PCI_MEMORY_BASE, 4);
  assert.ok(window !== 0xfff0);
  // On the root bus, and below the bridge of 01:00.0; as after power-on.
  const fabric = hw.fabrics[0];
  const make = (dma: DmaPort) => {
    hw.models.push(new Probe(dma, [BAR_SMALL], hw.models.length + 1));
    return hw.models[hw.models.length - 1];
  };
  const bridge = hw.endpoints[1].bus as PciBridge;
  for (const [parent, device] of [[null, 9] as const, [bridge, 5] as const]) {
    const endpoint = fabric.addEndpoint({ parent, device, function: 0 }, make);
    hw.endpoints.push(endpoint);
    hw.segmentOf.set(endpoint, 0);
  }
  hw.writes.length = 0;
  const next = inheritFrom(hw, pages, data);
  assert.equal(next.core.functions.length, core.functions.length + 2);
  const allowed = [9 << 3, 0x100 | (5 << 3)].map((bdf) => (0xc0000000 + bdf * 4096).toString(16));
  for (const write of hw.writes)
    assert.ok(
      allowed.some((page) => write.startsWith(page.slice(0, -3))),
      write,
    );
  assert.equal(at(next.core, 9 << 3).bars.length, 1);
  assert.equal(at(next.core, 0x128).bars.length, 1);
  checkHierarchy(hw, next.core);
});

test("quiesceAll() stops all DMA, whatever the bridges are programmed to", () => {
  const hw = hardware([PLUGS, [NIC]]);
  const { core } = coldBoot(hw);
  for (const f of core.functions) f.setBusMaster(true);
  quiesceAll(hw);
  assert.deepEqual(masters(core), []);

  for (const f of core.functions) f.setBusMaster(true);
  // Two bridges claim one bus, a third leads to its own: a scan that trusted them would not end.
  at(core, 0x8).configWrite(reg.PCI_PRIMARY_BUS, 4, 0x3f0100);
  at(core, 0x10).configWrite(reg.PCI_PRIMARY_BUS, 4, 0x3f0100);
  at(core, 0x108).configWrite(reg.PCI_PRIMARY_BUS, 4, 0x3f0101);
  quiesceAll(hw);
  for (const { dma } of hw.models) assert.equal(dma.write(0x1000, Uint8Array.of(1)), false);
});

test("a boot after an update looks at each device number once, and below a link at device 0 alone", () => {
  // Root ports with a device and with nothing, and a bridge to a bus that may have 32.
  const hw = hardware([[[NIC], [NIC], [], [NIC, NIC]].map((below) => ({ below }))]);
  const { core, pages, data } = update(hw);
  core.shutdown();
  const looks: number[] = [];
  const { read } = hw.mmio;
  hw.mmio.read = (pa, size) => {
    const { base } = hw.firmware.ecams[0];
    if (pa % 4096 === reg.PCI_VENDOR_ID) looks.push((pa - base) / 4096);
    return read(pa, size);
  };
  const next = boot(hw, pages);
  const state = next.core.flb.decode(next.pages.incoming, data, "flb");
  looks.length = 0;
  next.core.quiesceOthers();
  next.core.flb.adopt(state);
  next.core.enumerate();
  const all = (bus: number) =>
    Array.from({ length: 32 }, (_, device) => (bus << 8) | (device << 3));
  const expected = [...all(0), 0x100, 0x200, 0x300, ...all(4)];
  assert.deepEqual(
    looks.sort((a, b) => a - b),
    expected.sort((a, b) => a - b),
  );
});

// --- Failures ---

test("a failure at any step of preserving leaves nothing behind", () => {
  const hw = hardware([PLUGS]);
  const { core, pages, faults } = coldBoot(hw);
  const run = () => {
    const data = core.flb.preserve();
    try {
      core.preserve(at(core, 0x200));
    } catch (error) {
      core.flb.unpreserve(data);
      throw error;
    }
    return data;
  };
  let data = 0n;
  const points = faults.record(() => {
    data = run();
  });
  core.unpreserve(at(core, 0x200));
  core.flb.unpreserve(data);
  assert.deepEqual(points, ["kho:record", "mm:alloc", "kho:preserve", "pci:preserve"]);
  for (let i = 0; i < points.length; i++) {
    faults.arm(i, (point) => new KernelError("ENOMEM", point, "injected"));
    assert.throws(run, (e) => isKernelError(e, "ENOMEM"));
    assert.ok(faults.disarm());
    assert.equal(pages.allocated.size, 0);
    assert.equal(pages.preserved.size, 0);
    assert.ok(core.functions.every((f) => !core.isPreserved(f)));
  }
  run();
});

/** A handover that is changed by `change` must be refused, naming `field`, and without a write to hardware. */
function refuses(
  field: RegExp,
  change: (hw: Hardware, pa: number, pages: FakePages) => void,
): void {
  const hw = hardware([PLUGS]);
  const { pages, data, core } = update(hw);
  core.shutdown();
  const next = boot(hw, pages);
  next.core.flb.decode(next.pages.incoming, data, "flb");
  change(hw, Number(data), pages);
  hw.writes.length = 0;
  assert.throws(
    () => next.core.flb.decode(next.pages.incoming, data, "flb"),
    (e) => e instanceof HandoverError && field.test(e.field),
    String(field),
  );
  assert.deepEqual(hw.writes, []);
  assert.equal(next.pages.allocated.size, 0);
}

/** Records are sorted: 00, 08, 10, 100, 108, 200, 300. */
const BRIDGE = 1;
const PRESERVED = 3;
const recordAt = (pa: number, i: number) => pa + PCI_SER.sizeBytes + i * PCI_FUNCTION_SER.sizeBytes;

test("decode() refuses a change of any field of a preserved function, by its name", () => {
  for (const name of Object.keys(PCI_FUNCTION_SER.fields)) {
    const key = name as keyof typeof PCI_FUNCTION_SER.fields;
    for (const record of [PRESERVED, BRIDGE]) {
      // What the field's value breaks may be found at another field: order by bdf, refcounts at the bridge.
      const where =
        { bdf: /bdf|segment|vendor_id/, segment: /segment|bdf/, refcount: /refcount/ }[
          name as "bdf" | "segment" | "refcount"
        ] ?? new RegExp(`\\[${record}\\]\\.${name}`);
      refuses(where, (hw, pa) => {
        const target = recordAt(pa, record);
        const value = PCI_FUNCTION_SER.read(hw.memory, target);
        const changed =
          key === "bar_size_lg2" ? new Uint8Array(6).fill(60) : (value[key] as number) + 1;
        PCI_FUNCTION_SER.write(hw.memory, target, { ...value, [key]: changed });
      });
    }
  }
});

test("decode() refuses hardware that is not as it was left, by the name of the field", () => {
  const config = (hw: Hardware, bdf: number, offset: number, size: 1 | 2 | 4, value: number) =>
    hw.mmio.write(0xc0000000 + bdf * 4096 + offset, size, value);
  refuses(/\[3\]\.command/, (hw) => config(hw, 0x100, reg.PCI_COMMAND, 2, 0));
  refuses(/\[3\]\.bar0/, (hw) => config(hw, 0x100, reg.PCI_BASE_ADDRESS_0, 4, 0xd4000000));
  refuses(/\[1\]\.secondary_bus/, (hw) => config(hw, 8, reg.PCI_SECONDARY_BUS, 1, 9));
  refuses(/\[1\]\.memory_window/, (hw) => config(hw, 8, reg.PCI_MEMORY_BASE, 4, 0xfff0));
  refuses(/\[4\]\.subordinate_bus/, (hw) => config(hw, 0x108, reg.PCI_SUBORDINATE_BUS, 1, 40));
});

test("decode() refuses bad addresses, counts and sizes", () => {
  refuses(/pci_ser.count/, (hw, pa) => hw.memory.store32(pa, 0xffffffff));
  refuses(/pci_ser.count/, (hw, pa) => hw.memory.store32(pa, 16384));
  refuses(/pci_ser$/, (hw, pa) => hw.memory.store32(pa, 16383));
  refuses(/record_bytes/, (hw, pa) => hw.memory.store32(pa + 4, 72));
  refuses(/data/, (_hw, _pa, pages) => pages.preserved.clear());
  // Cut off: the bridges are in it, what they were preserved for is not.
  refuses(/refcount/, (hw, pa) => hw.memory.store32(pa, 5));
  const hw = hardware([PLUGS]);
  const { pages } = update(hw);
  const next = boot(hw, pages);
  for (const data of [0n, 1n, 1n << 63n, (1n << 64n) - 1n, 0xd0000000n])
    assert.throws(
      () => next.core.flb.decode(next.pages.incoming, data, "flb"),
      (e) => e instanceof HandoverError && /data/.test(e.field),
    );
});

test("decode() refuses BARs that cannot be where they are, though the hardware says so too", () => {
  const move = (hw: Hardware, pa: number, record: number, bdf: number, address: number) => {
    hw.mmio.write(0xc0000000 + bdf * 4096 + reg.PCI_BASE_ADDRESS_0, 4, address);
    hw.memory.store32(recordAt(pa, record) + PCI_FUNCTION_SER.offset.bar0, address);
  };
  const barOf = (hw: Hardware, bdf: number) =>
    hw.mmio.read(0xc0000000 + bdf * 4096 + reg.PCI_BASE_ADDRESS_0, 4);
  refuses(/\[3\]\.bar_size_lg2\[0\]/, (hw, pa) => move(hw, pa, 3, 0x100, 0x40000000));
  refuses(/\[5\]\.bar_size_lg2\[0\]/, (hw, pa) => move(hw, pa, 5, 0x200, barOf(hw, 0x100)));
  refuses(/\[3\]\.bar_size_lg2\[0\]/, (hw, pa) => {
    // In the window, overlaps nothing, but is not aligned to 256 KiB.
    move(hw, pa, 3, 0x100, 0xd4020000);
    hw.memory.store8(recordAt(pa, 3) + PCI_FUNCTION_SER.offset.bar_size_lg2, 18);
  });
  refuses(/\[3\]\.bar_size_lg2\[0\]/, (hw, pa) => {
    // Aligned, but longer than the rest of the window.
    move(hw, pa, 3, 0x100, 0xd4000000);
    hw.memory.store8(recordAt(pa, 3) + PCI_FUNCTION_SER.offset.bar_size_lg2, 26);
    hw.firmware.mmioWindows[0].lengthBytes = 96 * MIB;
  });
  refuses(/\[3\]\.bar_size_lg2\[0\]/, (hw, pa) => {
    // A size that is missing: the BAR would be given to another function.
    hw.memory.store8(recordAt(pa, 3) + PCI_FUNCTION_SER.offset.bar_size_lg2, 0);
  });
});

test("decode() refuses a function whose bridge is not in it", () => {
  refuses(/\[2\]\.bdf/, (hw, pa) => {
    for (let i = 1; i < 6; i++)
      PCI_FUNCTION_SER.write(
        hw.memory,
        recordAt(pa, i),
        PCI_FUNCTION_SER.read(hw.memory, recordAt(pa, i + 1)),
      );
    hw.memory.store32(pa, 6);
  });
});

test("decode() refuses records twice, and a function whose bridge is not preserved", () => {
  refuses(/\[4\]\.bdf/, (hw, pa) => {
    const value = PCI_FUNCTION_SER.read(hw.memory, recordAt(pa, 3));
    PCI_FUNCTION_SER.write(hw.memory, recordAt(pa, 4), value);
  });
  refuses(/\[3\]\.bdf|refcount/, (hw, pa) => {
    hw.memory.store32(recordAt(pa, 1) + PCI_FUNCTION_SER.offset.refcount, 0);
  });
  // A bridge that is said to lead elsewhere would leave its functions without one.
  refuses(/\[1\]\.header_type/, (hw, pa) => {
    hw.memory.store8(recordAt(pa, 1) + PCI_FUNCTION_SER.offset.header_type, 0);
  });
});

test("decode() does not fail otherwise on any bytes", () => {
  const hw = hardware([PLUGS]);
  const { pages, data } = update(hw);
  const next = boot(hw, pages);
  const pa = Number(data);
  const good = new Uint8Array(pciSerBytes(7));
  hw.memory.read(pa, good);
  const change = fc.tuple(fc.nat(good.length - 1), fc.integer({ min: 0, max: 255 }));
  let refused = 0;
  fc.assert(
    fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
      hw.memory.write(pa, good);
      for (const [offset, value] of changes) hw.memory.store8(pa + offset, value);
      try {
        next.core.flb.decode(next.pages.incoming, data, "flb");
      } catch (error) {
        if (!(error instanceof HandoverError)) throw error;
        refused++;
      }
    }),
    { numRuns: 500 },
  );
  assert.ok(refused > 200, `${refused} of 500 refused`);
});

test("the layout of a record is 64 bytes and does not change", () => {
  assert.equal(PCI_FUNCTION_SER.sizeBytes, 64);
  assert.deepEqual(PCI_FUNCTION_SER.offset, {
    segment: 0,
    bdf: 2,
    refcount: 4,
    vendor_id: 8,
    device_id: 10,
    command: 12,
    header_type: 14,
    primary_bus: 15,
    bar0: 16,
    bar1: 20,
    bar2: 24,
    bar3: 28,
    bar4: 32,
    bar5: 36,
    bar_size_lg2: 40,
    secondary_bus: 46,
    subordinate_bus: 47,
    memory_window: 48,
    pref_window: 52,
    pref_base_upper: 56,
    pref_limit_upper: 60,
  });
});
