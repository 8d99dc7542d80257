import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import * as reg from "../../../../abi/e1000e.ts";
import { encodeTestFrame, verifyTestFrame } from "../../../../abi/test-frame.ts";
import { ByteWords } from "../../../../abi/words.ts";
import type { DmaPort } from "../../hardware.ts";
import { E1000e } from "./e1000e.ts";
import { TrafficStats } from "./traffic-stats.ts";
import { Cable, CheckingWire } from "./wire.ts";

const MAC = Uint8Array.of(0x52, 0x54, 0x00, 0x12, 0x34, 0x56);
const OTHER = Uint8Array.of(0x52, 0x54, 0x00, 0x12, 0x34, 0x57);
const RX_RING = 0x1000;
const TX_RING = 0x2000;
const RX_BUFFERS = 0x4000;
const TX_BUFFERS = 0xc000;
const COUNT = 8;

/** A NIC over 64 KiB of memory, with the order of what it does in `log`. */
function nicOn(
  bytes = new Uint8Array(0x10000),
  wire: CheckingWire | Cable = new CheckingWire({ nicId: 1 }),
) {
  const memory = new ByteWords(bytes);
  const log: string[] = [];
  const state = { blocked: (_address: number) => false };
  const reaches = (address: number, length: number) =>
    address >= 0 && address + length <= bytes.length && !state.blocked(address);
  const dma: DmaPort = {
    read(address, target) {
      if (!reaches(address, target.length)) {
        target.fill(0xff);
        return false;
      }
      target.set(bytes.subarray(address, address + target.length));
      return true;
    },
    write(address, data) {
      if (!reaches(address, data.length)) return false;
      log.push(`${address.toString(16)}+${data.length} rdh=${nic.barRead(0, reg.E1000_RDH, 4)}`);
      bytes.set(data, address);
      return true;
    },
    signalMsi: () => log.push("msi"),
  };
  const nic: E1000e = new E1000e(dma, { macAddress: MAC, wire });
  const read = (offset: number) => nic.barRead(0, offset, 4);
  const write = (offset: number, value: number) => nic.barWrite(0, offset, 4, value);
  const run = () => {
    for (let steps = 0; nic.step(0); steps++) assert.ok(steps < 10_000, "the NIC comes to rest");
  };
  /** As a driver does it: 8 receive descriptors of 2 KiB, 7 of them the device's; 8 transmit descriptors. */
  const start = (rctl = reg.E1000_RCTL_SECRC) => {
    for (let i = 0; i < COUNT; i++) memory.store64(RX_RING + 16 * i, RX_BUFFERS + 2048 * i);
    write(reg.E1000_RDBAL, RX_RING);
    write(reg.E1000_RDLEN, COUNT * 16);
    write(reg.E1000_RDT, COUNT - 1);
    write(reg.E1000_TDBAL, TX_RING);
    write(reg.E1000_TDLEN, COUNT * 16);
    write(reg.E1000_TCTL, reg.E1000_TCTL_EN | reg.E1000_TCTL_PSP);
    write(reg.E1000_RCTL, reg.E1000_RCTL_EN | rctl);
    write(reg.E1000_IMS, reg.E1000_ICR_RXT0 | reg.E1000_ICR_TXDW);
  };
  return { nic, bytes, memory, log, state, read, write, run, start };
}

function frameFor(destination: Uint8Array, sequence: number, length = 256): Uint8Array {
  const frame = new Uint8Array(length);
  encodeTestFrame(frame, destination, OTHER, 1, sequence);
  return frame;
}

const status = (memory: ByteWords, i: number) =>
  memory.load8(RX_RING + 16 * i + reg.E1000_RXD_STATUS);
const DONE = reg.E1000_RXD_STAT_DD | reg.E1000_RXD_STAT_EOP;

