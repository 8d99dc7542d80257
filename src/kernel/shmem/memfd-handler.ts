/**
 * memfds through a live update: upstream's handler `memfd-v2`.
 *
 * Kept: contents, size, position, seals. Lost: the name and whatever else a memfd has. While a memfd is preserved
 * its size and pages are fixed (EPERM) and its holes are filled; bytes in place may change up to the jump.
 * Position and seals are written at the preserve and again at the freeze (upstream writes only the position
 * again, and loses seals that were added meanwhile).
 * A file that nobody retrieves is freed when its session is finished.
 * Source: Linux 7.3 mm/memfd_luo.c
 * @module
 */

import type { KhoVmalloc } from "../../abi/kho-vmalloc.ts";
import {
  MEMFD_LUO_ALL_SEALS,
  MEMFD_LUO_FH_COMPATIBLE,
  MEMFD_LUO_FOLIO_DIRTY,
  MEMFD_LUO_FOLIO_SER_BYTES,
  MEMFD_LUO_FOLIO_UPTODATE,
  MEMFD_LUO_SER,
  writeMemfdFolio,
} from "../../abi/memfd.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { MemoryRange } from "../../machine/machine.ts";
import type { IncomingMemory } from "../kho/incoming.ts";
import {
  allocPreservedPage,
  freePreservedPage,
  type PreservedPages,
} from "../liveupdate/block-set.ts";
import type {
  FileHandler,
  FinishArgs,
  PreserveArgs,
  RetrieveArgs,
} from "../liveupdate/file-handler.ts";
import type { File } from "../vfs/file.ts";
import type { Shmem } from "./memfd.ts";
import { type DecodedMemfd, decodeMemfd, mayBackDma, memoryForDma } from "./memfd-decoder.ts";
import { MemfdFile } from "./memfd-file.ts";
import { allocPreservedArray, type PreservedArray } from "./preserved-array.ts";
import type { ShmemInode } from "./shmem-inode.ts";

/** Upstream pins folios by an unsigned int. */
const MAX_PAGES = 2 ** 32 - 1;
const NO_ARRAY: KhoVmalloc = { first: 0, total_pages: 0, flags: 0, order: 0 };

/** What is known about a preserved memfd beside what is handed over. */
interface Preserved {
  readonly array: PreservedArray | null;
  readonly unpin: () => void;
}

export class MemfdHandler implements FileHandler<DecodedMemfd> {
  readonly compatible = MEMFD_LUO_FH_COMPATIBLE;
  readonly flbs = [];
  readonly #pages: PreservedPages;
  readonly #shmem: Shmem;
  readonly #preserved = new Map<bigint, Preserved>();
  /** Retrieved files whose pages stay in place until their session is finished. */
  readonly #kept = new Map<DecodedMemfd, () => void>();

  constructor(pages: PreservedPages, shmem: Shmem) {
    this.#pages = pages;
    this.#shmem = shmem;
  }

  canPreserve(file: File): boolean {
    return file instanceof MemfdFile;
  }

