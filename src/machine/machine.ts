/**
 * What a kernel may touch: the first of the four boundaries (docs/architecture.md).
 *
 * Physical memory, MMIO, interrupts, a firmware description, a clock, a serial line, and kexec;
 * nothing else. All of it is synchronous, as it is for a real driver: where the transport is not
 * (another thread, a socket), the proxy blocks.
 * Lifecycle: a kernel gets a Machine and {@link BootParameters} at its entry and never returns: it
 * ends in `kexec.execute()` or `powerOff()`. No object survives that; only memory and devices do.
 * @module
 */

import type { WordReader, WordWriter } from "../abi/words.ts";

/** A kernel's way to everything outside itself. */
export interface Machine {
  readonly memory: PhysicalMemory;
  readonly mmio: Mmio;
  readonly interrupts: Interrupts;
  readonly firmware: Firmware;
  readonly clock: Clock;
  readonly serial: Serial;
  readonly kexec: Kexec;
  /** Ends the kernel and the machine. `status` 0 means success. */
  powerOff(status: number): never;
}

/**
 * System RAM. Addresses are physical, in bytes, up to 2^52; they need not be contiguous (holes).
 *
 * Every access must lie in RAM, be aligned to its own size and not cross a 1 GiB boundary; anything
 * else is a bug of the caller ({@link BugError}), so check untrusted addresses with `contains` first.
 * 64-bit words are two 32-bit halves. What hardware may read at the same time is stored by
 * `publish64`, `retract64`, `exchange64` or `publishRun64`, whose order of stores is stated.
 */
export interface PhysicalMemory extends WordReader, WordWriter {
  /** RAM, sorted by address, not adjacent to one another. */
  readonly ranges: readonly MemoryRange[];
  /** Whether `lengthBytes` bytes from `pa` all lie in RAM. Safe on any number, NaN and negative ones too. */
  contains(pa: number, lengthBytes: number): boolean;

  /**
   * 32 bits, unsigned, that hardware or another thread may be storing: for who polls a word, or reads an entry that is
   * published meanwhile. It is really read each time, before every load after it. `load32` and its siblings
   * promise neither; they are for words that nobody else stores.
   */
  loadOrdered32(pa: number): number;

  /** An entry appears: high half first, then the low half with the present bit. */
  publish64(pa: number, low: number, high: number): void;
  /** An entry goes: low half (with the present bit) to 0 first, then the high half. */
  retract64(pa: number): void;
  /** A live 64-bit entry changes in one piece: one atomic 64-bit store. */
  exchange64(pa: number, low: number, high: number): void;
  /**
   * `count` entries appear from `pa` on: entry i is {high:low} + i · strideBytes (a power of two of at
   * least 4 KiB). All high halves are stored first, then a fence, then all low halves, so that no reader
   * sees an entry present with half an address. The run may not cross a 4 KiB boundary.
   */
  publishRun64(pa: number, count: number, low: number, high: number, strideBytes: number): void;
  /** The same entries, in any order and without a fence: for a table that nobody can reach yet. */
  storeRun64(pa: number, count: number, low: number, high: number, strideBytes: number): void;
  /** `count` entries go from `pa` on: all low halves to 0 first, then a fence, then the high halves. */
  retractRun64(pa: number, count: number): void;
  /** Orders all stores before it against all after it, as seen by devices and other threads. */
  fence(): void;

  /** Sets bytes to `value`. May cross 1 GiB boundaries. */
  fill(pa: number, lengthBytes: number, value: number): void;
  /** Copies into memory. May cross 1 GiB boundaries. */
  write(pa: number, bytes: Uint8Array): void;
  /** Copies out of memory into `target`. May cross 1 GiB boundaries. */
  read(pa: number, target: Uint8Array): void;
  /**
   * The memory itself, shared: for userspace mappings of guest memory, never for kernel structures (its
   * stores are not seen by the deterministic scheduler). Must not cross a 1 GiB boundary.
   */
  view(pa: number, lengthBytes: number): Uint8Array<SharedArrayBuffer>;
}

/** A half-open range of physical addresses. */
export interface MemoryRange {
  readonly start: number;
  readonly lengthBytes: number;
}

/** Memory-mapped registers: device BARs, ECAM, DRHD registers. Each access is one bus transaction. */
export interface Mmio {
  /** Reads `size` bytes (1, 2 or 4), aligned. Nothing there: all ones, as on PCI. */
  read(pa: number, size: 1 | 2 | 4): number;
  /** Writes `size` bytes (1, 2 or 4), aligned. Nothing there: ignored. */
  write(pa: number, size: 1 | 2 | 4, value: number): void;
}

