import assert from "node:assert/strict";
import { test } from "node:test";
import {
  FAULT_BEYOND_MGAW,
  FAULT_CONTEXT_INVALID,
  FAULT_CONTEXT_NOT_PRESENT,
  FAULT_CONTEXT_RESERVED,
  FAULT_CONTEXT_TABLE_ACCESS,
  FAULT_INTERRUPT_ADDRESS,
  FAULT_PAGING_ENTRY_ACCESS,
  FAULT_PAGING_ENTRY_RESERVED,
  FAULT_READ,
  FAULT_ROOT_NOT_PRESENT,
  FAULT_ROOT_RESERVED,
  FAULT_ROOT_TABLE_ACCESS,
  FAULT_WRITE,
  FRCD_W3_F,
  FSTS_PFO,
  FSTS_PPF,
} from "../../../abi/vtd/faults.ts";
import {
  CAP_REG,
  CCMD_REG,
  decodeCap,
  decodeEcap,
  ECAP_REG,
  EVENT_IM,
  EVENT_IP,
  FEADDR_REG,
  FECTL_REG,
  FEDATA_REG,
  FEUADDR_REG,
  FSTS_REG,
  GCMD_REG,
  GCMD_SRTP,
  GCMD_TE,
  GCMD_WBF,
  GSTS_REG,
  GSTS_RTPS,
  GSTS_TES,
  RTADDR_REG,
  VER_REG,
} from "../../../abi/vtd/registers.ts";
import {
  AW_39_BIT,
  AW_48_BIT,
  CONTEXT_FPD,
  contextEntry,
  rootEntry,
  rootEntryAddress,
  TT_DEVICE_TLB,
  TT_MULTI_LEVEL,
  TT_PASS_THROUGH,
} from "../../../abi/vtd/root-context.ts";
import {
  SS_PS,
  SS_R,
  SS_SNP,
  SS_W,
  ssEntryHigh,
  ssEntryLow,
} from "../../../abi/vtd/second-stage.ts";
import { GIB, MIB } from "../../../base/units.ts";
import { DEFAULT_VTD_CAPABILITIES } from "./capabilities.ts";
import { NOT_RAM, VtdRig } from "./test-rig.ts";
import { VtdUnit } from "./vtd-unit.ts";

const SID = 0x0128;
const THREE_LEVELS = {
  ...DEFAULT_VTD_CAPABILITIES,
  cap: { ...DEFAULT_VTD_CAPABILITIES.cap, sagaw: 1 << AW_39_BIT, mgaw: 39 },
};
const NO_SUPERPAGES = {
  ...DEFAULT_VTD_CAPABILITIES,
  cap: { ...DEFAULT_VTD_CAPABILITIES.cap, sllps: 0 },
};

test("translate() passes addresses unchanged until translation is enabled", () => {
  const rig = new VtdRig();
  assert.equal(rig.unit.translate(SID, 0x1234_5678, true), 0x1234_5678);
  assert.equal(rig.get32(GSTS_REG), 0);
  rig.enable();
  assert.equal(rig.outcome(SID, 0x1234_5678), FAULT_ROOT_NOT_PRESENT);
  rig.command(0, GCMD_TE);
  assert.equal(rig.unit.translate(SID, 0x1234_5678, true), 0x1234_5678);
});

test("translate() walks 3 and 4 levels to pages of every size", () => {
  for (const [addressWidth, topLevel] of [
    [AW_39_BIT, 2],
    [AW_48_BIT, 3],
  ] as const) {
    const rig = new VtdRig();
    const top = rig.page();
    const base = topLevel === 3 ? 0x7f80_0000_0000 : 0x7f_0000_0000;
    rig.map(top, topLevel, base + 0x3000, 5 * GIB + 0x7000, 0);
    rig.map(top, topLevel, base + 4 * MIB, 0x12_3460_0000, 1);
    rig.map(top, topLevel, base + 2 * GIB, 0x55_4000_0000, 2);
    rig.setContext(SID, { secondStageTable: top, addressWidth });
    rig.enable();
    assert.equal(rig.outcome(SID, base + 0x3abc), "0x140007abc");
    assert.equal(rig.outcome(SID, base + 4 * MIB + 0x1f_ffff, true), "0x12347fffff");
    assert.equal(rig.outcome(SID, base + 2 * GIB + 0x3fff_fffe), "0x557ffffffe");
    assert.equal(rig.outcome(SID, base + 0x4000), FAULT_READ);
    assert.equal(rig.outcome(SID, base + 6 * MIB, true), FAULT_WRITE);
  }
});