test("receive() stores the frame, then its length, then DD, then moves RDH, then interrupts", () => {
  const { nic, bytes, memory, log, read, start } = nicOn();
  start();
  assert.equal(nic.receive(frameFor(MAC, 1)), "delivered");
  assert.deepEqual(log, ["4000+256 rdh=0", "1008+4 rdh=0", "100c+4 rdh=0", "msi"]);
  assert.equal(status(memory, 0), DONE);
  assert.equal(memory.load16(RX_RING + reg.E1000_RXD_LENGTH), 256);
  assert.equal(verifyTestFrame(bytes, RX_BUFFERS, 256, 1), "");
  assert.equal(read(reg.E1000_RDH), 1);
  assert.equal(read(reg.E1000_GPRC), 1);
  assert.equal(read(reg.E1000_GPRC), 0, "statistics are cleared by a read");
});

test("receive() misses frames when no descriptor is free, and counts them", () => {
  const { nic, read, write, start } = nicOn();
  start();
  for (let i = 0; i < COUNT - 1; i++) assert.equal(nic.receive(frameFor(MAC, i)), "delivered");
  assert.equal(nic.receive(frameFor(MAC, 7)), "missed");
  assert.equal(nic.receive(frameFor(MAC, 8)), "missed");
  assert.equal(read(reg.E1000_MPC), 2);
  assert.ok((read(reg.E1000_ICR) & reg.E1000_ICR_RXO) !== 0);
  write(reg.E1000_RDT, 0);
  assert.equal(nic.receive(frameFor(MAC, 9)), "delivered");
  assert.equal(read(reg.E1000_RDH), 0, "the ring wraps");
});

test("receive() spreads a frame over several descriptors, EOP in the last only", () => {
  const { nic, bytes, memory, read, start } = nicOn();
  start(reg.E1000_RCTL_SECRC | (2 << reg.E1000_RCTL_BSIZE_SHIFT));
  const frame = frameFor(MAC, 3, 1200);
  assert.equal(nic.receive(frame), "delivered");
  assert.deepEqual(
    [0, 1, 2, 3].map((i) => status(memory, i)),
    [1, 1, DONE, 0],
  );
  assert.equal(memory.load16(RX_RING + 32 + reg.E1000_RXD_LENGTH), 176);
  const whole = [0, 1, 2].flatMap((i) => [
    ...bytes.subarray(RX_BUFFERS + 2048 * i, RX_BUFFERS + 2048 * i + Math.min(512, 1200 - 512 * i)),
  ]);
  assert.deepEqual(whole, [...frame]);
  assert.equal(read(reg.E1000_RDH), 3);
});

test("receive() keeps the FCS unless it is to be stripped, and pads short frames", () => {
  const { nic, bytes, memory, start } = nicOn();
  start(0);
  nic.receive(frameFor(MAC, 1, 60));
  assert.equal(memory.load16(RX_RING + reg.E1000_RXD_LENGTH), 64);
  // The FCS of a frame with its FCS is a constant residue.
  let crc = 0xffffffff;
  for (const byte of bytes.subarray(RX_BUFFERS, RX_BUFFERS + 64)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) !== 0 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  assert.equal(crc >>> 0, 0xdebb20e3);

  const stripped = nicOn();
  stripped.start();
  stripped.bytes.fill(0xee, RX_BUFFERS, RX_BUFFERS + 64);
  const short = Uint8Array.from([...MAC, ...OTHER, 8, 0, 1]);
  assert.equal(stripped.nic.receive(short), "delivered");
  assert.equal(stripped.memory.load16(RX_RING + reg.E1000_RXD_LENGTH), 60);
  assert.deepEqual(
    [...stripped.bytes.subarray(RX_BUFFERS, RX_BUFFERS + 60)],
    [...short, ...new Array(45).fill(0)],
  );
});

test("receive() takes its own address, broadcast, multicast by table, and all in promiscuous mode", () => {
  const { nic, write, start } = nicOn();
  start();
  const broadcast = new Uint8Array(6).fill(0xff);
  const multicast = Uint8Array.of(0x01, 0, 0x5e, 0, 0x12, 0x34);
  const results = () =>
    [MAC, OTHER, broadcast, multicast].map((d) => nic.receive(frameFor(d, 1)) === "delivered");
  assert.deepEqual(results(), [true, false, false, false]);
  write(reg.E1000_RCTL, reg.E1000_RCTL_EN | reg.E1000_RCTL_BAM | reg.E1000_RCTL_UPE);
  assert.deepEqual(results(), [true, true, true, false]);
  write(reg.E1000_RDT, 2);
  write(reg.E1000_RCTL, reg.E1000_RCTL_EN);
  // Bits 47:36 of the address: 0x341.
  write(reg.E1000_MTA + 4 * (0x341 >> 5), 1 << (0x341 & 31));
  assert.deepEqual(results(), [true, false, false, true]);
});