/**
 * The interrupt controller: 256 vectors, each pending or not. It is hardware, so what is pending at a
 * kexec is still pending in the next kernel. A device raises vector v by an MSI write of v to 0xfee00000.
 */
export interface Interrupts {
  /** Takes vector `vector` if it is pending: returns whether it was, and clears it. */
  take(vector: number): boolean;
  /** Halts until any interrupt is pending or `timeoutNs` has passed. Devices run meanwhile. */
  wait(timeoutNs: number): void;
}

/** Time that goes on through a kexec. */
export interface Clock {
  /** Nanoseconds since some fixed point, never decreasing. */
  nowNs(): number;
}

/** The serial line: the only way for text. Each call is one line, without its newline. */
export interface Serial {
  writeLine(line: string): void;
  /** Takes the next line that has come; null while none has. Lines wait in hardware, also through a kexec. */
  readLine(): string | null;
}

/** What firmware tells: fixed as long as the machine is powered. */
export interface Firmware {
  /** RAM by NUMA node, sorted by address. A node may have several ranges. */
  readonly memory: readonly FirmwareMemory[];
  /** Number of NUMA nodes, at least 1. */
  readonly nodeCount: number;
  /** DMA remapping hardware units; each covers one PCI segment group as a whole (INCLUDE_PCI_ALL). */
  readonly drhds: readonly Drhd[];
  /** Memory that a device uses by DMA with firmware's knowledge; it must stay identity mapped for it. */
  readonly rmrrs: readonly Rmrr[];
  /** ECAM windows: one for each PCI segment group. */
  readonly ecams: readonly Ecam[];
  /** Windows of physical addresses from which BARs are assigned, one for each segment group. */
  readonly mmioWindows: readonly (MemoryRange & { readonly segment: number })[];
}

export interface FirmwareMemory extends MemoryRange {
  readonly node: number;
}

export interface Drhd {
  readonly segment: number;
  /** Physical address of its 4 KiB register page. */
  readonly registerBase: number;
}

export interface Rmrr extends MemoryRange {
  readonly segment: number;
  readonly bdf: number;
}

export interface Ecam {
  readonly segment: number;
  readonly base: number;
  readonly startBus: number;
  /** Inclusive. */
  readonly lastBus: number;
}

/** The jump into another kernel. */
export interface Kexec {
  /** Images on the machine's boot disk. */
  readonly installed: readonly KernelImage[];
  /**
   * Loads code so that `execute` is quick; may be called again to replace it, with null to unload.
   * @throws {KernelError} ENOENT when the image's entry does not exist
   */
  load(image: KernelImage | null): void;
  /**
   * Ends this kernel at once and enters the loaded image. Every page that is neither preserved (by the KHO
   * tree that `parameters` names) nor scratch is scribbled over. Devices run on.
   */
  execute(parameters: BootParameters): never;
}

/** A kernel image: where its code is, and its manifest. */
export interface KernelImage {
  /** File name on the boot disk, as "vmlinuz-0.1.0". */
  readonly name: string;
  /** URL of a module that exports `start(machine: Machine, parameters: BootParameters): never`. */
  readonly entry: string;
  /** The kernel's release, as uname -r. At most 64 bytes. */
  readonly release: string;
  /** `compatible` strings of everything that this kernel can restore. */
  readonly restores: readonly string[];
}

/** All that a kernel learns from the one before it, as Linux's boot_params and setup_data say it. */
export interface BootParameters {
  readonly commandLine: string;
  /** Absent on a cold boot. Untrusted. */
  readonly kho: KhoBootParameters | null;
}

/** Source: Linux 7.3 arch/x86/include/uapi/asm/setup_data.h struct kho_data. */
export interface KhoBootParameters {
  readonly fdtAddress: number;
  readonly fdtSizeBytes: number;
  /** Physical address of an array of {u64 address, u64 size}, one for each scratch area. */
  readonly scratchAddress: number;
  readonly scratchSizeBytes: number;
}

/** What the module of a {@link KernelImage} exports. */
export interface KernelModule {
  start(machine: Machine, parameters: BootParameters): never;
  /**
   * Called between load and jump, if there is one, in the thread that `start` will have: for what may be done before
   * there is a machine. It sees none, so it can only get the code itself ready.
   * @param isWanted - whether the jump has come and waits: then it returns at once
   */
  prepare?(isWanted: () => boolean): void;
}