test("translate() gives a request the rights that all entries on the way have", () => {
  const rig = new VtdRig();
  const { top } = rig.simple(SID, 0x5000, 0x9000);
  rig.map(top, 3, 0x6000, 0xa000, 0, SS_R);
  rig.map(top, 3, 0x7000, 0xb000, 0, SS_W);
  assert.equal(rig.outcome(SID, 0x6000), "0xa000");
  assert.equal(rig.outcome(SID, 0x6000, true), FAULT_WRITE);
  assert.equal(rig.outcome(SID, 0x7000, true), "0xb000");
  assert.equal(rig.outcome(SID, 0x7000), FAULT_READ);
  assert.equal(rig.outcome(SID, 0x5000, true), "0x9000");
  // The top entry loses W: everything under it is read-only.
  rig.memory.store32(top, rig.memory.load32(top) & ~SS_W);
  rig.flushIotlb(1);
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  assert.equal(rig.outcome(SID, 0x5000, true), FAULT_WRITE);
});

test("translate() faults beyond the smaller of MGAW and AW", () => {
  const rig = new VtdRig();
  rig.simple(SID, 0x5000, 0x9000);
  const narrow = rig.page();
  rig.setContext(0x200, { secondStageTable: narrow, addressWidth: AW_39_BIT, domainId: 2 });
  rig.setContext(0x201, { translationType: TT_PASS_THROUGH, domainId: 3 });
  assert.equal(rig.outcome(SID, 2 ** 48), FAULT_BEYOND_MGAW);
  assert.equal(rig.outcome(SID, 2 ** 48 - 4096), FAULT_READ);
  assert.equal(rig.outcome(0x200, 2 ** 39), FAULT_BEYOND_MGAW);
  assert.equal(rig.outcome(0x200, 2 ** 39 - 4096), FAULT_READ);
  assert.equal(rig.outcome(0x201, 2 ** 48), FAULT_BEYOND_MGAW);
  assert.equal(rig.unit.translate(SID, Number.NaN, false), -1);
});

test("a domain shared with a narrower context does not widen it through the IOTLB", () => {
  const rig = new VtdRig();
  const iova = 2 ** 40;
  rig.simple(SID, iova, 0x9000, 7);
  rig.setContext(0x200, { secondStageTable: rig.page(), addressWidth: AW_39_BIT, domainId: 7 });
  assert.equal(rig.outcome(SID, iova), "0x9000");
  assert.equal(rig.outcome(0x200, iova), FAULT_BEYOND_MGAW);
});

test("pass-through gives the address as it is, for the widest AW only", () => {
  const rig = new VtdRig();
  rig.setContext(SID, { translationType: TT_PASS_THROUGH });
  rig.setContext(0x200, { translationType: TT_PASS_THROUGH, addressWidth: AW_39_BIT });
  rig.enable();
  assert.equal(rig.outcome(SID, 0xfedc_ba98_7654, true), "0xfedcba987654");
  assert.equal(rig.outcome(0x200, 0x1000), FAULT_CONTEXT_INVALID);
  const without = new VtdRig({
    ...DEFAULT_VTD_CAPABILITIES,
    ecap: { ...DEFAULT_VTD_CAPABILITIES.ecap, pt: false },
  });
  without.setContext(SID, { translationType: TT_PASS_THROUGH });
  without.enable();
  assert.equal(without.outcome(SID, 0x1000), FAULT_CONTEXT_INVALID);
});

