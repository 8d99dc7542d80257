/**
 * Memory that is a file: pages of 2 MiB and 4 KiB, seals, and who holds them in place.
 *
 * Invariants: nothing of a page that a mapping or a pin holds is taken away (Linux lets a pinned page leave the
 * file, and unmaps a mapped one; here a mapping is plain memory, so both are refused with EBUSY); a call that
 * fails leaves size, contents and memory as they were.
 * Large pages: 2 MiB are taken where one call asks for all of an aligned 2 MiB, if there are any. Punching or
 * cutting a part of one clears that part and keeps the memory, as Linux does when it cannot split a folio.
 * Source: Linux 7.3 mm/shmem.c shmem_fallocate, shmem_setattr, shmem_write_begin; mm/memfd.c memfd_add_seals
 * @module
 */
import {
  F_SEAL_EXEC,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
} from "../../abi/uapi/fs.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { alignDown, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import type { FileExtent } from "../vfs/file.ts";
import { FolioMap } from "./folio-map.ts";

/** Where a file's memory comes from. */
export interface ShmemDependencies {
  readonly memory: PhysicalMemory;
  readonly mm: PageAllocator;
}

/** Told when pages of a file are held in place, and when they are let go. */
export type HoldObserver = (change: 1 | -1) => void;

/** The largest file: as large as physical addresses go. */
export const SHMEM_MAX_BYTES = 2 ** 52;

const ALL_SEALS =
  F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_EXEC;
/** Without these a memfd could lose memory that page tables name. Holes can still be punched: see `keepPages`. */
export const SEALS_FOR_DMA = F_SEAL_SEAL | F_SEAL_GROW | F_SEAL_SHRINK;
const WRITE_SEALS = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
const LARGE_ORDER = 9;
const LARGE_PAGES = 2 ** LARGE_ORDER;

/** Pages held in place. */
interface Hold {
  readonly firstPage: number;
  readonly endPage: number;
}

export class ShmemInode {
  readonly number: number;
  readonly folios = new FolioMap();
  readonly #memory: PhysicalMemory;
  readonly #mm: PageAllocator;
  readonly #isExecutable: boolean;
  readonly #onHold: HoldObserver;
  readonly #holds = new Set<Hold>();
  #sizeBytes = 0;
  #seals: number;
  #isFrozen = false;

