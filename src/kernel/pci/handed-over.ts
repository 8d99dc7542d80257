/**
 * PCI's part of a handover: written from this kernel's functions, read and checked by the next one.
 *
 * Why: a device whose bus number, BAR or bridge window is not where the previous kernel left it must not be taken over; so
 * what the handover says is compared with the hardware before anything of it is believed.
 * Rules, each refused by the name of the field: all of it is in a preserved record of its own; functions are
 * sorted and unique; a preserved function exists with that identity, command, BARs and (a bridge) bus numbers and
 * windows; its BARs are aligned, inside firmware's window of its segment, and overlap no other preserved one;
 * the bridges above it are preserved, as often as all below them together.
 * An inspector has an image and no hardware: then what memory alone tells is checked.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import { KHO_RECORD_ALIGN_BYTES } from "../../abi/kho-record.ts";
import {
  busOf,
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
  PCI_STD_NUM_BARS,
  PCI_SUBORDINATE_BUS,
  PCI_VENDOR_ID,
} from "../../abi/pci.ts";
import {
  PCI_FUNCTION_SER,
  PCI_LUO_FUNCTIONS_MAX,
  PCI_SER,
  pciSerBytes,
} from "../../abi/pci-luo.ts";
import type { ValueOf } from "../../abi/struct.ts";
import type { WordWriter } from "../../abi/words.ts";
import { hex, isAligned } from "../../base/units.ts";
import type { Firmware, MemoryRange } from "../../machine/machine.ts";
import { apart, type IncomingMemory } from "../kho/incoming.ts";
import { type BarShape, barAddress, barCount, barShapes, unsizedBar } from "./base-address.ts";
import type { ConfigAccess } from "./config-access.ts";
import type { PciDevice } from "./device.ts";
import { pciName } from "./function.ts";

/** What one record says of a function. */
export interface FunctionRecord {
  readonly segment: number;
  readonly bdf: number;
  /** 0: not preserved. */
  readonly refcount: number;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly isBridge: boolean;
  /** BAR registers. */
  readonly bars: readonly number[];
  /** Size in bytes of the memory BAR that starts at each register; 0: none does. */
  readonly barSizes: readonly number[];
  readonly primaryBus: number;
  readonly secondaryBus: number;
  readonly subordinateBus: number;
}

/** What a handover is compared with. */
export interface PciHardware {
  readonly access: ConfigAccess;
  readonly firmware: Pick<Firmware, "mmioWindows">;
}

/** A handover's PCI part, checked. */
export interface HandedOverPci {
  /** The record that held it. */
  readonly pa: number;
  readonly lengthBytes: number;
  /** All functions of the previous kernel, sorted. */
  readonly records: readonly FunctionRecord[];
}

/** BARs up to 2^47 bytes: no more is addressable. */
const BAR_SIZE_LG2_MIN = 4;
const BAR_SIZE_LG2_MAX = 47;
const COMMAND_LIMIT = 0xffff;

type FunctionSer = ValueOf<typeof PCI_FUNCTION_SER>;

/** What only functions of header type 0 have, and only bridges; 0 in the others. */
const ENDPOINT_ONLY = ["bar2", "bar3", "bar4", "bar5"] as const;
const BRIDGE_ONLY = [
  "primary_bus",
  "secondary_bus",
  "subordinate_bus",
  "memory_window",
  "pref_window",
  "pref_base_upper",
  "pref_limit_upper",
] as const;

/** Writes all functions, as they are in hardware now, into a record of `pciSerBytes(devices.length)`. */
export function writeFunctions(
  memory: WordWriter,
  pa: number,
  devices: readonly PciDevice[],
): void {
  PCI_SER.write(memory, pa, {
    count: devices.length,
    record_bytes: PCI_FUNCTION_SER.sizeBytes,
  });
  const sorted = [...devices].sort((a, b) => a.segment - b.segment || a.bdf - b.bdf);
  for (const [i, device] of sorted.entries())
    PCI_FUNCTION_SER.write(memory, recordAt(pa, i), snapshot(device));
}

