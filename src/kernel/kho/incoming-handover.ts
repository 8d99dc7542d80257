/**
 * The previous kernel's handover, read and checked as a whole before anything else happens.
 *
 * Why a copy: the tree's nodes are ordinary memory, not preserved; once it is read into sorted arrays, they may be
 * given out, and nothing has to be freed.
 * Lifecycle: 1. `read` checks scratch, FDT and tree. 2. Decoders claim what they name. 3. The page allocator
 * keeps the blocks reserved. 4. `takeOver` gives a block to its owner in this kernel, once.
 * Cost: by preserved blocks; a terabyte in 1 GiB blocks is 1024 of them.
 * Source: Linux 7.3 kernel/liveupdate/kexec_handover.c kho_populate, kho_mem_retrieve, kho_restore_page
 * Invariants: blocks overlap neither one another nor scratch nor the tree's nodes.
 * @module
 */

import { HandoverError } from "../../abi/handover-error.ts";
import {
  type KexecMetadata,
  KHO_METADATA_NODE_NAME,
  readKexecMetadata,
} from "../../abi/kexec-metadata.ts";
import { type KhoSubtree, readKhoFdt, readScratch } from "../../abi/kho.ts";
import { ByteWords, type WordReader } from "../../abi/words.ts";
import { hex, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { KhoBootParameters, PhysicalMemory } from "../../machine/machine.ts";
import type { BlockList } from "../mm/buddy-allocator.ts";
import type { IncomingMemory } from "./incoming.ts";
import {
  checkBlock,
  checkOverlaps,
  liesInRuns,
  mergeRuns,
  readPreservedTree,
  type SortedBlocks,
} from "./preserved-blocks.ts";
import { RecordClaims } from "./record-claims.ts";
import { Scratch } from "./scratch.ts";

/** A block that a field has named. */
export interface Claim {
  readonly lengthBytes: number;
  readonly field: string;
  /** Whether it holds records, which other fields have named too. */
  readonly isRecordPage: boolean;
}

/** What the previous kernel preserved, and who has it now. */
export class IncomingHandover implements IncomingMemory {
  readonly memory: WordReader;
  readonly scratch: Scratch;
  /** In the order in which the previous kernel added them. */
  readonly subtrees: readonly KhoSubtree[];
  /** Null when the previous kernel left none, as upstream allows. */
  readonly metadata: KexecMetadata | null;
  /** Pages of the handover's own, of order 0: this kernel has read them and may free them. */
  readonly ownPages: readonly number[];
  readonly #ram: PhysicalMemory;
  readonly #blocks: SortedBlocks;
  readonly #runs: Float64Array;
  /** Field that has claimed a block, by the block's index. */
  readonly #claimedBy = new Map<number, string>();
  readonly #records = new RecordClaims();
  readonly #taken: Uint8Array;
  #untakenPages = 0;

  /**
   * @param parameters - untrusted
   * @throws {HandoverError} when anything about scratch, FDT, metadata or tree is wrong. Nothing is changed.
   */
  static read(memory: PhysicalMemory, parameters: KhoBootParameters): IncomingHandover {
    return new IncomingHandover(memory, parameters);
  }

  private constructor(memory: PhysicalMemory, parameters: KhoBootParameters) {
    this.memory = memory;
    this.#ram = memory;
    this.scratch = new Scratch(
      readScratch(memory, parameters.scratchAddress, parameters.scratchSizeBytes),
    );
    const fdt = readKhoFdt(memory, parameters.fdtAddress, parameters.fdtSizeBytes);
    this.subtrees = fdt.subtrees;

    const { blocks, nodes } = readPreservedTree(memory, fdt.memoryMapPa);
    this.#blocks = blocks;
    checkOverlaps(blocks, nodes, this.scratch);
    this.#runs = mergeRuns(blocks);
    this.#taken = new Uint8Array(blocks.count);
    for (let i = 0; i < blocks.count; i++) this.#untakenPages += 2 ** blocks.order(i);

    this.claim(parameters.fdtAddress, 0, "kho_data.fdt_addr");
    const ownPages = [parameters.fdtAddress];
    const subtree = this.subtree(KHO_METADATA_NODE_NAME);
    this.metadata = subtree === null ? null : this.#readMetadata(subtree);
    if (subtree !== null) ownPages.push(subtree.pa);
    this.ownPages = ownPages;
  }

  /** All preserved blocks, sorted by address: for the page allocator to keep off. */
  get blocks(): BlockList {
    return this.#blocks;
  }

  /** A blob that the previous kernel named. Its bytes lie in RAM; nothing else about it is known. */
  subtree(name: string): KhoSubtree | null {
    return this.subtrees.find((candidate) => candidate.name === name) ?? null;
  }

  isPreserved(pa: number, lengthBytes: number): boolean {
    return liesInRuns(this.#runs, pa, lengthBytes);
  }

  preservedOrder(pa: number): number | null {
    const index = this.#blocks.find(pa);
    return index < 0 ? null : this.#blocks.order(index);
  }

  claim(pa: number, order: number, field: string): void {
    const index = this.#blockOf(pa, order, field);
    const other = this.#claimedBy.get(index);
    if (other !== undefined)
      throw new HandoverError(field, `${hex(pa)} is claimed by ${other} already`);
    this.#claimedBy.set(index, field);
  }

  claimRecord(pa: number, lengthBytes: number, field: string): void {
    this.#records.claim(pa, lengthBytes, field, (block, order) => this.claim(block, order, field));
  }

  /** Index of the block of exactly that order. */
  #blockOf(pa: number, order: number, field: string): number {
    checkBlock(this.#ram, pa, order, field);
    const index = this.#blocks.find(pa);
    if (index < 0) throw new HandoverError(field, `${hex(pa)} is not preserved`);
    if (this.#blocks.order(index) !== order)
      throw new HandoverError(
        field,
        `${hex(pa)} was preserved with order ${this.#blocks.order(index)}, not ${order}`,
      );
    return index;
  }

  /** What takes how much: claimed blocks, with the field that named each; of a page of records, that of the first. */
  *claims(): Iterable<Claim> {
    for (const [index, field] of this.#claimedBy) {
      const lengthBytes = orderBytes(this.#blocks.order(index));
      yield { lengthBytes, field, isRecordPage: this.#records.hasPage(this.#blocks.pa(index)) };
    }
  }

  /** 4 KiB pages in blocks that no decoder has claimed. */
  unclaimedPages(): number {
    let pages = 0;
    for (let i = 0; i < this.#blocks.count; i++)
      if (!this.#claimedBy.has(i)) pages += 2 ** this.#blocks.order(i);
    return pages;
  }

  /**
   * Marks a block as taken over by its owner in this kernel.
   * @returns false when it is not exactly a preserved block, or was taken before
   */
  takeOver(pa: number, order: number): boolean {
    const index = this.#blocks.find(pa);
    if (index < 0 || this.#blocks.order(index) !== order || this.#taken[index] !== 0) return false;
    this.#taken[index] = 1;
    this.#untakenPages -= 1 << order;
    return true;
  }

  /**
   * Forgets a claimed record of a shared page.
   * @returns null when there is none with that length; else whether it was the last of its page
   */
  releaseRecord(pa: number, lengthBytes: number): { readonly isLast: boolean } | null {
    return this.#records.delete(pa, lengthBytes);
  }

  /**
   * Forgets who has claimed and taken what: for another attempt at a boot that failed. The pages themselves must be as
   * the previous kernel left them.
   */
  startOver(): void {
    this.#claimedBy.clear();
    this.#records.clear();
    for (const pa of this.ownPages) this.claim(pa, 0, "kexec handover");
    this.#taken.fill(0);
    this.#untakenPages = 0;
    for (let i = 0; i < this.blocks.count; i++) this.#untakenPages += 2 ** this.blocks.order(i);
  }

  /** 4 KiB pages in blocks that nobody has taken over. */
  untakenPages(): number {
    return this.#untakenPages;
  }

  #readMetadata({ pa, sizeBytes }: KhoSubtree): KexecMetadata {
    const field = `fdt:/${KHO_METADATA_NODE_NAME}`;
    if (sizeBytes > PAGE_SIZE)
      throw new HandoverError(`${field}.blob-size`, `${sizeBytes} exceeds a page`);
    this.claim(pa, 0, `${field}.preserved-data`);
    const bytes = new Uint8Array(sizeBytes);
    this.#ram.read(pa, bytes);
    return readKexecMetadata(new ByteWords(bytes), sizeBytes);
  }
}