test("receive() while the link is down or reception is off does nothing", () => {
  const { nic, write, read, log, start } = nicOn();
  assert.equal(nic.receive(frameFor(MAC, 1)), "linkDown");
  start();
  log.length = 0;
  write(reg.E1000_CTRL, reg.E1000_CTRL_FD);
  assert.equal(nic.receive(frameFor(MAC, 1)), "linkDown");
  assert.equal(read(reg.E1000_STATUS) & reg.E1000_STATUS_LU, 0);
  assert.ok((read(reg.E1000_ICS) & reg.E1000_ICR_LSC) !== 0);
  assert.deepEqual(log, []);
});

test("a receive DMA that fails is counted, and the ring goes on where it was", () => {
  for (const where of [RX_RING, RX_RING + 8, RX_RING + 12, RX_BUFFERS]) {
    const { nic, bytes, memory, state, read, start } = nicOn();
    start();
    state.blocked = (address) => address === where;
    assert.equal(nic.receive(frameFor(MAC, 1)), "dmaFailed");
    assert.equal(nic.dmaFailures, 1);
    assert.equal(read(reg.E1000_RDH), 0);
    assert.equal(status(memory, 0), 0);
    state.blocked = () => false;
    assert.equal(nic.receive(frameFor(MAC, 2)), "delivered");
    assert.equal(read(reg.E1000_RDH), 1);
    assert.equal(status(memory, 0), DONE);
    assert.equal(verifyTestFrame(bytes, RX_BUFFERS, 256, 1), "");
  }
});

test("an MSI is sent for each cause that becomes pending, and again only after ICR was read", () => {
  const { nic, log, read, write, start } = nicOn();
  start();
  const msis = () => log.filter((entry) => entry === "msi").length;
  nic.receive(frameFor(MAC, 1));
  nic.receive(frameFor(MAC, 2));
  assert.equal(msis(), 1);
  assert.equal(read(reg.E1000_ICR) >>> 0, (0x80000000 | reg.E1000_ICR_RXT0) >>> 0);
  assert.equal(read(reg.E1000_ICR), 0);
  nic.receive(frameFor(MAC, 3));
  assert.equal(msis(), 2);
  write(reg.E1000_ICR, reg.E1000_ICR_RXT0);
  write(reg.E1000_IMC, reg.E1000_ICR_RXT0);
  nic.receive(frameFor(MAC, 4));
  assert.equal(msis(), 2, "masked");
  write(reg.E1000_IMS, reg.E1000_ICR_RXT0);
  assert.equal(msis(), 3, "unmasking what is pending");
  write(reg.E1000_ICS, reg.E1000_ICR_TXDW);
  assert.equal(msis(), 4);
});

/** Puts `frame` into transmit descriptor `i`, in pieces of at most `pieceBytes`. @returns the new tail */
function queue(
  { bytes, memory }: ReturnType<typeof nicOn>,
  i: number,
  frame: Uint8Array,
  pieceBytes = 2048,
  command = reg.E1000_TXD_CMD_RS,
): number {
  bytes.set(frame, TX_BUFFERS);
  let index = i;
  for (let done = 0; done < frame.length; done += pieceBytes) {
    const length = Math.min(pieceBytes, frame.length - done);
    const eop = done + length === frame.length ? reg.E1000_TXD_CMD_EOP : 0;
    const at = TX_RING + 16 * index;
    memory.store64(at, TX_BUFFERS + done);
    memory.store32(at + 8, length | ((command | eop) << 24));
    memory.store32(at + 12, 0);
    index = (index + 1) % COUNT;
  }
  return index;
}

