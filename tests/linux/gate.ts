/**
 * A gate at the entry of the kernel that is jumped into: it waits there, before its first instruction, until the test lets
 * it pass.
 *
 * Why: Linux 7.3 writes its sessions into memory in reboot(2) itself (luo_session_serialize), and the next kernel frees
 * their root while it boots (luo_early_startup). Only between the two is the whole handover in memory, and
 * nothing runs there that could be asked to wait. So the image to jump into gets a few instructions before its own: they
 * leave the boot parameters where the test finds them, spin on a word, put back what they replaced, and go on.
 *
 * Layout, from where the 64-bit kernel is loaded (an image that kexec loads is entered at 0x200; what lies before
 * that is its 32-bit entry, which nothing uses here):
 *   0x000 code · 0x100 mark, 16 bytes · 0x110 boot_params · 0x118 word that opens it · 0x120 the 8 bytes of 0x200
 * Source: Linux 7.3 Documentation/arch/x86/boot.rst (64-bit boot protocol, setup_data),
 * arch/x86/include/uapi/asm/setup_data.h (SETUP_KEXEC_KHO, struct kho_data)
 * @module
 */
import assert from "node:assert/strict";
import { closeSync, fstatSync, openSync, readSync, writeSync } from "node:fs";
import { MIB } from "../../src/base/units.ts";

const ENTRY = 0x200;
const MARK_AT = 0x100;
const BOOT_PARAMS_AT = 0x110;
const OPEN_AT = 0x118;
const REPLACED_AT = 0x120;
const MARK = Buffer.from("HOLDFAST'S GATE\0");
/** Kernels are loaded at multiples of at least this (MIN_KERNEL_ALIGN). */
const KERNEL_ALIGNMENT = 2 * MIB;

// struct boot_params, struct setup_data
const SETUP_SECTS = 0x1f1;
const HEADER_MAGIC = 0x202;
const BOOT_PARAMS_SETUP_DATA = 0x250;
const SETUP_KEXEC_KHO = 10;
const SETUP_DATA_MAX = 32;
const SETUP_DATA_BYTES = 16;

/** What the old kernel tells the new one (struct kho_data). */
export interface KhoData {
  /** Where the new one reads this. */
  readonly pa: number;
  readonly fdtAddr: number;
  readonly fdtSize: number;
  readonly scratchAddr: number;
  readonly scratchSize: number;
}

/** @returns a copy of the kernel with the gate before it */
export function withGate(bzImage: Uint8Array): Uint8Array {
  const image = Buffer.from(bzImage);
  assert.equal(image.toString("latin1", HEADER_MAGIC, HEADER_MAGIC + 4), "HdrS", "is a bzImage");
  const start = ((image[SETUP_SECTS] || 4) + 1) * 512;
  const gate = Buffer.alloc(REPLACED_AT + 8);
  image.copy(gate, REPLACED_AT, start + ENTRY, start + ENTRY + 8);
  MARK.copy(gate, MARK_AT);
  gateCode().copy(gate);
  gate.copy(image, start);
  // jmp 0 (relative to what follows it)
  image.writeUInt8(0xe9, start + ENTRY);
  image.writeInt32LE(-(ENTRY + 5), start + ENTRY + 1);
  return image;
}

/** x86-64, position independent, without a stack; %rsi holds boot_params and is kept. */
function gateCode(): Buffer {
  const bytes: number[] = [];
  const relative = (target: number, after = 4) => {
    const offset = Buffer.alloc(4);
    offset.writeInt32LE(target - (bytes.length + after));
    bytes.push(...offset);
  };
  bytes.push(0x48, 0x89, 0x35); // mov %rsi, boot_params(%rip)
  relative(BOOT_PARAMS_AT);
  const spin = bytes.length;
  bytes.push(0x80, 0x3d); // cmpb $0, open(%rip)
  relative(OPEN_AT, 5);
  bytes.push(0x00);
  bytes.push(0x75, 0x04); // jne over the next two
  bytes.push(0xf3, 0x90); // pause
  bytes.push(0xeb, spin - (bytes.length + 2)); // jmp spin
  bytes.push(0x48, 0x8b, 0x05); // mov replaced(%rip), %rax
  relative(REPLACED_AT);
  bytes.push(0x48, 0x89, 0x05); // mov %rax, entry(%rip)
  relative(ENTRY);
  bytes.push(0xe9); // jmp entry
  relative(ENTRY);
  assert(bytes.length <= MARK_AT);
  return Buffer.from(bytes.map((byte) => byte & 0xff));
}

/** Where a kernel waits at the gate; null while none does. */
export function findGate(ram: string): number | null {
  const fd = openSync(ram, "r");
  try {
    const { size } = fstatSync(fd);
    const bytes = Buffer.alloc(OPEN_AT - MARK_AT);
    for (let base = 0; base < size; base += KERNEL_ALIGNMENT) {
      readSync(fd, bytes, 0, bytes.length, base + MARK_AT);
      if (!bytes.subarray(0, MARK.length).equals(MARK)) continue;
      if (bytes.readBigUInt64LE(BOOT_PARAMS_AT - MARK_AT) !== 0n) return base;
    }
    return null;
  } finally {
    closeSync(fd);
  }
}

/** Lets the kernel pass. */
export function openGate(ram: string, gate: number): void {
  const fd = openSync(ram, "r+");
  try {
    writeSync(fd, Uint8Array.of(1), 0, 1, gate + OPEN_AT);
  } finally {
    closeSync(fd);
  }
}

/** Tells the kernel at the gate of another FDT. */
export function writeFdtAddress(ram: string, kho: KhoData, fdtAddr: number, fdtSize: number): void {
  const bytes = Buffer.alloc(16);
  bytes.writeBigUInt64LE(BigInt(fdtAddr));
  bytes.writeBigUInt64LE(BigInt(fdtSize), 8);
  const fd = openSync(ram, "r+");
  try {
    writeSync(fd, bytes, 0, bytes.length, kho.pa);
  } finally {
    closeSync(fd);
  }
}

/** Follows the boot parameters of the kernel at the gate. */
export function readKhoData(ram: string, gate: number): KhoData {
  const fd = openSync(ram, "r");
  const read64 = (pa: number) => {
    const bytes = Buffer.alloc(8);
    assert.equal(readSync(fd, bytes, 0, 8, pa), 8, `${pa} is in RAM`);
    return bytes.readBigUInt64LE();
  };
  const number = (pa: number) => Number(read64(pa));
  try {
    let at = number(number(gate + BOOT_PARAMS_AT) + BOOT_PARAMS_SETUP_DATA);
    for (let i = 0; at !== 0; i++) {
      assert(i < SETUP_DATA_MAX, "the list of setup_data ends");
      // { u64 next; u32 type; u32 len; data }
      if (Number(read64(at + 8) & 0xffff_ffffn) === SETUP_KEXEC_KHO)
        return {
          pa: at + SETUP_DATA_BYTES,
          fdtAddr: number(at + SETUP_DATA_BYTES),
          fdtSize: number(at + SETUP_DATA_BYTES + 8),
          scratchAddr: number(at + SETUP_DATA_BYTES + 16),
          scratchSize: number(at + SETUP_DATA_BYTES + 24),
        };
      at = number(at);
    }
    assert.fail("the boot parameters have no SETUP_KEXEC_KHO");
  } finally {
    closeSync(fd);
  }
}
