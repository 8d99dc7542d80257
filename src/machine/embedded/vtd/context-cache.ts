/**
 * The context cache: context entries by source-id, until they are invalidated.
 *
 * Why: a real cache. A context entry that the kernel changes without an invalidation goes on being used, as
 * on hardware; so a missing flush is a visible bug.
 * Source: Intel VT-d specification rev 5.0 §6.1 (caching mode), §6.2.2, §6.5.1.1.
 * Invariants: without CAP.CM only valid, present entries are cached, with it wrong and absent ones too; a source-id is in at
 * most one slot.
 * @module
 */

/** Slots of one set. */
const WAYS = 4;
const EMPTY = -1;

/** Set-associative with round-robin replacement, so that runs repeat exactly. A slot is an index below `entries`. */
export class ContextCache {
  /** By slot: why the entry translates nothing, or 0. */
  readonly fault: Uint8Array;
  /** By slot: DID; 0 for what is not present. */
  readonly domainId: Uint16Array;
  /** By slot: first address that is beyond MGAW or AW. */
  readonly addressLimit: Float64Array;
  /** By slot: SSPTPTR. */
  readonly tableAddress: Float64Array;
  /** By slot: level of the top table, 2 or 3; -1 for pass-through. */
  readonly topLevel: Int8Array;
  /** By slot: 1 when FPD is set. */
  readonly faultDisable: Uint8Array;
  readonly #sourceId: Int32Array;
  readonly #victim: Uint8Array;
  readonly #setMask: number;

  /** @param entries - a power of two, at least 4 */
  constructor(entries: number) {
    this.fault = new Uint8Array(entries);
    this.domainId = new Uint16Array(entries);
    this.addressLimit = new Float64Array(entries);
    this.tableAddress = new Float64Array(entries);
    this.topLevel = new Int8Array(entries);
    this.faultDisable = new Uint8Array(entries);
    this.#sourceId = new Int32Array(entries).fill(EMPTY);
    this.#victim = new Uint8Array(entries / WAYS);
    this.#setMask = entries / WAYS - 1;
  }

  /** The slot of a source-id, or -1. */
  lookup(sourceId: number): number {
    const tags = this.#sourceId;
    const first = this.#setOf(sourceId) * WAYS;
    for (let slot = first; slot < first + WAYS; slot++) if (tags[slot] === sourceId) return slot;
    return -1;
  }

  /** Takes a slot for a source-id that is not cached; the caller fills in its fields. */
  allocate(sourceId: number): number {
    const tags = this.#sourceId;
    const set = this.#setOf(sourceId);
    const first = set * WAYS;
    let slot = first;
    while (slot < first + WAYS && tags[slot] !== EMPTY) slot++;
    if (slot === first + WAYS) {
      slot = first + this.#victim[set];
      this.#victim[set] = (this.#victim[set] + 1) % WAYS;
    }
    tags[slot] = sourceId;
    return slot;
  }

  invalidateAll(): void {
    this.#sourceId.fill(EMPTY);
  }

  /** Drops the entries that say this domain-id. */
  invalidateDomain(domainId: number): void {
    const tags = this.#sourceId;
    for (let slot = 0; slot < tags.length; slot++)
      if (this.domainId[slot] === domainId) tags[slot] = EMPTY;
  }

  /**
   * Drops the entries of source-ids that agree in all bits but those of the function mask and that say this
   * domain-id. Hardware may ignore the domain-id here; software must give it, and this unit holds it to that.
   * @param functionMask - FM: 0 none, 1 bit 2, 2 bits 2:1, 3 bits 2:0
   */
  invalidateDevice(domainId: number, sourceId: number, functionMask: number): void {
    const tags = this.#sourceId;
    const compare = 0xffff & ~[0b000, 0b100, 0b110, 0b111][functionMask];
    for (let slot = 0; slot < tags.length; slot++) {
      const tag = tags[slot];
      if (
        tag !== EMPTY &&
        (tag & compare) === (sourceId & compare) &&
        this.domainId[slot] === domainId
      )
        tags[slot] = EMPTY;
    }
  }

  /** Functions of one device and of neighbouring buses fall into different sets. */
  #setOf(sourceId: number): number {
    return (sourceId ^ (sourceId >>> 3) ^ (sourceId >>> 8)) & this.#setMask;
  }
}
