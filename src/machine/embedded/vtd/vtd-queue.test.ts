import assert from "node:assert/strict";
import { test } from "node:test";
import { FAULT_READ, FSTS_IQE, FSTS_PPF } from "../../../abi/vtd/faults.ts";
import {
  contextCacheDescriptor,
  DESCRIPTOR_DEVICE_TLB,
  DESCRIPTOR_INTERRUPT_ENTRY_CACHE,
  type Descriptor,
  iotlbDescriptor,
  WAIT_IF,
  waitDescriptor,
} from "../../../abi/vtd/invalidation.ts";
import {
  EVENT_IM,
  EVENT_IP,
  FEADDR_REG,
  FECTL_REG,
  FEDATA_REG,
  FSTS_REG,
  GCMD_QIE,
  GRANULARITY_DEVICE,
  GRANULARITY_DOMAIN,
  GRANULARITY_GLOBAL,
  GRANULARITY_PAGE,
  GSTS_QIES,
  GSTS_REG,
  ICS_REG,
  IEADDR_REG,
  IECTL_REG,
  IEDATA_REG,
  IQA_REG,
  IQH_REG,
  IQT_REG,
} from "../../../abi/vtd/registers.ts";
import { DEFAULT_VTD_CAPABILITIES } from "./capabilities.ts";
import { NOT_RAM, VtdRig } from "./test-rig.ts";

const SID = 0x0128;
const STATUS = 0x20_0000;

test("descriptors of every granularity end the use of a stale translation", () => {
  for (const descriptor of [
    iotlbDescriptor(GRANULARITY_GLOBAL),
    iotlbDescriptor(GRANULARITY_DOMAIN, 3),
    iotlbDescriptor(GRANULARITY_PAGE, 3, 0x5000, 0),
    iotlbDescriptor(GRANULARITY_PAGE, 3, 0x4000, 1),
  ]) {
    const rig = new VtdRig();
    const { leaf } = rig.simple(SID, 0x5000, 0x9000, 3);
    rig.startQueue();
    rig.outcome(SID, 0x5000);
    rig.memory.retract64(leaf);
    rig.submit(
      iotlbDescriptor(GRANULARITY_PAGE, 3, 0x6000, 1),
      iotlbDescriptor(GRANULARITY_DOMAIN, 2),
      contextCacheDescriptor(GRANULARITY_GLOBAL),
    );
    assert.equal(rig.outcome(SID, 0x5000), "0x9000");
    rig.submit(descriptor, waitDescriptor(STATUS, 0xdead_beef));
    assert.equal(rig.outcome(SID, 0x5000), FAULT_READ);
    assert.equal(rig.memory.load32(STATUS), 0xdead_beef);
    assert.equal(rig.get32(IQH_REG), rig.get32(IQT_REG));
  }
});

test("descriptors of every granularity end the use of a stale context entry", () => {
  for (const descriptor of [
    contextCacheDescriptor(GRANULARITY_GLOBAL),
    contextCacheDescriptor(GRANULARITY_DOMAIN, 3),
    contextCacheDescriptor(GRANULARITY_DEVICE, 3, SID),
    contextCacheDescriptor(GRANULARITY_DEVICE, 3, SID ^ 0b111, 3),
  ]) {
    const rig = new VtdRig();
    rig.simple(SID, 0x5000, 0x9000, 3);
    rig.startQueue();
    rig.outcome(SID, 0x5000);
    rig.setContext(SID, { secondStageTable: rig.page(), domainId: 4 });
    rig.submit(contextCacheDescriptor(GRANULARITY_DEVICE, 3, SID ^ 1));
    assert.equal(rig.outcome(SID, 0x5000), "0x9000");
    rig.submit(descriptor);
    assert.equal(rig.outcome(SID, 0x5000), FAULT_READ);
  }
});

test("the queue wraps around, and may be larger than a page", () => {
  const rig = new VtdRig();
  rig.startQueue();
  for (let i = 0; i < 1000; i++) {
    rig.submit(iotlbDescriptor(GRANULARITY_GLOBAL), waitDescriptor(STATUS, i));
    assert.equal(rig.memory.load32(STATUS), i);
  }
  const big = new VtdRig();
  big.set64(IQA_REG, 0x10_0000 + 2);
  big.command(GCMD_QIE);
  for (let at = 0; at < 4 * 4096; at += 16)
    for (const [i, w] of waitDescriptor(STATUS, at).entries())
      big.memory.store32(0x10_0000 + at + 4 * i, w);
  big.set32(IQT_REG, 4 * 4096 - 16);
  assert.equal(big.memory.load32(STATUS), 4 * 4096 - 32);
  big.set32(IQT_REG, 0);
  assert.equal(big.memory.load32(STATUS), 4 * 4096 - 16);
  assert.equal(big.get32(FSTS_REG), 0);
  big.set32(IQT_REG, 4 * 4096);
  assert.equal(big.get32(FSTS_REG), FSTS_IQE);
});

