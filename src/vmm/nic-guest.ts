/**
 * A guest that drives an Intel 82574L and distrusts everything: it checks each frame's sequence number and payload,
 * keeps a running hash, and keeps writing to other memory, which it checks too.
 *
 * Memory: 0 nothing · {@link RING_ADDRESS} receive ring · {@link BUFFERS_ADDRESS} one buffer of 2 KiB for each
 *   descriptor · from there to the end {@link SLOTS} slots of 16 bytes, evenly spread, that it dirties.
 * Registers: {@link REGISTERS}; the place in the ring, the next sequence number, the counters, the hash.
 * Invariant: a slot holds `{index, generation, mix, ~generation}`, and the generations of all slots add up to the
 *   count of writes: a page that went back in time is found out, even if it is consistent in itself.
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
} from "../abi/e1000e.ts";
import { struct, u32, u64 } from "../abi/struct.ts";
import { testFrameSequence, verifyTestFrame } from "../abi/test-frame.ts";
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
export const SLOTS = 4096;
const SLOT_BYTES = 16;
/** Frames and slots handled in one step. */
const FRAMES_PER_STEP = 256;
const SLOTS_PER_STEP = 4;

/** The least memory that this guest boots in. */
export const NIC_GUEST_MIN_BYTES = 8 * MIB;

const REGISTERS_VERSION = 1;
/** What `save` returns. */
const REGISTERS = struct("nic_guest_registers", {
  version: u32,
  /** Descriptors in the ring. */
  descriptors: u32,
  /** Index of the next descriptor to look at. */
  next: u32,
  nicId: u32,
  expected: u64,
  received: u64,
  lost: u64,
  corrupt: u64,
  hash: u32,
  shuttingDown: u32,
  dirtied: u64,
  dirtyErrors: u64,
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
  readonly #nicId: number;
  #next = 0;
  #expected = 0;
  #received = 0;
  #lost = 0;
  #corrupt = 0;
  #hash = 0x811c9dc5;
  #dirtied = 0;
  #dirtyErrors = 0;
  #shuttingDown = false;

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
    if (registers === null) {
      this.#descriptors = ringSize(machine.memory.lengthBytes);
      // The last byte of its address numbers the NIC on its machine, and so in its frames.
      this.#nicId = (this.#device.read32(E1000_RAH0) >>> 8) & 0xff;
    } else {
      if (registers.length !== REGISTERS.sizeBytes)
        throw new KernelError("EIO", "restore", `${registers.length} bytes of guest registers`);
      const r = REGISTERS.read(new ByteWords(registers), 0);
      if (r.version !== REGISTERS_VERSION)
        throw new KernelError("EIO", "restore", `guest registers of version ${r.version}`);
      this.#descriptors = r.descriptors;
      this.#next = r.next;
      this.#nicId = r.nicId;
      this.#expected = r.expected;
      this.#received = r.received;
      this.#lost = r.lost;
      this.#corrupt = r.corrupt;
      this.#hash = r.hash;
      this.#shuttingDown = r.shuttingDown !== 0;
      this.#dirtied = r.dirtied;
      this.#dirtyErrors = r.dirtyErrors;
    }
    this.#slotsAddress = alignUp(BUFFERS_ADDRESS + this.#descriptors * BUFFER_BYTES, 4 * KIB);
    const room = machine.memory.lengthBytes - this.#slotsAddress;
    this.#slotStride = Math.floor(room / SLOTS / SLOT_BYTES) * SLOT_BYTES;
    if (registers === null) this.#boot();
  }

  get nicId(): number {
    return this.#nicId;
  }

  get counters(): GuestCounters {
    return {
      received: this.#received,
      lost: this.#lost,
      corrupt: this.#corrupt,
      dirtied: this.#dirtied,
    };
  }

  step(): boolean {
    const frames = this.#receive();
    if (!this.#shuttingDown) for (let i = 0; i < SLOTS_PER_STEP; i++) this.#dirty();
    return frames > 0;
  }

  save(): Uint8Array {
    const registers = new Uint8Array(REGISTERS.sizeBytes);
    REGISTERS.write(new ByteWords(registers), 0, {
      version: REGISTERS_VERSION,
      descriptors: this.#descriptors,
      next: this.#next,
      nicId: this.#nicId,
      expected: this.#expected,
      received: this.#received,
      lost: this.#lost,
      corrupt: this.#corrupt,
      hash: this.#hash,
      shuttingDown: this.#shuttingDown ? 1 : 0,
      dirtied: this.#dirtied,
      dirtyErrors: this.#dirtyErrors,
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
    this.#shuttingDown = true;
    // The link goes down first: what was sent before is in memory or in the ring's order to come.
    this.#device.write32(E1000_CTRL, this.#device.read32(E1000_CTRL) & ~E1000_CTRL_SLU);
  }

  #boot(): void {
    for (let slot = 0; slot < SLOTS; slot++) this.#writeSlot(slot, 0);
    for (let i = 0; i < this.#descriptors; i++) this.#initDescriptor(i);
    const ringBytes = this.#descriptors * E1000_DESCRIPTOR_BYTES;
    const ring = this.#machine.dmaAddress(RING_ADDRESS, ringBytes);
    const device = this.#device;
    device.write32(E1000_RDBAL, ring % 2 ** 32);
    device.write32(E1000_RDBAH, Math.floor(ring / 2 ** 32));
    device.write32(E1000_RDLEN, ringBytes);
    device.write32(E1000_RDH, 0);
    // Head == tail is an empty ring, so one descriptor always stays ours.
    device.write32(E1000_RDT, this.#descriptors - 1);
    device.write32(E1000_IMS, E1000_ICR_RXT0 | E1000_ICR_RXO);
    device.write32(E1000_RCTL, E1000_RCTL_EN | E1000_RCTL_UPE | E1000_RCTL_BAM | E1000_RCTL_SECRC);
    device.write32(E1000_CTRL, device.read32(E1000_CTRL) | E1000_CTRL_SLU);
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
      // Reading the cause acknowledges the interrupt; the ring was looked at before, so look again next step.
      this.#device.read32(E1000_ICR);
      const tail = (this.#next + this.#descriptors - 1) % this.#descriptors;
      this.#device.write32(E1000_RDT, tail);
    }
    return frames;
  }

  #check(address: number, lengthBytes: number, status: number): void {
    const whole = (status & E1000_RXD_STAT_EOP) !== 0 && lengthBytes <= BUFFER_BYTES;
    const frame = this.#memory.bytes(address, whole ? lengthBytes : 0);
    if (!whole || verifyTestFrame(frame, 0, lengthBytes, this.#nicId) !== "") {
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
