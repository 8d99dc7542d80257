/**
 * A guest that drives an Intel 82574L and distrusts everything: it checks each received frame's sequence number and
 * payload, keeps a running hash, sends frames that the other end can check, and keeps writing to other memory, which it
 * checks too.
 *
 * Memory: 0 nothing · {@link RING_ADDRESS} receive ring · {@link TX_RING_ADDRESS} transmit ring ·
 *   {@link TX_BUFFERS_ADDRESS} and {@link BUFFERS_ADDRESS} one buffer of 2 KiB for each descriptor · from there to the
 *   end {@link SLOTS} slots of 16 bytes, evenly spread, that it dirties.
 * Registers: {@link REGISTERS}; the places in the rings, the next sequence numbers, the counters, the hash.
 * Invariant: a slot holds `{index, generation, mix, ~generation}`, and the generations of all slots add up to the
 *   count of writes: a page that went back in time is found out, even if it is consistent in itself.
 * Source: Intel 82574L Datasheet rev. 3.4 §4.6.5, §4.6.6 (initialization), §7.1, §7.2
 * @module
 */
import {
  E1000_CTRL,
  E1000_CTRL_SLU,
  E1000_DESCRIPTOR_BYTES,
  E1000_ICR,
  E1000_ICR_RXO,
  E1000_ICR_RXT0,
  E1000_IMS,
  E1000_RAH0,
  E1000_RAL0,
  E1000_RCTL,
  E1000_RCTL_BAM,
  E1000_RCTL_EN,
  E1000_RCTL_SECRC,
  E1000_RCTL_UPE,
  E1000_RDBAH,
  E1000_RDBAL,
  E1000_RDH,
  E1000_RDLEN,
  E1000_RDT,
  E1000_RXD_STAT_DD,
  E1000_RXD_STAT_EOP,
  E1000_TCTL,
  E1000_TCTL_COLD_SHIFT,
  E1000_TCTL_CT_SHIFT,
  E1000_TCTL_EN,
  E1000_TCTL_PSP,
  E1000_TDBAH,
  E1000_TDBAL,
  E1000_TDH,
  E1000_TDLEN,
  E1000_TDT,
  E1000_TXD_CMD_EOP,
  E1000_TXD_CMD_IFCS,
  E1000_TXD_CMD_RS,
  E1000_TXD_LENGTH,
  E1000_TXD_STAT_DD,
  E1000_TXD_STATUS,
} from "../abi/e1000e.ts";
import { struct, u32, u64 } from "../abi/struct.ts";
import {
  encodeTestFrame,
  TEST_FRAME_MAX_BYTES,
  TEST_FRAME_MIN_BYTES,
  testFrameSequence,
  verifyTestFrame,
} from "../abi/test-frame.ts";
import { ByteWords } from "../abi/words.ts";
import { KernelError } from "../base/errno.ts";
import { alignUp, formatBytes, KIB, MIB } from "../base/units.ts";
import type { MappedMemory } from "../host/mapped-memory.ts";
import type { DeviceRegisters, Guest, GuestCounters, GuestMachine } from "./guest.ts";

/** Receive descriptors: a power of two, the ring at least 128-byte aligned. */
const RING_ADDRESS = 1 * MIB;
const BUFFERS_ADDRESS = 2 * MIB;
const BUFFER_BYTES = 2 * KIB;
/** The register RDLEN has 20 bits, so 32768 descriptors are the largest power of two. */
const MAX_DESCRIPTORS = 32768;
const MIN_DESCRIPTORS = 256;
/** Behind the largest receive ring. */
const TX_RING_ADDRESS = RING_ADDRESS + 512 * KIB;
const TX_BUFFERS_ADDRESS = TX_RING_ADDRESS + 64 * KIB;
const TX_DESCRIPTORS = 128;
/** Frames received for one that is sent; as many are credited every {@link HEARTBEAT_STEPS} steps besides. */
const RECEIVED_PER_TRANSMIT = 2;
const HEARTBEAT_STEPS = 64;
/** Few, because receiving goes first: a step after a pause finds hundreds of frames. */
const TRANSMITS_PER_STEP = 8;
/** More is not saved up while the ring is full. */
const CREDIT_MAX = RECEIVED_PER_TRANSMIT * TX_DESCRIPTORS;
/** Whom it sends to: any locally administered address but its own. */
const DESTINATION_ADDRESS = Uint8Array.of(0x02, 0x48, 0x46, 0x00, 0x00, 0xff);
export const SLOTS = 4096;
const SLOT_BYTES = 16;
/** Frames and slots handled in one step. */
const FRAMES_PER_STEP = 256;
const SLOTS_PER_STEP = 4;