test("each wrong root or context entry has its fault reason", () => {
  const rig = new VtdRig();
  rig.enable(NOT_RAM);
  assert.equal(rig.outcome(SID, 0), FAULT_ROOT_TABLE_ACCESS);
  rig.enable();
  assert.equal(rig.outcome(SID, 0), FAULT_ROOT_NOT_PRESENT);

  const root = rootEntryAddress(rig.rootTable, 0x300);
  rig.store(root, rootEntry(NOT_RAM));
  assert.equal(rig.outcome(0x300, 0), FAULT_CONTEXT_TABLE_ACCESS);
  for (const bad of [
    [0x1003, 0, 0, 0],
    [0x1001, 0x100000, 0, 0],
    [0x1001, 0, 1, 0],
    [0x1001, 0, 0, 0x80000000],
  ]) {
    rig.store(root, bad);
    assert.equal(rig.outcome(0x300, 0), FAULT_ROOT_RESERVED);
  }

  const at = rig.setContext(SID, [0, 0, 0, 0]);
  assert.equal(rig.outcome(SID, 0), FAULT_CONTEXT_NOT_PRESENT);
  const good = contextEntry({
    translationType: TT_MULTI_LEVEL,
    secondStageTable: rig.page(),
    addressWidth: AW_48_BIT,
    domainId: 1,
  });
  for (const [word, bits, reason] of [
    [0, 1 << 4, FAULT_CONTEXT_RESERVED],
    [0, 1 << 11, FAULT_CONTEXT_RESERVED],
    [1, 0x100000, FAULT_CONTEXT_RESERVED],
    [2, 1 << 7, FAULT_CONTEXT_RESERVED],
    [2, 1 << 24, FAULT_CONTEXT_RESERVED],
    [3, 1, FAULT_CONTEXT_RESERVED],
    [0, TT_DEVICE_TLB << 2, FAULT_CONTEXT_INVALID],
    [0, 0b11 << 2, FAULT_CONTEXT_INVALID],
    [2, 0b001, FAULT_CONTEXT_INVALID],
    [2, 0b100, FAULT_CONTEXT_INVALID],
    [2, 0b1111 << 3, FAULT_READ],
  ] as const) {
    rig.store(
      at,
      good.map((w, i) => (i === word ? w | bits : w)),
    );
    assert.equal(rig.outcome(SID, 0), reason, `word ${word} bits ${bits}`);
    rig.flushContexts(1);
  }
  rig.store(at, contextEntry({ ...FIELDS, secondStageTable: NOT_RAM }));
  assert.equal(rig.outcome(SID, 0), FAULT_CONTEXT_INVALID);
});

const FIELDS = { translationType: TT_MULTI_LEVEL, addressWidth: AW_48_BIT, domainId: 1 };

