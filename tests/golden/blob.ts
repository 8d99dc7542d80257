/**
 * A golden handover: what one kernel has left, as it lay in memory, with the registers of the hardware around it.
 *
 * Why registers: a handover is compared with the hardware. Replayed on a fresh machine they make it what the handover
 * says: bus numbers, BARs, commands and interrupts of all functions, and where the remapping units find their tables.
 * Layout, gzipped: u32 bytes of the JSON, the JSON ({@link Golden}), then the pages that it lists, 4 KiB each. Pages
 * of zeros and pages that were not handed over are not in it.
 * @module
 */
import assert from "node:assert/strict";
import { gunzipSync, gzipSync } from "node:zlib";
import {
  PCI_BASE_ADDRESS_0,
  PCI_CAP_ID_MSI,
  PCI_CAPABILITY_LIST,
  PCI_COMMAND,
  PCI_HEADER_TYPE,
  PCI_HEADER_TYPE_BRIDGE,
  PCI_HEADER_TYPE_MASK,
  PCI_MEMORY_BASE,
  PCI_PREF_BASE_UPPER32,
  PCI_PREF_LIMIT_UPPER32,
  PCI_PREF_MEMORY_BASE,
  PCI_PRIMARY_BUS,
  PCI_SECONDARY_BUS,
} from "../../src/abi/pci.ts";
import {
  GCMD_REG,
  GCMD_SRTP,
  GCMD_TE,
  GSTS_REG,
  GSTS_TES,
  RTADDR_REG,
} from "../../src/abi/vtd/registers.ts";
import { PAGE_SIZE } from "../../src/base/units.ts";
import type { MachineConfig } from "../../src/machine/embedded/config.ts";
import type { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import { keptRanges } from "../../src/machine/embedded/kexec-kept.ts";
import type { BootParameters, Mmio } from "../../src/machine/machine.ts";

/** Config space of one function: the first 256 bytes, as 64 dwords. */
export interface GoldenFunction {
  readonly segment: number;
  readonly bdf: number;
  readonly config: readonly number[];
}

/** What a test must find again. */
export interface GoldenContents {
  readonly release: string;
  /** `compatible` strings in the handover. */
  readonly formats: readonly string[];
  readonly vm: {
    readonly name: string;
    readonly memoryBytes: number;
    /** SHA-256 of its memory file. */
    readonly sha256: string;
    /** Of its guest. */
    readonly received: number;
    readonly dirtied: number;
  };
  /** Another file: path below the mount point, and its text. */
  readonly file: { readonly path: string; readonly text: string };
}

/** All but the pages. */
export interface Golden {
  /** How it was made. */
  readonly note: string;
  readonly config: MachineConfig;
  readonly parameters: BootParameters;
  readonly functions: readonly GoldenFunction[];
  /** Low halves of RTADDR, by segment; 0: translation is off. */
  readonly rootTables: readonly number[];
  readonly contents: GoldenContents;
  /** Physical addresses, ascending. */
  readonly pages: readonly number[];
}

const CONFIG_DWORDS = 64;

/** Takes a machine in its jump down. */
export function captureGolden(
  machine: DeterministicMachine,
  config: MachineConfig,
  parameters: BootParameters,
  note: string,
  contents: GoldenContents,
): Uint8Array {
  const { mmio } = machine.hardware;
  const addresses: number[] = [];
  const pages: Uint8Array[] = [];
  for (const { start, lengthBytes } of keptRanges(machine.ram, parameters.kho).ranges)
    for (let pa = start; pa < start + lengthBytes; pa += PAGE_SIZE) {
      const page = new Uint8Array(PAGE_SIZE);
      machine.ram.read(pa, page);
      if (page.every((byte) => byte === 0)) continue;
      addresses.push(pa);
      pages.push(page);
    }
  const golden: Golden = {
    note,
    // The wire falls silent: its frames begin anew with each machine.
    config: JSON.parse(
      JSON.stringify(config, (key, value) => (key === "framesPerSecond" ? 0 : value)),
    ) as MachineConfig,
    parameters,
    functions: readFunctions(machine),
    rootTables: machine.firmware.drhds.map(({ registerBase }) =>
      (mmio.read(registerBase + GSTS_REG, 4) & GSTS_TES) === 0
        ? 0
        : mmio.read(registerBase + RTADDR_REG, 4),
    ),
    contents,
    pages: addresses,
  };
  const json = Buffer.from(JSON.stringify(golden));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(json.length);
  return gzipSync(Buffer.concat([length, json, ...pages]), { level: 9 });
}

/** Reads a blob. */
export function readGolden(blob: Uint8Array): { golden: Golden; pages: readonly Uint8Array[] } {
  const bytes = gunzipSync(blob);
  const jsonEnd = 4 + bytes.readUInt32LE(0);
  const golden = JSON.parse(bytes.subarray(4, jsonEnd).toString()) as Golden;
  assert.equal(bytes.length, jsonEnd + golden.pages.length * PAGE_SIZE, "all pages are there");
  const pages = golden.pages.map((_, i) =>
    bytes.subarray(jsonEnd + i * PAGE_SIZE, jsonEnd + (i + 1) * PAGE_SIZE),
  );
  return { golden, pages };
}

/** Makes a fresh machine of the blob's configuration what the handover says. */
export function replayGolden(
  machine: DeterministicMachine,
  golden: Golden,
  pages: readonly Uint8Array[],
): void {
  const { mmio } = machine.hardware;
  for (const [i, pa] of golden.pages.entries()) machine.ram.write(pa, pages[i]);
  // A function behind a bridge answers once its bridge has bus numbers: in ascending order they come first.
  for (const one of golden.functions) replayFunction(mmio, configAddress(machine, one), one.config);
  for (const [segment, rootTable] of golden.rootTables.entries()) {
    if (rootTable === 0) continue;
    const { registerBase } = machine.firmware.drhds[segment];
    mmio.write(registerBase + RTADDR_REG, 4, rootTable);
    mmio.write(registerBase + GCMD_REG, 4, GCMD_SRTP);
    mmio.write(registerBase + GCMD_REG, 4, GCMD_TE);
  }
  assert.deepEqual(readFunctions(machine), golden.functions, "all functions are as they were");
}

function replayFunction(mmio: Mmio, base: number, config: readonly number[]): void {
  const copy = (offset: number) => mmio.write(base + offset, 4, config[offset / 4]);
  const byte = (offset: number) => (config[offset >> 2] >>> (8 * (offset & 3))) & 0xff;
  const isBridge = (byte(PCI_HEADER_TYPE) & PCI_HEADER_TYPE_MASK) === PCI_HEADER_TYPE_BRIDGE;
  for (let i = 0; i < (isBridge ? 2 : 6); i++) copy(PCI_BASE_ADDRESS_0 + 4 * i);
  if (isBridge) {
    for (let at = PCI_PRIMARY_BUS; at <= PCI_SECONDARY_BUS + 1; at++)
      mmio.write(base + at, 1, byte(at));
    for (const at of [
      PCI_MEMORY_BASE,
      PCI_PREF_MEMORY_BASE,
      PCI_PREF_BASE_UPPER32,
      PCI_PREF_LIMIT_UPPER32,
    ])
      copy(at);
  }
  for (let at = byte(PCI_CAPABILITY_LIST); at !== 0; at = byte(at + 1)) {
    if (byte(at) !== PCI_CAP_ID_MSI) continue;
    for (let offset = 4; offset <= 12; offset += 4) copy(at + offset);
    // Enabled last, as a driver does it.
    mmio.write(base + at + 2, 2, byte(at + 2) | (byte(at + 3) << 8));
  }
  mmio.write(base + PCI_COMMAND, 2, byte(PCI_COMMAND) | (byte(PCI_COMMAND + 1) << 8));
}

function readFunctions(machine: DeterministicMachine): GoldenFunction[] {
  const { mmio } = machine.hardware;
  const found: GoldenFunction[] = [];
  for (const { segment, startBus, lastBus } of machine.firmware.ecams)
    for (let bdf = startBus << 8; bdf < (lastBus + 1) << 8; bdf++) {
      const base = configAddress(machine, { segment, bdf });
      if (mmio.read(base, 4) === 0xffffffff) continue;
      const config = Array.from({ length: CONFIG_DWORDS }, (_, i) => mmio.read(base + 4 * i, 4));
      found.push({ segment, bdf, config });
    }
  return found;
}

function configAddress(
  machine: DeterministicMachine,
  { segment, bdf }: { readonly segment: number; readonly bdf: number },
): number {
  const ecam = machine.firmware.ecams.find((one) => one.segment === segment);
  assert.ok(ecam !== undefined);
  return ecam.base + (bdf - (ecam.startBus << 8)) * 4096;
}