  /**
   * @param seals - F_SEAL_SEAL where sealing is not allowed
   * @param isExecutable - whether its mode has execute bits, which F_SEAL_EXEC then makes read-only for ever
   */
  constructor(
    { memory, mm }: ShmemDependencies,
    number: number,
    seals: number,
    isExecutable: boolean,
    onHold: HoldObserver,
  ) {
    this.#onHold = onHold;
    this.number = number;
    this.#memory = memory;
    this.#mm = mm;
    this.#seals = seals;
    this.#isExecutable = isExecutable;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }
  get seals(): number {
    return this.#seals;
  }
  get allocatedBytes(): number {
    return this.folios.pageCount * PAGE_SIZE;
  }

  /** Keeps size and pages as they are while the file is preserved; bytes in place may still change. */
  set isFrozen(frozen: boolean) {
    this.#isFrozen = frozen;
  }

  /** Sets the size of a file that is being restored, without any check. */
  restoreSize(sizeBytes: number): void {
    this.#sizeBytes = sizeBytes;
  }

  /**
   * Adds seals.
   * @throws {KernelError} EINVAL unknown seals; EPERM sealed with F_SEAL_SEAL; EBUSY F_SEAL_WRITE while somebody
   *   has it mapped or pinned
   */
  addSeals(seals: number): void {
    if (!Number.isInteger(seals) || (seals & ~ALL_SEALS) !== 0)
      throw new KernelError("EINVAL", "fcntl", `${seals} has unknown seals`);
    if ((this.#seals & F_SEAL_SEAL) !== 0)
      throw new KernelError("EPERM", "fcntl", "the file is sealed with F_SEAL_SEAL");
    let added = seals;
    // Never both writable and executable.
    if ((added & F_SEAL_EXEC) !== 0 && this.#isExecutable)
      added |= F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
    if ((added & F_SEAL_WRITE) !== 0 && (this.#seals & F_SEAL_WRITE) === 0 && this.#holds.size > 0)
      throw new KernelError("EBUSY", "fcntl", `${this.#holds.size} mappings or pins can write`);
    this.#seals |= added;
  }

  /** Whether a shared writable mapping may be made. */
  get isWriteSealed(): boolean {
    return (this.#seals & WRITE_SEALS) !== 0;
  }

  /** Copies bytes out; holes read as zero. @returns how many: short at the end of the file */
  read(target: Uint8Array, offset: number): number {
    const lengthBytes = Math.max(0, Math.min(target.length, this.#sizeBytes - offset));
    for (let done = 0; done < lengthBytes; ) {
      const at = offset + done;
      const piece = target.subarray(done, done + Math.min(lengthBytes - done, this.#runBytes(at)));
      const pa = this.#addressOf(at);
      if (pa < 0) piece.fill(0);
      else this.#memory.read(pa, piece);
      done += piece.length;
    }
    return lengthBytes;
  }

  /**
   * Copies bytes in, all or none.
   * @throws {KernelError} EFBIG past the largest file; EPERM sealed against writing, or against growing and the
   *   file would grow, or preserved and it would grow; ENOMEM
   */
  write(bytes: Uint8Array, offset: number): void {
    if (bytes.length === 0) return;
    const end = offset + bytes.length;
    if (end > SHMEM_MAX_BYTES) throw tooLarge("write", end);
    if (this.isWriteSealed) throw new KernelError("EPERM", "write", "sealed against writing");
    if (end > this.#sizeBytes) this.#checkGrow("write");
    this.fill(Math.floor(offset / PAGE_SIZE), Math.ceil(end / PAGE_SIZE));
    for (let done = 0; done < bytes.length; ) {
      const at = offset + done;
      const piece = bytes.subarray(done, done + this.#runBytes(at));
      this.#memory.write(this.#addressOf(at), piece);
      done += piece.length;
    }
    this.#sizeBytes = Math.max(this.#sizeBytes, end);
  }

  #checkGrow(op: string): void {
    if ((this.#seals & F_SEAL_GROW) !== 0)
      throw new KernelError("EPERM", op, "sealed against growing");
    this.#checkNotFrozen(op);
  }

  #checkNotFrozen(op: string): void {
    if (this.#isFrozen)
      throw new KernelError(
        "EPERM",
        op,
        "the file is preserved for a live update: its size is fixed",
      );
  }

  /**
   * Sets the size. What is cut off is freed; what is added is a hole.
   * @throws {KernelError} EINVAL negative; EFBIG too large; EPERM sealed against it, or preserved; EBUSY a mapping
   *   or a pin holds what would go
   */
  truncate(lengthBytes: number): void {
    if (!Number.isInteger(lengthBytes) || lengthBytes < 0)
      throw new KernelError("EINVAL", "ftruncate", `${lengthBytes} is not a size`);
    if (lengthBytes > SHMEM_MAX_BYTES) throw tooLarge("ftruncate", lengthBytes);
    if (lengthBytes < this.#sizeBytes && (this.#seals & F_SEAL_SHRINK) !== 0)
      throw new KernelError("EPERM", "ftruncate", "sealed against shrinking");
    if (lengthBytes > this.#sizeBytes) this.#checkGrow("ftruncate");
    if (lengthBytes !== this.#sizeBytes) this.#checkNotFrozen("ftruncate");
    if (lengthBytes < this.#sizeBytes) this.#checkNotHeld("ftruncate", lengthBytes, Infinity);
    if (lengthBytes <= this.#sizeBytes) this.#discard(lengthBytes, SHMEM_MAX_BYTES);
    this.#sizeBytes = lengthBytes;
  }

  /**
   * Allocates a range, or makes a hole of it.
   * @throws {KernelError} EINVAL negative offset or no length; EOPNOTSUPP another mode than 0, KEEP_SIZE and
   *   PUNCH_HOLE | KEEP_SIZE; EFBIG too large; EPERM sealed, or preserved; EBUSY a mapping or a pin holds what
   *   would go; ENOMEM
   */
  fallocate(mode: number, offset: number, lengthBytes: number): void {
    const op = "fallocate";
    if (
      !Number.isInteger(offset) ||
      offset < 0 ||
      !Number.isInteger(lengthBytes) ||
      lengthBytes <= 0
    )
      throw new KernelError("EINVAL", op, `${lengthBytes} bytes at ${offset} are no range`);
    const isPunch = mode === (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
    if (mode !== 0 && mode !== FALLOC_FL_KEEP_SIZE && !isPunch)
      throw new KernelError("EOPNOTSUPP", op, `there is no mode ${mode} for such a file`);
    const end = offset + lengthBytes;
    if (end > SHMEM_MAX_BYTES) throw tooLarge(op, end);
    this.#checkNotFrozen(op);
    if (isPunch) {
      if (this.isWriteSealed) throw new KernelError("EPERM", op, "sealed against writing");
      this.#checkNotHeld(op, offset, end);
      this.#discard(offset, end);
      return;
    }
    if ((this.#seals & F_SEAL_GROW) !== 0 && end > this.#sizeBytes)
      throw new KernelError("EPERM", op, "sealed against growing");
    this.fill(Math.floor(offset / PAGE_SIZE), Math.ceil(end / PAGE_SIZE));
    if (mode === 0) this.#sizeBytes = Math.max(this.#sizeBytes, end);
  }

  /**
   * Backs every hole among the pages `first` .. `end` - 1 with zeroed memory.
   * @returns the first pages of the folios that are new, for {@link drop}
   * @throws {KernelError} ENOMEM; no hole is then filled
   */
  fill(first: number, end: number): readonly number[] {
    return withUndo((undo) => {
      const filled: number[] = [];
      undo(() => this.drop(filled));
      for (let index = first; index < end; ) {
        const order = this.folios.orderAt(index);
        if (order >= 0) index = alignDown(index, 2 ** order) + 2 ** order;
        else {
          const newOrder = this.#fillHole(index, end);
          filled.push(index);
          index += 2 ** newOrder;
        }
      }
      return filled;
    });
  }

  /** @returns the order of the new folio */
  #fillHole(index: number, end: number): number {
    const wantsLarge =
      index % LARGE_PAGES === 0 && index + LARGE_PAGES <= end && this.folios.isRegionEmpty(index);
    if (wantsLarge && this.#fillLarge(index)) return LARGE_ORDER;
    this.folios.insert(index, this.#mm.alloc(0), 0);
    return 0;
  }

  /** @returns false when no large page is free: small ones will do */
  #fillLarge(index: number): boolean {
    try {
      this.folios.insert(index, this.#mm.alloc(LARGE_ORDER), LARGE_ORDER);
      return true;
    } catch (error) {
      if (isKernelError(error, "ENOMEM")) return false;
      throw error;
    }
  }

  /** Frees folios by their first pages. */
  drop(indexes: readonly number[]): void {
    for (const index of indexes)
      this.#freeFolio(index, this.folios.addressAt(index), this.folios.orderAt(index));
  }

  #freeFolio(index: number, pa: number, order: number): void {
    this.folios.remove(index);
    this.#mm.free(pa, order);
  }

  /** Frees the folios that lie in the range as a whole and clears the parts of the others. */
  #discard(start: number, end: number): void {
    this.folios.forEach(
      Math.floor(start / PAGE_SIZE),
      Math.ceil(end / PAGE_SIZE),
      (index, pa, order) => {
        const folioStart = index * PAGE_SIZE;
        const folioEnd = folioStart + orderBytes(order);
        if (start <= folioStart && folioEnd <= end) this.#freeFolio(index, pa, order);
        else {
          const from = Math.max(start, folioStart);
          const to = Math.min(end, folioEnd);
          this.#memory.fill(pa + (from - folioStart), to - from, 0);
        }
      },
    );
  }

  #checkNotHeld(op: string, start: number, end: number): void {
    for (const { firstPage, endPage } of this.#holds)
      if (firstPage * PAGE_SIZE < end && start < endPage * PAGE_SIZE)
        throw new KernelError("EBUSY", op, "a mapping or a DMA pin holds the memory");
  }

  /**
   * Fills the holes of a range and keeps its pages in place.
   * @returns its memory in file order, adjoining pieces joined, and what lets go of it
   * @throws {KernelError} ENOMEM
   */
  hold(
    offset: number,
    lengthBytes: number,
  ): { readonly extents: readonly FileExtent[]; readonly release: () => void } {
    const hold: Hold = {
      firstPage: Math.floor(offset / PAGE_SIZE),
      endPage: Math.ceil((offset + lengthBytes) / PAGE_SIZE),
    };
    this.fill(hold.firstPage, hold.endPage);
    const release = this.#hold(hold);
    return { extents: this.#extents(offset, lengthBytes), release };
  }

  /**
   * Keeps the pages that there are in place, and fills no hole.
   * @returns what lets go of them
   */
  keepPages(): () => void {
    return this.#hold({ firstPage: 0, endPage: Number.POSITIVE_INFINITY });
  }

  /** @returns what lets go; a second call does nothing */
  #hold(hold: Hold): () => void {
    this.#holds.add(hold);
    this.#onHold(1);
    return () => {
      if (this.#holds.delete(hold)) this.#onHold(-1);
    };
  }

  #extents(offset: number, lengthBytes: number): FileExtent[] {
    const extents: { offsetBytes: number; pa: number; lengthBytes: number }[] = [];
    for (let done = 0; done < lengthBytes; ) {
      const at = offset + done;
      const piece = Math.min(lengthBytes - done, this.#runBytes(at));
      const pa = this.#addressOf(at);
      const last = extents.at(-1);
      if (last !== undefined && last.pa + last.lengthBytes === pa) last.lengthBytes += piece;
      else extents.push({ offsetBytes: at, pa, lengthBytes: piece });
      done += piece;
    }
    return extents;
  }

  /** The first offset from `offset` on, below the size, that is backed (or is not), or -1. */
  seekData(offset: number, backed: boolean): number {
    if (!backed) {
      for (let at = offset; at < this.#sizeBytes; at += this.#runBytes(at))
        if (this.#addressOf(at) < 0) return at;
      return this.#sizeBytes;
    }
    let found = -1;
    this.folios.forEach(
      Math.floor(offset / PAGE_SIZE),
      Math.ceil(this.#sizeBytes / PAGE_SIZE),
      (index) => {
        if (found < 0) found = Math.max(offset, index * PAGE_SIZE);
      },
    );
    return found;
  }

  /** Physical address of a byte, or -1 in a hole. */
  #addressOf(at: number): number {
    const pa = this.folios.addressAt(Math.floor(at / PAGE_SIZE));
    return pa < 0 ? pa : pa + (at % PAGE_SIZE);
  }

  /** Bytes from `at` to the end of the folio (of the page, in a hole). */
  #runBytes(at: number): number {
    const index = Math.floor(at / PAGE_SIZE);
    const bytes = orderBytes(Math.max(0, this.folios.orderAt(index)));
    return bytes - (at % bytes);
  }

  /** The last user is gone: frees all memory. */
  destroy(): void {
    this.folios.forEach(0, SHMEM_MAX_BYTES / PAGE_SIZE, (index, pa, order) =>
      this.#freeFolio(index, pa, order),
    );
  }
}

function tooLarge(op: string, endBytes: number): KernelError {
  return new KernelError("EFBIG", op, `${endBytes} bytes exceed the largest file`);
}
