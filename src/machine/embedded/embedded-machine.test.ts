import assert from "node:assert/strict";
import { describe, it } from "node:test";
import * as nicRegisters from "../../abi/e1000e.ts";
import * as pci from "../../abi/pci.ts";
import { CAP_REG, GCMD_REG, GCMD_SRTP, GCMD_TE, RTADDR_REG } from "../../abi/vtd/registers.ts";
import { MIB } from "../../base/units.ts";
import { buildAddressMap } from "../firmware.ts";
import { createSharedRam, Ram } from "../physical-memory.ts";
import type { DrhdConfig, MachineConfig, SlotConfig } from "./config.ts";
import { EmbeddedHardware } from "./embedded-machine.ts";
import { HardwareStatistics } from "./hardware-statistics.ts";
import { createInterruptState, InterruptController } from "./interrupts.ts";

const FULL: DrhdConfig = { addressBits: 48, superpages: true };
const SMALL: DrhdConfig = { addressBits: 39, superpages: false };
const EDU: SlotConfig = { model: "edu", device: 1, function: 0, rmrrBytes: 0 };

function nic(name: string, device: number): SlotConfig {
  return { model: "e1000e", device, function: 0, name, framesPerSecond: 1000, rmrrBytes: 0 };
}

/** Three segments: a full unit, a small one, none. */
const CONFIG: MachineConfig = {
  nodeBytes: [64 * MIB],
  segments: [
    {
      drhd: FULL,
      slots: [EDU, { model: "root-port", device: 4, function: 0, children: [nic("nic0", 0)] }],
    },
    { drhd: SMALL, slots: [nic("nic1", 3), { ...nic("nic2", 3), function: 1 }] },
    { drhd: null, slots: [nic("nic3", 2)] },
  ],
  installed: [],
};

function powerOn(config = CONFIG) {
  const { firmware, ram } = buildAddressMap(config);
  const memory = new Ram(createSharedRam(ram));
  const interrupts = new InterruptController(createInterruptState());
  const statistics = new HardwareStatistics(config);
  const kernelPresent = new Int32Array(new SharedArrayBuffer(4));
  const hardware = new EmbeddedHardware({
    config,
    firmware,
    memory,
    interrupts,
    kernelPresent,
    statistics,
  });
  const configAddress = (segment: number, bdf: number) =>
    firmware.ecams[segment].base + pci.ecamOffset(0, bdf);
  return { firmware, hardware, memory, statistics, configAddress, ...hardware };
}

describe("EmbeddedHardware", () => {
  it("shows each function where the description puts it, and nothing elsewhere", () => {
    const { mmio, configAddress } = powerOn();
    const id = (segment: number, bdf: number) => mmio.read(configAddress(segment, bdf), 4);
    assert.equal(id(0, 1 << 3), 0x11e81234);
    assert.equal(id(0, 4 << 3), 0x000c1b36);
    assert.equal(id(1, 3 << 3), 0x10d38086);
    assert.equal(id(1, (3 << 3) | 1), 0x10d38086);
    assert.equal(id(2, 2 << 3), 0x10d38086);
    let found = 0;
    for (let segment = 0; segment < 3; segment++)
      for (let devfn = 0; devfn < 256; devfn++) if (id(segment, devfn) !== 0xffffffff) found++;
    assert.equal(found, 5);
    // Behind the root port once it has bus numbers.
    assert.equal(id(0, 1 << 8), 0xffffffff);
    mmio.write(configAddress(0, 4 << 3) + 0x19, 1, 1);
    mmio.write(configAddress(0, 4 << 3) + 0x1a, 1, 1);
    assert.equal(id(0, 1 << 8), 0x10d38086);
  });

  it("puts a remapping unit where firmware says, with the capabilities of the description", () => {
    const { mmio, firmware, vtds } = powerOn();
    assert.deepEqual(
      vtds.map((vtd) => vtd !== null),
      [true, true, false],
    );
    const [full, small] = firmware.drhds.map((drhd) => ({
      sagaw: (mmio.read(drhd.registerBase + CAP_REG, 4) >>> 8) & 0x1f,
      sllps: (mmio.read(drhd.registerBase + CAP_REG + 4, 4) >>> 2) & 0xf,
    }));
    assert.deepEqual(full, { sagaw: 0b00110, sllps: 0b0011 });
    assert.deepEqual(small, { sagaw: 0b00010, sllps: 0 });
  });

  it("counts blocked DMA of each segment, and lets it through where nothing translates", () => {
    const { mmio, firmware, hardware, statistics, configAddress } = powerOn();
    for (const [segment, bdf] of [
      [1, 3 << 3],
      [2, 2 << 3],
    ]) {
      const bar = firmware.mmioWindows[segment].start;
      mmio.write(configAddress(segment, bdf) + pci.PCI_BASE_ADDRESS_0, 4, bar);
      const command = pci.PCI_COMMAND_MEMORY | pci.PCI_COMMAND_MASTER;
      mmio.write(configAddress(segment, bdf) + pci.PCI_COMMAND, 2, command);
      mmio.write(bar + nicRegisters.E1000_RDBAL, 4, 2 * MIB);
      mmio.write(bar + nicRegisters.E1000_RDLEN, 4, 4096);
      mmio.write(bar + nicRegisters.E1000_RDT, 4, 255);
      const receive = nicRegisters.E1000_RCTL_EN | nicRegisters.E1000_RCTL_UPE;
      mmio.write(bar + nicRegisters.E1000_RCTL, 4, receive);
    }
    // An empty root table: everything is blocked.
    const unit = firmware.drhds[1].registerBase;
    mmio.write(unit + RTADDR_REG, 4, 4 * MIB);
    mmio.write(unit + RTADDR_REG + 4, 4, 0);
    mmio.write(unit + GCMD_REG, 4, GCMD_SRTP);
    mmio.write(unit + GCMD_REG, 4, GCMD_TE | 0);
    hardware.step(0);
    hardware.step(1e6);
    const [, blocked, , free] = statistics.nics();
    assert.equal(blocked.name, "nic1");
    assert.ok(blocked.dmaFailed > 0);
    assert.equal(blocked.delivered, 0);
    assert.ok(statistics.dmaFaults(1) > 0);
    assert.equal(statistics.dmaFaults(1), hardware.vtds[1]?.statistics.faults);
    assert.equal(free.name, "nic3");
    assert.ok(free.delivered > 0);
    assert.equal(free.delivered, free.withoutKernel);
    assert.equal(statistics.dmaFaults(0) + statistics.dmaFaults(2), 0);
  });

  it("has nothing to do while no driver has set anything up", () => {
    const { hardware } = powerOn();
    assert.equal(hardware.nextDueNs(), Number.POSITIVE_INFINITY);
    assert.equal(hardware.step(1e9), false);
  });
});
