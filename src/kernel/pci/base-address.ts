/**
 * Base address registers: their shapes, sizes and addresses.
 *
 * Source: PCI Local Bus 3.0 §6.2.5.1: writing all ones and reading back tells the size. That moves the BAR, so it is done
 *   with memory decoding off, and never to a function that does DMA.
 * Not modelled: I/O BARs are left as they are, below-1-MiB BARs are taken for 32-bit ones, no expansion ROM.
 * @module
 */
import {
  PCI_BASE_ADDRESS_0,
  PCI_BASE_ADDRESS_MEM_FLAGS,
  PCI_BASE_ADDRESS_MEM_PREFETCH,
  PCI_BASE_ADDRESS_MEM_TYPE_64,
  PCI_BASE_ADDRESS_MEM_TYPE_MASK,
  PCI_BASE_ADDRESS_SPACE_IO,
  PCI_BRIDGE_NUM_BARS,
  PCI_STD_NUM_BARS,
} from "../../abi/pci.ts";
import type { ConfigAccess } from "./config-access.ts";

/** A memory BAR that exists, whether it has an address or not. */
export interface BarShape {
  readonly index: number;
  readonly sizeBytes: number;
  readonly is64: boolean;
  readonly isPrefetchable: boolean;
}

/** Registers of a function that are BARs. */
export function barCount(isBridge: boolean): number {
  return isBridge ? PCI_BRIDGE_NUM_BARS : PCI_STD_NUM_BARS;
}

/** BAR registers as they read. */
export function readBarRegisters(
  access: ConfigAccess,
  segment: number,
  bdf: number,
  isBridge: boolean,
): number[] {
  const raw: number[] = [];
  for (let i = 0; i < barCount(isBridge); i++)
    raw.push(access.read(segment, bdf, PCI_BASE_ADDRESS_0 + 4 * i, 4));
  return raw;
}

/** Address that a BAR holds: 0 is none. */
export function barAddress(shape: BarShape, raw: readonly number[]): number {
  const low = raw[shape.index] - (raw[shape.index] % (PCI_BASE_ADDRESS_MEM_FLAGS + 1));
  return shape.is64 ? low + raw[shape.index + 1] * 2 ** 32 : low;
}

/**
 * Shapes of the memory BARs, from their sizes.
 *
 * @param sizes - size in bytes of the memory BAR that starts at each register; 0 where none does
 */
export function barShapes(raw: readonly number[], sizes: readonly number[]): BarShape[] {
  const shapes: BarShape[] = [];
  for (let i = 0; i < raw.length; i++) {
    if (sizes[i] === 0 || isIo(raw[i])) continue;
    const is64 = isMemory64(raw[i]);
    const isPrefetchable = (raw[i] & PCI_BASE_ADDRESS_MEM_PREFETCH) !== 0;
    shapes.push({ index: i, sizeBytes: sizes[i], is64, isPrefetchable });
    if (is64) i++;
  }
  return shapes;
}

/** Index of the first memory BAR that has an address and no size; -1 if there is none. */
export function unsizedBar(raw: readonly number[], sizes: readonly number[]): number {
  for (let i = 0; i < raw.length; i++) {
    const is64 = isMemory64(raw[i]);
    const hasAddress = raw[i] > PCI_BASE_ADDRESS_MEM_FLAGS || (is64 && (raw[i + 1] ?? 0) !== 0);
    if (!isIo(raw[i]) && hasAddress && sizes[i] === 0) return i;
    if (is64) i++;
  }
  return -1;
}

/** Finds the sizes by the protocol of the specification. Memory decoding of the function must be off. */
export function probeBarSizes(
  access: ConfigAccess,
  segment: number,
  bdf: number,
  isBridge: boolean,
): number[] {
  const raw = readBarRegisters(access, segment, bdf, isBridge);
  const sizes = raw.map(() => 0);
  for (let i = 0; i < raw.length; i++) {
    if (isIo(raw[i])) continue;
    const low = probe(access, segment, bdf, i, raw[i]);
    const lowMask = low - (low % (PCI_BASE_ADDRESS_MEM_FLAGS + 1));
    sizes[i] = lowestBit(lowMask);
    if (!isMemory64(raw[i]) || i + 1 >= raw.length) continue;
    const high = probe(access, segment, bdf, i + 1, raw[i + 1]);
    if (lowMask === 0) sizes[i] = lowestBit(high) * 2 ** 32;
    i++;
  }
  return sizes;
}

/** Gives a BAR an address. */
export function writeBar(
  access: ConfigAccess,
  segment: number,
  bdf: number,
  shape: BarShape,
  address: number,
): void {
  const at = PCI_BASE_ADDRESS_0 + 4 * shape.index;
  access.write(segment, bdf, at, 4, address % 2 ** 32);
  if (shape.is64) access.write(segment, bdf, at + 4, 4, Math.floor(address / 2 ** 32));
}

function probe(
  access: ConfigAccess,
  segment: number,
  bdf: number,
  index: number,
  raw: number,
): number {
  const at = PCI_BASE_ADDRESS_0 + 4 * index;
  access.write(segment, bdf, at, 4, 0xffffffff);
  const value = access.read(segment, bdf, at, 4);
  access.write(segment, bdf, at, 4, raw);
  return value;
}

/** The size that a mask of writable address bits means: its lowest bit; 0 without any. */
function lowestBit(mask: number): number {
  return (mask & -mask) >>> 0;
}

function isIo(raw: number): boolean {
  return (raw & PCI_BASE_ADDRESS_SPACE_IO) !== 0;
}

function isMemory64(raw: number): boolean {
  return (raw & PCI_BASE_ADDRESS_MEM_TYPE_MASK) === PCI_BASE_ADDRESS_MEM_TYPE_64;
}
