/**
 * Stops all DMA of all functions, without memory and without knowing the bus.
 *
 * Why: a kernel that refuses a handover must not give out a page while some device may still write into it; at that
 * moment it has neither an allocator nor an enumeration.
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

/**
 * Clears bus mastering of every function, those on root buses first: behind a root port without it nothing passes,
 * whatever bridges below are programmed to. Bus numbers are not trusted: a bus is looked at once.
 */
export function quiesceAll(machine: Pick<Machine, "mmio" | "firmware">): void {
  const access = new ConfigAccess(machine.mmio, machine.firmware.ecams);
  for (const { segment, startBus, lastBus } of access.ecams) {
    const seen = new Set([startBus]);
    const buses = [startBus];
    for (let bus = buses.shift(); bus !== undefined; bus = buses.shift()) {
      for (const bdf of access.functionsOnBus(segment, bus)) {
        access.clearBusMaster(segment, bdf);
        const below = secondaryBus(access, segment, bdf);
        if (below <= busOf(bdf) || below > lastBus || seen.has(below)) continue;
        seen.add(below);
        buses.push(below);
      }
    }
  }
}

/** The bus below a bridge as it is numbered now; 0 for others. */
export function secondaryBus(access: ConfigAccess, segment: number, bdf: number): number {
  const type = access.read(segment, bdf, PCI_HEADER_TYPE, 1) & PCI_HEADER_TYPE_MASK;
  return type === PCI_HEADER_TYPE_BRIDGE ? access.read(segment, bdf, PCI_SECONDARY_BUS, 1) : 0;
}
