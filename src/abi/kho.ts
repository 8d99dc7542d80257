/**
 * Kexec handover: the root FDT and the scratch array that one kernel leaves to the next.
 *
 * Source: Linux 7.3 include/linux/kho/abi/kexec_handover.h ("Kexec Handover ABI"),
 * kernel/liveupdate/kexec_handover.c kho_out_fdt_setup, kho_add_subtree, kho_populate
 * Layout: FDT of at most one page
 *   / { compatible = "kho-v4"; preserved-memory-map = <u64>;
 *       NAME { blob-size = <u64>; preserved-data = <u64>; }; ... };
 * Words are what a C program stores: little endian, unlike the FDT around them, and only 4-aligned.
 * The order of nodes, properties and strings is the one that upstream's calls of libfdt lead to: the youngest
 * subtree first, its properties last one first.
 * @module
 */
import { hex, isAligned, MIB, PAGE_SIZE } from "../base/units.ts";
import { decodeFdt, encodeFdt, type FdtNode, fdtString } from "./fdt.ts";
import { HandoverError } from "./handover-error.ts";
import type { RamWords } from "./ram-words.ts";
import { struct, u64, type ValueOf } from "./struct.ts";
import { ByteWords } from "./words.ts";

export const KHO_FDT_COMPATIBLE = "kho-v4";
export const KHO_FDT_MEMORY_MAP_PROP_NAME = "preserved-memory-map";
export const KHO_SUB_TREE_PROP_NAME = "preserved-data";
export const KHO_SUB_TREE_SIZE_PROP_NAME = "blob-size";
/** Upstream's FDT is one page, always. */
export const KHO_FDT_MAX_BYTES = PAGE_SIZE;

/** A blob that a subsystem hands over under its name. */
export interface KhoSubtree {
  readonly name: string;
  readonly pa: number;
  readonly sizeBytes: number;
}

/** The root FDT's content. */
export interface KhoFdt {
  /** Physical address of the radix tree's root node. */
  readonly memoryMapPa: number;
  /** Oldest first. */
  readonly subtrees: readonly KhoSubtree[];
}

/** Encodes the root FDT; the result may be longer than {@link KHO_FDT_MAX_BYTES}: the caller checks. */
export function encodeKhoFdt(kho: KhoFdt): Uint8Array {
  const children: FdtNode[] = kho.subtrees.map(({ name, pa, sizeBytes }) => ({
    name,
    properties: new Map([
      [KHO_SUB_TREE_SIZE_PROP_NAME, u64Bytes(sizeBytes)],
      [KHO_SUB_TREE_PROP_NAME, u64Bytes(pa)],
    ]),
    children: [],
  }));
  const strings = [KHO_FDT_MEMORY_MAP_PROP_NAME, "compatible"];
  if (children.length > 0) strings.push(KHO_SUB_TREE_PROP_NAME, KHO_SUB_TREE_SIZE_PROP_NAME);
  return encodeFdt(
    {
      name: "",
      properties: new Map([
        ["compatible", fdtString(KHO_FDT_COMPATIBLE)],
        [KHO_FDT_MEMORY_MAP_PROP_NAME, u64Bytes(kho.memoryMapPa)],
      ]),
      children: children.reverse(),
    },
    strings,
  );
}

/**
 * Decodes the root FDT. What the addresses point at is not looked at.
 * @throws {HandoverError}
 */
