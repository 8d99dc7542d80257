/**
 * A range of a file, pinned for as long as any IOAS area shows it: Linux's `struct iopt_pages`.
 *
 * Differs from Linux in when it pins: at the mapping, not at the first HWPT. An IOAS thus always says what
 * memory is held, also where no page table does (no-IOMMU), and a mapping that cannot be pinned fails at once.
 * Source: Linux 7.3 drivers/iommu/iommufd/pages.c iopt_alloc_file_pages()
 * @module
 */
import { assert } from "../../base/assert.ts";
import { alignDown, alignUp, PAGE_SIZE } from "../../base/units.ts";
import type { File, PinnedRange } from "../vfs/file.ts";

export class PinnedPages {
  readonly file: File;
  /** File offset that areas count their bytes from; page-aligned. */
  readonly fileOffset: number;
  readonly lengthBytes: number;
  /** Whether it may be mapped for writing: decided when it was pinned. */
  readonly writable: boolean;
  readonly #pin: PinnedRange;
  #references = 1;

  /**
   * Pins the whole pages around the range and takes a reference on the file.
   *
   * @throws {KernelError} what File.pin throws; nothing is held then
   */
  constructor(file: File, offset: number, lengthBytes: number, writable: boolean) {
    this.fileOffset = alignDown(offset, PAGE_SIZE);
    this.lengthBytes = alignUp(offset + lengthBytes, PAGE_SIZE) - this.fileOffset;
    this.writable = writable;
    this.#pin = file.pin(this.fileOffset, this.lengthBytes);
    this.file = file.get();
  }

  get(): this {
    assert(this.#references > 0, "get of unpinned pages");
    this.#references++;
    return this;
  }

  put(): void {
    assert(this.#references > 0, "put of unpinned pages");
    if (--this.#references > 0) return;
    this.#pin.unpin();
    this.file.put();
  }

  /**
   * Calls `visit` for each run of physical memory behind a range, in order, neighbours joined.
   *
   * @param startByte - first byte, counted from `fileOffset`
   */
  forEachRun(
    startByte: number,
    lengthBytes: number,
    visit: (byte: number, pa: number, lengthBytes: number) => void,
  ): void {
    const { extents } = this.#pin;
    const end = startByte + lengthBytes;
    assert(startByte >= 0 && end <= this.lengthBytes, "run outside the pinned pages");
    let i = this.#extentAt(startByte);
    let byte = startByte;
    while (byte < end) {
      const first = extents[i++];
      const pa = first.pa + (byte - (first.offsetBytes - this.fileOffset));
      let runEnd = first.offsetBytes + first.lengthBytes - this.fileOffset;
      while (runEnd < end && extents[i].pa === pa + (runEnd - byte)) {
        runEnd += extents[i++].lengthBytes;
      }
      if (runEnd > end) runEnd = end;
      visit(byte, pa, runEnd - byte);
      byte = runEnd;
    }
  }

  /** Physical address of one byte, and how many bytes from it on are contiguous, at most `limitBytes`. */
  contiguousFrom(byte: number, limitBytes: number): { pa: number; lengthBytes: number } {
    const { extents } = this.#pin;
    let i = this.#extentAt(byte);
    const pa = extents[i].pa + (byte - (extents[i].offsetBytes - this.fileOffset));
    let end = extents[i].offsetBytes + extents[i].lengthBytes - this.fileOffset;
    while (end - byte < limitBytes && ++i < extents.length && extents[i].pa === pa + (end - byte))
      end += extents[i].lengthBytes;
    return { pa, lengthBytes: Math.min(end - byte, limitBytes) };
  }

  /** Index of the extent that holds a byte, by binary search. */
  #extentAt(byte: number): number {
    const { extents } = this.#pin;
    const offset = byte + this.fileOffset;
    let low = 0;
    let high = extents.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >>> 1;
      if (extents[middle].offsetBytes <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
