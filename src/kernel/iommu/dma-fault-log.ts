/**
 * What became known of blocked DMA: counts by function, and lines in the kernel's log.
 *
 * Why: a unit has few records and nobody waits for them; what is taken out of them must be told to somebody, and a
 * device that faults all the time must not fill the log.
 * Source: Linux 7.3 drivers/iommu/intel/dmar.c dmar_fault_do_one (the line), dmar_fault (its rate limit; here a count,
 *   so that a run can be replayed)
 * @module
 */
import { pciName } from "../pci/function.ts";
import type { IommuFault } from "./vtd-iommu.ts";

/** Lines of one kernel; what comes after is only counted. */
const LINES_MAX = 10;

/** Blocked DMA of one function, since boot. */
export interface FunctionFaults {
  /** "0000:01:00.0" */
  readonly function: string;
  readonly reads: number;
  readonly writes: number;
  /** Of these: recorded before this kernel looked for the first time, so in the kernel before or in the jump. */
  readonly beforeBoot: number;
}

/** What /sys/kernel/debug/holdfast/faults shows. */
export interface DmaFaults {
  readonly functions: readonly FunctionFaults[];
  /** How often a unit was found to have lost faults, because all its records were in use. */
  readonly overflows: number;
}

/** Where faults are taken from: {@link VtdIommu}. */
export interface DmaFaultSource {
  readFaults(): readonly IommuFault[];
  readonly faultOverflows: number;
}

export class DmaFaultLog {
  readonly #source: DmaFaultSource;
  readonly #log: (line: string) => void;
  readonly #counts = new Map<string, { reads: number; writes: number; beforeBoot: number }>();
  #linesLeft = LINES_MAX;

  constructor(source: DmaFaultSource, log: (line: string) => void) {
    this.#source = source;
    this.#log = log;
  }

  /** Takes what the units have recorded until now as of the time before this kernel. */
  drainAtBoot(): void {
    this.#drain(true);
  }

  /** Takes what the units have recorded since the last call. */
  drain(): void {
    this.#drain(false);
  }

  /** All that was taken so far, by function in the order of their first fault. */
  counts(): DmaFaults {
    return {
      functions: [...this.#counts].map(([name, counts]) => ({ function: name, ...counts })),
      overflows: this.#source.faultOverflows,
    };
  }

  #drain(isBoot: boolean): void {
    const overflowsBefore = this.#source.faultOverflows;
    for (const fault of this.#source.readFaults()) {
      const name = pciName(fault.segment, fault.sourceId);
      const counts = this.#counts.get(name) ?? { reads: 0, writes: 0, beforeBoot: 0 };
      this.#counts.set(name, counts);
      if (fault.isWrite) counts.writes++;
      else counts.reads++;
      if (isBoot) counts.beforeBoot++;
      this.#line(
        `DMAR: [DMA ${fault.isWrite ? "Write" : "Read"}] Request device ${name} ` +
          `fault addr 0x${fault.address.toString(16)} reason ${fault.reason}`,
      );
    }
    if (this.#source.faultOverflows > overflowsBefore)
      this.#line("DMAR: more faults than records; some are lost");
  }

  #line(text: string): void {
    if (this.#linesLeft === 0) return;
    this.#linesLeft--;
    this.#log(text);
    if (this.#linesLeft === 0) this.#log("DMAR: further faults are counted but not logged");
  }
}
