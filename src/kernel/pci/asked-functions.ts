/**
 * The preserved functions of a handover on the way to the files that come for them.
 *
 * Why: a function that nobody comes for would stay as it is, closed to everybody, until the last session is finished.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import { type IncomingFunctions, pciName } from "./function.ts";
import type { FunctionRecord } from "./handed-over.ts";

/** What was decoded, and which of it somebody has asked for. */
export class AskedFunctions implements IncomingFunctions {
  readonly #records: readonly FunctionRecord[];
  readonly #asked = new Map<FunctionRecord, number>();

  constructor(records: readonly FunctionRecord[]) {
    this.#records = records;
  }

  askFor(segment: number, bdf: number): boolean {
    const record = this.#records.find((r) => r.segment === segment && r.bdf === bdf);
    if (record === undefined || record.isBridge || record.refcount === 0) return false;
    this.#asked.set(record, (this.#asked.get(record) ?? 0) + 1);
    return true;
  }

  /** Whether a function, or a bridge, is to stay as it is. */
  isPreserved(segment: number, bdf: number): boolean {
    return this.#records.some((r) => r.segment === segment && r.bdf === bdf && r.refcount > 0);
  }

  /** @throws {HandoverError} */
  check(field: string): void {
    for (const [i, record] of this.#records.entries()) {
      const asked = this.#asked.get(record) ?? 0;
      if (!record.isBridge && record.refcount !== asked)
        throw new HandoverError(
          `${field}: pci_function_ser[${i}].refcount`,
          `${record.refcount}, but ${asked} files are ${pciName(record.segment, record.bdf)}`,
        );
    }
  }
}
