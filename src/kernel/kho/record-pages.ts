/**
 * Room for records that are handed over: small ones share pages, whoever they are of.
 *
 * Lifecycle: alloc and free in this kernel; in the next one each decoder claims its record (`IncomingMemory.claimRecord`),
 * and its owner releases it when it has done with it.
 * Invariants: a page is allocated and preserved while any record is in it, and freed with its last; new records are zeros.
 * Layout: src/abi/kho-record.ts
 * @module
 */
import { KHO_RECORD_ALIGN_BYTES, khoRecordOrder } from "../../abi/kho-record.ts";
import { assert } from "../../base/assert.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { withUndo } from "../../base/undo.ts";
import { alignDown, alignUp, hex, PAGE_SIZE } from "../../base/units.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import type { KexecHandover } from "./handover.ts";

const REST = 255;
const UNITS_PER_PAGE = PAGE_SIZE / KHO_RECORD_ALIGN_BYTES;

/** What it is made of and with. */
export interface RecordPagesOptions {
  readonly memory: Pick<PhysicalMemory, "fill">;
  readonly mm: PageAllocator;
  readonly kho: KexecHandover;
  readonly faults: FaultInjector;
}

/** One kernel's. */
export class RecordPages {
  readonly #memory: RecordPagesOptions["memory"];
  readonly #mm: PageAllocator;
  readonly #kho: KexecHandover;
  readonly #faults: FaultInjector;
  /** Shared pages: for each unit 0 when it is free, how many a record takes at its first, {@link REST} at the others. */
  readonly #pages = new Map<number, Uint8Array>();

  constructor({ memory, mm, kho, faults }: RecordPagesOptions) {
    this.#memory = memory;
    this.#mm = mm;
    this.#kho = kho;
    this.#faults = faults;
  }

  /**
   * @returns physical address of a preserved record of zeros
   * @throws {KernelError} ENOMEM. Passes the fault point "kho:record".
   */
  alloc(lengthBytes: number): number {
    this.#faults.point("kho:record");
    const order = khoRecordOrder(lengthBytes);
    if (order !== null) return this.#allocBlock(order);
    const units = alignUp(lengthBytes, KHO_RECORD_ALIGN_BYTES) / KHO_RECORD_ALIGN_BYTES;
    for (const [page, used] of this.#pages) {
      const first = firstFree(used, units);
      if (first >= 0) return this.#take(page, used, first, units);
    }
    const page = this.#allocBlock(0);
    const used = new Uint8Array(UNITS_PER_PAGE);
    this.#pages.set(page, used);
    return this.#take(page, used, 0, units);
  }

  /** Frees what `alloc` gave for that length. */
  free(pa: number, lengthBytes: number): void {
    const order = khoRecordOrder(lengthBytes);
    if (order !== null) {
      this.#freeBlock(pa, order);
      return;
    }
    const page = alignDown(pa, PAGE_SIZE);
    const used = this.#pages.get(page) ?? new Uint8Array();
    const first = (pa - page) / KHO_RECORD_ALIGN_BYTES;
    const units = alignUp(lengthBytes, KHO_RECORD_ALIGN_BYTES) / KHO_RECORD_ALIGN_BYTES;
    assert(used[first] === units, () => `${hex(pa)} is a record of ${lengthBytes} bytes`);
    used.fill(0, first, first + units);
    if (used.some((unit) => unit !== 0)) return;
    this.#pages.delete(page);
    this.#freeBlock(page, 0);
  }

  /**
   * Gives up a record of the previous kernel, which a decoder has claimed with that length. Its page is free memory with
   * the last of its records.
   * @throws {KernelError} EINVAL when nobody claimed it, or it was released before
   */
  release(pa: number, lengthBytes: number): void {
    const order = khoRecordOrder(lengthBytes);
    if (order !== null) {
      this.#kho.restore(pa, order);
      this.#mm.free(pa, order);
    } else if (this.#kho.restoreRecord(pa, lengthBytes)) this.#mm.free(alignDown(pa, PAGE_SIZE), 0);
  }

  #take(page: number, used: Uint8Array, first: number, units: number): number {
    used.fill(REST, first, first + units);
    used[first] = units;
    const pa = page + first * KHO_RECORD_ALIGN_BYTES;
    // What was there before is nobody's business.
    this.#memory.fill(pa, units * KHO_RECORD_ALIGN_BYTES, 0);
    return pa;
  }

  #allocBlock(order: number): number {
    return withUndo((undo) => {
      const pa = this.#mm.alloc(order);
      undo(() => this.#mm.free(pa, order));
      this.#kho.preserve(pa, order);
      return pa;
    });
  }

  #freeBlock(pa: number, order: number): void {
    this.#kho.unpreserve(pa, order);
    this.#mm.free(pa, order);
  }
}

/** Index of the first run of so many free units, or -1. */
function firstFree(used: Uint8Array, units: number): number {
  let run = 0;
  for (let i = 0; i < used.length; i++) {
    run = used[i] === 0 ? run + 1 : 0;
    if (run === units) return i + 1 - units;
  }
  return -1;
}
