/**
 * Scratch: areas in which no kernel preserves anything, so that the next one can boot from them.
 *
 * Why fixed: what lies outside scratch may be preserved, so an area can be chosen on a cold boot only; every kernel
 * after it inherits the same ones.
 * Source: Linux 7.3 kernel/liveupdate/kexec_handover.c kho_reserve_scratch, scratch_size_update
 * Layout: {lowmem, global, one per node with memory}, an array at the start of the first area. Upstream hands
 * over a copy of the array in scratch too.
 * @module
 */

import {
  KHO_SCRATCH,
  KHO_SCRATCH_ALIGNMENT_BYTES,
  KHO_SCRATCH_MAX_COUNT,
  type KhoScratch,
} from "../../abi/kho.ts";
import { KernelError } from "../../base/errno.ts";
import { alignUp, formatBytes, GIB, MIB, PAGE_SIZE } from "../../base/units.ts";
import type { Firmware, MemoryRange, PhysicalMemory } from "../../machine/machine.ts";
import { Memblock } from "../mm/memblock.ts";

/** As upstream's `kho_scratch=lowmem,global,pernode`. Rounded up to 4 MiB. */
export interface ScratchSizes {
  readonly lowmemBytes: number;
  readonly globalBytes: number;
  readonly perNodeBytes: number;
}

export const DEFAULT_SCRATCH_SIZES: ScratchSizes = {
  lowmemBytes: 4 * MIB,
  globalBytes: 4 * MIB,
  perNodeBytes: 4 * MIB,
};

/** Lowmem scratch lies below this: ARCH_LOW_ADDRESS_LIMIT of x86. */
const LOW_ADDRESS_END = 4 * GIB;
/** Scratch beyond the first area takes at most this part of a node's memory. */
const MAX_SHARE = 1 / 4;

type FirmwareMap = Pick<Firmware, "memory" | "nodeCount">;

/** The areas of this machine. Those of size 0 keep their place in the array. */
export class Scratch {
  readonly areas: readonly KhoScratch[];
  /** Where {@link write} puts the array. */
  readonly arrayPa: number;

  constructor(areas: readonly KhoScratch[]) {
    this.areas = areas;
    const first = areas.find((area) => area.size > 0);
    if (first === undefined) throw new KernelError("EINVAL", "kho_scratch", "all areas are empty");
    this.arrayPa = first.addr;
  }

  /**
   * Chooses the areas: on a cold boot.
   *
   * An area beyond the first that would take more than a quarter of its node, or that fits nowhere, gets size 0.
   *
   * @param carveOuts - memory that is spoken for
   * @throws {KernelError} ENOMEM when not even the first area fits; EINVAL when all sizes are 0 or one is no size
   */
  static reserve(
    firmware: FirmwareMap,
    carveOuts: readonly MemoryRange[] = [],
    sizes: ScratchSizes = DEFAULT_SCRATCH_SIZES,
  ): Scratch {
    const memblock = new Memblock(firmware.memory);
    // Address 0 means "none" in every format.
    memblock.reserve({ start: 0, lengthBytes: PAGE_SIZE });
    for (const range of carveOuts) memblock.reserve(range);

    const budget = new Map<number, number>();
    for (const { node, lengthBytes } of firmware.memory)
      budget.set(node, (budget.get(node) ?? 0) + lengthBytes * MAX_SHARE);
    const nodes = [...budget.keys()].sort((a, b) => a - b);
    if (nodes.length + 2 > KHO_SCRATCH_MAX_COUNT)
      throw new KernelError("EINVAL", "kho_scratch", `${nodes.length} nodes are too many`);
    const areas: KhoScratch[] = [];

    const place = (bytes: number, candidates: readonly number[], end?: number): void => {
      const size = roundedSize(bytes);
      const isFirst = areas.every((area) => area.size === 0);
      for (const node of size === 0 ? [] : candidates) {
        const left = budget.get(node) ?? 0;
        if (!isFirst && size > left) continue;
        const addr = tryAlloc(memblock, size, node, end);
        if (addr === null) continue;
        budget.set(node, left - size);
        areas.push({ addr, size });
        return;
      }
      if (isFirst && size > 0)
        throw new KernelError("ENOMEM", "kho_scratch", `no place for ${formatBytes(size)}`);
      areas.push({ addr: 0, size: 0 });
    };
    place(sizes.lowmemBytes, nodes, LOW_ADDRESS_END);
    place(sizes.globalBytes, nodes);
    for (const node of nodes) place(sizes.perNodeBytes, [node]);
    return new Scratch(areas);
  }

  /** The areas with memory, as the page allocator keeps off them. */
  get ranges(): readonly MemoryRange[] {
    return this.areas
      .filter((area) => area.size > 0)
      .map((area) => ({ start: area.addr, lengthBytes: area.size }));
  }

  get arraySizeBytes(): number {
    return this.areas.length * KHO_SCRATCH.sizeBytes;
  }

  /** Whether any byte of the range lies in scratch. */
  overlaps(pa: number, lengthBytes: number): boolean {
    return this.areas.some((a) => pa < a.addr + a.size && a.addr < pa + lengthBytes);
  }

  /** Writes the array for the next kernel. Scratch is this kernel's to write from its first moment. */
  write(memory: PhysicalMemory): void {
    this.areas.forEach((area, index) => {
      KHO_SCRATCH.write(memory, this.arrayPa + index * KHO_SCRATCH.sizeBytes, area);
    });
  }
}

function roundedSize(bytes: number): number {
  if (!(Number.isSafeInteger(bytes) && bytes >= 0))
    throw new KernelError("EINVAL", "kho_scratch", `${bytes} is no size`);
  return alignUp(bytes, KHO_SCRATCH_ALIGNMENT_BYTES);
}

function tryAlloc(
  memblock: Memblock,
  size: number,
  node: number,
  end: number | undefined,
): number | null {
  try {
    return memblock.alloc(size, KHO_SCRATCH_ALIGNMENT_BYTES, {
      node,
      ...(end === undefined ? {} : { end }),
    });
  } catch (error) {
    if (error instanceof KernelError && error.code === "ENOMEM") return null;
    throw error;
  }
}
