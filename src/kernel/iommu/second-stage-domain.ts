/**
 * A paging domain: page tables of this kernel, and the functions that use them.
 *
 * Lifecycle: made, attached any number of times, free. Preserved in between it is fixed, and so is one that holds
 * a function's RMRRs.
 * @module
 */
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import type { AttachedFunction } from "./attached-function.ts";
import type { PagingDomain } from "./domain.ts";
import type { RemappingUnit } from "./remapping-unit.ts";
import { SecondStageTable } from "./second-stage-table.ts";
import { walkToPhys } from "./second-stage-walk.ts";

/** What a domain is made of and with. */
export interface SecondStageDomainOptions {
  readonly memory: PhysicalMemory;
  readonly mm: PageAllocator;
  readonly faults: FaultInjector;
  /** The unit whose formats it has. */
  readonly unit: RemappingUnit;
  readonly levels: number;
  /** Page sizes to map with, as a sum: of those that the unit walks. */
  readonly pageSizes: number;
  /** Tables to take over. */
  readonly existing?: { readonly top: number; readonly tableCount: number };
  /** Called when it is freed. */
  readonly onFree: () => void;
}

/** The {@link PagingDomain} of this driver. */
export class SecondStageDomain implements PagingDomain {
  readonly type = "paging";
  readonly table: SecondStageTable;
  readonly apertureEnd: number;
  readonly pageSizes: number;
  readonly attachments = new Set<AttachedFunction>();
  readonly #onFree: () => void;
  #fixedBecause: string | null = null;

  /** @throws {KernelError} ENOMEM */
  constructor(options: SecondStageDomainOptions) {
    this.apertureEnd = options.unit.apertureEnd(options.levels);
    this.pageSizes = options.pageSizes;
    this.#onFree = options.onFree;
    this.table = new SecondStageTable({
      memory: options.memory,
      mm: options.mm,
      faults: options.faults,
      levels: options.levels,
      pageSizes: this.pageSizes,
      apertureEnd: this.apertureEnd,
      flush: (iova, lengthBytes) => this.#flush(iova, lengthBytes),
      ...(options.existing === undefined ? {} : { existing: options.existing }),
    });
  }

  get levels(): number {
    return this.table.levels;
  }

  map(iova: number, pa: number, lengthBytes: number, prot: number): void {
    this.#checkNotFixed("map");
    this.table.map(iova, pa, lengthBytes, prot);
    for (const { unit, did } of this.attachments)
      if (unit.mapNeedsFlush) {
        unit.flushRange(did, iova, lengthBytes);
        unit.waitFlushed();
      }
  }

  unmap(iova: number, lengthBytes: number): void {
    this.#checkNotFixed("unmap");
    this.table.unmap(iova, lengthBytes);
  }

  iovaToPhys(iova: number): number | null {
    return walkToPhys(this.table, iova);
  }

  free(): void {
    assert(this.attachments.size === 0, "a domain with attached functions is freed");
    assert(this.#fixedBecause === null, `a domain is freed that is ${this.#fixedBecause}`);
    this.table.free();
    this.#onFree();
  }

  /** Why the domain cannot be changed, or null. */
  get fixedBecause(): string | null {
    return this.#fixedBecause;
  }

  fix(because: string): void {
    assert(this.#fixedBecause === null, `the domain is ${this.#fixedBecause}`);
    this.#fixedBecause = because;
  }

  unfix(): void {
    this.#fixedBecause = null;
  }

  #checkNotFixed(op: string): void {
    if (this.#fixedBecause !== null)
      throw new KernelError("EBUSY", op, `the domain is ${this.#fixedBecause}`);
  }

  /** Removes a range from the caches of all units, and waits for all of them once. */
  #flush(iova: number, lengthBytes: number): void {
    for (const { unit, did } of this.attachments) unit.flushRange(did, iova, lengthBytes);
    for (const { unit } of this.attachments) unit.waitFlushed();
  }
}
