/**
 * Config space of all segment groups, by ECAM.
 * @module
 */
import { busOf, ecamOffset, PCI_COMMAND, PCI_COMMAND_MASTER } from "../../abi/pci.ts";
import { assert } from "../../base/assert.ts";
import type { Ecam, Mmio } from "../../machine/machine.ts";

export class ConfigAccess {
  readonly ecams: readonly Ecam[];
  readonly #mmio: Mmio;

  constructor(mmio: Mmio, ecams: readonly Ecam[]) {
    this.#mmio = mmio;
    this.ecams = ecams;
  }

  /** Whether firmware describes an ECAM window with this bus. Safe on any number. */
  reaches(segment: number, bdf: number): boolean {
    return this.#find(segment, bdf) !== undefined;
  }

  /** Whether a bus is the first of its ECAM window, which no bridge leads to. */
  isRootBus(segment: number, bus: number): boolean {
    return this.ecams.some((e) => e.segment === segment && e.startBus === bus);
  }

  read(segment: number, bdf: number, offset: number, size: 1 | 2 | 4): number {
    return this.#mmio.read(this.#address(segment, bdf, offset), size);
  }

  write(segment: number, bdf: number, offset: number, size: 1 | 2 | 4, value: number): void {
    this.#mmio.write(this.#address(segment, bdf, offset), size, value);
  }

  /** Takes bus mastering from a function. Writes only if it has it. @returns whether it had */
  clearBusMaster(segment: number, bdf: number): boolean {
    const command = this.read(segment, bdf, PCI_COMMAND, 2);
    if ((command & PCI_COMMAND_MASTER) === 0) return false;
    this.write(segment, bdf, PCI_COMMAND, 2, command & ~PCI_COMMAND_MASTER);
    return true;
  }

  #find(segment: number, bdf: number): Ecam | undefined {
    const bus = busOf(bdf);
    return this.ecams.find((e) => e.segment === segment && bus >= e.startBus && bus <= e.lastBus);
  }

  #address(segment: number, bdf: number, offset: number): number {
    const ecam = this.#find(segment, bdf);
    assert(ecam !== undefined, `no ECAM for segment ${segment}, bus ${busOf(bdf)}`);
    return ecam.base + ecamOffset(ecam.startBus, bdf) + offset;
  }
}
