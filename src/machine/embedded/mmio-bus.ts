/**
 * Finds the register block behind a physical address.
 * @module
 */
import { assert } from "../../base/assert.ts";
import { hex } from "../../base/units.ts";
import type { Mmio } from "../machine.ts";
import type { MmioRegion } from "./hardware.ts";

/** The machine's MMIO address space: regions that do not overlap, and all ones between them. */
export class MmioBus implements Mmio {
  readonly #regions: readonly MmioRegion[];

  constructor(regions: readonly MmioRegion[]) {
    this.#regions = [...regions].sort((a, b) => a.base - b.base);
    let end = 0;
    for (const region of this.#regions) {
      assert(region.base >= end, `MMIO regions overlap at ${hex(region.base)}`);
      end = region.base + region.lengthBytes;
    }
  }

  read(pa: number, size: 1 | 2 | 4): number {
    const region = this.#find(pa, size);
    return region === null ? allOnes(size) : region.read(pa - region.base, size) >>> 0;
  }

  write(pa: number, size: 1 | 2 | 4, value: number): void {
    const region = this.#find(pa, size);
    region?.write(pa - region.base, size, (value & allOnes(size)) >>> 0);
  }

  #find(pa: number, size: number): MmioRegion | null {
    assertAligned(pa, size);
    let low = 0;
    let high = this.#regions.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#regions[middle].base <= pa) low = middle + 1;
      else high = middle;
    }
    const region = this.#regions[low - 1];
    return region !== undefined && pa < region.base + region.lengthBytes ? region : null;
  }
}

/** Alignment is the kernel's own promise: what a user asks for is split before it comes here. */
export function assertAligned(pa: number, size: number): void {
  assert(
    pa >= 0 && pa % size === 0,
    () => `MMIO access of ${size} bytes at ${hex(pa)} is not aligned`,
  );
}

function allOnes(size: 1 | 2 | 4): number {
  return 2 ** (8 * size) - 1;
}
