/**
 * Our VT-d unit against QEMU's: random tables, good and broken, in one memory, and random DMA by edu devices. Both must
 * translate alike, and record the same fault: reason, address, source-id, read or write.
 *
 * QEMU's unit is a reading of the specification by other people. What it is known to read otherwise is in
 * {@link divergence}, with the section; everything else must agree.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { EDU_DEVICE_ID } from "../../src/abi/edu.ts";
import type { FaultRecord } from "../../src/abi/vtd/faults.ts";
import { GCMD_TE } from "../../src/abi/vtd/registers.ts";
import {
  AW_48_BIT,
  CONTEXT_FPD,
  contextAddressWidth,
  contextEntry,
  contextEntryAddress,
  contextTranslationType,
  ROOT_P,
  rootEntry,
  rootEntryAddress,
  TT_PASS_THROUGH,
} from "../../src/abi/vtd/root-context.ts";
import { SS_R, SS_W } from "../../src/abi/vtd/second-stage.ts";
import { Prng } from "../../src/base/prng.ts";
import { GIB, MIB, PAGE_SIZE } from "../../src/base/units.ts";
import { ConfigAccess } from "../../src/kernel/pci/config-access.ts";
import { enumerate } from "../../src/kernel/pci/enumerate.ts";
import type { EduConfig, MachineConfig } from "../../src/machine/embedded/config.ts";
import { DEFAULT_VTD_CAPABILITIES } from "../../src/machine/embedded/vtd/capabilities.ts";
import { VtdUnit } from "../../src/machine/embedded/vtd/vtd-unit.ts";
import type { Mmio } from "../../src/machine/machine.ts";
import { Ram } from "../../src/machine/physical-memory.ts";
import { QemuHardware } from "../../src/machine/qemu/qemu-hardware.ts";
import { QtestClient } from "../../src/machine/qemu/qtest.ts";
import { EDU_ARGUMENTS, Edu, Unit } from "./devices.ts";
import { skipReason } from "./rig.ts";

const RAM_BYTES = 64 * MIB;
/** No RAM, and no register that a table walk may read. */
const NOT_RAM = GIB;
const TABLES = 16 * MIB;
const MARKER_PAGE = 32 * MIB;
const COPY_PAGE = MARKER_PAGE + PAGE_SIZE;
const MARKER = [0x600d_f00d, 0x0dd_ba11];
const RUNS = 100;
/** Fixed, so that a test that passed passes; set SEED to look further. */
const SEED = Number(process.env["SEED"] ?? 1);
const ACCESSES = 12;

const edu = (device: number): EduConfig => ({
  model: "edu",
  device,
  function: 0,
  rmrrBytes: 0,
});

const CONFIG: MachineConfig = {
  nodeBytes: [RAM_BYTES],
  segments: [
    {
      drhd: { addressBits: 48, superpages: true },
      slots: [edu(1), edu(2), { model: "root-port", device: 4, function: 0, children: [edu(0)] }],
    },
  ],
  installed: [],
};

interface Bench {
  readonly ram: Ram;
  readonly theirs: Unit;
  readonly edus: readonly Edu[];
}

async function withBench(use: (bench: Bench) => void): Promise<void> {
  const hardware = await QemuHardware.powerOn(CONFIG, {
    extraArguments: EDU_ARGUMENTS,
  });
  try {
    const devices = hardware.connect();
    assert(devices.kind === "qtest");
    const qtest = new QtestClient(devices.socket);
    const { firmware } = hardware;
    const found = enumerate(new ConfigAccess(qtest, firmware.ecams), firmware).devices;
    const edus = found.filter((device) => device.deviceId === EDU_DEVICE_ID);
    for (const device of edus) device.setBusMaster(true);
    use({
      ram: new Ram(hardware.ram),
      theirs: new Unit(qtest, firmware.drhds[0].registerBase),
      edus: edus.map((device) => new Edu(qtest, device.bdf, device.bars[0].address)),
    });
  } finally {
    await hardware.powerOff();
  }
}

