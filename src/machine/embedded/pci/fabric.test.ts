import assert from "node:assert/strict";
import { test } from "node:test";
import * as pci from "../../../abi/pci.ts";
import { GIB, MIB } from "../../../base/units.ts";
import type { Mmio } from "../../machine.ts";
import { createSharedRam, Ram } from "../../physical-memory.ts";
import type { DmaPort, DmaRemapper, MmioRegion } from "../hardware.ts";
import type { BarSpec, DeviceModel } from "./device-model.ts";
import type { EndpointOptions } from "./endpoint.ts";
import { PciFabric } from "./fabric.ts";

const ECAM = { segment: 0, base: 0xc0000000, startBus: 0, lastBus: 63 };
const WINDOW = { start: 0xd0000000, lengthBytes: 128 * MIB };
const HIGH_WINDOW = { start: 64 * GIB, lengthBytes: 32 * GIB };

/** Keeps what is written to it. */
class Scratch implements DeviceModel {
  readonly identity = {
    vendorId: 0x1234,
    deviceId: 0x11e8,
    classCode: 0x00ff00,
    revisionId: 0x10,
    subsystemVendorId: 0x1af4,
    subsystemId: 0x1100,
  };
  readonly bars: readonly BarSpec[];
  readonly dma: DmaPort;
  readonly words = new Map<string, number>();
  resets = 0;
  constructor(dma: DmaPort, bars: readonly BarSpec[]) {
    this.dma = dma;
    this.bars = bars;
  }
  barRead(bar: number, offset: number, size: 1 | 2 | 4): number {
    return this.words.get(`${bar}:${offset}:${size}`) ?? 0;
  }
  barWrite(bar: number, offset: number, size: 1 | 2 | 4, value: number): void {
    this.words.set(`${bar}:${offset}:${size}`, value);
  }
  reset(): void {
    this.resets++;
    this.words.clear();
  }
  step(): boolean {
    return false;
  }
  nextDueNs(): number {
    return Number.POSITIVE_INFINITY;
  }
}

const BAR0: BarSpec = { index: 0, sizeBytes: MIB, kind: "memory32", isPrefetchable: false };
const BAR2: BarSpec = { index: 2, sizeBytes: 8 * GIB, kind: "memory64", isPrefetchable: true };

function mmioOf(regions: readonly MmioRegion[]): Mmio {
  const find = (pa: number) => regions.find((r) => pa >= r.base && pa < r.base + r.lengthBytes);
  return {
    read: (pa, size) => {
      const region = find(pa);
      return region === undefined ? 2 ** (8 * size) - 1 : region.read(pa - region.base, size);
    },
    write: (pa, size, value) => {
      const region = find(pa);
      region?.write(pa - region.base, size, value);
    },
  };
}

function machine(remapper: DmaRemapper | null = null) {
  const ram = new Ram(createSharedRam([{ start: 0, lengthBytes: 4 * MIB }]));
  const raised: number[] = [];
  const fabric = new PciFabric({
    ecam: ECAM,
    windows: [WINDOW, HIGH_WINDOW],
    memory: ram,
    interrupts: { raise: (vector) => raised.push(vector) },
    remapper,
  });
  const mmio = mmioOf(fabric.regions);
  const config = {
    at: (bdf: number, offset: number) => ECAM.base + bdf * 4096 + offset,
    read: (bdf: number, offset: number, size: 1 | 2 | 4) => mmio.read(config.at(bdf, offset), size),
    write: (bdf: number, offset: number, size: 1 | 2 | 4, value: number) =>
      mmio.write(config.at(bdf, offset), size, value),
  };
  /** One endpoint at 01:00.0 below a root port at 00:04.0, all enabled. */
  const behindPort = (bars: readonly BarSpec[] = [BAR0], options: EndpointOptions = {}) => {
    const port = fabric.addBridge({ parent: null, device: 4, function: 0 });
    let model: Scratch | undefined;
    fabric.addEndpoint(
      { parent: port, device: 0, function: 0 },
      (dma) => {
        model = new Scratch(dma, bars);
        return model;
      },
      options,
    );
    config.write(PORT, pci.PCI_PRIMARY_BUS, 4, 0x00010100);
    config.write(PORT, pci.PCI_MEMORY_BASE, 4, 0xd000d000);
    config.write(PORT, pci.PCI_COMMAND, 2, ON);
    config.write(DEVICE, pci.PCI_BASE_ADDRESS_0, 4, 0xd0000000);
    config.write(DEVICE, pci.PCI_COMMAND, 2, ON);
    return model as unknown as Scratch;
  };
  return { ram, raised, fabric, mmio, config, behindPort };
}