test("each wrong second-stage entry has its fault reason", () => {
  const rig = new VtdRig();
  const { top, leaf } = rig.simple(SID, 0x5000, 0x9000);
  const check = (at: number, low: number, high: number, reason: number | string) => {
    const before = [rig.memory.load32(at), rig.memory.load32(at + 4)];
    rig.store(at, [low, high]);
    rig.flushIotlb(1);
    assert.equal(rig.outcome(SID, 0x5000), reason, `${low.toString(16)} ${high.toString(16)}`);
    rig.store(at, before);
  };
  const low = ssEntryLow(0x9000, SS_R | SS_W);
  check(leaf, low | SS_SNP, 0, FAULT_PAGING_ENTRY_RESERVED);
  check(leaf, low, 1 << 30, FAULT_PAGING_ENTRY_RESERVED);
  check(leaf, low | 0x77c, 0xbff00000, "0x9000");
  // PS means nothing in a leaf table; a set bit elsewhere means nothing while R and W are clear.
  check(leaf, low | SS_PS, 0, "0x9000");
  check(leaf, SS_SNP, 1 << 30, FAULT_READ);
  // Reserved bits are found before missing rights.
  check(leaf, 0x9000 | SS_W | SS_SNP, 0, FAULT_PAGING_ENTRY_RESERVED);
  check(
    top,
    rig.memory.load32(top) | SS_PS,
    rig.memory.load32(top + 4),
    FAULT_PAGING_ENTRY_RESERVED,
  );
  check(
    top,
    rig.memory.load32(top) | SS_SNP,
    rig.memory.load32(top + 4),
    FAULT_PAGING_ENTRY_RESERVED,
  );
  check(top, ssEntryLow(NOT_RAM, SS_R), ssEntryHigh(NOT_RAM), FAULT_PAGING_ENTRY_ACCESS);

  rig.flushIotlb(1);
  const big = rig.map(top, 3, 2 * MIB, 0x4020_0000, 1);
  rig.store(big, [ssEntryLow(0x4020_1000, SS_R | SS_PS), 0]);
  assert.equal(rig.outcome(SID, 2 * MIB), FAULT_PAGING_ENTRY_RESERVED);
  const huge = rig.map(top, 3, 3 * GIB, 0x40_0000_0000, 2);
  rig.store(huge, [ssEntryLow(0x2020_0000, SS_R | SS_PS), 0]);
  assert.equal(rig.outcome(SID, 3 * GIB), FAULT_PAGING_ENTRY_RESERVED);
});

test("a unit without superpages treats PS as reserved, one with snoop control takes SNP", () => {
  for (const level of [1, 2]) {
    const rig = new VtdRig(NO_SUPERPAGES);
    const { top } = rig.simple(SID, 0x5000, 0x9000);
    rig.map(top, 3, 4 * GIB, 0, level);
    assert.equal(rig.outcome(SID, 4 * GIB), FAULT_PAGING_ENTRY_RESERVED);
    assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  }
  const rig = new VtdRig({
    ...DEFAULT_VTD_CAPABILITIES,
    ecap: { ...DEFAULT_VTD_CAPABILITIES.ecap, sc: true },
  });
  const { leaf } = rig.simple(SID, 0x5000, 0x9000);
  rig.memory.store32(leaf, rig.memory.load32(leaf) | SS_SNP);
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
});

test("a unit with 3 levels only refuses a 4-level context entry", () => {
  const rig = new VtdRig(THREE_LEVELS);
  rig.setContext(SID, { secondStageTable: rig.page() });
  const top = rig.page();
  rig.map(top, 2, 0x5000, 0x9000);
  rig.setContext(0x200, { secondStageTable: top, addressWidth: AW_39_BIT });
  rig.enable();
  assert.equal(rig.outcome(SID, 0), FAULT_CONTEXT_INVALID);
  assert.equal(rig.outcome(0x200, 0x5000), "0x9000");
});

test("a narrow host address width makes the address bits above it reserved", () => {
  const rig = new VtdRig({ ...DEFAULT_VTD_CAPABILITIES, hostAddressWidth: 39 });
  const { leaf } = rig.simple(SID, 0x5000, 0x9000);
  rig.memory.store32(leaf + 4, 1 << 7);
  assert.equal(rig.outcome(SID, 0x5000), FAULT_PAGING_ENTRY_RESERVED);
  rig.memory.store32(leaf + 4, 1 << 6);
  assert.equal(rig.outcome(SID, 0x5000), "0x4000009000");
});

test("a unit with few domain-ids treats the bits above as reserved", () => {
  const rig = new VtdRig({
    ...DEFAULT_VTD_CAPABILITIES,
    cap: { ...DEFAULT_VTD_CAPABILITIES.cap, nd: 2 },
  });
  const top = rig.page();
  rig.map(top, 3, 0x5000, 0x9000);
  rig.setContext(SID, { secondStageTable: top, domainId: 255 });
  rig.setContext(0x200, { secondStageTable: top, domainId: 256 });
  rig.enable();
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  assert.equal(rig.outcome(0x200, 0x5000), FAULT_CONTEXT_RESERVED);
});

