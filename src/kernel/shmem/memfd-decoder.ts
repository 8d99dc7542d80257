/**
 * Reads and checks a memfd of the previous kernel.
 *
 * Checked: the structures lie in preserved pages of their own; size, position, seals and flags are within
 * bounds; each folio is a preserved block (KHO's tree knows its order), aligned in the file, within its size, and
 * after the one before it, so that no two overlap.
 * Source: Linux 7.3 include/linux/kho/abi/memfd.h, mm/memfd_luo.c memfd_luo_retrieve
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import { readVmalloc, type VmallocPages } from "../../abi/kho-vmalloc.ts";
import {
  MEMFD_LUO_ALL_SEALS,
  MEMFD_LUO_FOLIO_DIRTY,
  MEMFD_LUO_FOLIO_SER_BYTES,
  MEMFD_LUO_FOLIO_UPTODATE,
  MEMFD_LUO_SER,
  memfdFolioFlags,
  memfdFolioIndex,
  memfdFolioPfn,
} from "../../abi/memfd.ts";
import { hex, isIndex, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { MemoryRange } from "../../machine/machine.ts";
import { apart, type IncomingMemory } from "../kho/incoming.ts";
import { SEALS_FOR_DMA, SHMEM_MAX_BYTES } from "./shmem-inode.ts";

/** A memfd that waits to be retrieved. */
export interface DecodedMemfd {
  readonly serPa: number;
  readonly position: number;
  readonly sizeBytes: number;
  readonly seals: number;
  /** Pages of the folio array; null for an empty file. */
  readonly array: VmallocPages | null;
  readonly folios: DecodedFolios;
}

/** Folios as columns: a large file has millions. */
export interface DecodedFolios {
  readonly count: number;
  readonly pa: Float64Array;
  readonly index: Float64Array;
  readonly order: Uint8Array;
  /** 1 where the folio's bytes are to be zeroed before use. */
  readonly isStale: Uint8Array;
}

/** Where the parts of a memfd_luo_folio_ser lie, for reports. */
const FOLIO_SER = { offset: { pfn: 0, flags: 6, index: 8 } };

/**
 * @param data - what the file handler handed over: the address of a memfd_luo_ser; untrusted
 * @throws {HandoverError}
 */
export function decodeMemfd(incoming: IncomingMemory, data: bigint, field: string): DecodedMemfd {
  const serPa = Number(data);
  incoming.claim(serPa, 0, `${field} data`);
  const ser = MEMFD_LUO_SER.read(incoming.memory, serPa);
  const name = `${field} ${MEMFD_LUO_SER.name}`;
  if (!isIndex(ser.pos, SHMEM_MAX_BYTES))
    throw new HandoverError(`${name}.pos`, `${ser.pos} exceeds the largest file`);
  if (!isIndex(ser.size, SHMEM_MAX_BYTES))
    throw new HandoverError(`${name}.size`, `${ser.size} exceeds the largest file`);
  if ((ser.seals & ~MEMFD_LUO_ALL_SEALS) !== 0)
    throw new HandoverError(`${name}.seals`, `${hex(ser.seals)} has unknown seals`);
  if (ser.flags !== 0) throw new HandoverError(`${name}.flags`, `${hex(ser.flags)} is not 0`);
  const pageCount = Math.ceil(ser.size / PAGE_SIZE);
  if (ser.nr_folios > pageCount)
    throw new HandoverError(
      `${name}.nr_folios`,
      `${ser.nr_folios}, but the file has ${pageCount} pages`,
    );
  if (ser.nr_folios === 0 && ser.folios.first !== 0)
    throw new HandoverError(`${name}.nr_folios`, "is 0, but there is an array of folios");

  const arrayBytes = ser.nr_folios * MEMFD_LUO_FOLIO_SER_BYTES;
  const array =
    ser.nr_folios === 0 ? null : readVmalloc(incoming, ser.folios, arrayBytes, `${name}.folios`);
  return {
    serPa,
    position: ser.pos,
    sizeBytes: ser.size,
    seals: ser.seals,
    array,
    folios: decodeFolios(incoming, array, ser.nr_folios, pageCount, field),
  };
}

function decodeFolios(
  incoming: IncomingMemory,
  array: VmallocPages | null,
  entryCount: number,
  pageCount: number,
  field: string,
): DecodedFolios {
  const pa = new Float64Array(entryCount);
  const index = new Float64Array(entryCount);
  const order = new Uint8Array(entryCount);
  const isStale = new Uint8Array(entryCount);
  let count = 0;
  let nextIndex = 0;
  if (array === null) return { count, pa, index, order, isStale };
  const words = incoming.memory;
  const blockBytes = orderBytes(array.order);
  const take = (i: number, at: number): void => {
    const pfn = memfdFolioPfn(words, at);
    // Upstream's mark for a page without memory.
    if (pfn === 0) return;
    const name = `${field} memfd_luo_folio_ser[${i}]`;
    const folioPa = pfn * PAGE_SIZE;
    const folioOrder = incoming.preservedOrder(folioPa);
    if (folioOrder === null)
      throw new HandoverError(`${name}.pfn`, `no preserved block starts at ${hex(folioPa)}`);
    incoming.claim(folioPa, folioOrder, `${name}.pfn`);
    const flags = memfdFolioFlags(words, at);
    if ((flags & ~(MEMFD_LUO_FOLIO_DIRTY | MEMFD_LUO_FOLIO_UPTODATE)) !== 0)
      throw new HandoverError(`${name}.flags`, `${hex(flags)} has unknown bits`);
    const folioIndex = memfdFolioIndex(words, at);
    if (folioIndex % 2 ** folioOrder !== 0)
      throw new HandoverError(`${name}.index`, `${folioIndex} is not aligned to its folio`);
    if (!(folioIndex >= nextIndex && folioIndex < pageCount))
      throw new HandoverError(
        `${name}.index`,
        `${folioIndex} is not in ${nextIndex} .. ${pageCount - 1}`,
      );
    nextIndex = folioIndex + 2 ** folioOrder;
    pa[count] = folioPa;
    index[count] = folioIndex;
    order[count] = folioOrder;
    isStale[count] = (flags & MEMFD_LUO_FOLIO_UPTODATE) === 0 ? 1 : 0;
    count++;
  };
  for (let i = 0; i < entryCount; i++) {
    const offset = i * MEMFD_LUO_FOLIO_SER_BYTES;
    const at = array.pages[Math.floor(offset / blockBytes)] + (offset % blockBytes);
    if (incoming.report === undefined) take(i, at);
    else apart(incoming, { pa: at, struct: FOLIO_SER }, () => take(i, at));
  }
  return { count, pa, index, order, isStale };
}

/** Whether the previous kernel's iommufds could preserve mappings of it. */
export function mayBackDma({ seals }: DecodedMemfd): boolean {
  return (seals & SEALS_FOR_DMA) === SEALS_FOR_DMA;
}

/** Memory of the file that devices may be given: none where it can be taken out of the file. */
export function* memoryForDma(memfd: DecodedMemfd): Generator<MemoryRange> {
  if (!mayBackDma(memfd)) return;
  const { count, pa, order } = memfd.folios;
  for (let i = 0; i < count; i++) yield { start: pa[i], lengthBytes: orderBytes(order[i]) };
}
