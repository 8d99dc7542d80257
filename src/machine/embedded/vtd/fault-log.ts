/**
 * Primary fault logging: the fault recording registers, the fault status register, and their event.
 *
 * Source: Intel VT-d specification rev 5.0 §7.2.1 (primary fault logging), §11.4.7.1 (FSTS), §11.4.7.6 (FRCD).
 * Lifecycle of a record: filled, F set last; software reads it and clears F. Records are used in turn; when the
 * next one is still in use the fault is lost, PFO says so, and nothing is recorded until software clears PFO.
 * An event is raised when a status bit becomes set while none was; it is withdrawn when none is left.
 * Not modelled: advanced fault logging; collapsing of faults of one source-id (hardware may, so drivers must not count).
 * @module
 */
import {
  FRCD_W3_F,
  FRCD_W3_T,
  FSTS_FRI_SHIFT,
  FSTS_IQE,
  FSTS_PFO,
  FSTS_PPF,
} from "../../../abi/vtd/faults.ts";
import type { EventMessage } from "./event-message.ts";

export class FaultLog {
  readonly #records: Uint32Array;
  readonly #count: number;
  readonly #event: EventMessage;
  #next = 0;
  /** PFO and IQE; PPF is computed. */
  #sticky = 0;
  #firstIndex = 0;

  /** @param count - number of records, CAP.NFR */
  constructor(count: number, event: EventMessage) {
    this.#count = count;
    this.#records = new Uint32Array(4 * count);
    this.#event = event;
  }

  /** Records one DMA fault. */
  record(sourceId: number, iova: number, isWrite: boolean, reason: number): void {
    if ((this.#sticky & FSTS_PFO) !== 0) return;
    const records = this.#records;
    const at = 4 * this.#next;
    if ((records[at + 3] & FRCD_W3_F) !== 0) {
      this.#sticky |= FSTS_PFO;
      return;
    }
    const before = this.status();
    records[at] = (iova % 2 ** 32) & 0xfffff000;
    records[at + 1] = Math.floor(iova / 2 ** 32);
    records[at + 2] = sourceId;
    records[at + 3] = (FRCD_W3_F | (isWrite ? 0 : FRCD_W3_T) | reason) >>> 0;
    if ((before & FSTS_PPF) === 0) this.#firstIndex = this.#next;
    this.#next = (this.#next + 1) % this.#count;
    this.#setStatus(before);
  }

  /** The invalidation queue has stopped at a bad descriptor. */
  queueError(): void {
    const before = this.status();
    this.#sticky |= FSTS_IQE;
    this.#setStatus(before);
  }

  /** Whether the invalidation queue must not be read. */
  get isQueueStopped(): boolean {
    return (this.#sticky & FSTS_IQE) !== 0;
  }

  /** FSTS. */
  status(): number {
    let pending = 0;
    for (let i = 3; i < this.#records.length; i += 4) pending |= this.#records[i] & FRCD_W3_F;
    return this.#sticky | (pending !== 0 ? FSTS_PPF | (this.#firstIndex << FSTS_FRI_SHIFT) : 0);
  }

  /** Writes FSTS: ones clear. */
  clearStatus(value: number): void {
    this.#sticky &= ~(value & (FSTS_PFO | FSTS_IQE));
    this.#withdrawIfServed();
  }

  /** @param offset - bytes from the first record, 4-byte aligned */
  readRecord(offset: number): number {
    return this.#records[offset >>> 2];
  }

  /** Writes a record: only F can be cleared, by a one. */
  writeRecord(offset: number, value: number): void {
    const index = offset >>> 2;
    if (index % 4 !== 3 || (value & FRCD_W3_F) === 0) return;
    this.#records[index] &= ~FRCD_W3_F;
    this.#withdrawIfServed();
  }

  #setStatus(before: number): void {
    if ((before & (FSTS_PFO | FSTS_PPF | FSTS_IQE)) === 0) this.#event.raise();
  }

  #withdrawIfServed(): void {
    if (this.status() === 0) this.#event.withdraw();
  }
}
