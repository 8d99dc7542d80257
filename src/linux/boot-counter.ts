/**
 * Counters that a kexec does not reset.
 *
 * The TSC runs from the machine's reset on. Reading it takes the instruction RDTSC, for which no system call stands, so
 * these few bytes of machine code are put into a page of their own.
 * Source: Intel SDM vol. 2 RDTSC, LFENCE; vol. 3 §19.17 (invariant TSC); Linux 7.3 arch/x86/kernel/tsc.c
 * @module
 */
import { existsSync, readFileSync } from "node:fs";
import { withUndo } from "../base/undo.ts";
import { PAGE_SIZE } from "../base/units.ts";
import { type Ffi, MAP_ANONYMOUS, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE } from "./ffi.ts";

const CLOCKSOURCE = "/sys/devices/system/clocksource/clocksource0";

const READ_TSC = new Uint8Array([
  ...[0xf3, 0x0f, 0x1e, 0xfa], // endbr64: it is called through a pointer
  ...[0x0f, 0xae, 0xe8], // lfence: what comes before has been done
  ...[0x0f, 0x31], // rdtsc: edx:eax
  ...[0x48, 0xc1, 0xe2, 0x20], // shl rdx, 32
  ...[0x48, 0x09, 0xd0], // or rax, rdx
  0xc3, // ret
]);

export interface BootCounter {
  /** "realtime" counts nanoseconds. */
  readonly name: "tsc" | "realtime";
  read(): number;
}

/** The counters of this machine, best first. */
export function bootCounters(ffi: Ffi): readonly [BootCounter, ...BootCounter[]] {
  const realtime: BootCounter = { name: "realtime", read: () => ffi.realtimeNs() };
  if (process.arch !== "x64" || !isTscTrusted(describeTsc())) return [realtime];
  return [{ name: "tsc", read: tscReader(ffi) }, realtime];
}

/** What Linux says of the TSC. */
export interface TscDescription {
  /** Clock sources. Linux leaves out a TSC that it has found unstable. */
  readonly available: readonly string[];
  readonly current: string;
  /** Of /proc/cpuinfo. */
  readonly flags: readonly string[];
}

/**
 * Whether the TSC counts at one rate on all processors. It does where Linux itself keeps time by it (an emulated
 * processor may have no flag that says so), and where the processor promises it and Linux has only a better source for
 * guests (kvm-clock).
 */
export function isTscTrusted({ available, current, flags }: TscDescription): boolean {
  if (!available.includes("tsc")) return false;
  return current === "tsc" || (flags.includes("constant_tsc") && flags.includes("nonstop_tsc"));
}

function describeTsc(): TscDescription {
  const text = (path: string) => (existsSync(path) ? readFileSync(path, "utf8") : "");
  return {
    available: text(`${CLOCKSOURCE}/available_clocksource`).trim().split(/\s+/),
    current: text(`${CLOCKSOURCE}/current_clocksource`).trim(),
    flags: (/^flags\s*:(.*)$/m.exec(text("/proc/cpuinfo"))?.[1] ?? "").trim().split(/\s+/),
  };
}

function tscReader(ffi: Ffi): () => number {
  return withUndo((undo) => {
    const flags = MAP_PRIVATE | MAP_ANONYMOUS;
    const address = ffi.mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);
    undo(() => ffi.munmap(address, PAGE_SIZE));
    new Uint8Array(ffi.view(address, READ_TSC.length)).set(READ_TSC);
    ffi.mprotect(address, PAGE_SIZE, PROT_READ | PROT_EXEC);
    return ffi.machineCode(address);
  });
}
