/**
 * The paging-structure caches: second-stage entries that name tables, by domain-id and IOVA.
 *
 * Why: a walk that starts at what these hold does not look at the tables above. A kernel that unlinks a table and frees it
 * without flushing it lets devices through it, also to pages that were never translated before.
 * Source: Intel VT-d specification rev 5.0 §6.2.5 (caches for PML4, PDPE and PDE entries), §6.2.6 (the smallest span is used),
 * §6.5.1.2 (the invalidation hint leaves them as they are).
 * Invariant: only present entries without reserved bits are cached, with the rights of the whole way down to them.
 * @module
 */
import { DomainCache } from "./domain-cache.ts";

/** Entries that name page tables are of level 1. */
const LOWEST = 1;

export class PagingStructureCache extends DomainCache {
  /** By slot: physical address of the table that the entry names. */
  readonly table: Float64Array;
  /** By slot: SS_R | SS_W as far as the way to the table allows. */
  readonly rights: Uint8Array;

  /** @param entries - for each level: a power of two, at least 4 */
  constructor(entries: number) {
    super(entries, LOWEST);
    this.table = new Float64Array(this.slotCount);
    this.rights = new Uint8Array(this.slotCount);
  }

  /**
   * Puts in an entry that a walk has passed.
   * @param level - of the entry: 1 to 3
   */
  fill(domainId: number, level: number, iova: number, table: number, rights: number): void {
    const slot = this.take(domainId, level, iova);
    this.table[slot] = table;
    this.rights[slot] = rights;
  }
}