test("a bad descriptor stops the queue at it until IQE is cleared", () => {
  const good = iotlbDescriptor(GRANULARITY_GLOBAL);
  const bad: [string, Descriptor][] = [
    ["type 0", [0, 0, 0, 0]],
    ["device-TLB", [DESCRIPTOR_DEVICE_TLB, 0, 0, 0]],
    ["interrupt entry cache", [DESCRIPTOR_INTERRUPT_ENTRY_CACHE, 0, 0, 0]],
    ["high type bits", [good[0] | 0x200, 0, 0, 0]],
    ["IOTLB granularity 0", iotlbDescriptor(0)],
    ["context granularity 0", contextCacheDescriptor(0)],
    ["IOTLB reserved", [good[0] | 0x100, 0, 0, 0]],
    ["IOTLB reserved w1", [good[0], 1, 0, 0]],
    ["IOTLB reserved w2", [good[0], 0, 0x80, 0]],
    ["context reserved", [contextCacheDescriptor(1)[0] | 0x40, 0, 0, 0]],
    ["context reserved w1", [contextCacheDescriptor(1)[0], 1 << 18, 0, 0]],
    ["context reserved w3", [contextCacheDescriptor(1)[0], 0, 0, 1]],
    ["wait reserved", [waitDescriptor(STATUS, 0)[0] | 0x80, 0, STATUS, 0]],
    ["wait unaligned", [waitDescriptor(STATUS, 0)[0], 0, STATUS + 2, 0]],
    [
      "address mask",
      iotlbDescriptor(GRANULARITY_PAGE, 1, 0, DEFAULT_VTD_CAPABILITIES.cap.mamv + 1),
    ],
  ];
  for (const [name, descriptor] of bad) {
    const rig = new VtdRig();
    rig.set32(FEDATA_REG, 0x31);
    rig.set32(FEADDR_REG, 0xfee00000);
    rig.set32(FECTL_REG, 0);
    const base = rig.startQueue();
    rig.submit(waitDescriptor(STATUS, 1), descriptor, waitDescriptor(STATUS, 2));
    assert.equal(rig.memory.load32(STATUS), 1, name);
    assert.equal(rig.get32(FSTS_REG), FSTS_IQE, name);
    assert.equal(rig.get32(IQH_REG), 16, name);
    assert.deepEqual(rig.raised, [0x31], name);
    rig.submit(waitDescriptor(STATUS, 3));
    assert.equal(rig.memory.load32(STATUS), 1, name);
    // The driver puts a good one in its place and lets the queue go on.
    rig.store(base + 16, good);
    rig.set32(FSTS_REG, FSTS_IQE);
    assert.equal(rig.memory.load32(STATUS), 3, name);
    assert.equal(rig.get32(FSTS_REG), 0, name);
    assert.equal(rig.get32(IQH_REG), rig.get32(IQT_REG), name);
  }
});

test("clearing IQE without mending the descriptor stops the queue again", () => {
  const rig = new VtdRig();
  rig.startQueue();
  rig.submit([0, 0, 0, 0]);
  rig.set32(FSTS_REG, FSTS_IQE);
  assert.equal(rig.get32(FSTS_REG), FSTS_IQE);
  assert.equal(rig.get32(IQH_REG), 0);
});

test("a queue outside RAM is an error, a status write outside RAM is lost", () => {
  const rig = new VtdRig();
  rig.set64(IQA_REG, NOT_RAM);
  rig.command(GCMD_QIE);
  assert.equal(rig.get32(FSTS_REG), 0);
  rig.set32(IQT_REG, 16);
  assert.equal(rig.get32(FSTS_REG), FSTS_IQE);
  const other = new VtdRig();
  other.startQueue();
  other.submit(waitDescriptor(NOT_RAM, 7), waitDescriptor(STATUS, 8));
  assert.equal(other.memory.load32(STATUS), 8);
});

