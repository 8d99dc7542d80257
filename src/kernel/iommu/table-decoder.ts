/**
 * Checking page tables of the previous kernel before anything relies on them.
 *
 * Every table page must be preserved and named once (which also rules out cycles), every entry must be one that this
 * driver would write, and every page mapped must be one that devices may reach.
 * @module
 */

import { HandoverError } from "../../abi/handover-error.ts";
import {
  SS_ADDRESS_HIGH,
  SS_PS,
  SS_R,
  SS_TABLE_ENTRIES,
  SS_W,
  ssAddress,
  ssIsPresent,
  ssSpanBytes,
} from "../../abi/vtd/second-stage.ts";
import { hex, isAligned, PAGE_SIZE } from "../../base/units.ts";
import { apart, type IncomingMemory } from "../kho/incoming.ts";

const RIGHTS = SS_R | SS_W;
/** All bits of a low half below the address that this driver uses. */
const LEAF_BITS = RIGHTS | SS_PS;

/** What a tree that passed holds. */
export interface DecodedTables {
  /** Its table pages, claimed, children before parents. */
  readonly tables: readonly number[];
  /** Sizes of its leaves, as a sum of powers of two. */
  readonly leafSizes: number;
  /** Whether every entry passed: always, but for who only looks. */
  readonly isWhole: boolean;
}

/**
 * Whether devices may reach a run of physical memory by these IOVAs: leaves that follow one another in both, with the
 * same rights (SS_R | SS_W).
 */
export type MayReach = (iova: number, pa: number, lengthBytes: number, rights: number) => boolean;

/** Walks one tree. */
export class TableDecoder {
  readonly #incoming: IncomingMemory;
  readonly #field: string;
  readonly #mayReach: MayReach;
  readonly #tables: number[] = [];
  #leafSizes = 0;
  #isWhole = true;
  // A run of leaves that is contiguous in IOVA and physical memory, checked as one.
  #runIova = 0;
  #runPa = 0;
  #runBytes = 0;
  #runRights = 0;

  /** @param field - how to name the tree in errors */
  constructor(incoming: IncomingMemory, field: string, mayReach: MayReach) {
    this.#incoming = incoming;
    this.#field = field;
    this.#mayReach = mayReach;
  }

  /**
   * Checks the tree under `top` and claims its pages.
   * @param levels - 3 or 4
   * @throws {HandoverError}
   */
  decode(top: number, levels: number): DecodedTables {
    this.#incoming.claim(top, 0, `${this.#field}.top_table`);
    this.#table(top, levels - 1, 0);
    this.#checkRun(top);
    return { tables: this.#tables, leafSizes: this.#leafSizes, isWhole: this.#isWhole };
  }

  #table(table: number, level: number, start: number): void {
    const span = ssSpanBytes(level);
    const { memory, report } = this.#incoming;
    for (let i = 0; i < SS_TABLE_ENTRIES; i++) {
      const low = memory.load32(table + 8 * i);
      const high = memory.load32(table + 8 * i + 4);
      if (low === 0 && high === 0) continue;
      const iova = start + i * span;
      // No closure for each entry in a kernel: there are millions.
      if (report === undefined) this.#entry(level, iova, low, high, table + 8 * i);
      else
        this.#isWhole =
          apart(this.#incoming, { pa: table + 8 * i }, () => {
            this.#entry(level, iova, low, high, table + 8 * i);
            return this.#isWhole;
          }) ?? false;
    }
    this.#tables.push(table);
  }

  #entry(level: number, iova: number, low: number, high: number, at: number): void {
    const span = ssSpanBytes(level);
    const address = ssAddress(low, high);
    if (!ssIsPresent(low)) this.#refuse(iova, level, "is not present but not 0");
    if ((high & ~SS_ADDRESS_HIGH) !== 0) this.#refuse(iova, level, "has unknown bits set");
    const bits = low % PAGE_SIZE;
    if (level === 0 || (bits & SS_PS) !== 0) {
      if (level === 3 || (bits & ~(level === 0 ? RIGHTS : LEAF_BITS)) !== 0)
        this.#refuse(iova, level, "has unknown bits set");
      if (!isAligned(address, span)) this.#refuse(iova, level, "is not aligned to its page");
      this.#leaf(iova, address, span, bits & RIGHTS, at);
    } else {
      if (bits !== RIGHTS) this.#refuse(iova, level, "names a table but has other bits set");
      this.#incoming.claim(address, 0, this.#entryField(iova, level));
      this.#table(address, level - 1, iova);
    }
  }

  /** @param at - physical address of its entry */
  #leaf(iova: number, pa: number, sizeBytes: number, rights: number, at: number): void {
    this.#leafSizes |= sizeBytes;
    if (
      pa !== this.#runPa + this.#runBytes ||
      iova !== this.#runIova + this.#runBytes ||
      rights !== this.#runRights
    ) {
      this.#checkRun(at);
      this.#runIova = iova;
      this.#runPa = pa;
      this.#runBytes = 0;
      this.#runRights = rights;
    }
    this.#runBytes += sizeBytes;
  }

  /** @param at - where the walk is, for reports */
  #checkRun(at: number): void {
    if (this.#runBytes === 0) return;
    apart(this.#incoming, { pa: at }, () => {
      if (!this.#mayReach(this.#runIova, this.#runPa, this.#runBytes, this.#runRights))
        throw new HandoverError(
          `${this.#field}: entry at iova ${hex(this.#runIova)}`,
          `${hex(this.#runPa)}+${hex(this.#runBytes)} is not preserved memory`,
        );
    });
  }

  #refuse(iova: number, level: number, problem: string): never {
    throw new HandoverError(this.#entryField(iova, level), problem);
  }

  #entryField(iova: number, level: number): string {
    return `${this.#field}: entry of level ${level} at iova ${hex(iova)}`;
  }
}
