/**
 * Stops DMA of functions, without memory and without knowing the bus.
 *
 * Why: a kernel must not give out a page while some device may still write into it; at that moment it has neither an
 * allocator nor an enumeration. One that refuses a handover stops everything. One that adopts it stops what is not
 * preserved: the previous kernel has done so in its shutdown, but where no IOMMU translates nothing else keeps a device out
 * of the pages of this kernel, so its word is not enough.
 * @module
 */
import {
  busOf,
  PCI_HEADER_TYPE,
  PCI_HEADER_TYPE_BRIDGE,
  PCI_HEADER_TYPE_MASK,
  PCI_SECONDARY_BUS,
} from "../../abi/pci.ts";
import type { Machine } from "../../machine/machine.ts";
import { ConfigAccess } from "./config-access.ts";
import { pciName } from "./function.ts";

/**
 * Clears bus mastering of every function, those on root buses first: behind a root port without it nothing passes,
 * whatever bridges below are programmed to. Bus numbers are not trusted: a bus is looked at once.
 */
export function quiesceAll(machine: Pick<Machine, "mmio" | "firmware">): void {
  quiesceOthers(new ConfigAccess(machine.mmio, machine.firmware.ecams), () => false);
}

/**
 * Clears bus mastering of every function that is not preserved, as {@link quiesceAll}; one that is preserved is only read.
 *
 * @returns names of the functions that had it
 */
export function quiesceOthers(
  access: ConfigAccess,
  isPreserved: (segment: number, bdf: number) => boolean,
): string[] {
  const stopped: string[] = [];
  for (const { segment, startBus, lastBus } of access.ecams) {
    const seen = new Set([startBus]);
    const buses = [startBus];
    for (let bus = buses.shift(); bus !== undefined; bus = buses.shift()) {
      for (const bdf of access.functionsOnBus(segment, bus)) {
        if (!isPreserved(segment, bdf) && access.clearBusMaster(segment, bdf))
          stopped.push(pciName(segment, bdf));
        const below = secondaryBus(access, segment, bdf);
        if (below <= busOf(bdf) || below > lastBus || seen.has(below)) continue;
        seen.add(below);
        buses.push(below);
      }
    }
  }
  return stopped;
}

/** The bus below a bridge as it is numbered now; 0 for others. */
export function secondaryBus(access: ConfigAccess, segment: number, bdf: number): number {
  const type = access.read(segment, bdf, PCI_HEADER_TYPE, 1) & PCI_HEADER_TYPE_MASK;
  return type === PCI_HEADER_TYPE_BRIDGE ? access.read(segment, bdf, PCI_SECONDARY_BUS, 1) : 0;
}