test("a transmitted frame reaches the wire whole, and its descriptors say DD", () => {
  const wire = new CheckingWire({ nicId: 1 });
  const rig = nicOn(new Uint8Array(0x10000), wire);
  rig.start();
  rig.log.length = 0;
  let tail = 0;
  for (let sequence = 0; sequence < 20; sequence++) {
    tail = queue(rig, tail, frameFor(OTHER, sequence, 900), 301);
    rig.write(reg.E1000_TDT, tail);
    assert.equal(rig.nic.nextDueNs(), 0);
    rig.run();
    assert.equal(rig.read(reg.E1000_TDH), tail);
    assert.equal(rig.memory.load8(TX_RING + 16 * ((tail + 7) % 8) + 12), reg.E1000_TXD_STAT_DD);
  }
  assert.deepEqual([wire.frames, wire.corrupt, wire.outOfSequence], [20, 0, 0]);
  assert.equal(rig.read(reg.E1000_GPTC), 20);
  assert.ok((rig.read(reg.E1000_ICR) & reg.E1000_ICR_TXDW) !== 0);
  assert.equal(rig.nic.nextDueNs(), Number.POSITIVE_INFINITY);
  assert.equal(rig.log.filter((entry) => entry === "msi").length, 1);
});

test("a transmit DMA that fails waits for the next doorbell, and nothing is lost", () => {
  const stats = TrafficStats.create(2);
  const wire = new CheckingWire({ nicId: 1, stats });
  for (const [i, where] of [TX_RING, TX_BUFFERS].entries()) {
    const rig = nicOn(new Uint8Array(0x10000), wire);
    rig.start();
    const tail = queue(rig, 0, frameFor(OTHER, i));
    rig.state.blocked = (address) => address === where;
    rig.write(reg.E1000_TDT, tail);
    rig.run();
    assert.equal(rig.nic.dmaFailures, 1);
    assert.equal(stats.get(1, "transmitDmaFailed"), i + 1);
    assert.equal(rig.read(reg.E1000_TDH), 0);
    assert.equal(wire.frames, i);
    rig.state.blocked = () => false;
    rig.write(reg.E1000_TDT, tail);
    rig.run();
    assert.equal(rig.read(reg.E1000_TDH), tail);
  }
  assert.deepEqual([wire.frames, wire.corrupt, wire.outOfSequence], [2, 0, 0]);
});

test("a NIC sends no faster than the other end takes, and fetches no descriptor before", () => {
  const wire = new CheckingWire({ nicId: 1, framesPerSecond: 1000 });
  const rig = nicOn(new Uint8Array(0x10000), wire);
  rig.start();
  let tail = 0;
  for (let sequence = 0; sequence < 3; sequence++)
    tail = queue(rig, tail, frameFor(OTHER, sequence, 100), 2048);
  rig.write(reg.E1000_TDT, tail);
  const sentAtMs: number[] = [];
  for (let ms = 5; ms < 9; ms += 0.25) {
    while (rig.nic.step(ms * 1e6));
    if (wire.frames > sentAtMs.length) sentAtMs.push(ms);
    assert.equal(rig.read(reg.E1000_TDH), sentAtMs.length);
  }
  assert.deepEqual(sentAtMs, [5, 6, 7]);
  assert.equal(rig.nic.nextDueNs(), Number.POSITIVE_INFINITY);
});

test("descriptors that are not legacy ones are dropped and counted", () => {
  const wire = new CheckingWire({ nicId: 1 });
  const rig = nicOn(new Uint8Array(0x10000), wire);
  rig.start();
  const command = reg.E1000_TXD_CMD_DEXT | reg.E1000_TXD_CMD_RS;
  rig.write(reg.E1000_TDT, queue(rig, 0, frameFor(OTHER, 0), 2048, command));
  rig.run();
  assert.equal(rig.nic.txDropped, 1);
  assert.equal(wire.frames, 0);
  assert.equal(rig.memory.load8(TX_RING + 12), reg.E1000_TXD_STAT_DD);
});

