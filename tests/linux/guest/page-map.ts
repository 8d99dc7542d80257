/**
 * Where the kernel says that a file's pages lie: /proc/self/pagemap and /proc/kpageflags, in which nothing of KHO has a part.
 *
 * Source: Linux 7.3 Documentation/admin-guide/mm/pagemap.rst
 * @module
 */
import { closeSync, openSync, readSync } from "node:fs";
import { PAGE_SIZE } from "../../../src/base/units.ts";
import { loadFfi, MAP_SHARED, PROT_READ } from "../../../src/linux/ffi.ts";

export interface PageOfFile {
  /** Frame number. */
  readonly pfn: number;
  /** Whether it is part of a folio of more than one page. */
  readonly compound: boolean;
}

const MAP_POPULATE = 0x8000;
const PAGEMAP_PRESENT = 1n << 63n;
const PAGEMAP_PFN = (1n << 55n) - 1n;
const KPF_COMPOUND_HEAD = 1n << 15n;
const KPF_COMPOUND_TAIL = 1n << 16n;

/** The pages of a file in its order. It is mapped for that, for reading alone: seals may forbid more. */
export function pagesOf(fd: number, sizeBytes: number): PageOfFile[] {
  const count = Math.ceil(sizeBytes / PAGE_SIZE);
  if (count === 0) return [];
  const ffi = loadFfi();
  const lengthBytes = count * PAGE_SIZE;
  const address = ffi.mmap(lengthBytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
  try {
    const entries = readWords("/proc/self/pagemap", Number(address) / PAGE_SIZE, count);
    return entries.map((entry, i) => {
      if ((entry & PAGEMAP_PRESENT) === 0n) throw new Error(`page ${i} of a memfd is not present`);
      const pfn = Number(entry & PAGEMAP_PFN);
      const [flags] = readWords("/proc/kpageflags", pfn, 1);
      return { pfn, compound: (flags & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL)) !== 0n };
    });
  } finally {
    ffi.munmap(address, lengthBytes);
  }
}

/** Reads 64-bit words of a file. */
function readWords(path: string, index: number, count: number): bigint[] {
  const bytes = Buffer.alloc(count * 8);
  const fd = openSync(path, "r");
  try {
    const got = readSync(fd, bytes, 0, bytes.length, index * 8);
    if (got !== bytes.length) throw new Error(`${path} gave ${got} of ${bytes.length} bytes`);
  } finally {
    closeSync(fd);
  }
  return Array.from({ length: count }, (_, i) => bytes.readBigUInt64LE(i * 8));
}
