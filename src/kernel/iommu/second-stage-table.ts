/**
 * Second-stage page tables that can be changed while devices walk them.
 *
 * Order of stores: a table is filled before the entry that names it appears, so a walk meets a finished tree or
 * none; an entry goes before what it names is flushed, and what it named is freed only after the flush.
 * Invariant: every table but the top one holds at least one present entry, so whatever an entry names is mapped.
 * Coherency: `PhysicalMemory` is what devices read, by its contract, so no cache lines are flushed whatever
 * ECAP.C says; a Machine on hardware with ECAP.C = 0 would have to write them back in its publishing stores.
 * Source: VT-d spec rev 5.0 §3.7, §6.2 (caching of translations); Linux 7.3 drivers/iommu/generic_pt/iommu_pt.h
 * @module
 */
import {
  SS_PS,
  SS_R,
  SS_TABLE_ENTRIES,
  SS_W,
  ssAddress,
  ssEntryHigh,
  ssEntryLow,
  ssIndex,
  ssIsLeaf,
  ssIsPresent,
  ssSpanBytes,
} from "../../abi/vtd/second-stage.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { withUndo } from "../../base/undo.ts";
import { hex, isIndex, PAGE_SIZE } from "../../base/units.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import { forEachTable, type SecondStageTree } from "./second-stage-walk.ts";

const RIGHTS = SS_R | SS_W;
/** Physical addresses have 52 bits at most. */
const PA_END = 2 ** 52;

/** What the tables are made of and with. */
export interface SecondStageTableOptions {
  readonly memory: PhysicalMemory;
  readonly mm: PageAllocator;
  readonly faults: FaultInjector;
  /** 3 or 4. */
  readonly levels: number;
  /** Sizes of leaves that the hardware walks, as a sum: 4 KiB, and any of 2 MiB and 1 GiB. */
  readonly pageSizes: number;
  /** First IOVA that may not be mapped. */
  readonly apertureEnd: number;
  /**
   * Called when translations of `lengthBytes` from `iova` are gone from memory: on return no device may use them,
   * nor the tables that they were in.
   */
  readonly flush: (iova: number, lengthBytes: number) => void;
  /** A tree to take over instead of an empty top table: its address and the number of its pages. */
  readonly existing?: { readonly top: number; readonly tableCount: number };
}

/** A tree of second-stage tables. */
export class SecondStageTable implements SecondStageTree {
  readonly memory: PhysicalMemory;
  readonly top: number;
  readonly levels: number;
  readonly pageSizes: number;
  readonly apertureEnd: number;
  readonly #mm: PageAllocator;
  readonly #faults: FaultInjector;
  readonly #flush: (iova: number, lengthBytes: number) => void;
  #tableCount: number;
  /** By table: how many tables its entries name, where any. Spares a scan of tables that hold only leaves. */
  readonly #childCounts = new Map<number, number>();
  /** While a `map` runs: the IOVA up to which its entries are in tables that devices can reach. */
  #published = 0;

  /** @throws {KernelError} ENOMEM */
  constructor(options: SecondStageTableOptions) {
    this.memory = options.memory;
    this.#mm = options.mm;
    this.#faults = options.faults;
    this.levels = options.levels;
    this.pageSizes = options.pageSizes;
    this.apertureEnd = options.apertureEnd;
    this.#flush = options.flush;
    this.top = options.existing?.top ?? this.#mm.alloc(0);
    this.#tableCount = options.existing?.tableCount ?? 1;
    if (options.existing !== undefined) this.#countChildren(this.top, this.levels - 1);
  }

  /** Pages of tables, the top one too. */
  get tableCount(): number {
    return this.#tableCount;
  }

