/**
 * A memfd as it is handed to the next kernel: upstream's `memfd-v2`, to the byte.
 *
 * Layout: luo_file_ser.data → memfd_luo_ser → kho_vmalloc → array of memfd_luo_folio_ser. The size of a folio
 * is not written here: it is the order with which KHO preserved the frame.
 * Source: Linux 7.3 include/linux/kho/abi/memfd.h, kexec_handover.h (struct kho_vmalloc)
 * @module
 */
import { KHO_VMALLOC } from "./kho-vmalloc.ts";
import { struct, u32, u64 } from "./struct.ts";
import type { WordReader, WordWriter } from "./words.ts";

/** Name of the file handler. */
export const MEMFD_LUO_FH_COMPATIBLE = "memfd-v2";

/** The folio holds user data. Upstream sets it on every folio: a clean one might be written after preserve. */
export const MEMFD_LUO_FOLIO_DIRTY = 1;
/** The folio's bytes are meant; without it they are to be zeroed before use. */
export const MEMFD_LUO_FOLIO_UPTODATE = 2;

/** Seals that this version can carry: F_SEAL_SEAL, SHRINK, GROW, WRITE, FUTURE_WRITE, EXEC. */
export const MEMFD_LUO_ALL_SEALS = 0x3f;

export const MEMFD_LUO_SER = struct("memfd_luo_ser", {
  /** File position. */
  pos: u64,
  /** File size in bytes. */
  size: u64,
  seals: u32,
  /** Must be 0. */
  flags: u32,
  /** Entries of the folio array. 0 for an empty file, and then there is no array. */
  nr_folios: u64,
  /** The array's pages. */
  folios: KHO_VMALLOC,
});

/** Bytes of a `struct memfd_luo_folio_ser`: { u64 pfn:52, flags:12; u64 index }. */
export const MEMFD_LUO_FOLIO_SER_BYTES = 16;

/** Writes one entry; `pfn` and `index` are numbers of 4 KiB pages. */
export function writeMemfdFolio(
  words: WordWriter,
  at: number,
  pfn: number,
  flags: number,
  index: number,
): void {
  words.store32(at, pfn % 2 ** 32);
  words.store32(at + 4, Math.floor(pfn / 2 ** 32) + flags * 2 ** 20);
  words.store64(at + 8, index);
}

/** Frame number of an entry. 0 means that there is no folio. */
export function memfdFolioPfn(words: WordReader, at: number): number {
  return (words.load32(at + 4) % 2 ** 20) * 2 ** 32 + words.load32(at);
}

/** Flags of an entry: 12 bits. */
export function memfdFolioFlags(words: WordReader, at: number): number {
  return words.load32(at + 4) >>> 20;
}

/** Page offset in the file at which the folio starts. */
export function memfdFolioIndex(words: WordReader, at: number): number {
  return words.load64(at + 8);
}