export function decodeKhoFdt(bytes: Uint8Array): KhoFdt {
  const root = decodeFdt(bytes);
  const compatible = root.properties.get("compatible");
  const expected = fdtString(KHO_FDT_COMPATIBLE);
  if (compatible === undefined) throw new HandoverError("fdt:/.compatible", "is missing");
  if (compatible.length !== expected.length || !expected.every((b, i) => b === compatible[i]))
    throw new HandoverError(
      "fdt:/.compatible",
      `${quoted(compatible)} is not "${KHO_FDT_COMPATIBLE}"`,
    );
  const memoryMapPa = u64Property(root, "fdt:/", KHO_FDT_MEMORY_MAP_PROP_NAME);
  refuseOthers(root, "fdt:/", ["compatible", KHO_FDT_MEMORY_MAP_PROP_NAME]);

  const subtrees = root.children.map((node): KhoSubtree => {
    const path = `fdt:/${node.name}`;
    const pa = u64Property(node, path, KHO_SUB_TREE_PROP_NAME);
    const sizeBytes = u64Property(node, path, KHO_SUB_TREE_SIZE_PROP_NAME);
    refuseOthers(node, path, [KHO_SUB_TREE_PROP_NAME, KHO_SUB_TREE_SIZE_PROP_NAME]);
    if (node.children.length > 0) throw new HandoverError(path, "has child nodes");
    return { name: node.name, pa, sizeBytes };
  });
  return { memoryMapPa, subtrees: subtrees.reverse() };
}

/**
 * Reads the root FDT out of RAM, and checks that what it points at lies in RAM.
 *
 * @param fdtPa - as the boot parameters say it; untrusted, as `fdtSizeBytes` is
 * @throws {HandoverError}
 */
export function readKhoFdt(words: RamWords, fdtPa: number, fdtSizeBytes: number): KhoFdt {
  if (!Number.isInteger(fdtSizeBytes) || fdtSizeBytes < 1 || fdtSizeBytes > KHO_FDT_MAX_BYTES)
    throw new HandoverError("kho_data.fdt_size", `${fdtSizeBytes} is not 1 to ${PAGE_SIZE}`);
  if (!Number.isInteger(fdtPa) || !isAligned(fdtPa, PAGE_SIZE))
    throw new HandoverError("kho_data.fdt_addr", `${fdtPa} is not page aligned`);
  if (!words.contains(fdtPa, PAGE_SIZE))
    throw new HandoverError("kho_data.fdt_addr", `${hex(fdtPa)} is not in RAM`);
  const bytes = new Uint8Array(fdtSizeBytes);
  for (let i = 0; i < fdtSizeBytes; i++) bytes[i] = words.load8(fdtPa + i);
  const fdt = decodeKhoFdt(bytes);
  if (!words.contains(fdt.memoryMapPa, PAGE_SIZE))
    throw new HandoverError(
      `fdt:/.${KHO_FDT_MEMORY_MAP_PROP_NAME}`,
      `${hex(fdt.memoryMapPa)} is not in RAM`,
    );
  for (const { name, pa, sizeBytes } of fdt.subtrees) {
    if (sizeBytes < 1)
      throw new HandoverError(`fdt:/${name}.${KHO_SUB_TREE_SIZE_PROP_NAME}`, "is 0");
    if (!words.contains(pa, 1))
      throw new HandoverError(`fdt:/${name}.${KHO_SUB_TREE_PROP_NAME}`, `${hex(pa)} is not in RAM`);
    if (!words.contains(pa, sizeBytes))
      throw new HandoverError(
        `fdt:/${name}.${KHO_SUB_TREE_SIZE_PROP_NAME}`,
        `${sizeBytes} bytes from ${hex(pa)} are not in RAM`,
      );
  }
  return fdt;
}

/** One area that no kernel preserves anything in: a kernel boots from these alone. Size 0: none. */
export const KHO_SCRATCH = struct("kho_scratch", { addr: u64, size: u64 });
export type KhoScratch = ValueOf<typeof KHO_SCRATCH>;
/** Areas are aligned to upstream's largest buddy block (MAX_PAGE_ORDER 10). */
export const KHO_SCRATCH_ALIGNMENT_BYTES = 4 * MIB;
/** lowmem, global, and one for each of at most 1024 nodes (x86-64's NODES_SHIFT). */
export const KHO_SCRATCH_MAX_COUNT = 2 + 1024;