test("an IQE and a DMA fault raise one event while either is pending", () => {
  const rig = new VtdRig();
  rig.set32(FEDATA_REG, 0x31);
  rig.set32(FEADDR_REG, 0xfee00000);
  rig.set32(FECTL_REG, 0);
  rig.enable();
  rig.startQueue();
  rig.unit.translate(SID, 0, false);
  rig.submit([0, 0, 0, 0]);
  assert.equal(rig.get32(FSTS_REG), FSTS_IQE | FSTS_PPF);
  assert.deepEqual(rig.raised, [0x31]);
});

test("a wait descriptor with its interrupt flag raises the completion event", () => {
  const rig = new VtdRig();
  rig.set32(IEDATA_REG, 0x52);
  rig.set32(IEADDR_REG, 0xfee00000);
  assert.equal(rig.get32(IECTL_REG), EVENT_IM);
  rig.startQueue();
  const wait = waitDescriptor(STATUS, 1);
  const signal: Descriptor = [wait[0] | WAIT_IF, wait[1], wait[2], wait[3]];
  rig.submit(signal);
  assert.equal(rig.get32(ICS_REG), 1);
  assert.equal(rig.get32(IECTL_REG), (EVENT_IM | EVENT_IP) >>> 0);
  rig.set32(IECTL_REG, 0);
  assert.deepEqual(rig.raised, [0x52]);
  rig.submit(signal);
  assert.deepEqual(rig.raised, [0x52]);
  rig.set32(ICS_REG, 1);
  assert.equal(rig.get32(ICS_REG), 0);
  rig.submit(signal);
  assert.deepEqual(rig.raised, [0x52, 0x52]);
});

test("with the queue enabled the invalidation registers do nothing and say so", () => {
  const rig = new VtdRig();
  const { leaf } = rig.simple(SID, 0x5000, 0x9000);
  rig.outcome(SID, 0x5000);
  rig.startQueue();
  assert.equal(rig.get32(GSTS_REG) & GSTS_QIES, GSTS_QIES);
  rig.memory.retract64(leaf);
  assert.equal(rig.flushIotlb(GRANULARITY_GLOBAL), 0);
  assert.equal(rig.flushContexts(GRANULARITY_GLOBAL), 0);
  assert.equal(rig.outcome(SID, 0x5000), "0x9000");
  rig.command(0, GCMD_QIE);
  assert.equal(rig.get32(GSTS_REG) & GSTS_QIES, 0);
  assert.equal(rig.flushIotlb(GRANULARITY_GLOBAL), GRANULARITY_GLOBAL);
  assert.equal(rig.outcome(SID, 0x5000), FAULT_READ);
});

test("IQA resets head and tail, and cannot be written while the queue is enabled", () => {
  const rig = new VtdRig();
  const base = rig.startQueue();
  rig.submit(waitDescriptor(STATUS, 1));
  rig.set64(IQA_REG, 0x30_0000);
  assert.equal(rig.get32(IQA_REG), base % 2 ** 32);
  assert.equal(rig.get32(IQT_REG), 16);
  rig.set32(IQH_REG, 0);
  assert.equal(rig.get32(IQH_REG), 16);
  rig.command(0, GCMD_QIE);
  assert.equal(rig.get32(IQH_REG), 0);
  rig.set64(IQA_REG, 0x30_0800);
  // 256-bit descriptors need scalable mode, so DW is reserved.
  assert.equal(rig.get32(IQA_REG), 0x30_0000);
  assert.equal(rig.get32(IQT_REG), 0);
  // The tail may be set before the queue goes on.
  for (const [i, w] of waitDescriptor(STATUS, 9).entries())
    rig.memory.store32(0x30_0000 + 4 * i, w);
  rig.set32(IQT_REG, 16);
  assert.equal(rig.memory.load32(STATUS), 1);
  rig.command(GCMD_QIE);
  assert.equal(rig.memory.load32(STATUS), 9);
});

test("a unit without queued invalidation has no queue registers", () => {
  const rig = new VtdRig({
    ...DEFAULT_VTD_CAPABILITIES,
    ecap: { ...DEFAULT_VTD_CAPABILITIES.ecap, qi: false },
  });
  for (const offset of [IQA_REG, IQT_REG, ICS_REG, IECTL_REG, IEADDR_REG]) {
    rig.set32(offset, 0xffffffff);
    assert.equal(rig.get32(offset), 0);
  }
  rig.command(GCMD_QIE);
  assert.equal(rig.get32(GSTS_REG), 0);
});