/** The least memory that this guest boots in. */
export const NIC_GUEST_MIN_BYTES = 8 * MIB;

/** Between `shutDown` and rest: first what was handed to the NIC is sent, then link and reception go down. */
const PHASES = ["running", "draining", "linkDown", "atRest"] as const;
type Phase = (typeof PHASES)[number];

const REGISTERS_VERSION = 2;
/** What `save` returns. */
const REGISTERS = struct("nic_guest_registers", {
  version: u32,
  /** Descriptors in the ring. */
  descriptors: u32,
  /** Index of the next descriptor to look at. */
  next: u32,
  /** Its Ethernet address, as in RAL and RAH. */
  macLow: u32,
  macHigh: u32,
  expected: u64,
  received: u64,
  lost: u64,
  corrupt: u64,
  hash: u32,
  /** Index in {@link PHASES}. */
  phase: u32,
  dirtied: u64,
  dirtyErrors: u64,
  /** Index of the next transmit descriptor to fill in, and of the oldest that has not come back. */
  txNext: u32,
  txOldest: u32,
  transmitted: u64,
  /** {@link RECEIVED_PER_TRANSMIT} allow to send one frame. */
  credit: u32,
  /** Until the next heartbeat. */
  heartbeatSteps: u32,
});

/** Makes a guest; as {@link GuestFactory}. */
export function bootNicGuest(machine: GuestMachine, registers: Uint8Array | null): Guest {
  return new NicGuest(machine, registers);
}

class NicGuest implements Guest {
  readonly #machine: GuestMachine;
  readonly #memory: MappedMemory;
  readonly #device: DeviceRegisters;
  readonly #descriptors: number;
  readonly #slotsAddress: number;
  readonly #slotStride: number;
  readonly #macLow: number;
  readonly #macHigh: number;
  readonly #macAddress: Uint8Array;
  #next = 0;
  #expected = 0;
  #received = 0;
  #lost = 0;
  #corrupt = 0;
  #hash = 0x811c9dc5;
  #dirtied = 0;
  #dirtyErrors = 0;
  #phase: Phase = "running";
  #txNext = 0;
  #txOldest = 0;
  #transmitted = 0;
  #credit = 0;
  #heartbeatSteps = HEARTBEAT_STEPS;

