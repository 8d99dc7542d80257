import assert from "node:assert/strict";
import { test } from "node:test";
import * as reg from "../abi/e1000e.ts";
import { encodeTestFrame } from "../abi/test-frame.ts";
import { isKernelError } from "../base/errno.ts";
import { Prng } from "../base/prng.ts";
import { MIB } from "../base/units.ts";
import { MappedMemory } from "../host/mapped-memory.ts";
import { E1000e } from "../machine/embedded/pci/devices/e1000e.ts";
import { TrafficStats } from "../machine/embedded/pci/devices/traffic-stats.ts";
import { CheckingWire } from "../machine/embedded/pci/devices/wire.ts";
import type { Guest, GuestMachine } from "./guest.ts";
import { bootNicGuest, SLOTS } from "./nic-guest.ts";

const MEMORY = 8 * MIB;
const NIC = 5;
const MAC = Uint8Array.of(0x52, 0x54, 0x00, 0x48, 0x46, NIC);
const NETWORK = Uint8Array.of(2, 0, 0, 0, 0, 1);

/** RAM in two pieces, so that nothing may rely on one; also as a device sees it. */
function makeMemory() {
  const shared = new SharedArrayBuffer(MEMORY);
  const bytes = new Uint8Array(shared);
  // In the middle of the receive buffers.
  const cut = 3 * MIB;
  const pieces = [
    { offsetBytes: 0, bytes: new Uint8Array(shared, 0, cut) },
    { offsetBytes: cut, bytes: new Uint8Array(shared, cut) },
  ];
  return { bytes, memory: new MappedMemory({ pieces, unmap() {} }) };
}

/** Where the device finds RAM: not where the guest does, and above 4 GiB. */
const DMA_BASE = 0x12_0000_0000;

interface Rig {
  readonly nic: E1000e;
  readonly wire: CheckingWire;
  readonly bytes: Uint8Array;
  readonly machine: GuestMachine;
  /** Register accesses, as "read 0xc0", "write 0x400 = 0x2". */
  readonly accesses: string[];
  guest: Guest;
  sequence: number;
  nowNs: number;
}

/** A guest on the model of its device. */
function rig(framesPerSecond?: number): Rig {
  const { bytes, memory } = makeMemory();
  const stats = TrafficStats.create(NIC + 1);
  const wire = new CheckingWire({
    nicId: NIC,
    stats,
    ...(framesPerSecond !== undefined && { framesPerSecond }),
  });
  const nic = new E1000e(
    {
      read(address, target) {
        target.set(bytes.subarray(address - DMA_BASE, address - DMA_BASE + target.length));
        return true;
      },
      write(address, data) {
        bytes.set(data, address - DMA_BASE);
        return true;
      },
      signalMsi() {},
    },
    { macAddress: MAC, wire },
  );
  const accesses: string[] = [];
  const machine: GuestMachine = {
    memory,
    device: {
      read32(offset) {
        accesses.push(`read ${offset.toString(16)}`);
        return nic.barRead(0, offset, 4);
      },
      write32(offset, value) {
        accesses.push(`write ${offset.toString(16)} ${(value >>> 0).toString(16)}`);
        nic.barWrite(0, offset, 4, value);
      },
    },
    dmaAddress: (offset) => DMA_BASE + offset,
  };
  const guest = bootNicGuest(machine, null);
  return { nic, wire, bytes, machine, accesses, guest, sequence: 0, nowNs: 0 };
}

function frameFor(sequence: number, lengthBytes = 100, nicId = NIC): Uint8Array {
  const frame = new Uint8Array(lengthBytes);
  encodeTestFrame(frame, MAC, NETWORK, nicId, sequence);
  return frame;
}

/** The network sends this many frames; the NIC does what it can, for a millisecond. */
function arrive(rig: Rig, count: number): void {
  for (let i = 0; i < count; i++)
    assert.equal(rig.nic.receive(frameFor(rig.sequence++)), "delivered");
  rig.nowNs += 1e6;
  while (rig.nic.step(rig.nowNs));
}