/** Our unit with QEMU's capabilities, in the same memory. */
function ourUnit(ram: Ram, theirs: Unit): { vtd: VtdUnit; driver: Unit } {
  const base = theirs.registers.base;
  const vtd = new VtdUnit({
    memory: ram,
    registerBase: base,
    interrupts: { raise() {} },
    capabilities: {
      ...DEFAULT_VTD_CAPABILITIES,
      cap: theirs.registers.cap,
      // Interrupt remapping is not used here.
      ecap: { ...theirs.registers.ecap, ir: false },
      // intel-iommu's aw-bits.
      hostAddressWidth: 48,
    },
  });
  const mmio: Mmio = {
    read: (pa, size) => vtd.read(pa - base, size),
    write: (pa, size, value) => vtd.write(pa - base, size, value),
  };
  return { vtd, driver: new Unit(mmio, base) };
}

/** Tables over few pages, so that walks share and cross them; one bit in some is flipped. @returns the root table */
function buildTables(ram: Ram, prng: Prng, sourceIds: readonly number[]): number {
  ram.fill(TABLES, 20 * PAGE_SIZE, 0);
  const [root, ...rest] = Array.from({ length: 20 }, (_, i) => TABLES + i * PAGE_SIZE);
  const contextTables = rest.splice(0, 2);
  const anyPage = () => rest[prng.below(rest.length)];
  const target = () => (prng.oneIn(12) ? NOT_RAM : anyPage());
  const flip = (at: number, oneIn: number, sparedLow = 0, sparedHigh = 0) => {
    if (!prng.oneIn(oneIn)) return;
    const word = prng.below(2);
    const bit = (1 << prng.below(32)) & ~(word === 0 ? sparedLow : sparedHigh);
    ram.store32(at + 4 * word, (ram.load32(at + 4 * word) ^ bit) >>> 0);
  };
  for (const page of rest)
    for (const index of [0, 1, 2, 3, 511]) {
      const at = page + 8 * index;
      const kind = prng.below(6);
      const rights = kind < 2 ? 3 : [3, 3, 3, 3, 1, 2, 0][prng.below(7)];
      // Large leaves: of 1 GiB, then of 2 MiB in RAM, then of what is left.
      if (kind === 0) ram.store32(at, 0x80 | rights);
      else if (kind === 1) ram.store32(at, (0x80 | rights | (prng.below(32) << 21)) >>> 0);
      else ram.store32(at, target() + rights);
      // An entry that lacks a right and has a reserved bit set has two faults, and the specification does not say
      // which is told (ours: reserved bits, QEMU: rights). So no entry here has both.
      if (rights === 3) flip(at, 8, kind < 2 ? SS_R | SS_W : 0);
    }
  for (const [i, sourceId] of sourceIds.entries()) {
    if (prng.oneIn(8)) continue;
    const table = contextTables[Math.min(sourceId >> 8, 1)];
    const store = (at: number, words: readonly number[]) => {
      for (const [w, word] of words.entries()) ram.store32(at + 4 * w, word >>> 0);
    };
    store(rootEntryAddress(root, sourceId), rootEntry(table));
    const at = contextEntryAddress(table, sourceId);
    store(
      at,
      contextEntry({
        secondStageTable: target(),
        addressWidth: prng.oneIn(2) ? 1 : 2,
        translationType: prng.oneIn(6) ? 2 : 0,
        domainId: 1 + i,
      }),
    );
    // With FPD no reason would be told. Contexts of one domain-id must have one table (§6.2.3): flips spare it.
    flip(at, 5, CONTEXT_FPD);
    flip(at + 8, 5, 0x7fff00);
    flip(rootEntryAddress(root, sourceId), 12, 0xfffff000);
  }
  return root;
}

function randomIova(prng: Prng): number {
  let iova = 8 * prng.below(PAGE_SIZE / 8);
  for (let level = 0; level < 4; level++)
    iova +=
      (level === 3 && prng.oneIn(2) ? 0 : [0, 0, 1, 2, 3, 511, 4][prng.below(7)]) *
      2 ** (12 + 9 * level);
  return prng.oneIn(20) ? iova + 2 ** 48 : iova;
}

