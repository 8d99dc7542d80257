/**
 * A domain of the previous kernel: its page tables as they were found, never written.
 *
 * Lifecycle: adopted with the functions that use it; each leaves for an ordinary domain or is blocked; free.
 * @module
 */

import type { WordReader } from "../../abi/words.ts";
import { assert } from "../../base/assert.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import type { AttachedFunction } from "./attached-function.ts";
import type { RestoredDomain } from "./domain.ts";
import { forEachTable, type SecondStageTree, walkToPhys } from "./second-stage-walk.ts";

/** What was adopted. */
export interface RestoredTablesOptions {
  readonly memory: WordReader;
  readonly mm: PageAllocator;
  /** Its slot in the handover. */
  readonly id: number;
  readonly top: number;
  readonly levels: number;
  /** Called when it is freed. */
  readonly onFree: () => void;
}

/** The {@link RestoredDomain} of this driver. */
export class RestoredTables implements RestoredDomain, SecondStageTree {
  readonly type = "restored";
  readonly id: number;
  readonly memory: WordReader;
  readonly top: number;
  readonly levels: number;
  readonly attachments = new Set<AttachedFunction>();
  readonly #mm: PageAllocator;
  readonly #onFree: () => void;

  constructor(options: RestoredTablesOptions) {
    this.id = options.id;
    this.memory = options.memory;
    this.top = options.top;
    this.levels = options.levels;
    this.#mm = options.mm;
    this.#onFree = options.onFree;
  }

  get attachedCount(): number {
    return this.attachments.size;
  }

  iovaToPhys(iova: number): number | null {
    return walkToPhys(this, iova);
  }

  free(): void {
    assert(this.attachments.size === 0, "a restored domain with attached functions is freed");
    forEachTable(this.memory, this.top, this.levels - 1, (table) => this.#mm.free(table, 0));
    this.#onFree();
  }
}
