/**
 * The firmware that QEMU's processor runs: it takes interrupts and writes down which, and halts in between.
 *
 * Why: kernels here run outside QEMU, but its devices raise interrupts by MSI writes to a local APIC. So the processor
 * that has it says in RAM what arrived, and a kernel reads that as it reads any interrupt controller.
 * Layout of RAM: {@link INTERRUPT_FLAGS} a byte for each vector, 1 is pending; {@link INTERRUPT_COUNT} u32, of all so
 *   far; {@link BIOS_READY} u32, 1 when interrupts are taken; below, the stack. All of it in firmware's first MiB.
 * Layout of the ROM, 64 KiB below 4 GiB: IDT, GDT, 256 handlers, the way there from the reset vector.
 * Invariant: the flag is set before the count changes, as in the embedded machine's controller.
 * Source: Intel SDM Vol. 3 §9.9.1 (protected mode), §6.11 (IDT), §10.4 (local APIC)
 * @module
 */
import { assert } from "../../base/assert.ts";

const BIOS_PAGE = 0x8000;
export const INTERRUPT_FLAGS = BIOS_PAGE;
export const INTERRUPT_COUNT = BIOS_PAGE + 0x100;
export const BIOS_READY = BIOS_PAGE + 0x104;
const STACK_TOP = BIOS_PAGE;

const ROM_BYTES = 0x1_0000;
const ROM_START = 2 ** 32 - ROM_BYTES;
const VECTORS = 256;
// Offsets in the ROM.
const IDT = 0x0000;
const GDT = 0x0800;
const DESCRIPTORS = 0x0840;
const ENTRY = 0x0900;
const PROTECTED = 0x0a00;
const ACKNOWLEDGE = 0x0b00;
const HANDLERS = 0x1000;
const RESET = 0xfff0;

const CODE_SELECTOR = 0x08;
const DATA_SELECTOR = 0x10;
const HANDLER_BYTES = 16;

const APIC = 0xfee0_0000;
const APIC_EOI = APIC + 0xb0;
/** Software enable, spurious vector 255. */
const APIC_SVR = APIC + 0xf0;
const APIC_SVR_ENABLE = 0x1ff;
const APIC_LVT0 = APIC + 0x350;
const APIC_LVT_MASKED = 0x1_0000;

/** @returns the ROM, for `-bios` */
export function makeBios(): Uint8Array {
  const rom = new Uint8Array(ROM_BYTES);
  const put = (at: number, ...bytes: number[]) => {
    assert(at + bytes.length <= ROM_BYTES, "the ROM holds all of it");
    rom.set(bytes, at);
  };
  for (let vector = 0; vector < VECTORS; vector++) {
    const at = HANDLERS + vector * HANDLER_BYTES;
    put(IDT + 8 * vector, ...interruptGate(ROM_START + at));
    // movb $1, flags + vector; jmp acknowledge
    put(at, 0xc6, 0x05, ...u32(INTERRUPT_FLAGS + vector), 0x01);
    put(at + 7, 0xe9, ...u32(ACKNOWLEDGE - (at + 12)));
  }
  // lock incl count; movl $0, EOI; iret
  put(ACKNOWLEDGE, 0xf0, 0xff, 0x05, ...u32(INTERRUPT_COUNT));
  put(ACKNOWLEDGE + 7, ...storeL(APIC_EOI, 0), 0xcf);

  // Flat 32-bit code and data.
  put(GDT + CODE_SELECTOR, 0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00);
  put(GDT + DATA_SELECTOR, 0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00);
  put(DESCRIPTORS, ...u16(0x17), ...u32(ROM_START + GDT));
  put(DESCRIPTORS + 8, ...u16(8 * VECTORS - 1), ...u32(ROM_START + IDT));

  // 16 bits, CS base is the ROM's start: lgdtl and lidtl from the ROM, protected mode on, far jump.
  put(ENTRY, 0x66, 0x2e, 0x0f, 0x01, 0x16, ...u16(DESCRIPTORS));
  put(ENTRY + 7, 0x66, 0x2e, 0x0f, 0x01, 0x1e, ...u16(DESCRIPTORS + 8));
  put(ENTRY + 14, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0);
  put(ENTRY + 22, 0x66, 0xea, ...u32(ROM_START + PROTECTED), ...u16(CODE_SELECTOR));

  put(PROTECTED, ...startInterrupts());
  // cli; jmp entry
  put(RESET, 0xfa, 0xe9, ...u16(ENTRY - (RESET + 4)));
  return rom;
}

/** 32 bits: data segments, stack, both PICs masked, local APIC on, ready, then halt for ever. */
function startInterrupts(): number[] {
  return [
    ...[0x66, 0xb8, ...u16(DATA_SELECTOR), 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0],
    ...[0xbc, ...u32(STACK_TOP)],
    ...[0xb0, 0xff, 0xe6, 0x21, 0xe6, 0xa1],
    ...storeL(APIC_LVT0, APIC_LVT_MASKED),
    ...storeL(APIC_SVR, APIC_SVR_ENABLE),
    ...storeL(BIOS_READY, 1),
    // sti; hlt; jmp to the hlt
    ...[0xfb, 0xf4, 0xeb, 0xfd],
  ];
}

/** movl $value, address */
function storeL(address: number, value: number): number[] {
  return [0xc7, 0x05, ...u32(address), ...u32(value)];
}

/** Present, ring 0, 32 bits, interrupts off in the handler. */
function interruptGate(handler: number): number[] {
  return [...u16(handler), ...u16(CODE_SELECTOR), 0x00, 0x8e, ...u16(handler >>> 16)];
}

function u16(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff];
}

function u32(value: number): number[] {
  return [...u16(value), ...u16(value >>> 16)];
}