test("a guest gives the device its rings before it enables it, and the link last", () => {
  const { accesses } = rig();
  const order = accesses
    .filter((a) => a.startsWith("write"))
    .map((a) => Number.parseInt(a.split(" ")[1], 16));
  const at = (register: number) => {
    assert.equal(
      order.filter((r) => r === register).length,
      1,
      `register ${register.toString(16)}`,
    );
    return order.indexOf(register);
  };
  for (const register of [
    reg.E1000_RDBAL,
    reg.E1000_RDBAH,
    reg.E1000_RDLEN,
    reg.E1000_RDH,
    reg.E1000_RDT,
  ])
    assert.ok(at(register) < at(reg.E1000_RCTL));
  for (const register of [
    reg.E1000_TDBAL,
    reg.E1000_TDBAH,
    reg.E1000_TDLEN,
    reg.E1000_TDH,
    reg.E1000_TDT,
  ])
    assert.ok(at(register) < at(reg.E1000_TCTL));
  assert.equal(at(reg.E1000_CTRL), order.length - 1);
});

test("a guest receives and sends thousands of frames in order, around its rings", () => {
  const r = rig();
  const prng = new Prng(1);
  for (let i = 0; i < 400; i++) {
    arrive(r, prng.below(20));
    r.guest.step();
  }
  do arrive(r, 0);
  while (r.guest.step());
  const { received, lost, corrupt, transmitted, dirtied } = r.guest.counters;
  assert.ok(received > 3000, `${received} frames`);
  assert.deepEqual({ received, lost, corrupt }, { received: r.sequence, lost: 0, corrupt: 0 });
  assert.ok(transmitted > 1000, `${transmitted} sent`);
  assert.deepEqual([r.wire.frames, r.wire.corrupt, r.wire.outOfSequence], [transmitted, 0, 0]);
  assert.ok(dirtied > 1000);
  assert.deepEqual(r.guest.audit(), []);
  assert.equal(r.guest.nicId, NIC);
});

test("a guest sends a heartbeat when nothing arrives", () => {
  const r = rig();
  for (let i = 0; i < 640; i++) {
    r.guest.step();
    arrive(r, 0);
  }
  assert.equal(r.wire.frames, 10);
});

test("a guest that is saved and restored at every step does exactly what one does that never is", () => {
  const [still, moved] = [rig(2000), rig(2000)];
  for (const r of [still, moved]) {
    const prng = new Prng(2);
    for (let i = 0; i < 1500; i++) {
      if (prng.oneIn(3)) arrive(r, r.nic.isReceiving ? prng.below(12) : 0);
      // Asked to stop while its ring still holds frames to send.
      if (i === 1000) r.guest.shutDown();
      if (r === moved) r.guest = bootNicGuest(r.machine, r.guest.save());
      r.guest.step();
    }
  }
  assert.ok(still.guest.isAtRest && still.guest.counters.received > 1000);
  assert.deepEqual(moved.guest.save(), still.guest.save());
  assert.deepEqual(moved.guest.counters, still.guest.counters);
  assert.deepEqual(moved.accesses, still.accesses);
  assert.ok(Buffer.from(moved.bytes).equals(Buffer.from(still.bytes)), "memory is the same");
  assert.equal(moved.wire.frames, still.wire.frames);
});

test("step() acknowledges interrupt causes by writing back what it has read", () => {
  const r = rig();
  arrive(r, 3);
  r.accesses.length = 0;
  assert.equal(r.guest.step(), true);
  const read = r.accesses.indexOf(`read ${reg.E1000_ICR.toString(16)}`);
  assert.ok(read >= 0);
  assert.match(
    r.accesses[read + 1],
    new RegExp(`^write ${reg.E1000_ICR.toString(16)} 8[0-9a-f]{6}`),
  );
  assert.equal(r.nic.barRead(0, reg.E1000_ICR, 4) & reg.E1000_ICR_RXT0, 0);
});

test("a guest whose frames nobody takes fills its ring, overwrites nothing, and goes on in order", () => {
  const r = rig();
  const run = () => {
    for (let i = 0; i < 200; i++) {
      arrive(r, 4);
      r.guest.step();
    }
  };
  // Once around the ring first, so that every descriptor has come back before.
  run();
  arrive(r, 0);
  r.guest.step();
  const before = r.wire.frames;
  assert.ok(before > 128);
  const enabled = r.nic.barRead(0, reg.E1000_TCTL, 4);
  r.nic.barWrite(0, reg.E1000_TCTL, 4, 0);
  run();
  assert.equal(r.wire.frames, before);
  assert.equal(r.guest.counters.transmitted, before + 127);
  r.nic.barWrite(0, reg.E1000_TCTL, 4, enabled);
  run();
  arrive(r, 0);
  assert.ok(r.wire.frames > 500);
  assert.deepEqual(
    [r.wire.frames, r.wire.corrupt, r.wire.outOfSequence],
    [r.guest.counters.transmitted, 0, 0],
  );
});

