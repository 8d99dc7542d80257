/**
 * The IOTLB: translations by domain-id and page, until they are invalidated.
 *
 * Why: a real cache. A second-stage entry that the kernel changes without an invalidation goes on being
 * used, as on hardware; so a missing flush is a visible bug.
 * Source: Intel VT-d specification rev 5.0 §6.1 (caching mode), §6.2.4, §6.5.1.2.
 * Invariants: without CAP.CM only translations that were walked to a present leaf are cached; with it pages that have no
 * translation too.
 * @module
 */
import { ssSpanBytes } from "../../../abi/vtd/second-stage.ts";
import { DomainCache } from "./domain-cache.ts";

export class Iotlb extends DomainCache {
  /** By slot: what to add to an IOVA in the page to get its physical address. */
  readonly offset: Float64Array;
  /** By slot: SS_R | SS_W as far as the whole walk allows. */
  readonly rights: Uint8Array;
  /** By slot: why the page has no translation, or 0. */
  readonly fault: Uint8Array;

  /** @param entries - for each page size: a power of two, at least 4 */
  constructor(entries: number) {
    super(entries, 0);
    this.offset = new Float64Array(this.slotCount);
    this.rights = new Uint8Array(this.slotCount);
    this.fault = new Uint8Array(this.slotCount);
  }

  /**
   * Puts in the translation of the page around `iova`.
   * @param level - of the leaf: 0, 1 or 2
   * @param pa - physical address of the page
   * @param rights - SS_R | SS_W
   * @returns its slot
   */
  fill(domainId: number, level: number, iova: number, pa: number, rights: number): number {
    const slot = this.take(domainId, level, iova);
    const span = ssSpanBytes(level);
    this.offset[slot] = pa - Math.floor(iova / span) * span;
    this.rights[slot] = rights;
    this.fault[slot] = 0;
    return slot;
  }

  /** Puts in that the 4 KiB around `iova` have no translation (§6.1: only with CAP.CM). */
  fillFault(domainId: number, iova: number, reason: number): void {
    this.fault[this.take(domainId, 0, iova)] = reason;
  }
}
