/**
 * Domain ids (DIDs) of one remapping unit: the tags of its IOTLB.
 *
 * A DID may be given out again only after everything tagged with it was flushed.
 * Source: VT-d spec §11.4.2 (CAP.ND); DID 0 tags what is not present when CAP.CM is set (§6.1), so it is never given out.
 * @module
 */
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";

/** A bitmap of DIDs. */
export class DomainIds {
  /** First DID that the unit does not have. */
  readonly end: number;
  readonly #used: Uint32Array;
  #count = 0;

  /** @param end - DIDs that the unit supports, 16 to 65536 */
  constructor(end: number) {
    this.end = end;
    this.#used = new Uint32Array(Math.ceil(end / 32));
    this.#used[0] = 1;
  }

  /** DIDs given out. */
  get count(): number {
    return this.#count;
  }

  /**
   * The lowest free DID.
   * @throws {KernelError} ENOSPC when all are used, as Linux's domain_attach_iommu()
   */
  alloc(): number {
    for (let word = 0; word < this.#used.length; word++) {
      const free = ~this.#used[word];
      if (free === 0) continue;
      const did = word * 32 + (31 - Math.clz32(free & -free));
      if (did >= this.end) break;
      this.#take(did);
      return did;
    }
    throw new KernelError(
      "ENOSPC",
      "attach",
      `all ${this.end - 1} domain ids of the unit are used`,
    );
  }

  /** Takes a DID that the previous kernel gave out. */
  reserve(did: number): void {
    assert(!this.isUsed(did), `DID ${did} is used`);
    this.#take(did);
  }

  free(did: number): void {
    assert(did > 0 && this.isUsed(did), `DID ${did} is not used`);
    this.#used[did >>> 5] &= ~(1 << (did & 31));
    this.#count--;
  }

  isUsed(did: number): boolean {
    return (this.#used[did >>> 5] & (1 << (did & 31))) !== 0;
  }

  #take(did: number): void {
    this.#used[did >>> 5] |= 1 << (did & 31);
    this.#count++;
  }
}