test("a translation into the interrupt range is a fault, cached or not", () => {
  const rig = new VtdRig();
  const { top } = rig.simple(SID, 0x5000, 0x9000);
  rig.map(top, 3, 0xc000_0000, 0xc000_0000, 2);
  assert.equal(rig.outcome(SID, 0xfedf_ffff, true), "0xfedfffff");
  assert.equal(rig.outcome(SID, 0xfee0_0000, true), FAULT_INTERRUPT_ADDRESS);
  assert.equal(rig.outcome(SID, 0xfeef_ffff, false), FAULT_INTERRUPT_ADDRESS);
  assert.equal(rig.outcome(SID, 0xfef0_0000, true), "0xfef00000");
});

test("FPD keeps qualified faults out of the records, not those of the root", () => {
  const rig = new VtdRig();
  const top = rig.page();
  const at = rig.setContext(SID, { secondStageTable: top, faultProcessingDisable: true });
  rig.setContext(0x200, [CONTEXT_FPD, 0, 0, 0]);
  rig.enable();
  assert.equal(rig.unit.translate(SID, 0x5000, true), -1);
  assert.equal(rig.unit.translate(SID, 2 ** 48, true), -1);
  assert.equal(rig.unit.translate(0x200, 0x5000, true), -1);
  assert.deepEqual(rig.takeFaults(), []);
  assert.equal(rig.unit.statistics.faults, 3);
  assert.equal(rig.outcome(0x500, 0x5000), FAULT_ROOT_NOT_PRESENT);
  // FPD of the entry before does not outlive it.
  rig.memory.store32(at, rig.memory.load32(at) & ~CONTEXT_FPD);
  rig.flushContexts(1);
  assert.equal(rig.outcome(SID, 0x5000), FAULT_READ);
});

test("registers report the unit, and read-only ones stay as they are", () => {
  const rig = new VtdRig();
  assert.equal(rig.get32(VER_REG), 0x10);
  const { cap, ecap } = DEFAULT_VTD_CAPABILITIES;
  assert.deepEqual(decodeCap(rig.get32(CAP_REG), rig.get32(CAP_REG + 4)), cap);
  assert.deepEqual(decodeEcap(rig.get32(ECAP_REG), rig.get32(ECAP_REG + 4)), ecap);
  for (const offset of [VER_REG, CAP_REG, CAP_REG + 4, ECAP_REG, ECAP_REG + 4, GSTS_REG, 0x300]) {
    const before = rig.get32(offset);
    rig.set32(offset, ~before);
    assert.equal(rig.get32(offset), before);
  }
  assert.equal(rig.unit.read(CAP_REG + 1, 1), 0x06);
  assert.equal(rig.unit.read(CAP_REG + 2, 2), 0x222f);
  rig.unit.write(GCMD_REG, 1, 0xff);
  rig.unit.write(RTADDR_REG, 2, 0xf000);
  assert.equal(rig.get32(GSTS_REG) + rig.get32(RTADDR_REG), 0);
  assert.equal(rig.get32(GCMD_REG), 0);
});

test("RTADDR takes effect by SRTP only", () => {
  const rig = new VtdRig();
  rig.simple(SID, 0x5000, 0x9000);
  assert.equal(rig.get32(GSTS_REG), (GSTS_TES | GSTS_RTPS) >>> 0);
  const empty = rig.page();
  rig.set64(RTADDR_REG, empty + 0xfff);
  assert.equal(rig.get32(RTADDR_REG + 4) * 2 ** 32 + rig.get32(RTADDR_REG), empty);
  rig.flushContexts(1);
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  rig.command(GCMD_SRTP);
  // SRTP flushes nothing (CAP.ESRTPS is 0).
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  rig.flushContexts(1);
  assert.equal(rig.outcome(SID, 0x5000), FAULT_ROOT_NOT_PRESENT);
  rig.command(GCMD_WBF);
  assert.equal(rig.get32(GSTS_REG), (GSTS_TES | GSTS_RTPS) >>> 0);
});

