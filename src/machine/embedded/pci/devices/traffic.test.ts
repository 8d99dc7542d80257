import assert from "node:assert/strict";
import { test } from "node:test";
import * as reg from "../../../../abi/e1000e.ts";
import { encodeTestFrame, testFrameSequence, verifyTestFrame } from "../../../../abi/test-frame.ts";
import { ByteWords } from "../../../../abi/words.ts";
import { E1000e } from "./e1000e.ts";
import { TrafficSource } from "./traffic.ts";
import { TrafficStats } from "./traffic-stats.ts";
import { CheckingWire } from "./wire.ts";

const RING = 0x0000;
const BUFFERS = 0x8000;
const COUNT = 256;
const NOTHING_TRANSMITTED = {
  transmitted: 0,
  transmitCorrupt: 0,
  transmitGaps: 0,
  transmitWithoutKernel: 0,
  transmitDmaFailed: 0,
};
const MAC = Uint8Array.of(2, 0, 0, 0, 0, 7);

/** A NIC with traffic at 1000 frames per second, and a driver that takes frames when asked. */
function rig(options: { framesPerSecond?: number; burstFrames?: number } = {}) {
  const bytes = new Uint8Array(BUFFERS + COUNT * 2048);
  const memory = new ByteWords(bytes);
  const gate = { open: true };
  const nic = new E1000e(
    {
      read(address, target) {
        target.set(bytes.subarray(address, address + target.length));
        return gate.open;
      },
      write(address, data) {
        if (gate.open) bytes.set(data, address);
        return gate.open;
      },
      signalMsi() {},
    },
    { macAddress: MAC, wire: new CheckingWire({ nicId: 3 }) },
  );
  const stats = TrafficStats.create(4);
  const kernelPresent = new Int32Array(new SharedArrayBuffer(4)).fill(1);
  const source = new TrafficSource(nic, {
    nicId: 3,
    framesPerSecond: options.framesPerSecond ?? 1000,
    stats,
    kernelPresent,
    burstFrames: options.burstFrames ?? 16,
  });
  const write = (offset: number, value: number) => nic.barWrite(0, offset, 4, value);
  for (let i = 0; i < COUNT; i++) memory.store64(RING + 16 * i, BUFFERS + 2048 * i);
  write(reg.E1000_RDBAL, RING);
  write(reg.E1000_RDLEN, 16 * COUNT);
  const up = () => {
    write(reg.E1000_CTRL, reg.E1000_CTRL_SLU);
    write(reg.E1000_RCTL, reg.E1000_RCTL_EN | reg.E1000_RCTL_SECRC);
  };
  write(reg.E1000_RDT, COUNT - 1);
  let head = 0;
  const received: number[] = [];
  /** Takes all frames, checks each, and gives the descriptors back. */
  const take = () => {
    for (; (memory.load8(RING + 16 * head + 12) & 1) !== 0; head = (head + 1) % COUNT) {
      const at = BUFFERS + 2048 * head;
      assert.equal(verifyTestFrame(bytes, at, memory.load16(RING + 16 * head + 8), 3), "");
      received.push(testFrameSequence(bytes, at));
      memory.store32(RING + 16 * head + 12, 0);
      write(reg.E1000_RDT, head);
    }
  };
  return { nic, source, stats, kernelPresent, gate, write, up, take, received };
}

const MS = 1e6;

test("frames come at the set rate, in sequence, from when the link is up", () => {
  const { source, stats, up, take, received } = rig();
  assert.equal(source.step(5 * MS), false);
  assert.equal(source.nextDueNs(), Number.POSITIVE_INFINITY);
  up();
  assert.equal(source.nextDueNs(), 0);
  for (let now = 10 * MS; now < 1010 * MS; now += MS / 4) {
    while (source.step(now));
    take();
  }
  assert.deepEqual(
    received,
    Array.from({ length: 1000 }, (_, i) => i),
  );
  assert.equal(source.nextDueNs(), 1010 * MS);
  assert.deepEqual(stats.read(3), {
    sent: 1000,
    delivered: 1000,
    missed: 0,
    filtered: 0,
    dmaFailed: 0,
    withoutKernel: 0,
    ...NOTHING_TRANSMITTED,
  });
  assert.equal(stats.get(2, "sent"), 0);
});