/**
 * Reads the scratch array out of RAM.
 *
 * @param arrayPa - as the boot parameters say it; untrusted, as `arraySizeBytes` is
 * @returns the areas in the array's order, those of size 0 too, which have address 0 then
 * @throws {HandoverError} when the array or an area is not in RAM or unaligned, there is none, or two overlap
 */
export function readScratch(
  words: RamWords,
  arrayPa: number,
  arraySizeBytes: number,
): readonly KhoScratch[] {
  const count = arraySizeBytes / KHO_SCRATCH.sizeBytes;
  if (!Number.isInteger(count) || count < 1 || count > KHO_SCRATCH_MAX_COUNT)
    throw new HandoverError(
      "kho_data.scratch_size",
      `${arraySizeBytes} is not the size of 1 to ${KHO_SCRATCH_MAX_COUNT} areas`,
    );
  if (!Number.isInteger(arrayPa) || !isAligned(arrayPa, 8))
    throw new HandoverError("kho_data.scratch_addr", `${arrayPa} is not aligned to 8`);
  if (!words.contains(arrayPa, arraySizeBytes))
    throw new HandoverError("kho_data.scratch_addr", `${hex(arrayPa)} is not in RAM`);

  const areas: KhoScratch[] = [];
  for (let i = 0; i < count; i++) {
    const area = KHO_SCRATCH.read(words, arrayPa + i * KHO_SCRATCH.sizeBytes);
    const field = `kho_scratch[${i}]`;
    if (!isAligned(area.size, KHO_SCRATCH_ALIGNMENT_BYTES))
      throw new HandoverError(`${field}.size`, `${hex(area.size)} is not a multiple of 4 MiB`);
    if (area.size > 0) {
      if (!isAligned(area.addr, KHO_SCRATCH_ALIGNMENT_BYTES))
        throw new HandoverError(`${field}.addr`, `${hex(area.addr)} is not aligned to 4 MiB`);
      if (!words.contains(area.addr, 1))
        throw new HandoverError(`${field}.addr`, `${hex(area.addr)} is not in RAM`);
      if (!words.contains(area.addr, area.size))
        throw new HandoverError(`${field}.size`, `${hex(area.size)} reaches beyond RAM`);
      const other = areas.findIndex(
        (o) => o.addr < area.addr + area.size && area.addr < o.addr + o.size,
      );
      if (other >= 0) throw new HandoverError(`${field}.addr`, `overlaps kho_scratch[${other}]`);
    }
    // Upstream writes where an empty area would have been, which may be inside of anything.
    areas.push(area.size > 0 ? area : { addr: 0, size: 0 });
  }
  if (areas.every((area) => area.size === 0))
    throw new HandoverError("kho_scratch", "no area has any memory");
  return areas;
}

function u64Bytes(value: number): Uint8Array {
  const bytes = new Uint8Array(8);
  new ByteWords(bytes).store64(0, value);
  return bytes;
}

function u64Property(node: FdtNode, path: string, name: string): number {
  const value = node.properties.get(name);
  if (value === undefined) throw new HandoverError(`${path}.${name}`, "is missing");
  if (value.length !== 8)
    throw new HandoverError(`${path}.${name}`, `has ${value.length} bytes, not 8`);
  return new ByteWords(value).load64(0);
}

/** Under a known `compatible` every property is known; anything else is another format in disguise. */
function refuseOthers(node: FdtNode, path: string, known: readonly string[]): void {
  for (const name of node.properties.keys())
    if (!known.includes(name)) throw new HandoverError(`${path}.${name}`, "is not known");
}

/** A string property's value, for a message. */
function quoted(bytes: Uint8Array): string {
  const isEnded = bytes.at(-1) === 0;
  let text = "";
  for (const byte of bytes.subarray(0, isEnded ? -1 : undefined).subarray(0, 64))
    text += byte >= 0x20 && byte <= 0x7e ? String.fromCharCode(byte) : ".";
  return isEnded ? `"${text}"` : `"${text}" without a NUL`;
}