/**
 * Reads and checks what the previous kernel left, and claims its record. Reads hardware, writes nothing.
 *
 * @param data - physical address of the record; untrusted
 * @param field - how to name the place in errors
 * @param hardware - null: there is none to compare with
 * @param windows - of all segments; null: not known
 * @throws {HandoverError} when any rule at the head of this file is broken
 */
export function decodeFunctions(
  incoming: IncomingMemory,
  data: bigint,
  field: string,
  hardware: PciHardware | null,
  windows = hardware?.firmware.mmioWindows ?? null,
): HandedOverPci {
  const { pa, lengthBytes, count } = claimAll(incoming, data, field);
  const records: FunctionRecord[] = [];
  for (let i = 0; i < count; i++) {
    const at = `${field}: pci_function_ser[${i}]`;
    apart(incoming, { pa: recordAt(pa, i), struct: PCI_FUNCTION_SER }, () => {
      const ser = PCI_FUNCTION_SER.read(incoming.memory, recordAt(pa, i));
      const record = checkRecord(ser, at);
      const last = records.at(-1);
      if (last !== undefined && !comesBefore(last, record))
        throw new HandoverError(
          `${at}.bdf`,
          `${nameOf(record)} after ${nameOf(last)}: not sorted, or named twice`,
        );
      if (record.refcount > 0) {
        if (hardware !== null) checkHardware(hardware.access, ser, record, at);
        checkAddresses(windows, records, record, at);
      }
      checkAbsent(ser, record.isBridge, at);
      records.push(record);
    });
  }
  // Without the hardware nobody says which buses are root buses; there is always bus 0.
  const isRootBus = (segment: number, bus: number) =>
    hardware === null ? bus === 0 : hardware.access.isRootBus(segment, bus);
  apart(incoming, { pa }, () => checkBridges(isRootBus, records, field));
  return { pa, lengthBytes, records };
}

function claimAll(
  incoming: IncomingMemory,
  data: bigint,
  field: string,
): { pa: number; lengthBytes: number; count: number } {
  const pa = Number(data);
  if (!isAligned(pa, KHO_RECORD_ALIGN_BYTES) || !incoming.isPreserved(pa, KHO_RECORD_ALIGN_BYTES))
    throw new HandoverError(`${field}: data`, `${hex(data)} is not a preserved record`);
  const { count, record_bytes } = PCI_SER.read(incoming.memory, pa);
  if (record_bytes !== PCI_FUNCTION_SER.sizeBytes)
    throw new HandoverError(
      `${field}: pci_ser.record_bytes`,
      `${record_bytes} instead of ${PCI_FUNCTION_SER.sizeBytes}`,
    );
  if (count > PCI_LUO_FUNCTIONS_MAX)
    throw new HandoverError(
      `${field}: pci_ser.count`,
      `${count} is above ${PCI_LUO_FUNCTIONS_MAX}`,
    );
  const lengthBytes = pciSerBytes(count);
  incoming.claimRecord(pa, lengthBytes, `${field}: pci_ser`);
  return { pa, lengthBytes, count };
}

/** What a record must fulfil by itself. */
function checkRecord(ser: FunctionSer, at: string): FunctionRecord {
  if (ser.header_type > PCI_HEADER_TYPE_BRIDGE)
    throw new HandoverError(`${at}.header_type`, `${ser.header_type} is neither 0 nor 1`);
  const isBridge = ser.header_type === PCI_HEADER_TYPE_BRIDGE;
  const bars = [ser.bar0, ser.bar1, ser.bar2, ser.bar3, ser.bar4, ser.bar5];
  const count = barCount(isBridge);
  for (let i = 0; i < PCI_STD_NUM_BARS; i++) {
    const lg2 = ser.bar_size_lg2[i];
    if (lg2 === 0) continue;
    if (i >= count || lg2 < BAR_SIZE_LG2_MIN || lg2 > BAR_SIZE_LG2_MAX)
      throw new HandoverError(`${at}.bar_size_lg2[${i}]`, `no BAR can have 2^${lg2} bytes`);
  }
  return {
    segment: ser.segment,
    bdf: ser.bdf,
    refcount: ser.refcount,
    vendorId: ser.vendor_id,
    deviceId: ser.device_id,
    isBridge,
    bars: bars.slice(0, count),
    barSizes: Array.from(ser.bar_size_lg2.subarray(0, count), (l) => (l === 0 ? 0 : 2 ** l)),
    primaryBus: ser.primary_bus,
    secondaryBus: ser.secondary_bus,
    subordinateBus: ser.subordinate_bus,
  };
}

