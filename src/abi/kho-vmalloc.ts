/**
 * Arrays larger than a page, handed over as the list of their pages.
 *
 * Source: Linux 7.3 include/linux/kho/abi/kexec_handover.h ("Kexec Handover ABI for vmalloc Preservation"),
 * kernel/liveupdate/kexec_handover.c kho_preserve_vmalloc, kho_restore_vmalloc
 * Layout: descriptor | first u64 | total_pages u32 | flags u16 | order u16 |
 *   chunk: one page | next u64 | phys u64[511], up to the first 0 |
 * A page of the list is a block of 2^order pages; `total_pages` counts 4 KiB pages.
 * @module
 */
import { assert } from "../base/assert.ts";
import { hex, MAX_ORDER, orderBytes } from "../base/units.ts";
import { HandoverError } from "./handover-error.ts";
import type { ClaimableWords } from "./ram-words.ts";
import { struct, u16, u32, u64, type ValueOf } from "./struct.ts";
import type { WordReader, WordWriter } from "./words.ts";

export const KHO_VMALLOC_ALLOC = 0x0001;
export const KHO_VMALLOC_HUGE_VMAP = 0x0002;
/** Addresses that one chunk holds. */
export const KHO_VMALLOC_SIZE = 511;

export const KHO_VMALLOC = struct("kho_vmalloc", {
  first: u64,
  total_pages: u32,
  flags: u16,
  order: u16,
});
export type KhoVmalloc = ValueOf<typeof KHO_VMALLOC>;

/** Byte offset of `phys[index]` in a chunk. */
function physOffset(index: number): number {
  return 8 + 8 * index;
}

/** Chunks that a list of `pageCount` pages takes: as upstream, a full last chunk is followed by an empty one. */
export function vmallocChunkCount(pageCount: number): number {
  return Math.floor(pageCount / KHO_VMALLOC_SIZE) + 1;
}

/**
 * Writes the chunks of a list.
 *
 * @param chunks - zeroed pages, {@link vmallocChunkCount} of them
 * @param pages - physical addresses of blocks of 2^order pages
 * @returns the descriptor, for the caller to write where it belongs
 */
export function writeVmalloc(
  words: WordWriter,
  chunks: readonly number[],
  pages: readonly number[],
  order: number,
): KhoVmalloc {
  assert(chunks.length === vmallocChunkCount(pages.length), "a list has the chunks that it needs");
  chunks.forEach((chunk, c) => {
    words.store64(chunk, chunks[c + 1] ?? 0);
    const count = Math.min(KHO_VMALLOC_SIZE, pages.length - c * KHO_VMALLOC_SIZE);
    for (let i = 0; i < count; i++)
      words.store64(chunk + physOffset(i), pages[c * KHO_VMALLOC_SIZE + i]);
  });
  const flags = KHO_VMALLOC_ALLOC | (order > 0 ? KHO_VMALLOC_HUGE_VMAP : 0);
  return { first: chunks[0], total_pages: pages.length * 2 ** order, flags, order };
}

/** An array that a reader found. */
export interface VmallocPages {
  /** The chunks' own pages, order 0. */
  readonly chunks: readonly number[];
  /** The array's blocks of 2^order pages, in order. */
  readonly pages: readonly number[];
  readonly order: number;
}

/**
 * Reads the list of an array's pages, and claims the chunks and the pages.
 *
 * @param descriptor - as read from the structure that holds it; untrusted
 * @param minimumBytes - what the array must hold; it may be longer by less than one block
 * @param field - how to name the descriptor in errors
 * @throws {HandoverError} when the descriptor's numbers disagree with one another or with `minimumBytes`, or a chunk
 *   or page cannot be claimed
 */