const PORT = 4 << 3;
const DEVICE = 0x100;
const ON = pci.PCI_COMMAND_MEMORY | pci.PCI_COMMAND_MASTER;
const FOUR = () => Uint8Array.of(1, 2, 3, 4);

test("ECAM: what is not there reads all ones, what is there shows its identity", () => {
  const { fabric, config } = machine();
  fabric.addEndpoint({ parent: null, device: 3, function: 0 }, (dma) => new Scratch(dma, [BAR0]));
  assert.equal(config.read(0, pci.PCI_VENDOR_ID, 4), 0xffffffff);
  assert.equal(config.read(3 << 3, pci.PCI_VENDOR_ID, 4), 0x11e81234);
  assert.equal(config.read(3 << 3, pci.PCI_CLASS_REVISION, 4), 0x00ff0010);
  assert.equal(config.read(3 << 3, pci.PCI_HEADER_TYPE, 1), 0);
  config.write(3 << 3, pci.PCI_VENDOR_ID, 4, 0);
  assert.equal(config.read(3 << 3, pci.PCI_VENDOR_ID, 4), 0x11e81234);
  fabric.addEndpoint({ parent: null, device: 3, function: 2 }, (dma) => new Scratch(dma, [BAR0]));
  assert.equal(config.read(3 << 3, pci.PCI_HEADER_TYPE, 1), pci.PCI_HEADER_TYPE_MFD);
});

test("a BAR answers the sizing protocol, 32-bit and 64-bit above 4 GiB", () => {
  const { config, behindPort } = machine();
  behindPort([BAR0, BAR2]);
  config.write(DEVICE, pci.PCI_BASE_ADDRESS_0, 4, 0xffffffff);
  assert.equal(config.read(DEVICE, pci.PCI_BASE_ADDRESS_0, 4), 0xfff00000);
  config.write(DEVICE, pci.PCI_BASE_ADDRESS_0 + 8, 4, 0xffffffff);
  config.write(DEVICE, pci.PCI_BASE_ADDRESS_0 + 12, 4, 0xffffffff);
  assert.equal(config.read(DEVICE, pci.PCI_BASE_ADDRESS_0 + 8, 4), 0x0000000c);
  assert.equal(config.read(DEVICE, pci.PCI_BASE_ADDRESS_0 + 12, 4), 0xfffffffe);
  config.write(DEVICE, pci.PCI_BASE_ADDRESS_0 + 4, 4, 0xffffffff);
  assert.equal(config.read(DEVICE, pci.PCI_BASE_ADDRESS_0 + 4, 4), 0);
});

test("an access reaches a BAR only through memory enables and windows of everything above", () => {
  const { mmio, config, behindPort } = machine();
  behindPort();
  const works = () => {
    mmio.write(0xd0000010, 4, 0x12345678);
    return mmio.read(0xd0000010, 4) === 0x12345678;
  };
  assert.ok(works());
  assert.equal(mmio.read(0xd0100010, 4), 0xffffffff, "behind the BAR");
  const off = (bdf: number, offset: number, value: number) => {
    const before = config.read(bdf, offset, 4);
    config.write(bdf, offset, 4, value);
    assert.equal(mmio.read(0xd0000010, 4), 0xffffffff);
    config.write(bdf, offset, 4, before);
    assert.ok(works());
  };
  off(DEVICE, pci.PCI_COMMAND, pci.PCI_COMMAND_MASTER);
  off(PORT, pci.PCI_COMMAND, pci.PCI_COMMAND_MASTER);
  off(PORT, pci.PCI_MEMORY_BASE, 0xd010d010);
  off(PORT, pci.PCI_MEMORY_BASE, 0x0000fff0);
  off(DEVICE, pci.PCI_BASE_ADDRESS_0, 0xd0100000);
});