test("CCMD keeps what was written until ICC starts it", () => {
  const rig = new VtdRig();
  rig.set32(CCMD_REG, 0x1234_5678);
  assert.equal(rig.get32(CCMD_REG), 0x1234_5678);
  rig.set32(CCMD_REG + 4, 0x4000_0002);
  assert.equal(rig.get32(CCMD_REG + 4), 0x4000_0002);
  assert.equal(rig.flushContexts(0), 0);
  assert.equal(rig.flushContexts(2), 2);
});

test("faults fill the records in turn, overflow is told, and clearing goes on from there", () => {
  const rig = new VtdRig();
  rig.enable();
  const { nfr } = DEFAULT_VTD_CAPABILITIES.cap;
  rig.unit.translate(0x100, 0x1000, false);
  assert.equal(rig.get32(FSTS_REG), FSTS_PPF);
  rig.takeFaults();
  assert.equal(rig.get32(FSTS_REG), 0);
  for (let i = 0; i < nfr; i++) rig.unit.translate(i, i * 4096, i % 2 === 0);
  // The first of these went to record 1.
  assert.equal(rig.get32(FSTS_REG), FSTS_PPF | (1 << 8));
  rig.unit.translate(0x999, 0, false);
  assert.equal(rig.get32(FSTS_REG), FSTS_PFO | FSTS_PPF | (1 << 8));
  const faults = rig.takeFaults();
  assert.deepEqual(
    faults.map((fault) => fault.sourceId),
    [nfr - 1, ...Array.from({ length: nfr - 1 }, (_, i) => i)],
  );
  for (const fault of faults) {
    assert.equal(fault.isWrite, fault.sourceId % 2 === 0);
    assert.equal(fault.address, fault.sourceId * 4096);
  }
  // Nothing is recorded until PFO is cleared.
  rig.unit.translate(0x77, 0, false);
  assert.deepEqual(rig.takeFaults(), []);
  rig.set32(FSTS_REG, FSTS_PFO);
  assert.equal(rig.get32(FSTS_REG), 0);
  assert.equal(rig.outcome(0x77, 0), FAULT_ROOT_NOT_PRESENT);
  assert.equal(rig.unit.statistics.faults, nfr + 4);
});

test("a record's other bits cannot be written, and F only cleared", () => {
  const rig = new VtdRig();
  rig.enable();
  rig.unit.translate(0x100, 0x7000, false);
  const at = DEFAULT_VTD_CAPABILITIES.cap.faultRecordingOffset;
  const words = [0, 4, 8, 12].map((i) => rig.get32(at + i));
  for (let i = 0; i < 4; i++) rig.set32(at + 4 * i, 0x7fffffff);
  assert.deepEqual(
    [0, 4, 8, 12].map((i) => rig.get32(at + i)),
    words,
  );
  rig.set32(at + 12, 0x80000000);
  assert.equal(rig.get32(at + 12) >>> 31, 0);
  rig.set32(at + 12, 0x80000000);
  assert.equal(rig.get32(at + 12) >>> 31, 0);
});

