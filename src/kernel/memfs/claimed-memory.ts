/**
 * The memory that one store's metadata names, each block once.
 *
 * Why: pages of a dynamic store are blocks of KHO and claimed one by one. A carve-out is claimed as a whole, so there
 * it is checked here that blocks lie in it and do not overlap.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import { hex, isAligned, orderBytes } from "../../base/units.ts";
import type { MemoryRange } from "../../machine/machine.ts";
import type { IncomingMemory } from "../kho/incoming.ts";

/** `count` blocks of 2^order pages, one after the other. */
export interface BlockRun {
  readonly pa: number;
  readonly order: number;
  readonly count: number;
}

interface Used {
  readonly pa: number;
  readonly lengthBytes: number;
  readonly field: string;
}

export class ClaimedMemory {
  readonly #incoming: IncomingMemory;
  readonly #carveOut: MemoryRange | null;
  readonly #used: Used[] = [];
  /** Blocks claimed from KHO. */
  readonly kept: BlockRun[] = [];
  /** Blocks claimed from KHO that no file has. */
  readonly reclaimed: BlockRun[] = [];

  constructor(incoming: IncomingMemory, carveOut: MemoryRange | null) {
    this.#incoming = incoming;
    this.#carveOut = carveOut;
  }

  /** @throws {HandoverError} when it is not preserved, not in the carve-out, unaligned, or claimed already */
  claim(pa: number, order: number, count: number, field: string): void {
    const lengthBytes = count * orderBytes(order);
    const range = this.#carveOut;
    if (range === null) {
      // What is not preserved ends the loop, so that an absurd count costs nothing.
      for (let i = 0; i < count; i++)
        this.#incoming.claim(pa + i * orderBytes(order), order, field);
      this.kept.push({ pa, order, count });
    } else if (
      !isAligned(pa, orderBytes(order)) ||
      pa < range.start ||
      pa + lengthBytes > range.start + range.lengthBytes
    )
      throw new HandoverError(field, `${hex(pa)}, order ${order}, is not in the carve-out`);
    this.#used.push({ pa, lengthBytes, field });
  }

  /** Memory that was claimed, ascending. To be called when all is claimed. */
  get used(): readonly { readonly pa: number; readonly lengthBytes: number }[] {
    return this.#used;
  }

  /** Sorts what was claimed. @throws {HandoverError} when two blocks overlap */
  checkDisjoint(store: string): void {
    this.#used.sort((a, b) => a.pa - b.pa);
    for (let i = 1; i < this.#used.length; i++) {
      const before = this.#used[i - 1];
      const { pa, field } = this.#used[i];
      if (before.pa + before.lengthBytes > pa)
        throw new HandoverError(field, `${hex(pa)} is named by ${before.field} of ${store} too`);
    }
  }

  /**
   * Claims what an unfinished change left behind: blocks that are still preserved and that no file has. Changes free
   * the last block of a run first, so what is left of it is its beginning.
   * To be called after {@link checkDisjoint}.
   */
  reclaim(run: BlockRun, field: string): void {
    if (this.#carveOut !== null) return;
    const bytes = orderBytes(run.order);
    for (let i = 0; i < run.count; i++) {
      const pa = run.pa + i * bytes;
      if (this.#isUsed(pa, bytes)) continue;
      if (this.#incoming.preservedOrder(pa) !== run.order) return;
      this.#incoming.claim(pa, run.order, field);
      this.reclaimed.push({ pa, order: run.order, count: 1 });
    }
  }

  #isUsed(pa: number, lengthBytes: number): boolean {
    let at = 0;
    for (let end = this.#used.length; at < end; ) {
      const middle = (at + end) >>> 1;
      if (this.#used[middle].pa + this.#used[middle].lengthBytes <= pa) at = middle + 1;
      else end = middle;
    }
    return at < this.#used.length && this.#used[at].pa < pa + lengthBytes;
  }
}