test("a prefetchable window above 4 GiB leads to a 64-bit BAR", () => {
  const { mmio, config, behindPort } = machine();
  behindPort([BAR2]);
  config.write(DEVICE, pci.PCI_BASE_ADDRESS_0 + 8, 4, 0);
  config.write(DEVICE, pci.PCI_BASE_ADDRESS_0 + 12, 4, 16);
  config.write(PORT, pci.PCI_PREF_BASE_UPPER32, 4, 16);
  config.write(PORT, pci.PCI_PREF_LIMIT_UPPER32, 4, 17);
  config.write(PORT, pci.PCI_PREF_MEMORY_BASE, 4, 0xfff00000);
  mmio.write(64 * GIB + 5 * GIB, 2, 0xabcd);
  assert.equal(mmio.read(64 * GIB + 5 * GIB, 2), 0xabcd);
  config.write(PORT, pci.PCI_PREF_LIMIT_UPPER32, 4, 16);
  assert.equal(mmio.read(64 * GIB + 5 * GIB, 2), 0xffff);
});

test("DMA needs bus mastering of the function and of every bridge above", () => {
  const { ram, config, behindPort } = machine();
  const { dma } = behindPort();
  assert.ok(dma.write(0x2000, FOUR()));
  assert.equal(ram.load32(0x2000), 0x04030201);
  for (const bdf of [DEVICE, PORT]) {
    config.write(bdf, pci.PCI_COMMAND, 2, pci.PCI_COMMAND_MEMORY);
    assert.equal(dma.write(0x2000, Uint8Array.of(9, 9, 9, 9)), false);
    const target = FOUR();
    assert.equal(dma.read(0x2000, target), false);
    assert.deepEqual([...target], [255, 255, 255, 255]);
    dma.signalMsi();
    config.write(bdf, pci.PCI_COMMAND, 2, ON);
  }
  assert.equal(ram.load32(0x2000), 0x04030201);
});

test("DMA is translated page by page with the requester's id, and stops at the first that fails", () => {
  const asked: string[] = [];
  const { ram, behindPort } = machine({
    translate(sourceId, iova, isWrite) {
      asked.push(`${sourceId.toString(16)} ${iova.toString(16)} ${isWrite}`);
      if (iova >= 0x12000) return -1;
      return iova < 0x11000 ? iova - 0x10000 + 0x5000 : iova - 0x11000 + 0x8000;
    },
  });
  const { dma } = behindPort();
  const bytes = Uint8Array.from({ length: 0x1800 }, (_, i) => i % 251);
  assert.ok(dma.write(0x10800, bytes));
  assert.deepEqual(asked, ["100 10800 true", "100 11000 true"]);
  const back = new Uint8Array(0x800);
  ram.read(0x5800, back);
  assert.deepEqual(back, bytes.subarray(0, 0x800));
  ram.read(0x8000, back);
  assert.deepEqual(back, bytes.subarray(0x800, 0x1000));

  assert.equal(dma.write(0x11ffc, new Uint8Array(8).fill(0x77)), false);
  assert.equal(ram.load32(0x8ffc), 0x77777777, "the part before the page boundary was written");
  const target = new Uint8Array(8);
  assert.equal(dma.read(0x11ffc, target), false);
  assert.deepEqual(target, new Uint8Array(8).fill(0xff));
});

test("DMA to what is not RAM fails, whatever the address is", () => {
  const { behindPort } = machine();
  const { dma } = behindPort();
  for (const address of [4 * MIB, 4 * MIB - 2, 0xd0000000, 2 ** 52, 2 ** 64, -4, Number.NaN])
    assert.equal(dma.write(address, FOUR()), false, `${address}`);
});