  /**
   * @throws {KernelError} EOPNOTSUPP a seal that the format does not know; EFBIG 2^32 pages or more; ENOMEM
   */
  preserve({ file }: PreserveArgs): bigint {
    const memfd = asMemfd(file);
    const { shmem } = memfd;
    const op = "LIVEUPDATE_SESSION_PRESERVE_FD";
    if ((shmem.seals & ~MEMFD_LUO_ALL_SEALS) !== 0)
      throw new KernelError(
        "EOPNOTSUPP",
        op,
        `${this.compatible} cannot carry seals ${shmem.seals}`,
      );
    const pageCount = Math.ceil(shmem.sizeBytes / PAGE_SIZE);
    if (pageCount > MAX_PAGES)
      throw new KernelError("EFBIG", op, `${this.compatible} carries at most ${MAX_PAGES} pages`);
    return withUndo((undo) => {
      shmem.isFrozen = true;
      undo(() => {
        shmem.isFrozen = false;
      });
      const serPa = allocPreservedPage(this.#pages);
      undo(() => freePreservedPage(this.#pages, serPa));
      const filled = shmem.fill(0, pageCount);
      undo(() => shmem.drop(filled));
      const unpin = pageCount === 0 ? () => {} : shmem.hold(0, shmem.sizeBytes).release;
      undo(unpin);
      const folioCount = this.#preserveFolios(shmem, pageCount, undo);
      const array = this.#writeFolios(shmem, pageCount, folioCount);
      MEMFD_LUO_SER.write(this.#pages.memory, serPa, {
        pos: memfd.position,
        size: shmem.sizeBytes,
        seals: shmem.seals,
        flags: 0,
        nr_folios: folioCount,
        folios: array?.descriptor ?? NO_ARRAY,
      });
      const data = BigInt(serPa);
      this.#preserved.set(data, { array, unpin });
      return data;
    });
  }

  /** @returns the number of folios */
  #preserveFolios(shmem: ShmemInode, pageCount: number, undo: (step: () => void) => void): number {
    const { kho } = this.#pages;
    let count = 0;
    undo(() => {
      let left = count;
      shmem.folios.forEach(0, pageCount, (_index, pa, order) => {
        if (left-- > 0) kho.unpreserve(pa, order);
      });
    });
    shmem.folios.forEach(0, pageCount, (_index, pa, order) => {
      kho.preserve(pa, order);
      count++;
    });
    return count;
  }

  #writeFolios(shmem: ShmemInode, pageCount: number, count: number): PreservedArray | null {
    if (count === 0) return null;
    const array = allocPreservedArray(this.#pages, count * MEMFD_LUO_FOLIO_SER_BYTES);
    let at = 0;
    // Dirty and up to date whatever they are now: they may be written until the jump.
    const flags = MEMFD_LUO_FOLIO_DIRTY | MEMFD_LUO_FOLIO_UPTODATE;
    shmem.folios.forEach(0, pageCount, (index, pa) => {
      writeMemfdFolio(array.words, at, pa / PAGE_SIZE, flags, index);
      at += MEMFD_LUO_FOLIO_SER_BYTES;
    });
    return array;
  }

  unpreserve({ file, data }: PreserveArgs & { readonly data: bigint }): void {
    const { shmem } = asMemfd(file);
    const preserved = this.#preserved.get(data);
    assert(preserved !== undefined, "unpreserve of a memfd that is not preserved");
    this.#preserved.delete(data);
    preserved.array?.free();
    shmem.folios.forEach(0, Math.ceil(shmem.sizeBytes / PAGE_SIZE), (_index, pa, order) =>
      this.#pages.kho.unpreserve(pa, order),
    );
    preserved.unpin();
    freePreservedPage(this.#pages, Number(data));
    shmem.isFrozen = false;
  }

  /** What may have changed since the preserve. */
  freeze({ file, data }: PreserveArgs & { readonly data: bigint }): bigint {
    const { memory } = this.#pages;
    const memfd = asMemfd(file);
    const serPa = Number(data);
    memory.store64(serPa + MEMFD_LUO_SER.offset.pos, memfd.position);
    memory.store32(serPa + MEMFD_LUO_SER.offset.seals, memfd.shmem.seals);
    return data;
  }

  decode(incoming: IncomingMemory, data: bigint, field: string): DecodedMemfd {
    return decodeMemfd(incoming, data, field);
  }

  /** What can be taken out of the file is not kept by it. */
  memoryOf(data: DecodedMemfd): Iterable<MemoryRange> {
    return memoryForDma(data);
  }

  retrieve({ data }: RetrieveArgs<DecodedMemfd>): File {
    const { kho, memory } = this.#pages;
    const memfd = this.#shmem.restoreMemfd(data.seals);
    const { count, pa, index, order, isStale } = data.folios;
    for (let i = 0; i < count; i++) {
      kho.restore(pa[i], order[i]);
      if (isStale[i] === 1) memory.fill(pa[i], orderBytes(order[i]), 0);
      memfd.shmem.folios.insert(index[i], pa[i], order[i]);
    }
    memfd.shmem.restoreSize(data.sizeBytes);
    memfd.restorePosition(data.position);
    this.#freeMetadata(data);
    // Devices may still reach it by the previous kernel's page tables, of which the file's own books know nothing.
    if (mayBackDma(data)) this.#kept.set(data, memfd.shmem.keepPages());
    return memfd;
  }

  finish({ data, file }: FinishArgs<DecodedMemfd>): void {
    this.#kept.get(data)?.();
    this.#kept.delete(data);
    if (file !== null) return;
    const { count, pa, order } = data.folios;
    for (let i = 0; i < count; i++) this.#restoreFree(pa[i], order[i]);
    this.#freeMetadata(data);
  }

  #freeMetadata({ serPa, array }: DecodedMemfd): void {
    for (const pa of array?.pages ?? []) this.#restoreFree(pa, array?.order ?? 0);
    for (const pa of array?.chunks ?? []) this.#restoreFree(pa, 0);
    this.#restoreFree(serPa, 0);
  }

  #restoreFree(pa: number, order: number): void {
    this.#pages.kho.restore(pa, order);
    this.#pages.mm.free(pa, order);
  }
}

function asMemfd(file: File): MemfdFile {
  assert(file instanceof MemfdFile, `a ${file.kind} file is not a memfd`);
  return file;
}