test("a cable carries frames from one NIC to the other", () => {
  const cable = new Cable();
  const sender = nicOn(new Uint8Array(0x10000), cable);
  const receiver = nicOn();
  cable.connect(receiver.nic);
  sender.start();
  receiver.start(reg.E1000_RCTL_SECRC | reg.E1000_RCTL_UPE);
  sender.write(reg.E1000_TDT, queue(sender, 0, frameFor(OTHER, 5)));
  sender.run();
  assert.equal(cable.lost, 0);
  assert.equal(verifyTestFrame(receiver.bytes, RX_BUFFERS, 256, 1), "");
});

test("the NVM holds the address and adds up to 0xbaba", () => {
  const { read, write } = nicOn();
  const word = (i: number) => {
    write(reg.E1000_EERD, (i << reg.E1000_EERD_ADDR_SHIFT) | reg.E1000_EERD_START);
    const value = read(reg.E1000_EERD);
    assert.ok((value & reg.E1000_EERD_DONE) !== 0);
    return value >>> reg.E1000_EERD_DATA_SHIFT;
  };
  assert.deepEqual([word(0), word(1), word(2)], [0x5452, 0x1200, 0x5634]);
  let sum = 0;
  for (let i = 0; i < reg.E1000_NVM_WORDS; i++) sum += word(i);
  assert.equal(sum & 0xffff, reg.E1000_NVM_SUM);
  write(reg.E1000_EERD, (64 << reg.E1000_EERD_ADDR_SHIFT) | reg.E1000_EERD_START);
  assert.equal(read(reg.E1000_EERD) & reg.E1000_EERD_DONE, 0);
});

test("CTRL.RST brings all registers back, the old addresses reach queue 0", () => {
  const { read, write, start } = nicOn();
  start();
  write(0x0110, 0x3000);
  assert.equal(read(reg.E1000_RDBAL), 0x3000);
  write(reg.E1000_RAL0, 1);
  write(reg.E1000_CTRL, reg.E1000_CTRL_RST);
  assert.equal(read(reg.E1000_RCTL), 0);
  assert.equal(read(0x0110), 0);
  assert.equal(read(reg.E1000_RAL0), 0x12005452);
  assert.equal(read(reg.E1000_RAH0), 0x80005634);
  assert.equal(read(reg.E1000_CTRL) & reg.E1000_CTRL_RST, 0);
});

test("whatever a driver writes, the NIC does not fail, and what it says it delivered is in the ring", () => {
  const offsets = [
    reg.E1000_CTRL,
    reg.E1000_RCTL,
    reg.E1000_TCTL,
    reg.E1000_RDBAL,
    reg.E1000_RDBAH,
    reg.E1000_RDLEN,
    reg.E1000_RDH,
    reg.E1000_RDT,
    reg.E1000_TDBAL,
    reg.E1000_TDLEN,
    reg.E1000_TDH,
    reg.E1000_TDT,
    reg.E1000_ICR,
    reg.E1000_ICS,
    reg.E1000_IMS,
    reg.E1000_EERD,
  ];
  const value = fc.oneof(
    fc.integer({ min: 0, max: 0xffffffff }),
    fc.nat(0x100),
    fc.constantFrom(reg.E1000_RCTL_EN, RX_RING, TX_RING, 128, 0),
  );
  const write = fc.tuple(
    fc.oneof(
      fc.constantFrom(...offsets),
      fc.nat(0x7fff).map((i) => 4 * i),
    ),
    value,
  );
  const frame = frameFor(MAC, 1);
  fc.assert(
    fc.property(fc.array(write, { maxLength: 40 }), fc.boolean(), (writes, configured) => {
      const rig = nicOn();
      if (configured) rig.start();
      for (const [offset, word] of writes) {
        rig.write(offset, word);
        rig.read(offset);
        if (rig.nic.receive(frame) === "delivered") {
          const count = rig.read(reg.E1000_RDLEN) / 16;
          const head = rig.read(reg.E1000_RDH);
          assert.ok(head < count);
          const last = rig.read(reg.E1000_RDBAL) + 16 * ((head + count - 1) % count);
          assert.equal(rig.memory.load8(last + reg.E1000_RXD_STATUS), DONE);
        }
        for (let i = 0; i < 20; i++) rig.nic.step(0);
      }
    }),
    { numRuns: 300 },
  );
});
