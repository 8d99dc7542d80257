/**
 * Which part of the kernel takes how many bytes of a handover: a kernel reads it as the next one would, up to the point
 * where it would take it over, and the fields that name its blocks are counted.
 * @module
 */
import { readKhoFdt } from "../src/abi/kho.ts";
import { assert } from "../src/base/assert.ts";
import { FaultInjector } from "../src/base/fault-injector.ts";
import { PAGE_SIZE } from "../src/base/units.ts";
import { parseCommandLine } from "../src/kernel/command-line.ts";
import { Kernel } from "../src/kernel/kernel.ts";
import { IncomingHandover } from "../src/kernel/kho/incoming-handover.ts";
import { readPreservedTree } from "../src/kernel/kho/preserved-blocks.ts";
import type { KhoBootParameters, Machine } from "../src/machine/machine.ts";

/** Bytes by name of the owner, largest first. */
export type BytesByOwner = ReadonlyMap<string, number>;

export const PAGE_TABLES = "page tables";
export const CONTEXT_TABLES = "root and context tables";
const TREE = "KHO tree";

const RECORD_PAGES = "records of PCI, iommufds and VFIO";
const GUEST_MEMORY = "guest memory";
/** The first that matches a field has the block. */
const OWNERS: readonly (readonly [name: string, field: RegExp])[] = [
  [GUEST_MEMORY, /^memfs_store\[\d+\]\.extent\[\d+\]\.pa$/],
  ["KHO FDT and metadata", /^kho_data\.fdt_addr$|^fdt:\/kexec-metadata\./],
  ["memfs", /^fdt:\/memfs\.|^memfs_/],
  ["sessions and files (luo-v5)", /^subtree "LUO"|^luo_/],
  [CONTEXT_TABLES, /^FLB "iommu-.*(root_table$|: root entry of bus)/],
  [PAGE_TABLES, /^FLB "iommu-.*(top_table$|: entry of level)/],
  ["IOMMU", /^FLB "iommu-/],
];

/** Ends the reading. */
class Read extends Error {}

/** Memory of files is left out. All that is preserved has an owner. */
export function bytesByOwner(machine: Machine, parameters: KhoBootParameters): BytesByOwner {
  const { memory } = machine;
  const incoming = IncomingHandover.read(memory, parameters);
  claimAll(machine, incoming);
  assert(incoming.unclaimedPages() === 0, `${incoming.unclaimedPages()} pages have no owner`);
  const fdt = readKhoFdt(memory, parameters.fdtAddress, parameters.fdtSizeBytes);
  const tree = readPreservedTree(memory, fdt.memoryMapPa).nodes.length * PAGE_SIZE;
  const bytes = new Map([[TREE, tree]]);
  for (const { lengthBytes, field, isRecordPage } of incoming.claims()) {
    const name = isRecordPage ? RECORD_PAGES : OWNERS.find(([, its]) => its.test(field))?.[0];
    assert(name !== undefined, `whose is ${field}?`);
    bytes.set(name, (bytes.get(name) ?? 0) + lengthBytes);
  }
  bytes.delete(GUEST_MEMORY);
  return new Map([...bytes].sort(([, a], [, b]) => b - a));
}

/** Claims everything. What the next kernel does up to there changes nothing. */
function claimAll(machine: Machine, incoming: IncomingHandover): void {
  const faults = new FaultInjector();
  faults.point = (point) => {
    if (point === "boot:adopt") throw new Read();
  };
  const options = parseCommandLine("");
  const log = (line: string) => assert(false, line);
  try {
    new Kernel({ machine, options, commandLine: "", release: "bench", faults, incoming, log });
  } catch (error) {
    if (!(error instanceof Read)) throw error;
  }
}