/** What a function of its header type does not have is 0. */
function checkAbsent(ser: FunctionSer, isBridge: boolean, at: string): void {
  for (const name of isBridge ? ENDPOINT_ONLY : BRIDGE_ONLY)
    if (ser[name] !== 0)
      throw new HandoverError(
        `${at}.${name}`,
        `is ${hex(ser[name])}; ${isBridge ? "no bridge has" : "only bridges have"} one`,
      );
}

/** Whether the hardware is as the record of a preserved function says. */
function checkHardware(
  access: ConfigAccess,
  ser: FunctionSer,
  record: FunctionRecord,
  at: string,
): void {
  const { segment, bdf } = record;
  if (!access.reaches(segment, bdf))
    throw new HandoverError(`${at}.segment`, `${nameOf(record)} is in no ECAM window`);
  const read = (offset: number, size: 1 | 2 | 4) => access.read(segment, bdf, offset, size);
  const expect = (name: string, expected: number, actual: number) => {
    if (expected === actual) return;
    throw new HandoverError(
      `${at}.${name}`,
      `${nameOf(record)} was left with ${hex(expected)} and has ${hex(actual)}`,
    );
  };
  const ids = read(PCI_VENDOR_ID, 4);
  expect("vendor_id", ser.vendor_id, ids & 0xffff);
  expect("device_id", ser.device_id, ids >>> 16);
  expect("header_type", ser.header_type, read(PCI_HEADER_TYPE, 1) & PCI_HEADER_TYPE_MASK);
  expect("command", ser.command & COMMAND_LIMIT, read(PCI_COMMAND, 2));
  for (const [i, raw] of record.bars.entries()) expect(`bar${i}`, raw, read(0x10 + 4 * i, 4));
  if (!record.isBridge) return;
  expect("primary_bus", ser.primary_bus, read(PCI_PRIMARY_BUS, 1));
  expect("secondary_bus", ser.secondary_bus, read(PCI_SECONDARY_BUS, 1));
  expect("subordinate_bus", ser.subordinate_bus, read(PCI_SUBORDINATE_BUS, 1));
  expect("memory_window", ser.memory_window, read(PCI_MEMORY_BASE, 4));
  expect("pref_window", ser.pref_window, read(PCI_PREF_MEMORY_BASE, 4));
  expect("pref_base_upper", ser.pref_base_upper, read(PCI_PREF_BASE_UPPER32, 4));
  expect("pref_limit_upper", ser.pref_limit_upper, read(PCI_PREF_LIMIT_UPPER32, 4));
}

/** Whether the BARs of a preserved function can be where they are. */
function checkAddresses(
  windows: Firmware["mmioWindows"] | null,
  before: readonly FunctionRecord[],
  record: FunctionRecord,
  at: string,
): void {
  const unsized = unsizedBar(record.bars, record.barSizes);
  if (unsized >= 0)
    throw new HandoverError(
      `${at}.bar_size_lg2[${unsized}]`,
      `is 0, but the BAR holds ${hex(record.bars[unsized])}`,
    );
  for (const { index, range } of assignedBars(record)) {
    const place = `${at}.bar_size_lg2[${index}]`;
    const { start, lengthBytes } = range;
    if (start % lengthBytes !== 0)
      throw new HandoverError(place, `${hex(start)} is not aligned to ${hex(lengthBytes)}`);
    const isInWindow = windows?.some((w) => w.segment === record.segment && contains(w, range));
    if (isInWindow === false)
      throw new HandoverError(place, `${hex(start)} + ${hex(lengthBytes)} is in no MMIO window`);
    for (const other of before)
      if (other.refcount > 0)
        for (const { range: taken } of assignedBars(other))
          if (start < taken.start + taken.lengthBytes && taken.start < start + lengthBytes)
            throw new HandoverError(place, `overlaps a BAR of ${nameOf(other)}`);
  }
}