  /** As {@link PagingDomain.map}. */
  map(iova: number, pa: number, lengthBytes: number, prot: number): void {
    const end = this.#checkRange("map", iova, lengthBytes);
    if (!isIndex(pa, PA_END - lengthBytes) || pa !== spanStart(pa, PAGE_SIZE))
      throw new KernelError("EINVAL", "map", `physical address ${pa} is not a page's`);
    if (!isIndex(prot, RIGHTS) || prot === 0)
      throw new KernelError("EINVAL", "map", `prot ${prot} is not read, write or both`);
    const taken = this.#firstPresent(this.top, this.levels - 1, iova, end);
    if (taken !== null) throw new KernelError("EEXIST", "map", `${hex(taken)} is mapped`);
    withUndo((undo) => {
      this.#published = iova;
      undo(() => {
        if (this.#published > iova) this.unmap(iova, this.#published - iova);
      });
      this.#fill(this.top, this.levels - 1, iova, end, pa, prot, true);
    });
  }

  /** As {@link PagingDomain.unmap}. What is not mapped in the range stays so. */
  unmap(iova: number, lengthBytes: number): void {
    const end = this.#checkRange("unmap", iova, lengthBytes);
    this.#checkNotSplit(iova);
    this.#checkNotSplit(end);
    const unlinked: number[] = [];
    this.#clear(this.top, this.levels - 1, iova, end, unlinked);
    this.#flush(iova, lengthBytes);
    this.#freeTables(unlinked);
  }

  /** Calls `visit` with the address of every table. */
  forEachTable(visit: (table: number) => void): void {
    forEachTable(this.memory, this.top, this.levels - 1, visit);
  }

  /** Frees all tables. No device may be able to reach them. */
  free(): void {
    this.forEachTable((table) => this.#mm.free(table, 0));
    this.#tableCount = 0;
  }

  #checkRange(op: string, iova: number, lengthBytes: number): number {
    if (
      !isIndex(iova, this.apertureEnd) ||
      !isIndex(lengthBytes, this.apertureEnd - iova) ||
      lengthBytes === 0
    )
      throw new KernelError(
        "EINVAL",
        op,
        `${lengthBytes} bytes from ${iova} are not in the aperture, below ${hex(this.apertureEnd)}`,
      );
    if (iova !== spanStart(iova, PAGE_SIZE) || lengthBytes !== spanStart(lengthBytes, PAGE_SIZE))
      throw new KernelError("EINVAL", op, `${hex(iova)}+${hex(lengthBytes)} is not whole pages`);
    return iova + lengthBytes;
  }

  /** The first IOVA in a range that is mapped, or null. */
  #firstPresent(table: number, level: number, start: number, end: number): number | null {
    const span = ssSpanBytes(level);
    for (let iova = start; iova < end; iova = spanStart(iova, span) + span) {
      const entry = table + 8 * ssIndex(iova, level);
      const low = this.memory.load32(entry);
      if (!ssIsPresent(low)) continue;
      if (ssIsLeaf(low, level)) return iova;
      const child = ssAddress(low, this.memory.load32(entry + 4));
      const childEnd = Math.min(end, spanStart(iova, span) + span);
      const found = this.#firstPresent(child, level - 1, iova, childEnd);
      if (found !== null) return found;
    }
    return null;
  }