test("a late step sends what is due in bursts, but never more than a second's worth", () => {
  const { source, stats, up } = rig({ burstFrames: 16 });
  up();
  source.step(0);
  assert.equal(source.step(100 * MS), true);
  assert.equal(stats.get(3, "sent"), 17);
  while (source.step(100 * MS));
  assert.equal(stats.get(3, "sent"), 101);
  while (source.step(3600e9));
  assert.equal(stats.get(3, "sent"), 101 + 1001);
});

test("the driver stops the traffic by clearing SLU, and sequence numbers go on afterwards", () => {
  const { source, stats, up, write, take, received } = rig();
  up();
  source.step(0);
  write(reg.E1000_CTRL, 0);
  assert.equal(source.step(50 * MS), false);
  assert.equal(stats.get(3, "sent"), 1);
  up();
  source.step(60 * MS);
  source.step(61 * MS);
  take();
  assert.deepEqual(received, [0, 1, 2]);
});

test("every frame that is sent is counted where it went", () => {
  const { source, stats, gate, kernelPresent, up, write } = rig();
  up();
  const sendUntil = (ms: number) => {
    while (source.step(ms * MS));
  };
  sendUntil(0);
  sendUntil(9);
  gate.open = false;
  sendUntil(19);
  gate.open = true;
  kernelPresent[0] = 0;
  sendUntil(29);
  kernelPresent[0] = 1;
  write(reg.E1000_RAH0, 0);
  sendUntil(39);
  write(reg.E1000_RAH0, 0x80000700);
  write(reg.E1000_RDT, 20);
  write(reg.E1000_RDH, 20);
  sendUntil(49);
  assert.deepEqual(stats.read(3), {
    sent: 50,
    delivered: 20,
    missed: 10,
    filtered: 10,
    dmaFailed: 10,
    withoutKernel: 10,
    ...NOTHING_TRANSMITTED,
  });
});

test("counters carry into their high word", () => {
  const stats = TrafficStats.create(1);
  new Int32Array(stats.shared)[0] = -2;
  stats.increment(0, "sent");
  assert.equal(stats.get(0, "sent"), 2 ** 32 - 1);
  stats.increment(0, "sent");
  assert.equal(new TrafficStats(stats.shared).get(0, "sent"), 2 ** 32);
});

test("the other end of the cable counts what a NIC sends: all, not whole, out of sequence, in a jump", () => {
  const stats = TrafficStats.create(4);
  const kernelPresent = new Int32Array(new SharedArrayBuffer(4)).fill(1);
  const wire = new CheckingWire({ nicId: 2, stats, kernelPresent });
  const frame = (sequence: number, nicId = 2) => {
    const bytes = new Uint8Array(100);
    encodeTestFrame(bytes, MAC, MAC, nicId, sequence);
    return bytes;
  };
  wire.transmit(frame(0), 0);
  kernelPresent[0] = 0;
  wire.transmit(frame(1), 0);
  kernelPresent[0] = 1;
  // One missing, one doubled, one torn, one of another NIC.
  wire.transmit(frame(3), 0);
  wire.transmit(frame(3), 0);
  wire.transmit(frame(4).fill(0, 60), 0);
  wire.transmit(frame(4, 1), 0);
  wire.transmit(frame(4), 0);
  wire.dmaFailed();
  assert.deepEqual(stats.read(2), {
    ...stats.read(0),
    transmitted: 7,
    transmitCorrupt: 2,
    transmitGaps: 2,
    transmitWithoutKernel: 1,
    transmitDmaFailed: 1,
  });
  assert.deepEqual([wire.frames, wire.corrupt, wire.outOfSequence], [7, 2, 2]);
});