test("shutDown() sends what is queued before the link goes down, and takes what comes until then", () => {
  // One frame a millisecond.
  const r = rig(1000);
  for (let i = 0; i < 30; i++) {
    arrive(r, 8);
    r.guest.step();
  }
  const queued = r.guest.counters.transmitted - r.wire.frames;
  assert.ok(queued > 20, `${queued} frames are queued`);
  r.guest.shutDown();
  let steps = 0;
  for (; !r.guest.isAtRest; steps++) {
    assert.ok(steps < 1000);
    r.guest.step();
    if (r.nic.isReceiving) arrive(r, 1);
  }
  assert.ok(steps >= queued);
  assert.equal(r.nic.isReceiving, false);
  assert.equal(r.wire.frames, r.guest.counters.transmitted);
  const { received, lost } = r.guest.counters;
  assert.deepEqual({ received, lost }, { received: r.sequence, lost: 0 });
  r.guest.shutDown();
  assert.equal(r.guest.step(), false);
  assert.equal(r.guest.isAtRest, true);
  assert.deepEqual(r.guest.audit(), []);
});

test("a frame that is torn, foreign, doubled or lost is counted", () => {
  const cases: readonly {
    readonly name: string;
    readonly sent: (r: Rig) => void;
    readonly lost: number;
    readonly corrupt: number;
  }[] = [
    {
      name: "a byte of the payload changed",
      sent: (r) => {
        const frame = frameFor(r.sequence++);
        frame[50] ^= 1;
        r.nic.receive(frame);
      },
      lost: 1,
      corrupt: 1,
    },
    {
      name: "another NIC's",
      sent: (r) => r.nic.receive(frameFor(r.sequence, 100, NIC + 1)),
      lost: 0,
      corrupt: 1,
    },
    {
      name: "shorter than it says",
      sent: (r) => r.nic.receive(frameFor(r.sequence).subarray(0, 90)),
      lost: 0,
      corrupt: 1,
    },
    { name: "doubled", sent: (r) => r.nic.receive(frameFor(r.sequence - 1)), lost: 0, corrupt: 1 },
    {
      name: "three lost",
      sent: (r) => {
        r.sequence += 3;
      },
      lost: 3,
      corrupt: 0,
    },
    {
      name: "written to another place",
      sent: (r) => {
        // The NIC's write of the second frame goes astray: the buffer keeps what was there.
        const before = r.bytes.slice();
        r.nic.receive(frameFor(r.sequence++));
        const changed = before.findIndex((byte, i) => i >= 2 * MIB && byte !== r.bytes[i]);
        r.bytes.set(before.subarray(changed - 2048, changed + 2048), changed - 2048);
      },
      lost: 1,
      corrupt: 1,
    },
  ];
  for (const { name, sent, lost, corrupt } of cases) {
    const r = rig();
    arrive(r, 5);
    r.guest.step();
    sent(r);
    arrive(r, 5);
    while (r.guest.step());
    const found = r.guest.counters;
    assert.deepEqual({ lost: found.lost, corrupt: found.corrupt }, { lost, corrupt }, name);
  }
});

/** A guest that has dirtied its memory for a while. */
function worn(): Rig {
  const r = rig();
  for (let i = 0; i < 3000; i++) r.guest.step();
  assert.deepEqual(r.guest.audit(), []);
  return r;
}

/** Places of slots in memory, found by their content: {index, generation, mix, ~generation}. */
function slotPlaces(bytes: Uint8Array): number[] {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset);
  const places: number[] = [];
  for (let at = 4 * MIB; at + 16 <= bytes.length && places.length < SLOTS; at += 16) {
    const w = at / 4;
    if (words[w] === places.length && words[w + 3] === ~words[w + 1] >>> 0) places.push(at);
  }
  assert.equal(places.length, SLOTS);
  return places;
}