  constructor(machine: GuestMachine, registers: Uint8Array | null) {
    this.#machine = machine;
    this.#memory = machine.memory;
    this.#device = machine.device;
    if (machine.memory.lengthBytes < NIC_GUEST_MIN_BYTES)
      throw new KernelError(
        "EINVAL",
        "boot",
        `the guest needs ${formatBytes(NIC_GUEST_MIN_BYTES)} of memory or more`,
      );
    this.#descriptors = ringSize(machine.memory.lengthBytes);
    if (registers === null) {
      this.#macLow = this.#device.read32(E1000_RAL0);
      this.#macHigh = this.#device.read32(E1000_RAH0);
    } else {
      const r = readRegisters(registers, this.#descriptors);
      this.#next = r.next;
      this.#macLow = r.macLow;
      this.#macHigh = r.macHigh;
      this.#expected = r.expected;
      this.#received = r.received;
      this.#lost = r.lost;
      this.#corrupt = r.corrupt;
      this.#hash = r.hash;
      this.#phase = PHASES[r.phase];
      this.#dirtied = r.dirtied;
      this.#dirtyErrors = r.dirtyErrors;
      this.#txNext = r.txNext;
      this.#txOldest = r.txOldest;
      this.#transmitted = r.transmitted;
      this.#credit = r.credit;
      this.#heartbeatSteps = r.heartbeatSteps;
    }
    this.#macAddress = macAddress(this.#macLow, this.#macHigh);
    this.#slotsAddress = alignUp(BUFFERS_ADDRESS + this.#descriptors * BUFFER_BYTES, 4 * KIB);
    const room = machine.memory.lengthBytes - this.#slotsAddress;
    this.#slotStride = Math.floor(room / SLOTS / SLOT_BYTES) * SLOT_BYTES;
    if (registers === null) this.#boot();
  }

  get nicId(): number {
    // The last byte of its address numbers the NIC on its machine, and so in its frames.
    return this.#macAddress[5];
  }

  get isAtRest(): boolean {
    return this.#phase === "atRest";
  }

  get counters(): GuestCounters {
    return {
      received: this.#received,
      lost: this.#lost,
      corrupt: this.#corrupt,
      transmitted: this.#transmitted,
      dirtied: this.#dirtied,
    };
  }

  step(): boolean {
    const received = this.#receive();
    const returned = this.#reclaim();
    if (this.#phase !== "running") return this.#comeToRest(received) || returned > 0;
    const sent = this.#transmit(received);
    for (let i = 0; i < SLOTS_PER_STEP; i++) this.#dirty();
    return received > 0 || returned > 0 || sent > 0;
  }

  save(): Uint8Array {
    const registers = new Uint8Array(REGISTERS.sizeBytes);
    REGISTERS.write(new ByteWords(registers), 0, {
      version: REGISTERS_VERSION,
      descriptors: this.#descriptors,
      next: this.#next,
      macLow: this.#macLow,
      macHigh: this.#macHigh,
      expected: this.#expected,
      received: this.#received,
      lost: this.#lost,
      corrupt: this.#corrupt,
      hash: this.#hash,
      phase: PHASES.indexOf(this.#phase),
      dirtied: this.#dirtied,
      dirtyErrors: this.#dirtyErrors,
      txNext: this.#txNext,
      txOldest: this.#txOldest,
      transmitted: this.#transmitted,
      credit: this.#credit,
      heartbeatSteps: this.#heartbeatSteps,
    });
    return registers;
  }

  audit(): readonly string[] {
    const problems: string[] = [];
    let generations = 0;
    for (let slot = 0; slot < SLOTS; slot++) {
      const generation = this.#checkSlot(slot);
      if (generation < 0) problems.push(`slot ${slot} is torn or overwritten`);
      else generations += generation;
    }
    if (generations !== this.#dirtied)
      problems.push(`the slots hold ${generations} of ${this.#dirtied} writes`);
    if (this.#dirtyErrors > 0) problems.push(`${this.#dirtyErrors} slots were found wrong`);
    return problems;
  }

  shutDown(): void {
    if (this.#phase === "running") this.#phase = "draining";
  }

  #boot(): void {
    for (let slot = 0; slot < SLOTS; slot++) this.#writeSlot(slot, 0);
    for (let i = 0; i < this.#descriptors; i++) this.#initDescriptor(i);
    for (let i = 0; i < TX_DESCRIPTORS; i++) this.#initTxDescriptor(i);
    const device = this.#device;
    const ringBytes = this.#descriptors * E1000_DESCRIPTOR_BYTES;
    const ring = this.#machine.dmaAddress(RING_ADDRESS, ringBytes);
    device.write32(E1000_RDBAL, ring % 2 ** 32);
    device.write32(E1000_RDBAH, Math.floor(ring / 2 ** 32));
    device.write32(E1000_RDLEN, ringBytes);
    device.write32(E1000_RDH, 0);
    // Head == tail is an empty ring, so one descriptor always stays ours.
    device.write32(E1000_RDT, this.#descriptors - 1);
    const txRingBytes = TX_DESCRIPTORS * E1000_DESCRIPTOR_BYTES;
    const txRing = this.#machine.dmaAddress(TX_RING_ADDRESS, txRingBytes);
    device.write32(E1000_TDBAL, txRing % 2 ** 32);
    device.write32(E1000_TDBAH, Math.floor(txRing / 2 ** 32));
    device.write32(E1000_TDLEN, txRingBytes);
    device.write32(E1000_TDH, 0);
    device.write32(E1000_TDT, 0);
    device.write32(
      E1000_TCTL,
      E1000_TCTL_EN | E1000_TCTL_PSP | (15 << E1000_TCTL_CT_SHIFT) | (63 << E1000_TCTL_COLD_SHIFT),
    );
    device.write32(E1000_IMS, E1000_ICR_RXT0 | E1000_ICR_RXO);
    device.write32(E1000_RCTL, E1000_RCTL_EN | E1000_RCTL_UPE | E1000_RCTL_BAM | E1000_RCTL_SECRC);
    device.write32(E1000_CTRL, device.read32(E1000_CTRL) | E1000_CTRL_SLU);
  }

  /** One step towards rest. @returns whether there was work */
  #comeToRest(received: number): boolean {
    switch (this.#phase) {
      case "draining":
        if (this.#txOldest !== this.#txNext) return received > 0;
        this.#device.write32(E1000_CTRL, this.#device.read32(E1000_CTRL) & ~E1000_CTRL_SLU);
        // QEMU's link is up whatever SLU says.
        this.#device.write32(E1000_RCTL, this.#device.read32(E1000_RCTL) & ~E1000_RCTL_EN);
        this.#phase = "linkDown";
        return true;
      case "linkDown":
        // What came before is in memory: the register's write was behind it.
        if (received === 0) this.#phase = "atRest";
        return received > 0;
      default:
        return received > 0;
    }
  }

  /** Takes what has arrived, at most {@link FRAMES_PER_STEP} frames. */
  #receive(): number {
    let frames = 0;
    while (frames < FRAMES_PER_STEP) {
      const descriptor = RING_ADDRESS + this.#next * E1000_DESCRIPTOR_BYTES;
      // The atomic load orders everything after it: the device set DD last.
      const status = this.#memory.load32(descriptor + 12) & 0xff;
      if ((status & E1000_RXD_STAT_DD) === 0) break;
      const lengthBytes = this.#memory.get32(descriptor + 8) & 0xffff;
      this.#check(BUFFERS_ADDRESS + this.#next * BUFFER_BYTES, lengthBytes, status);
      this.#recycle(this.#next);
      this.#next = (this.#next + 1) % this.#descriptors;
      frames++;
    }
    if (frames > 0) {
      // Reading the causes acknowledges them, but not in every mode of every device; writing them back does. The ring
      // was looked at before, so what came in between is found by the next step, which `true` asks for.
      const causes = this.#device.read32(E1000_ICR);
      if (causes !== 0) this.#device.write32(E1000_ICR, causes);
      // With reception off none are wanted back: QEMU would take a move of the tail for room, and drop a frame.
      if (this.#phase === "running" || this.#phase === "draining") {
        const tail = (this.#next + this.#descriptors - 1) % this.#descriptors;
        this.#device.write32(E1000_RDT, tail);
      }
    }
    return frames;
  }

  #check(address: number, lengthBytes: number, status: number): void {
    const whole = (status & E1000_RXD_STAT_EOP) !== 0 && lengthBytes <= BUFFER_BYTES;
    const frame = this.#memory.bytes(address, whole ? lengthBytes : 0);
    if (!whole || verifyTestFrame(frame, 0, lengthBytes, this.nicId) !== "") {
      this.#corrupt++;
      return;
    }
    const sequence = testFrameSequence(frame, 0);
    this.#received++;
    if (sequence < this.#expected) {
      // A frame that was here before: its buffer was not written, or it was delivered twice.
      this.#corrupt++;
      return;
    }
    this.#lost += sequence - this.#expected;
    this.#expected = sequence + 1;
    const last = new ByteWords(frame).load32(lengthBytes - 4);
    this.#hash = Math.imul(this.#hash ^ last, 0x01000193) >>> 0;
  }

  /** Fills in a descriptor; the device leaves the buffer's address alone, so once is enough. */
  #initDescriptor(index: number): void {
    const buffer = this.#machine.dmaAddress(BUFFERS_ADDRESS + index * BUFFER_BYTES, BUFFER_BYTES);
    const descriptor = RING_ADDRESS + index * E1000_DESCRIPTOR_BYTES;
    this.#memory.set32(descriptor, buffer % 2 ** 32);
    this.#memory.set32(descriptor + 4, Math.floor(buffer / 2 ** 32));
    this.#recycle(index);
  }

  #recycle(index: number): void {
    const descriptor = RING_ADDRESS + index * E1000_DESCRIPTOR_BYTES;
    this.#memory.set32(descriptor + 8, 0);
    // DD goes before the tail register is written: the device owns the descriptor only then.
    this.#memory.store32(descriptor + 12, 0);
  }

  /** Takes back descriptors whose frames were sent, in the ring's order. @returns how many */
  #reclaim(): number {
    let returned = 0;
    while (this.#txOldest !== this.#txNext) {
      const status = TX_RING_ADDRESS + this.#txOldest * E1000_DESCRIPTOR_BYTES + E1000_TXD_STATUS;
      if ((this.#memory.load32(status) & E1000_TXD_STAT_DD) === 0) break;
      this.#txOldest = (this.#txOldest + 1) % TX_DESCRIPTORS;
      returned++;
    }
    return returned;
  }

  /** Sends what the frames received and the heartbeat allow. @returns how many */
  #transmit(received: number): number {
    this.#credit += received;
    if (--this.#heartbeatSteps === 0) {
      this.#heartbeatSteps = HEARTBEAT_STEPS;
      this.#credit += RECEIVED_PER_TRANSMIT;
    }
    this.#credit = Math.min(this.#credit, CREDIT_MAX);
    let sent = 0;
    while (this.#credit >= RECEIVED_PER_TRANSMIT && sent < TRANSMITS_PER_STEP) {
      const after = (this.#txNext + 1) % TX_DESCRIPTORS;
      // Head == tail is an empty ring, so one descriptor always stays unused.
      if (after === this.#txOldest) break;
      this.#fillTxDescriptor(this.#txNext);
      this.#txNext = after;
      this.#credit -= RECEIVED_PER_TRANSMIT;
      sent++;
    }
    if (sent > 0) this.#device.write32(E1000_TDT, this.#txNext);
    return sent;
  }

  #fillTxDescriptor(index: number): void {
    const sequence = this.#transmitted++;
    const frame = new Uint8Array(transmitFrameBytes(sequence));
    encodeTestFrame(frame, DESTINATION_ADDRESS, this.#macAddress, this.nicId, sequence);
    this.#memory.write(TX_BUFFERS_ADDRESS + index * BUFFER_BYTES, frame);
    const descriptor = TX_RING_ADDRESS + index * E1000_DESCRIPTOR_BYTES;
    const command = E1000_TXD_CMD_EOP | E1000_TXD_CMD_IFCS | E1000_TXD_CMD_RS;
    this.#memory.set32(descriptor + E1000_TXD_LENGTH, (command << 24) | frame.length);
    // Stored after the frame, before the tail register: the device owns the descriptor only then.
    this.#memory.store32(descriptor + E1000_TXD_STATUS, 0);
  }

  #initTxDescriptor(index: number): void {
    const buffer = this.#machine.dmaAddress(
      TX_BUFFERS_ADDRESS + index * BUFFER_BYTES,
      BUFFER_BYTES,
    );
    const descriptor = TX_RING_ADDRESS + index * E1000_DESCRIPTOR_BYTES;
    this.#memory.set32(descriptor, buffer % 2 ** 32);
    this.#memory.set32(descriptor + 4, Math.floor(buffer / 2 ** 32));
    this.#memory.set32(descriptor + E1000_TXD_LENGTH, 0);
    this.#memory.store32(descriptor + E1000_TXD_STATUS, 0);
  }

  /** Checks one slot and writes it anew. The choice depends only on how many were written. */
  #dirty(): void {
    const slot = mix(this.#dirtied & 0xffffffff, 0x5bd1e995) % SLOTS;
    const generation = this.#checkSlot(slot);
    if (generation < 0) this.#dirtyErrors++;
    else {
      this.#writeSlot(slot, generation + 1);
      this.#dirtied++;
    }
  }

  #slotAddress(slot: number): number {
    return this.#slotsAddress + slot * this.#slotStride;
  }

  #writeSlot(slot: number, generation: number): void {
    const at = this.#slotAddress(slot);
    this.#memory.set32(at, slot);
    this.#memory.set32(at + 4, generation);
    this.#memory.set32(at + 8, mix(slot, generation));
    this.#memory.set32(at + 12, ~generation >>> 0);
  }

  /** The generation of a slot that is intact, otherwise -1. */
  #checkSlot(slot: number): number {
    const at = this.#slotAddress(slot);
    const generation = this.#memory.get32(at + 4);
    const intact =
      this.#memory.get32(at) === slot &&
      this.#memory.get32(at + 8) === mix(slot, generation) &&
      this.#memory.get32(at + 12) === ~generation >>> 0;
    return intact ? generation : -1;
  }
}

/** @throws {KernelError} EIO when they are not what `save` returned for as much memory */
function readRegisters(registers: Uint8Array, descriptors: number) {
  if (registers.length !== REGISTERS.sizeBytes)
    throw new KernelError("EIO", "restore", `${registers.length} bytes of guest registers`);
  const r = REGISTERS.read(new ByteWords(registers), 0);
  if (r.version !== REGISTERS_VERSION)
    throw new KernelError("EIO", "restore", `guest registers of version ${r.version}`);
  const isSane =
    r.descriptors === descriptors &&
    r.next < descriptors &&
    r.txNext < TX_DESCRIPTORS &&
    r.txOldest < TX_DESCRIPTORS &&
    r.phase < PHASES.length &&
    r.credit <= CREDIT_MAX &&
    r.heartbeatSteps >= 1 &&
    r.heartbeatSteps <= HEARTBEAT_STEPS;
  if (!isSane) throw new KernelError("EIO", "restore", "guest registers of another machine");
  return r;
}

function macAddress(low: number, high: number): Uint8Array {
  return Uint8Array.of(low, low >>> 8, low >>> 16, low >>> 24, high, high >>> 8);
}

/** All lengths that a test frame can have, in an order that repeats late. */
function transmitFrameBytes(sequence: number): number {
  const lengths = TEST_FRAME_MAX_BYTES - TEST_FRAME_MIN_BYTES + 1;
  return TEST_FRAME_MIN_BYTES + (mix(sequence & 0xffffffff, 0x2545f491) % lengths);
}

/** Buffers take at most a quarter of memory. */
function ringSize(memoryBytes: number): number {
  let descriptors = MIN_DESCRIPTORS;
  while (descriptors < MAX_DESCRIPTORS && 2 * descriptors * BUFFER_BYTES <= memoryBytes / 4)
    descriptors *= 2;
  return descriptors;
}

function mix(a: number, b: number): number {
  let x = Math.imul(a ^ 0x9e3779b9, 0x85ebca6b) ^ b;
  x = Math.imul(x ^ (x >>> 15), 0xc2b2ae35);
  return (x ^ (x >>> 13)) >>> 0;
}
