/**
 * Stops DMA of functions, without memory and without knowing the bus.
 *
 * Why: a kernel must not give out a page while some device may still write into it; at that moment it has neither an
 * allocator nor an enumeration. One that refuses a handover stops everything. One that adopts it stops what is not
 * preserved: the previous kernel has done so in its shutdown, but where no IOMMU translates nothing else keeps a device out
 * of the pages of this kernel, so its word is not enough.
 * @module
 */
import type { Machine } from "../../machine/machine.ts";
import { ConfigAccess } from "./config-access.ts";
import { pciName } from "./function.ts";
import { type NumberedFunction, scanAsNumbered } from "./scan.ts";

/**
 * Clears bus mastering of every function, whatever bridges are programmed to.
 */
export function quiesceAll(machine: Pick<Machine, "mmio" | "firmware">): void {
  const access = new ConfigAccess(machine.mmio, machine.firmware.ecams);
  for (const ecam of access.ecams) quiesceOthers(access, scanAsNumbered(access, ecam), () => false);
}

/**
 * Clears bus mastering of every function that is not preserved; one that is preserved is only read. Those on root buses come
 * first: behind a root port without it nothing passes.
 *
 * @returns names of the functions that had it
 */
export function quiesceOthers(
  access: ConfigAccess,
  functions: readonly NumberedFunction[],
  isPreserved: (segment: number, bdf: number) => boolean,
): string[] {
  const stopped: string[] = [];
  const [onRootBuses, below] = [true, false].map((isOnRootBus) =>
    functions.filter(({ parent }) => (parent === null) === isOnRootBus),
  );
  for (const { segment, bdf } of [...onRootBuses, ...below])
    if (!isPreserved(segment, bdf) && access.clearBusMaster(segment, bdf))
      stopped.push(pciName(segment, bdf));
  return stopped;
}