test("the fault event is sent once for a pending status, and kept while it is masked", () => {
  const rig = new VtdRig();
  assert.equal(rig.get32(FECTL_REG), EVENT_IM);
  rig.set32(FEDATA_REG, 0xffff_0041);
  rig.set32(FEADDR_REG, 0xfee0_0003);
  rig.set32(FEUADDR_REG, 0xffff_ffff);
  assert.deepEqual(
    [FEDATA_REG, FEADDR_REG, FEUADDR_REG].map((r) => rig.get32(r)),
    [0x41, 0xfee0_0000, 0],
  );
  rig.enable();
  rig.unit.translate(1, 0, false);
  assert.equal(rig.get32(FECTL_REG), (EVENT_IM | EVENT_IP) >>> 0);
  assert.deepEqual(rig.raised, []);
  rig.set32(FECTL_REG, 0);
  assert.deepEqual(rig.raised, [0x41]);
  assert.equal(rig.get32(FECTL_REG), 0);
  rig.unit.translate(2, 0, false);
  assert.deepEqual(rig.raised, [0x41]);
  rig.takeFaults();
  rig.unit.translate(3, 0, false);
  assert.deepEqual(rig.raised, [0x41, 0x41]);
  // Served while masked: nothing is left to send.
  rig.takeFaults();
  rig.set32(FECTL_REG, EVENT_IM);
  rig.unit.translate(4, 0, false);
  rig.takeFaults();
  rig.set32(FECTL_REG, 0);
  assert.deepEqual(rig.raised, [0x41, 0x41]);
  // One of two served while masked: the other is still to be told.
  rig.set32(FECTL_REG, EVENT_IM);
  rig.unit.translate(6, 0, false);
  rig.unit.translate(7, 0, false);
  const record = DEFAULT_VTD_CAPABILITIES.cap.faultRecordingOffset;
  for (let i = 0; i < DEFAULT_VTD_CAPABILITIES.cap.nfr; i++)
    if (rig.get32(record + 16 * i + 8) === 6) rig.set32(record + 16 * i + 12, FRCD_W3_F);
  assert.equal(rig.get32(FSTS_REG) & FSTS_PPF, FSTS_PPF);
  assert.equal(rig.get32(FECTL_REG), (EVENT_IM | EVENT_IP) >>> 0);
  rig.takeFaults();
  assert.equal(rig.get32(FECTL_REG), EVENT_IM);
  rig.set32(FECTL_REG, 0);
  // An address outside the interrupt range reaches no interrupt controller.
  rig.set32(FEADDR_REG, 0x1000);
  rig.unit.translate(5, 0, false);
  assert.deepEqual(rig.raised, [0x41, 0x41]);
});

test("a unit without an interrupt controller and with overlapping registers", () => {
  const { memory } = new VtdRig();
  const unit = new VtdUnit({ memory, registerBase: 0 });
  unit.write(FECTL_REG, 4, 0);
  unit.write(FEADDR_REG, 4, 0xfee00000);
  unit.write(RTADDR_REG, 4, NOT_RAM);
  unit.write(GCMD_REG, 4, GCMD_SRTP | GCMD_TE);
  assert.equal(unit.translate(0, 0, true), -1);
  assert.equal(unit.read(FECTL_REG, 4), 0);
  for (const cap of [
    { nfr: 256 },
    { faultRecordingOffset: 0xf0 },
    { sagaw: 0b1000 },
    { sagaw: 1 << AW_39_BIT },
    { sllps: 0b100 },
  ]) {
    const capabilities = {
      ...DEFAULT_VTD_CAPABILITIES,
      cap: { ...DEFAULT_VTD_CAPABILITIES.cap, ...cap },
    };
    assert.throws(() => new VtdUnit({ memory, registerBase: 0, capabilities }), /BugError/);
  }
});

test("an entry that changes between the reads of its halves is taken whole", () => {
  const rig = new VtdRig();
  const { leaf } = rig.simple(SID, 0x5000, 0x9000);
  let armed = true;
  const torn = new VtdUnit({
    registerBase: 0,
    memory: Object.assign(Object.create(rig.memory), {
      contains: (pa: number, length: number) => rig.memory.contains(pa, length),
      loadOrdered32: (pa: number) => {
        const value = rig.memory.loadOrdered32(pa);
        if (pa === leaf && armed) {
          armed = false;
          rig.memory.exchange64(leaf, ssEntryLow(5 * GIB + 0x1000, 3), ssEntryHigh(5 * GIB));
        }
        return value;
      },
    }),
  });
  torn.write(RTADDR_REG, 4, rig.rootTable % 2 ** 32);
  torn.write(RTADDR_REG + 4, 4, Math.floor(rig.rootTable / 2 ** 32));
  torn.write(GCMD_REG, 4, GCMD_SRTP | GCMD_TE);
  assert.equal(torn.translate(SID, 0x5000, true), 5 * GIB + 0x1000);
  assert.equal(armed, false);
});
