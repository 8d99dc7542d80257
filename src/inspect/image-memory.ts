/**
 * An image's memory as the kernel's decoders want it, with a ledger of who names which page.
 *
 * Why more patient than a kernel: a kernel refuses the whole handover by the first broken rule. Who looks wants all of
 * them, so what is wrong is noted and reading goes on where the structure can still be read: a page that is not
 * preserved is named and read all the same. What could make reading endless is still refused at once: memory outside
 * of RAM, and a page that two fields name.
 * @module
 */
import { HandoverError } from "../abi/handover-error.ts";
import type { WordReader } from "../abi/words.ts";
import { hex } from "../base/units.ts";
import type { IncomingMemory, Place } from "../kernel/kho/incoming.ts";
import {
  checkBlock,
  liesInRuns,
  mergeRuns,
  type SortedBlocks,
} from "../kernel/kho/preserved-blocks.ts";
import { RecordClaims } from "../kernel/kho/record-claims.ts";
import type { RamImage } from "./image/ram-image.ts";
import type { Problems } from "./problems.ts";

/** Pages that are not preserved and are read all the same; beyond it they are refused, or garbage would be walked for long. */
const STRAY_CLAIMS_MAX = 64;

export class ImageMemory implements IncomingMemory {
  readonly memory: WordReader;
  readonly blocks: SortedBlocks;
  readonly problems: Problems;
  readonly #image: RamImage;
  readonly #runs: Float64Array;
  readonly #isTreeLost: boolean;
  readonly #claims = new Map<number, string>();
  readonly #records = new RecordClaims();
  #claimedPages = 0;
  #strays = 0;

  /**
   * @param isTreeLost - the tree says nothing of use: then no page is held to be not preserved
   */
  constructor(image: RamImage, blocks: SortedBlocks, isTreeLost: boolean, problems: Problems) {
    this.#image = image;
    this.memory = image;
    this.blocks = blocks;
    this.#runs = mergeRuns(blocks);
    this.#isTreeLost = isTreeLost;
    this.problems = problems;
  }

  readonly places: Place[] = [];
  readonly report = (error: HandoverError, place: Place): void => {
    this.problems.addError(error, ...this.places, place);
  };

  isPreserved(pa: number, lengthBytes: number): boolean {
    if (!this.#image.contains(pa, lengthBytes)) return false;
    return this.#isTreeLost || liesInRuns(this.#runs, pa, lengthBytes);
  }

  preservedOrder(pa: number): number | null {
    const index = this.blocks.find(pa);
    return index < 0 ? null : this.blocks.order(index);
  }

  claim(pa: number, order: number, field: string): void {
    checkBlock(this.#image, pa, order, field);
    const other = this.#claims.get(pa);
    if (other !== undefined)
      throw new HandoverError(field, `${hex(pa)} is claimed by ${other} already`);
    if (!this.#isTreeLost) this.#checkPreserved(pa, order, field);
    this.#claims.set(pa, field);
  }

  claimRecord(pa: number, lengthBytes: number, field: string): void {
    this.#records.claim(pa, lengthBytes, field, (block, order) => this.claim(block, order, field));
  }

  /** 4 KiB pages in preserved blocks that nothing which was read names. */
  get unclaimedPages(): number {
    let pages = 0;
    for (let i = 0; i < this.blocks.count; i++) pages += 2 ** this.blocks.order(i);
    return pages - this.#claimedPages;
  }

  #checkPreserved(pa: number, order: number, field: string): void {
    const found = this.preservedOrder(pa);
    if (found !== null) this.#claimedPages += 2 ** found;
    if (found === order) return;
    const error = new HandoverError(
      field,
      found === null
        ? `${hex(pa)} is not preserved`
        : `${hex(pa)} was preserved with order ${found}, not ${order}`,
    );
    if (this.#strays++ >= STRAY_CLAIMS_MAX) throw error;
    this.problems.addError(error, ...this.places);
  }
}