test("renumbering a bus changes the requester id at once, and hides what is behind the old number", () => {
  const sources: number[] = [];
  const { config, behindPort } = machine({
    translate(sourceId, iova) {
      sources.push(sourceId);
      return iova;
    },
  });
  const { dma } = behindPort();
  dma.write(0x1000, FOUR());
  config.write(PORT, pci.PCI_PRIMARY_BUS, 4, 0x00050500);
  dma.write(0x1000, FOUR());
  assert.deepEqual(sources, [0x100, 0x500]);
  assert.equal(config.read(0x100, pci.PCI_VENDOR_ID, 2), 0xffff);
  assert.equal(config.read(0x500, pci.PCI_VENDOR_ID, 2), 0x1234);
});

test("config accesses pass nested bridges only within their bus ranges", () => {
  const { fabric, config } = machine();
  const port = fabric.addBridge({ parent: null, device: 1, function: 0 });
  const upstream = fabric.addBridge({ parent: port, device: 0, function: 0 });
  fabric.addEndpoint({ parent: upstream, device: 2, function: 0 }, (dma) => new Scratch(dma, []));
  config.write(8, pci.PCI_PRIMARY_BUS, 4, 0x00020100);
  assert.equal(config.read(0x100, pci.PCI_HEADER_TYPE, 1), pci.PCI_HEADER_TYPE_BRIDGE);
  config.write(0x100, pci.PCI_PRIMARY_BUS, 4, 0x00020201);
  assert.equal(config.read(0x210, pci.PCI_VENDOR_ID, 2), 0x1234);
  config.write(8, pci.PCI_SUBORDINATE_BUS, 1, 1);
  assert.equal(config.read(0x210, pci.PCI_VENDOR_ID, 2), 0xffff);
});

test("DMA from behind two bridges needs bus mastering of both", () => {
  const { fabric, config } = machine();
  const port = fabric.addBridge({ parent: null, device: 1, function: 0 });
  const upstream = fabric.addBridge({ parent: port, device: 0, function: 0 });
  const { model } = fabric.addEndpoint(
    { parent: upstream, device: 2, function: 0 },
    (dma) => new Scratch(dma, []),
  );
  const { dma } = model as Scratch;
  config.write(8, pci.PCI_PRIMARY_BUS, 4, 0x00020100);
  config.write(0x100, pci.PCI_PRIMARY_BUS, 4, 0x00020201);
  const path = [8, 0x100, 0x210];
  for (const bdf of path) config.write(bdf, pci.PCI_COMMAND, 2, ON);
  assert.ok(dma.write(0x1000, FOUR()));
  for (const bdf of path) {
    config.write(bdf, pci.PCI_COMMAND, 2, 0);
    assert.equal(dma.write(0x1000, FOUR()), false, bdf.toString(16));
    config.write(bdf, pci.PCI_COMMAND, 2, ON);
  }
});

test("a bus that two bridges claim cannot be reached", () => {
  const { fabric, config } = machine();
  for (const device of [1, 2]) {
    const parent = fabric.addBridge({ parent: null, device, function: 0 });
    fabric.addEndpoint({ parent, device: 0, function: 0 }, (dma) => new Scratch(dma, []));
  }
  config.write(1 << 3, pci.PCI_PRIMARY_BUS, 4, 0x00010100);
  assert.equal(config.read(0x100, pci.PCI_VENDOR_ID, 2), 0x1234);
  config.write(2 << 3, pci.PCI_PRIMARY_BUS, 4, 0x00010100);
  assert.equal(config.read(0x100, pci.PCI_VENDOR_ID, 2), 0xffff);
});

const MSI = 0xd0;
function programMsi(config: ReturnType<typeof machine>["config"], at: number): void {
  config.write(DEVICE, at + pci.PCI_MSI_ADDRESS_LO, 4, 0xfee00000);
  config.write(DEVICE, at + pci.PCI_MSI_DATA_64, 2, 0x41);
  config.write(DEVICE, at + pci.PCI_MSI_FLAGS, 2, pci.PCI_MSI_FLAGS_ENABLE);
}

