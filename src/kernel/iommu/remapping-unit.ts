/**
 * One remapping unit (DRHD): its root and context tables, domain ids, caches and switches.
 *
 * A function is blocked when its context entry is not present. The whole entry is 0, FPD too, so blocked DMA is
 * recorded as a fault: it is an event that somebody wants to count, and nothing interrupts for it.
 * Every attached function has a domain id (DID) of its own, also when several share a domain: then moving it to other
 * tables leaves the upper half of its entry as it is, so the move is one store of 64 bits. DIDs are many (2^16 on
 * ordinary hardware); the price is one flush for each function at an unmap.
 * Order of stores for an entry: the upper half, then SSPTPTR, P last; away it goes the other way round.
 * Context tables stay linked for good once a function of their bus was attached: at most one page for each bus.
 * Source: VT-d spec rev 5.0 §6.2.2.1 (context cache), §6.5 (invalidation), §9.1, §9.3; Linux 7.3
 * drivers/iommu/intel/iommu.c domain_context_mapping_one()
 * @module
 */
import {
  EVENT_IM,
  FECTL_REG,
  GCMD_QIE,
  GCMD_SRTP,
  GCMD_TE,
  RTADDR_REG,
} from "../../abi/vtd/registers.ts";
import {
  AW_39_BIT,
  AW_48_BIT,
  addressWidthBits,
  addressWidthLevels,
  contextEntry,
  contextEntryAddress,
  ROOT_TABLE_ENTRIES,
  rootEntry,
  rootEntryAddress,
  TT_MULTI_LEVEL,
} from "../../abi/vtd/root-context.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { alignDown, hex, MIB, PAGE_SIZE } from "../../base/units.ts";
import type { Drhd, Machine } from "../../machine/machine.ts";
import type { KexecHandover } from "../kho/handover.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import { DomainIds } from "./domain-ids.ts";
import { type Invalidation, RegisterInvalidation } from "./invalidation.ts";
import { InvalidationQueue, QUEUE_PAGES } from "./invalidation-queue.ts";
import { UnitRegisters } from "./unit-registers.ts";

/** AW of a context entry for tables of so many levels. */
export function levelsAddressWidth(levels: number): number {
  return levels === 3 ? AW_39_BIT : AW_48_BIT;
}

/** What the unit is made of and with. */
export interface RemappingUnitOptions {
  readonly machine: Machine;
  readonly mm: PageAllocator;
  readonly kho: KexecHandover;
  readonly drhd: Drhd;
}

/** The tables of a unit that the previous kernel left translating. */
export interface InheritedTables {
  readonly rootTable: number;
  readonly contextTables: readonly { readonly bus: number; readonly pa: number }[];
}

/** A remapping unit of this kernel. */
export class RemappingUnit {
  readonly segment: number;
  readonly registers: UnitRegisters;
  readonly dids: DomainIds;
  /** Sizes of leaves that it walks, as a sum of powers of two. */
  readonly pageSizes: number;
  readonly #machine: Machine;
  readonly #mm: PageAllocator;
  readonly #kho: KexecHandover;
  /** By bus; 0 for none. */
  readonly #contextTables = new Float64Array(ROOT_TABLE_ENTRIES);
  #rootTable = 0;
  #invalidation: Invalidation | null = null;
  #isPreserved = false;

  /** Reads capabilities; changes nothing. */
  constructor(options: RemappingUnitOptions) {
    this.#machine = options.machine;
    this.#mm = options.mm;
    this.#kho = options.kho;
    this.segment = options.drhd.segment;
    this.registers = new UnitRegisters(options.machine.mmio, options.drhd.registerBase);
    const { cap } = this.registers;
    this.dids = new DomainIds(Math.min(2 ** (4 + 2 * cap.nd), 2 ** 16));
    this.pageSizes = PAGE_SIZE + (cap.sllps & 1) * 2 * MIB + ((cap.sllps >>> 1) & 1) * 1024 * MIB;
  }

  /** Whether it walks tables of so many levels. */
  supportsLevels(levels: number): boolean {
    return levels >= 3 && levels <= 4 && ((this.registers.cap.sagaw >>> (levels - 2)) & 1) !== 0;
  }

  /**
   * Levels of a new domain: the most that it walks.
   * @throws {KernelError} ENODEV when it walks neither 3 nor 4
   */
  get defaultLevels(): number {
    for (const aw of [AW_48_BIT, AW_39_BIT])
      if (this.supportsLevels(addressWidthLevels(aw))) return addressWidthLevels(aw);
    throw new KernelError("ENODEV", "alloc domain", "the unit has no second-stage translation");
  }

