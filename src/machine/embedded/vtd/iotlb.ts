/**
 * The IOTLB: translations by domain-id and page, until they are invalidated.
 *
 * Why: a real cache. A second-stage entry that the kernel changes without an invalidation goes on being
 * used, as on hardware; so a missing flush is a visible bug.
 * Source: Intel VT-d specification rev 5.0 §6.2.4, §6.5.1.2.
 * Invariants: only translations that were walked to a present leaf are cached (CAP.CM is 0); a page is
 * cached at most once for each page size.
 * Not modelled: paging-structure caches, so the invalidation hint (IH) changes nothing.
 * @module
 */
import { ssSpanBytes } from "../../../abi/vtd/second-stage.ts";

/** Slots of one set. */
const WAYS = 4;
const EMPTY = -1;
/** A key is domain-id · 2^36 + page number: 52 bits, exact in a number. */
const DOMAIN_STRIDE = 2 ** 36;
/** Page sizes: leaf levels 0, 1 and 2. */
const LEVELS = 3;

/** For each page size a set-associative array with round-robin replacement, so that runs repeat exactly. */
export class Iotlb {
  /** By slot: what to add to an IOVA in the page to get its physical address. */
  readonly offset: Float64Array;
  /** By slot: SS_R | SS_W as far as the whole walk allows. */
  readonly rights: Uint8Array;
  readonly #key: Float64Array;
  readonly #victim: Uint8Array;
  /** By level: slots in use, so that page sizes that nobody uses cost nothing. */
  readonly #used = new Int32Array(LEVELS);
  readonly #entries: number;
  readonly #setMask: number;

  /** @param entries - for each page size: a power of two, at least 4 */
  constructor(entries: number) {
    this.offset = new Float64Array(LEVELS * entries);
    this.rights = new Uint8Array(LEVELS * entries);
    this.#key = new Float64Array(LEVELS * entries).fill(EMPTY);
    this.#victim = new Uint8Array((LEVELS * entries) / WAYS);
    this.#entries = entries;
    this.#setMask = entries / WAYS - 1;
  }

  /** The slot of the page around `iova` in a domain, or -1. */
  lookup(domainId: number, iova: number): number {
    const keys = this.#key;
    for (let level = 0; level < LEVELS; level++) {
      if (this.#used[level] === 0) continue;
      const page = Math.floor(iova / ssSpanBytes(level));
      const key = domainId * DOMAIN_STRIDE + page;
      const first = this.#firstSlot(level, domainId, page);
      for (let slot = first; slot < first + WAYS; slot++) if (keys[slot] === key) return slot;
    }
    return -1;
  }

  /**
   * Puts in the translation of the page around `iova`, which is not cached.
   * @param level - of the leaf: 0, 1 or 2
   * @param pa - physical address of the page
   * @param rights - SS_R | SS_W
   * @returns its slot
   */
  fill(domainId: number, level: number, iova: number, pa: number, rights: number): number {
    const keys = this.#key;
    const page = Math.floor(iova / ssSpanBytes(level));
    const first = this.#firstSlot(level, domainId, page);
    let slot = first;
    while (slot < first + WAYS && keys[slot] !== EMPTY) slot++;
    if (slot === first + WAYS) {
      const set = first / WAYS;
      slot = first + this.#victim[set];
      this.#victim[set] = (this.#victim[set] + 1) % WAYS;
    } else this.#used[level]++;
    keys[slot] = domainId * DOMAIN_STRIDE + page;
    this.offset[slot] = pa - page * ssSpanBytes(level);
    this.rights[slot] = rights;
    return slot;
  }

  invalidateAll(): void {
    this.#key.fill(EMPTY);
    this.#used.fill(0);
  }

  invalidateDomain(domainId: number): void {
    for (let level = 0; level < LEVELS; level++)
      this.#drop(level, domainId * DOMAIN_STRIDE, (domainId + 1) * DOMAIN_STRIDE - 1);
  }

  /**
   * Drops every page that has a byte in 2^`addressMask` pages of 4 KiB around `iova`, whatever its size.
   * @param addressMask - 0 to 63
   */
  invalidatePages(domainId: number, iova: number, addressMask: number): void {
    const lengthBytes = 2 ** (12 + addressMask);
    const start = Math.floor(iova / lengthBytes) * lengthBytes;
    for (let level = 0; level < LEVELS; level++) {
      const span = ssSpanBytes(level);
      const first = Math.floor(start / span);
      const last = Math.floor((start + lengthBytes - 1) / span);
      // Beyond the domain's stride no page can be cached; the next domain's keys begin there.
      if (first >= DOMAIN_STRIDE) continue;
      const key = domainId * DOMAIN_STRIDE;
      this.#drop(level, key + first, key + Math.min(last, DOMAIN_STRIDE - 1));
    }
  }

  /** Empties the slots of a level with keys from `first` to `last` (inclusive). */
  #drop(level: number, first: number, last: number): void {
    if (this.#used[level] === 0) return;
    const keys = this.#key;
    const end = (level + 1) * this.#entries;
    for (let slot = level * this.#entries; slot < end; slot++) {
      const key = keys[slot];
      if (key >= first && key <= last) {
        keys[slot] = EMPTY;
        this.#used[level]--;
      }
    }
  }

  /** Neighbouring pages fall into different sets, and so do equal pages of neighbouring domains. */
  #firstSlot(level: number, domainId: number, page: number): number {
    const set = (page ^ (domainId * 5)) & this.#setMask;
    return level * this.#entries + set * WAYS;
  }
}