test("an MSI goes to the interrupt controller and not through the remapping unit", () => {
  const { raised, config, behindPort } = machine({ translate: () => -1 });
  const { dma } = behindPort();
  dma.signalMsi();
  assert.deepEqual(raised, [], "not enabled");
  programMsi(config, MSI);
  dma.signalMsi();
  assert.deepEqual(raised, [0x41]);
  config.write(DEVICE, pci.PCI_COMMAND, 2, pci.PCI_COMMAND_MEMORY);
  dma.signalMsi();
  assert.deepEqual(raised, [0x41], "no bus mastering");
});

test("a DMA write of a dword to 0xfeexxxxx is an MSI, of anything else an error", () => {
  const { raised, behindPort } = machine({ translate: () => -1 });
  const { dma } = behindPort();
  assert.ok(dma.write(0xfee01000, Uint8Array.of(0x55, 0, 0, 0)));
  assert.equal(dma.write(0xfee00000, Uint8Array.of(0x56)), false);
  assert.equal(dma.write(0xfee00002, FOUR()), false);
  assert.equal(dma.read(0xfee00000, FOUR()), false);
  assert.deepEqual(raised, [0x55]);
});

test("a masked vector is pending until it is unmasked", () => {
  const { raised, config, behindPort } = machine();
  const { dma } = behindPort([BAR0], { msiMaskable: true });
  const at = config.read(DEVICE, pci.PCI_CAPABILITY_LIST, 1);
  assert.equal(config.read(DEVICE, at, 1), pci.PCI_CAP_ID_MSI);
  programMsi(config, at);
  config.write(DEVICE, at + pci.PCI_MSI_MASK_64, 4, 1);
  dma.signalMsi();
  assert.deepEqual(raised, []);
  assert.equal(config.read(DEVICE, at + pci.PCI_MSI_PENDING_64, 4), 1);
  config.write(DEVICE, at + pci.PCI_MSI_MASK_64, 4, 0);
  assert.deepEqual(raised, [0x41]);
  assert.equal(config.read(DEVICE, at + pci.PCI_MSI_PENDING_64, 4), 0);
});

test("FLR resets the model and its config space, and reads back as 0", () => {
  const { config, behindPort } = machine();
  const model = behindPort();
  programMsi(config, MSI);
  const express = config.read(DEVICE, MSI + 1, 1);
  assert.equal(config.read(DEVICE, express, 1), pci.PCI_CAP_ID_EXP);
  assert.ok((config.read(DEVICE, express + pci.PCI_EXP_DEVCAP, 4) & pci.PCI_EXP_DEVCAP_FLR) !== 0);
  const before = model.resets;
  config.write(DEVICE, express + pci.PCI_EXP_DEVCTL, 2, pci.PCI_EXP_DEVCTL_BCR_FLR);
  assert.equal(model.resets, before + 1);
  assert.equal(config.read(DEVICE, express + pci.PCI_EXP_DEVCTL, 2), 0);
  assert.equal(config.read(DEVICE, pci.PCI_COMMAND, 2), 0);
  assert.equal(config.read(DEVICE, pci.PCI_BASE_ADDRESS_0, 4), 0);
  assert.equal(config.read(DEVICE, MSI + pci.PCI_MSI_DATA_64, 2), 0);
  assert.equal(config.read(DEVICE, pci.PCI_VENDOR_ID, 2), 0x1234);
});

test("a secondary bus reset resets all below the bridge, and the bridge keeps its own registers", () => {
  const { config, behindPort } = machine();
  const model = behindPort();
  const before = model.resets;
  config.write(PORT, pci.PCI_BRIDGE_CONTROL, 2, pci.PCI_BRIDGE_CTL_BUS_RESET);
  assert.equal(model.resets, before + 1);
  assert.equal(config.read(DEVICE, pci.PCI_COMMAND, 2), 0);
  assert.equal(config.read(PORT, pci.PCI_COMMAND, 2), ON);
});