  /** First IOVA that it does not translate with tables of so many levels. */
  apertureEnd(levels: number): number {
    return 2 ** Math.min(addressWidthBits(levelsAddressWidth(levels)), this.registers.cap.mgaw);
  }

  /** Physical address of its root table; 0 before it was started. */
  get rootTable(): number {
    return this.#rootTable;
  }

  get isStarted(): boolean {
    return this.#rootTable !== 0;
  }

  /**
   * Takes a unit without a handover: an empty root table, so everything is blocked, whatever was there before. If
   * translation is on it stays on. `prepare` fills in entries before any of it takes effect.
   * @throws {KernelError} ENOMEM, before anything was changed
   */
  startCold(prepare: () => void): void {
    assert(!this.isStarted, "a unit is started once");
    withUndo((undo) => {
      this.#rootTable = this.#mm.alloc(0);
      undo(() => {
        this.#freeTables();
      });
      prepare();
      const invalidation = this.#newInvalidation();
      this.#invalidation = invalidation;
    });
    this.registers.write32(FECTL_REG, EVENT_IM);
    this.#machine.memory.fence();
    this.registers.flushWriteBuffer();
    this.registers.write64(RTADDR_REG, this.#rootTable);
    this.registers.enable(GCMD_SRTP);
    this.flushAll();
    if (!this.registers.status(GCMD_TE)) this.registers.enable(GCMD_TE);
  }

  /**
   * Takes over what the previous kernel left translating. No entry is written and translation stays on; all caches are
   * flushed once, because nothing proves that the previous kernel has flushed what it removed.
   * @throws {KernelError} ENOMEM
   */
  adopt(tables: InheritedTables): void {
    assert(!this.isStarted, "a unit is started once");
    this.#rootTable = tables.rootTable;
    for (const { bus, pa } of tables.contextTables) this.#contextTables[bus] = pa;
    this.#invalidation = this.#newInvalidation();
    this.registers.write32(FECTL_REG, EVENT_IM);
    this.flushAll();
  }

  /** Empties the context cache, then the IOTLB: the other way round it could be filled again from stale entries. */
  flushAll(): void {
    const caches = this.#caches;
    caches.contextGlobal();
    caches.wait();
    caches.iotlbGlobal();
    caches.wait();
  }

  /**
   * Makes a blocked function's DMA translated.
   * @param did - of this function alone
   * @throws {KernelError} ENOMEM when its bus needs a context table
   */
  setEntry(bdf: number, top: number, levels: number, did: number): void {
    const at = contextEntryAddress(this.#ensureContextTable(bdf >>> 8), bdf);
    const [w0, w1, w2, w3] = contextEntry({
      translationType: TT_MULTI_LEVEL,
      secondStageTable: top,
      addressWidth: levelsAddressWidth(levels),
      domainId: did,
    });
    const memory = this.#machine.memory;
    memory.publish64(at + 8, w2, w3);
    memory.fence();
    memory.publish64(at, w0, w1);
    memory.fence();
    if (!this.isStarted || this.#invalidation === null) return;
    if (this.registers.cap.cm) {
      // §6.1: what is not present was cached under DID 0. The flush of the DID, of which nothing is cached yet, is the notice by
      // which a hypervisor that emulates the unit loads the domain.
      this.#caches.contextDevice(0, bdf);
      this.#caches.wait();
      this.flushDomain(did);
    } else this.registers.flushWriteBuffer();
  }

  /** Moves a function to other tables of the same width in one store; on return the old ones are out of all caches. */
  switchEntry(bdf: number, top: number, did: number): void {
    const at = this.#entryAddress(bdf);
    const memory = this.#machine.memory;
    // Rights and translations of the new tables must be in memory before a walk can start there.
    memory.fence();
    const [w0, w1] = contextEntry({
      translationType: TT_MULTI_LEVEL,
      secondStageTable: top,
      addressWidth: 0,
      domainId: 0,
    });
    memory.exchange64(at, w0, w1);
    memory.fence();
    this.#flushEntry(bdf, did);
  }

  /** Blocks a function; on return nothing of its translation is in any cache, so its DID may be used again. */
  clearEntry(bdf: number, did: number): void {
    const at = this.#entryAddress(bdf);
    const memory = this.#machine.memory;
    memory.retract64(at);
    memory.fence();
    memory.retract64(at + 8);
    memory.fence();
    this.#flushEntry(bdf, did);
  }

  flushDomain(did: number): void {
    this.#caches.iotlbDomain(did);
    this.#caches.wait();
  }

  /**
   * Asks for a range to leave the IOTLB: by the smallest aligned block of pages around it that the unit supports, or
   * the whole DID. It is complete after {@link waitFlushed}.
   */
  flushRange(did: number, iova: number, lengthBytes: number): void {
    const { psi, mamv } = this.registers.cap;
    for (let mask = 0; psi && mask <= mamv; mask++) {
      const block = PAGE_SIZE * 2 ** mask;
      const start = alignDown(iova, block);
      if (start + block < iova + lengthBytes) continue;
      this.#caches.iotlbPages(did, start, mask);
      return;
    }
    this.#caches.iotlbDomain(did);
  }

  waitFlushed(): void {
    this.#caches.wait();
  }

  /** Whether entries that were not present may be in caches or write buffers, so that `map` has work to do too. */
  get mapNeedsFlush(): boolean {
    return this.registers.cap.cm || this.registers.cap.rwbf;
  }

  /**
   * Keeps the root table and all context tables through the next kexec; context tables that are made from here on too.
   * @throws {KernelError} ENOMEM; nothing is kept then
   */
  preserve(): void {
    assert(!this.#isPreserved, "a unit is preserved once");
    withUndo((undo) => {
      for (const pa of this.#tablePages()) {
        this.#kho.preserve(pa, 0);
        undo(() => this.#kho.unpreserve(pa, 0));
      }
    });
    this.#isPreserved = true;
  }

  unpreserve(): void {
    assert(this.#isPreserved, "a unit that is not preserved");
    for (const pa of this.#tablePages()) this.#kho.unpreserve(pa, 0);
    this.#isPreserved = false;
  }

  /** Last before a kexec that hands the unit over: no register but RTADDR names memory any more. Translation stays on. */
  stopQueue(): void {
    if (this.registers.status(GCMD_QIE)) this.registers.disable(GCMD_QIE);
  }

  /** Last before a kexec that hands nothing over: the tables will be gone. Nobody may be able to do DMA. */
  disableTranslation(): void {
    this.stopQueue();
    if (this.registers.status(GCMD_TE)) this.registers.disable(GCMD_TE);
  }

  /** Pages that the unit holds for itself: tables and the invalidation queue. */
  get pageCount(): number {
    if (!this.isStarted) return 0;
    return (
      this.#tablePages().length +
      (this.#invalidation instanceof InvalidationQueue ? QUEUE_PAGES : 0)
    );
  }

  /** Root and context tables. */
  #tablePages(): number[] {
    return [this.#rootTable, ...this.#contextTables.filter((pa) => pa !== 0)];
  }

  #freeTables(): void {
    for (const pa of this.#tablePages()) this.#mm.free(pa, 0);
    this.#contextTables.fill(0);
    this.#rootTable = 0;
  }

  get #caches(): Invalidation {
    assert(this.#invalidation !== null, "a unit that is not started has no caches to flush");
    return this.#invalidation;
  }

  #newInvalidation(): Invalidation {
    return this.registers.ecap.qi
      ? new InvalidationQueue(this.#machine.memory, this.#mm, this.registers)
      : new RegisterInvalidation(this.registers);
  }

  #entryAddress(bdf: number): number {
    const table = this.#contextTables[bdf >>> 8];
    assert(table !== 0, `bus ${hex(bdf >>> 8)} has no context table`);
    return contextEntryAddress(table, bdf);
  }

  #flushEntry(bdf: number, did: number): void {
    const caches = this.#caches;
    caches.contextDevice(did, bdf);
    caches.wait();
    caches.iotlbDomain(did);
    caches.wait();
  }

  #ensureContextTable(bus: number): number {
    if (this.#contextTables[bus] !== 0) return this.#contextTables[bus];
    return withUndo((undo) => {
      const table = this.#mm.alloc(0);
      undo(() => this.#mm.free(table, 0));
      if (this.#isPreserved) this.#kho.preserve(table, 0);
      const [w0, w1] = rootEntry(table);
      // The zeros in it must be in memory before a walk can find it.
      this.#machine.memory.fence();
      this.#machine.memory.publish64(rootEntryAddress(this.#rootTable, bus << 8), w0, w1);
      this.#contextTables[bus] = table;
      return table;
    });
  }
}
