/**
 * Tags of a cache by domain-id and IOVA: which slot belongs to which span of a domain, until it is invalidated.
 *
 * Why: the IOTLB and the paging-structure caches are tagged and invalidated alike (Intel VT-d specification rev 5.0 §6.2.1,
 * §6.5.1.2); they differ in what an entry covers and in what it holds.
 * Invariant: a span is cached at most once for each level.
 * @module
 */
import { ssSpanBytes } from "../../../abi/vtd/second-stage.ts";

/** Slots of one set. */
const WAYS = 4;
const EMPTY = -1;
/** A key is domain-id · 2^36 + number of the span: 52 bits, exact in a number. */
const DOMAIN_STRIDE = 2 ** 36;
/** Levels of entries that one cache holds. */
const LEVELS = 3;

/** For each level a set-associative array with round-robin replacement, so that runs repeat exactly. */
export class DomainCache {
  /** Slots are 0 up to this. */
  protected readonly slotCount: number;
  readonly #lowest: number;
  readonly #key: Float64Array;
  readonly #victim: Uint8Array;
  /** By level: slots in use, so that levels that nobody uses cost nothing. */
  readonly #used = new Int32Array(LEVELS);
  readonly #entries: number;
  readonly #setMask: number;

  /**
   * @param entries - for each level: a power of two, at least 4
   * @param lowest - level of the entries with the smallest span; the two above it are cached too
   */
  constructor(entries: number, lowest: number) {
    this.slotCount = LEVELS * entries;
    this.#lowest = lowest;
    this.#key = new Float64Array(LEVELS * entries).fill(EMPTY);
    this.#victim = new Uint8Array((LEVELS * entries) / WAYS);
    this.#entries = entries;
    this.#setMask = entries / WAYS - 1;
  }

  /** The slot of the smallest cached span around `iova` in a domain, or -1. */
  lookup(domainId: number, iova: number): number {
    for (let group = 0; group < LEVELS; group++) {
      if (this.#used[group] === 0) continue;
      const slot = this.#find(group, domainId, this.#spanNumber(group, iova));
      if (slot >= 0) return slot;
    }
    return -1;
  }

  /** Takes a slot for the span of `level` around `iova`: the one that it has, an empty one, or another span's. */
  protected take(domainId: number, level: number, iova: number): number {
    const keys = this.#key;
    const group = level - this.#lowest;
    const span = this.#spanNumber(group, iova);
    const found = this.#find(group, domainId, span);
    if (found >= 0) return found;
    const first = this.#firstSlot(group, domainId, span);
    let slot = first;
    while (slot < first + WAYS && keys[slot] !== EMPTY) slot++;
    if (slot === first + WAYS) {
      const set = first / WAYS;
      slot = first + this.#victim[set];
      this.#victim[set] = (this.#victim[set] + 1) % WAYS;
    } else this.#used[group]++;
    keys[slot] = domainId * DOMAIN_STRIDE + span;
    return slot;
  }

  /** The level of the entry in a slot. */
  levelOf(slot: number): number {
    return Math.floor(slot / this.#entries) + this.#lowest;
  }

  invalidateAll(): void {
    this.#key.fill(EMPTY);
    this.#used.fill(0);
  }

  invalidateDomain(domainId: number): void {
    for (let group = 0; group < LEVELS; group++)
      this.#drop(group, domainId * DOMAIN_STRIDE, (domainId + 1) * DOMAIN_STRIDE - 1);
  }

  /**
   * Drops every span that has a byte in 2^`addressMask` pages of 4 KiB around `iova`, whatever its size.
   * @param addressMask - 0 to 63
   */
  invalidatePages(domainId: number, iova: number, addressMask: number): void {
    const lengthBytes = 2 ** (12 + addressMask);
    const start = Math.floor(iova / lengthBytes) * lengthBytes;
    for (let group = 0; group < LEVELS; group++) {
      const first = this.#spanNumber(group, start);
      const last = this.#spanNumber(group, start + lengthBytes - 1);
      // Beyond the domain's stride nothing can be cached; the next domain's keys begin there.
      if (first >= DOMAIN_STRIDE) continue;
      const key = domainId * DOMAIN_STRIDE;
      this.#drop(group, key + first, key + Math.min(last, DOMAIN_STRIDE - 1));
    }
  }

  #find(group: number, domainId: number, span: number): number {
    const keys = this.#key;
    const key = domainId * DOMAIN_STRIDE + span;
    const first = this.#firstSlot(group, domainId, span);
    for (let slot = first; slot < first + WAYS; slot++) if (keys[slot] === key) return slot;
    return -1;
  }

  /** Empties the slots of a level with keys from `first` to `last` (inclusive). */
  #drop(group: number, first: number, last: number): void {
    if (this.#used[group] === 0) return;
    const keys = this.#key;
    const end = (group + 1) * this.#entries;
    for (let slot = group * this.#entries; slot < end; slot++) {
      const key = keys[slot];
      if (key >= first && key <= last) {
        keys[slot] = EMPTY;
        this.#used[group]--;
      }
    }
  }

  #spanNumber(group: number, iova: number): number {
    return Math.floor(iova / ssSpanBytes(group + this.#lowest));
  }

  /** Neighbouring spans fall into different sets, and so do equal spans of neighbouring domains. */
  #firstSlot(group: number, domainId: number, span: number): number {
    const set = (span ^ (domainId * 5)) & this.#setMask;
    return group * this.#entries + set * WAYS;
  }
}