  /** Maps a range that lies in one table. `isLive`: devices can reach the table. */
  #fill(
    table: number,
    level: number,
    start: number,
    end: number,
    startPa: number,
    prot: number,
    isLive: boolean,
  ): void {
    const span = ssSpanBytes(level);
    const bits = level === 0 ? prot : prot | SS_PS;
    let pa = startPa;
    for (let iova = start; iova < end; ) {
      const index = ssIndex(iova, level);
      const entry = table + 8 * index;
      let next: number;
      if (this.#leafFits(level, iova, pa, end - iova)) {
        this.#faults.point("iommu:map");
        const count = Math.min(SS_TABLE_ENTRIES - index, Math.floor((end - iova) / span));
        this.memory.publishRun64(entry, count, ssEntryLow(pa, bits), ssEntryHigh(pa), span);
        next = iova + count * span;
      } else {
        next = Math.min(end, spanStart(iova, span) + span);
        const low = this.memory.load32(entry);
        if (ssIsPresent(low)) {
          const child = ssAddress(low, this.memory.load32(entry + 4));
          this.#fill(child, level - 1, iova, next, pa, prot, isLive);
        } else {
          const child = this.#newTable(level - 1, iova, next, pa, prot);
          // All of the new table must be in memory before a walk can find it.
          this.memory.fence();
          this.memory.publish64(entry, ssEntryLow(child, RIGHTS), ssEntryHigh(child));
          this.#addChildren(table, 1);
        }
      }
      pa += next - iova;
      iova = next;
      if (isLive) this.#published = iova;
    }
  }

  /** A table that no entry names yet, with a range mapped in it. After a failure it is gone again. */
  #newTable(level: number, iova: number, end: number, pa: number, prot: number): number {
    const span = ssSpanBytes(level);
    if (end - iova === SS_TABLE_ENTRIES * span && this.#leafFits(level, iova, pa, span)) {
      this.#faults.point("iommu:map");
      // Every word of it is stored, so its pages need no zeros first.
      const table = this.#mm.alloc(0, { zero: false });
      this.#tableCount++;
      const bits = level === 0 ? prot : prot | SS_PS;
      const low = ssEntryLow(pa, bits);
      this.memory.storeRun64(table, SS_TABLE_ENTRIES, low, ssEntryHigh(pa), span);
      return table;
    }
    const table = this.#mm.alloc(0);
    this.#tableCount++;
    try {
      this.#fill(table, level, iova, end, pa, prot, false);
    } catch (error) {
      // No device has seen it, so nothing needs a flush.
      const unlinked: number[] = [];
      this.#collect(table, level, unlinked);
      this.#freeTables(unlinked);
      throw error;
    }
    return table;
  }

  #leafFits(level: number, iova: number, pa: number, lengthBytes: number): boolean {
    if (level === 0) return true;
    const span = ssSpanBytes(level);
    return (
      level <= 2 &&
      (this.pageSizes & span) !== 0 &&
      lengthBytes >= span &&
      iova === spanStart(iova, span) &&
      pa === spanStart(pa, span)
    );
  }

  /** @throws {KernelError} EINVAL when a leaf lies on both sides of `boundary` */
  #checkNotSplit(boundary: number): void {
    if (boundary >= ssSpanBytes(this.levels)) return;
    let table = this.top;
    for (let level = this.levels - 1; level > 0; level--) {
      const span = ssSpanBytes(level);
      if (boundary === spanStart(boundary, span)) return;
      const entry = table + 8 * ssIndex(boundary, level);
      const low = this.memory.load32(entry);
      if (!ssIsPresent(low)) return;
      if (ssIsLeaf(low, level))
        throw new KernelError(
          "EINVAL",
          "unmap",
          `${hex(boundary)} is inside the page of ${hex(span)} bytes at ${hex(spanStart(boundary, span))}`,
        );
      table = ssAddress(low, this.memory.load32(entry + 4));
    }
  }

  /** Removes a range that lies in one table; tables that become empty are unlinked and listed. */
  #clear(table: number, level: number, start: number, end: number, unlinked: number[]): void {
    const span = ssSpanBytes(level);
    for (let iova = start; iova < end; ) {
      const index = ssIndex(iova, level);
      const entry = table + 8 * index;
      if (iova === spanStart(iova, span) && end - iova >= span) {
        const count = Math.min(SS_TABLE_ENTRIES - index, Math.floor((end - iova) / span));
        this.#collectChildren(table, level, index, count, unlinked);
        this.memory.retractRun64(entry, count);
        iova += count * span;
        continue;
      }
      const next = Math.min(end, spanStart(iova, span) + span);
      const low = this.memory.load32(entry);
      if (ssIsPresent(low)) {
        assert(!ssIsLeaf(low, level), "a page that would be split was refused before");
        const child = ssAddress(low, this.memory.load32(entry + 4));
        this.#clear(child, level - 1, iova, next, unlinked);
        if (this.#isEmptyBeside(child, level - 1, iova, next)) {
          this.memory.retract64(entry);
          unlinked.push(child);
          this.#addChildren(table, -1);
        }
      }
      iova = next;
    }
  }

  /** Lists the tables under `count` entries that are about to go. */
  #collectChildren(
    table: number,
    level: number,
    first: number,
    count: number,
    unlinked: number[],
  ): void {
    if (level === 0 || !this.#childCounts.has(table)) return;
    const start = table + 8 * first;
    for (let entry = start; entry < start + 8 * count; entry += 8) {
      const low = this.memory.load32(entry);
      if (!ssIsPresent(low) || ssIsLeaf(low, level)) continue;
      this.#collect(ssAddress(low, this.memory.load32(entry + 4)), level - 1, unlinked);
      this.#addChildren(table, -1);
    }
  }

  /** Lists a table and all under it. */
  #collect(table: number, level: number, unlinked: number[]): void {
    this.#collectChildren(table, level, 0, SS_TABLE_ENTRIES, unlinked);
    unlinked.push(table);
  }

  #freeTables(tables: readonly number[]): void {
    for (const table of tables) this.#mm.free(table, 0);
    this.#tableCount -= tables.length;
  }

  #addChildren(table: number, more: number): void {
    const count = (this.#childCounts.get(table) ?? 0) + more;
    if (count === 0) this.#childCounts.delete(table);
    else this.#childCounts.set(table, count);
  }

  /** Counts the children of tables that were taken over. */
  #countChildren(table: number, level: number): void {
    for (let entry = table; level > 0 && entry < table + 8 * SS_TABLE_ENTRIES; entry += 8) {
      const low = this.memory.load32(entry);
      if (!ssIsPresent(low) || ssIsLeaf(low, level)) continue;
      this.#addChildren(table, 1);
      this.#countChildren(ssAddress(low, this.memory.load32(entry + 4)), level - 1);
    }
  }

  /**
   * Whether a table in which a range was cleared has nothing left. What was cleared as a whole is not looked at again;
   * an entry at either end of the range may name a table of which a part is left.
   */
  #isEmptyBeside(table: number, level: number, start: number, end: number): boolean {
    const lastByte = end - 1;
    const tableEnd = table + 8 * SS_TABLE_ENTRIES;
    for (let entry = table + 8 * ssIndex(lastByte, level); entry < tableEnd; entry += 8)
      if (ssIsPresent(this.memory.load32(entry))) return false;
    for (let entry = table + 8 * ssIndex(start, level); entry >= table; entry -= 8)
      if (ssIsPresent(this.memory.load32(entry))) return false;
    return true;
  }
}

/** The largest multiple of a power of two not above a number: exact, and far cheaper than a remainder. */
function spanStart(value: number, span: number): number {
  return Math.floor(value / span) * span;
}