export function readVmalloc(
  incoming: ClaimableWords,
  descriptor: KhoVmalloc,
  minimumBytes: number,
  field: string,
): VmallocPages {
  const { first, total_pages, flags, order } = descriptor;
  if ((flags & ~(KHO_VMALLOC_ALLOC | KHO_VMALLOC_HUGE_VMAP)) !== 0)
    throw new HandoverError(`${field}.flags`, `${hex(flags)} has unknown bits`);
  if (order > MAX_ORDER) throw new HandoverError(`${field}.order`, `${order} exceeds ${MAX_ORDER}`);
  const blockCount = Math.ceil(minimumBytes / orderBytes(order));
  if (total_pages !== blockCount * 2 ** order)
    throw new HandoverError(
      `${field}.total_pages`,
      `${total_pages} pages of order ${order} for ${minimumBytes} bytes`,
    );
  if (first === 0) throw new HandoverError(`${field}.first`, "is 0");

  const chunks: number[] = [];
  const pages: number[] = [];
  let from = `${field}.first`;
  for (let chunk = first; chunk !== 0; ) {
    // Each chunk but the last is full, so that their number is bounded by what is left to read.
    if (chunks.length >= vmallocChunkCount(blockCount))
      throw new HandoverError(from, `${hex(chunk)} is a chunk too many`);
    incoming.claim(chunk, 0, from);
    const name = `${field}: kho_vmalloc_chunk[${chunks.length}]`;
    chunks.push(chunk);
    for (let i = 0; i < KHO_VMALLOC_SIZE; i++) {
      const pa = incoming.memory.load64(chunk + physOffset(i));
      if (pa === 0) break;
      if (pages.length >= blockCount)
        throw new HandoverError(`${name}.phys[${i}]`, `${hex(pa)} exceeds total_pages`);
      incoming.claim(pa, order, `${name}.phys[${i}]`);
      pages.push(pa);
    }
    from = `${name}.hdr.next`;
    chunk = incoming.memory.load64(chunk);
  }
  if (pages.length !== blockCount)
    throw new HandoverError(
      `${field}.total_pages`,
      `${total_pages}, but the chunks name ${pages.length} blocks of order ${order}`,
    );
  return { chunks, pages, order };
}

/**
 * The array's bytes at offsets from its start, whatever their physical addresses. An access must not cross a
 * page, which aligned ones never do.
 */
export class VmallocReader implements WordReader {
  readonly #words: WordReader;
  readonly #pages: readonly number[];
  readonly #blockBytes: number;

  constructor(words: WordReader, pages: readonly number[], order: number) {
    this.#words = words;
    this.#pages = pages;
    this.#blockBytes = orderBytes(order);
  }

  /** Physical address of a byte of the array. */
  address(at: number): number {
    const index = Math.floor(at / this.#blockBytes);
    assert(index >= 0 && index < this.#pages.length, `offset ${at} lies in the array`);
    return this.#pages[index] + (at - index * this.#blockBytes);
  }

  load8(at: number): number {
    return this.#words.load8(this.address(at));
  }
  load16(at: number): number {
    return this.#words.load16(this.address(at));
  }
  load32(at: number): number {
    return this.#words.load32(this.address(at));
  }
  load64(at: number): number {
    return this.#words.load64(this.address(at));
  }
  loadBig64(at: number): bigint {
    return this.#words.loadBig64(this.address(at));
  }
}

/** As {@link VmallocReader}, for the kernel that makes the array. */
export class VmallocWords extends VmallocReader implements WordWriter {
  readonly #writer: WordWriter;

  constructor(words: WordReader & WordWriter, pages: readonly number[], order: number) {
    super(words, pages, order);
    this.#writer = words;
  }

  store8(at: number, value: number): void {
    this.#writer.store8(this.address(at), value);
  }
  store16(at: number, value: number): void {
    this.#writer.store16(this.address(at), value);
  }
  store32(at: number, value: number): void {
    this.#writer.store32(this.address(at), value);
  }
  store64(at: number, value: number): void {
    this.#writer.store64(this.address(at), value);
  }
  storeBig64(at: number, value: bigint): void {
    this.#writer.storeBig64(this.address(at), value);
  }
}