test("audit() finds any byte of a slot that has changed", () => {
  const r = worn();
  const places = slotPlaces(r.bytes);
  for (const slot of [0, 1, 2047, SLOTS - 1]) {
    for (let byte = 0; byte < 16; byte++) {
      r.bytes[places[slot] + byte] ^= 0x40;
      assert.ok(
        r.guest.audit().some((problem) => problem.startsWith(`slot ${slot} `)),
        `slot ${slot}, byte ${byte}`,
      );
      r.bytes[places[slot] + byte] ^= 0x40;
    }
  }
  assert.deepEqual(r.guest.audit(), []);
});

test("audit() finds memory that went back in time, though it is consistent in itself", () => {
  const r = worn();
  const places = slotPlaces(r.bytes);
  const before = r.bytes.slice();
  let written: number | undefined;
  while (written === undefined) {
    r.guest.step();
    written = places.find(
      (at) => !Buffer.from(r.bytes.subarray(at, at + 16)).equals(before.subarray(at, at + 16)),
    );
  }
  const page = written - (written % 4096);
  r.bytes.set(before.subarray(page, page + 4096), page);
  assert.equal(r.guest.audit().length, 1);
  assert.match(r.guest.audit()[0], /^the slots hold \d+ of \d+ writes$/);
});

test("audit() finds two pages that were exchanged", () => {
  const r = worn();
  const [a, b] = slotPlaces(r.bytes).slice(100, 102);
  const slot = r.bytes.slice(a, a + 16);
  r.bytes.copyWithin(a, b, b + 16);
  r.bytes.set(slot, b);
  assert.ok(r.guest.audit().length >= 2);
});

test("a slot that is found wrong while running stays known, even when it is right again", () => {
  const r = worn();
  const places = slotPlaces(r.bytes);
  for (const at of places) r.bytes[at] ^= 1;
  r.guest.step();
  for (const at of places) r.bytes[at] ^= 1;
  const problems = r.guest.audit();
  assert.ok(
    problems.some((problem) => /4 slots were found wrong/.test(problem)),
    problems.join("; "),
  );
});

test("a guest refuses registers that are not its own, and too little memory", () => {
  const r = rig();
  arrive(r, 3);
  r.guest.step();
  const good = r.guest.save();
  const bad: [string, Uint8Array][] = [
    ["too short", good.subarray(1)],
    ["empty", new Uint8Array(0)],
  ];
  // version, descriptors, next, ... of which each has a limit.
  for (const word of [0, 1, 2]) {
    const registers = good.slice();
    new DataView(registers.buffer).setUint32(4 * word, 0x7fffffff, true);
    bad.push([`word ${word}`, registers]);
  }
  for (const [name, registers] of bad)
    assert.throws(
      () => bootNicGuest(r.machine, registers),
      (error) => isKernelError(error, "EIO"),
      name,
    );
  bootNicGuest(r.machine, good);
  const memory = new MappedMemory({
    pieces: [{ offsetBytes: 0, bytes: new Uint8Array(new SharedArrayBuffer(MEMORY - 4096)) }],
    unmap() {},
  });
  assert.throws(
    () => bootNicGuest({ ...r.machine, memory }, null),
    (error) => isKernelError(error, "EINVAL"),
  );
});

test("shutDown() turns reception off, and the tail stays from then on", () => {
  const r = rig();
  // More than one step takes, so that some are left when reception is off.
  arrive(r, 255);
  r.guest.shutDown();
  while (
    !r.accesses.some((a) => a.startsWith(`write ${reg.E1000_RCTL.toString(16)} `) && !isOn(a))
  ) {
    arrive(r, r.nic.isReceiving ? 200 : 0);
    r.guest.step();
  }
  arrive(r, 0);
  r.accesses.length = 0;
  while (!r.guest.isAtRest) r.guest.step();
  assert.equal(r.guest.counters.received, r.sequence);
  assert.deepEqual(
    r.accesses.filter((a) => a.startsWith(`write ${reg.E1000_RDT.toString(16)} `)),
    [],
  );
});

/** Whether a write of RCTL leaves reception on. */
function isOn(access: string): boolean {
  return (Number.parseInt(access.split(" ")[2], 16) & reg.E1000_RCTL_EN) !== 0;
}