/** In what QEMU is known to read the specification otherwise, if this function's context entry has that. */
function divergence(ram: Ram, root: number, sourceId: number, iova: number): string | null {
  const [rootLow] = pair(ram, rootEntryAddress(root, sourceId));
  const table = rootLow - (rootLow % PAGE_SIZE);
  if ((rootLow & ROOT_P) === 0 || !ram.contains(table, PAGE_SIZE)) return null;
  const at = contextEntryAddress(table, sourceId);
  const [low] = pair(ram, at);
  const [high] = pair(ram, at + 8);
  if (contextTranslationType(low) !== TT_PASS_THROUGH) return null;
  if (contextAddressWidth(high) !== AW_48_BIT)
    return "§9.3: AW of a pass-through entry must be the largest; QEMU takes any that it supports";
  if (iova >= 2 ** 48)
    return "§7.1.3 LGN.1: addresses beyond MGAW fault with pass-through too; QEMU looks at no width there";
  return null;
}

function describeFault(fault: FaultRecord): string {
  const { reason, address, sourceId, isWrite } = fault;
  return `reason ${reason} at ${address.toString(16)} by ${sourceId.toString(16)}, ${isWrite ? "write" : "read"}`;
}

const pair = (ram: Ram, pa: number) => [ram.load32(pa), ram.load32(pa + 4)];

describe("VT-d", { skip: skipReason() }, () => {
  test("our unit and QEMU's agree on random tables", async (t) => {
    const reasons = new Map<number, number>();
    let translated = 0;
    await withBench(({ ram, theirs, edus }) => {
      fc.assert(
        fc.property(fc.integer(), (seed) => {
          const prng = new Prng(seed);
          const ours = ourUnit(ram, theirs);
          const root = buildTables(
            ram,
            prng,
            edus.map(({ sourceId }) => sourceId),
          );
          for (const unit of [theirs, ours.driver]) unit.start(root);
          for (let i = 0; i < ACCESSES; i++) {
            const device = edus[prng.below(edus.length)];
            const iova = randomIova(prng);
            const isWrite = prng.oneIn(2);
            if (divergence(ram, root, device.sourceId, iova) !== null) continue;
            const pa = ours.vtd.translate(device.sourceId, iova, isWrite);
            const ourFault = ours.driver.takeFault();
            const inRam = pa >= 0 && ram.contains(pa, 8);
            const before = inRam ? pair(ram, pa) : [];
            loadMarker(ram, theirs, device);
            device.transfer(iova, isWrite);
            const theirFault = theirs.takeFault();
            const what = `seed ${seed}, access ${i}: ${device.sourceId.toString(16)} ${isWrite ? "writes" : "reads"} ${iova.toString(16)}`;
            assert.equal(
              theirFault === null ? "translated" : describeFault(theirFault),
              ourFault === null ? "translated" : describeFault(ourFault),
              what,
            );
            if (ourFault !== null)
              reasons.set(ourFault.reason, (reasons.get(ourFault.reason) ?? 0) + 1);
            if (!inRam) continue;
            translated++;
            if (isWrite) {
              assert.deepEqual(pair(ram, pa), MARKER, what);
              ram.store32(pa, before[0]);
              ram.store32(pa + 4, before[1]);
            } else assert.deepEqual(bufferOf(ram, theirs, device), before, what);
            for (const unit of [theirs, ours.driver]) unit.flush();
          }
          theirs.registers.disable(GCMD_TE);
        }),
        { numRuns: RUNS, seed: SEED, includeErrorInReport: true },
      );
    });
    // The generator reaches what it is for.
    assert.ok(translated > 50, `${translated} translations`);
    for (const reason of [1, 2, 3, 4, 5, 6, 7, 0xa, 0xb, 0xc])
      assert.ok(reasons.has(reason), `reason ${reason} was never reached`);
    t.diagnostic(`${translated} translations; faults by reason ${JSON.stringify([...reasons])}`);
  });
});

/** Fills a device's buffer, around the unit. */
function loadMarker(ram: Ram, unit: Unit, device: Edu): void {
  ram.store32(MARKER_PAGE, MARKER[0]);
  ram.store32(MARKER_PAGE + 4, MARKER[1]);
  unit.registers.disable(GCMD_TE);
  device.transfer(MARKER_PAGE, false);
  unit.registers.enable(GCMD_TE);
}

/** What a device's buffer holds, around the unit. */
function bufferOf(ram: Ram, unit: Unit, device: Edu): number[] {
  unit.registers.disable(GCMD_TE);
  device.transfer(COPY_PAGE, true);
  unit.registers.enable(GCMD_TE);
  return pair(ram, COPY_PAGE);
}