/** Every preserved function is reached over preserved bridges; a bridge is preserved as often as all below it. */
function checkBridges(
  isRootBus: (segment: number, bus: number) => boolean,
  records: readonly FunctionRecord[],
  field: string,
): void {
  for (const [i, record] of records.entries()) {
    if (record.refcount === 0 || isRootBus(record.segment, busOf(record.bdf))) continue;
    const hasBridge = records.some(
      (r) =>
        r.isBridge &&
        r.refcount > 0 &&
        r.segment === record.segment &&
        r.secondaryBus === busOf(record.bdf),
    );
    if (!hasBridge)
      throw new HandoverError(
        `${field}: pci_function_ser[${i}].bdf`,
        `no bridge above ${nameOf(record)} is preserved`,
      );
  }
  for (const [i, bridge] of records.entries()) {
    if (!bridge.isBridge) continue;
    let below = 0;
    for (const r of records) if (!r.isBridge && isBelow(r, bridge)) below += r.refcount;
    if (below !== bridge.refcount)
      throw new HandoverError(
        `${field}: pci_function_ser[${i}].refcount`,
        `${nameOf(bridge)} has ${bridge.refcount}, the functions below it ${below} in all`,
      );
  }
}

function isBelow(record: FunctionRecord, bridge: FunctionRecord): boolean {
  const bus = busOf(record.bdf);
  return (
    record.segment === bridge.segment &&
    bridge.secondaryBus !== 0 &&
    bus >= bridge.secondaryBus &&
    bus <= bridge.subordinateBus
  );
}

function assignedBars(record: FunctionRecord): { index: number; range: MemoryRange }[] {
  return barShapes(record.bars, record.barSizes)
    .map((shape) => ({
      index: shape.index,
      range: { start: barAddress(shape, record.bars), lengthBytes: shape.sizeBytes },
    }))
    .filter(({ range }) => range.start !== 0);
}

function contains(window: MemoryRange, range: MemoryRange): boolean {
  return (
    range.start >= window.start &&
    range.start + range.lengthBytes <= window.start + window.lengthBytes
  );
}

function comesBefore(a: FunctionRecord, b: FunctionRecord): boolean {
  return a.segment < b.segment || (a.segment === b.segment && a.bdf < b.bdf);
}

function nameOf(record: { readonly segment: number; readonly bdf: number }): string {
  return pciName(record.segment, record.bdf);
}

function recordAt(pa: number, index: number): number {
  return pa + PCI_SER.sizeBytes + index * PCI_FUNCTION_SER.sizeBytes;
}

function snapshot(device: PciDevice): FunctionSer {
  // What the next kernel holds against the hardware is what the hardware says.
  const raw = device.preserveCount > 0 ? device.barRegisters() : device.rawBars;
  const bridge = (offset: number, size: 1 | 4) =>
    device.isBridge ? device.configRead(offset, size) : 0;
  return {
    segment: device.segment,
    bdf: device.bdf,
    refcount: device.preserveCount,
    vendor_id: device.vendorId,
    device_id: device.deviceId,
    command: device.configRead(PCI_COMMAND, 2),
    header_type: device.isBridge ? PCI_HEADER_TYPE_BRIDGE : 0,
    primary_bus: bridge(PCI_PRIMARY_BUS, 1),
    bar0: raw[0],
    bar1: raw[1],
    bar2: raw[2] ?? 0,
    bar3: raw[3] ?? 0,
    bar4: raw[4] ?? 0,
    bar5: raw[5] ?? 0,
    bar_size_lg2: sizesLg2(device.shapes),
    secondary_bus: bridge(PCI_SECONDARY_BUS, 1),
    subordinate_bus: bridge(PCI_SUBORDINATE_BUS, 1),
    memory_window: bridge(PCI_MEMORY_BASE, 4),
    pref_window: bridge(PCI_PREF_MEMORY_BASE, 4),
    pref_base_upper: bridge(PCI_PREF_BASE_UPPER32, 4),
    pref_limit_upper: bridge(PCI_PREF_LIMIT_UPPER32, 4),
  };
}

function sizesLg2(shapes: readonly BarShape[]): Uint8Array {
  const sizes = new Uint8Array(PCI_STD_NUM_BARS);
  for (const shape of shapes) sizes[shape.index] = Math.log2(shape.sizeBytes);
  return sizes;
}
