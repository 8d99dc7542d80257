/**
 * Watches where devices' DMA goes, at the remapping units: every translation that succeeds must lead to memory that
 * was given to devices.
 *
 * Why beside the guests' own checks: a stray write may hit a page in which nobody looks.
 * @module
 */
import type { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import type { MemoryRange } from "../../src/machine/machine.ts";

export class DmaWatch {
  /** Accesses outside of what was allowed, as "write of 0000:01:00.0 to 0x1234000". */
  readonly violations: string[] = [];
  /** Translations that succeeded. */
  accesses = 0;
  readonly #always: readonly MemoryRange[];
  readonly #allowed = new Map<string, readonly MemoryRange[]>();

  constructor(machine: DeterministicMachine) {
    this.#always = machine.firmware.rmrrs;
    for (const vtd of machine.hardware.vtds) {
      if (vtd === null) continue;
      const translate = vtd.translate.bind(vtd);
      // The fabric calls the unit by this property, so an own one stands in for the method.
      vtd.translate = (sourceId, iova, isWrite) => {
        const pa = translate(sourceId, iova, isWrite);
        if (pa >= 0) this.#check(sourceId, pa, isWrite);
        return pa;
      };
    }
  }

  /** From here on devices may reach this memory. */
  allow(owner: string, ranges: readonly MemoryRange[]): void {
    this.#allowed.set(owner, ranges);
  }

  /** From here on devices must not reach it any more. */
  forbid(owner: string): void {
    this.#allowed.delete(owner);
  }

  /** From here on devices must reach nothing but reserved memory regions. */
  forbidAll(): void {
    this.#allowed.clear();
  }

  #check(sourceId: number, pa: number, isWrite: boolean): void {
    this.accesses++;
    const isIn = ({ start, lengthBytes }: MemoryRange) => pa >= start && pa < start + lengthBytes;
    if (this.#always.some(isIn)) return;
    for (const ranges of this.#allowed.values()) if (ranges.some(isIn)) return;
    if (this.violations.length < 10)
      this.violations.push(
        `${isWrite ? "write" : "read"} of source ${sourceId.toString(16)} at 0x${pa.toString(16)}`,
      );
  }
}
