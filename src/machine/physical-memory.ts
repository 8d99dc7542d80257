/**
 * System RAM: shared windows of 1 GiB, backed by the operating system page by page as they are touched.
 *
 * Why: a typed array has a length limit, and a machine of 1 TiB must cost what it uses. A naturally aligned page
 * of any order up to 1 GiB lies in one window. Threads share the windows by {@link Ram.shared}.
 * What was ever stored to is known per 2 MiB, so that a kexec can scribble over all of a large machine.
 * Limit: words are checked against their window, not against ranges, so a hole below other RAM of the same GiB is
 * not noticed; the embedded machine's address map has no such hole. Byte copies and views are checked exactly.
 * @module
 */
import { assert, BugError } from "../base/assert.ts";
import { KernelError } from "../base/errno.ts";
import { alignUp, formatBytes, GIB, hex, MIB, PAGE_SIZE } from "../base/units.ts";
import type { MemoryRange, PhysicalMemory } from "./machine.ts";

const WINDOW_BYTES = GIB;
const TOUCH_BYTES = 2 * MIB;

/** What another thread needs to see the same RAM. */
export interface SharedRam {
  readonly ranges: readonly MemoryRange[];
  /** By window number; null where a window has no RAM. */
  readonly windows: readonly (SharedArrayBuffer | null)[];
  readonly touched: SharedArrayBuffer;
}

/**
 * Makes the shared memory of a machine, all zero. Ranges are sorted and page aligned.
 *
 * @param makeWindow - given address and length of a window, its memory, all zero; default: memory of this process
 * @throws {KernelError} ENOMEM when this process cannot have so much address space
 */
export function createSharedRam(
  ranges: readonly MemoryRange[],
  makeWindow?: (start: number, lengthBytes: number) => SharedArrayBuffer,
): SharedRam {
  const windows: (SharedArrayBuffer | null)[] = [];
  let end = 0;
  for (const range of ranges) {
    assert(range.start >= end && range.lengthBytes > 0, "RAM ranges are sorted and not empty");
    assert(
      range.start % PAGE_SIZE === 0 && range.lengthBytes % PAGE_SIZE === 0,
      "RAM is page aligned",
    );
    end = range.start + range.lengthBytes;
  }
  for (let start = 0; start < end; start += WINDOW_BYTES) {
    let used = 0;
    for (const range of ranges) {
      const last = Math.min(range.start + range.lengthBytes, start + WINDOW_BYTES);
      if (last > Math.max(range.start, start)) used = Math.max(used, last - start);
    }
    const make = makeWindow ?? ((_start, lengthBytes) => reserve(lengthBytes, end));
    windows.push(used === 0 ? null : make(start, used));
  }
  return { ranges, windows, touched: reserve(alignUp(end, TOUCH_BYTES) / TOUCH_BYTES, end) };
}

function reserve(lengthBytes: number, machineBytes: number): SharedArrayBuffer {
  try {
    return new SharedArrayBuffer(lengthBytes);
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    throw new KernelError(
      "ENOMEM",
      "power on",
      `this process cannot reserve ${formatBytes(machineBytes)} of address space for the machine's memory`,
      { cause },
    );
  }
}

/** RAM as a kernel and as devices use it. */
export class Ram implements PhysicalMemory {
  readonly ranges: readonly MemoryRange[];
  readonly shared: SharedRam;
  readonly #bytes: (Uint8Array<SharedArrayBuffer> | undefined)[];
  readonly #words: (Uint32Array<SharedArrayBuffer> | undefined)[];
  readonly #signed: (Int32Array<SharedArrayBuffer> | undefined)[];
  readonly #touched: Uint8Array;
  readonly #fence = new Int32Array(new SharedArrayBuffer(4));

  constructor(shared: SharedRam) {
    this.shared = shared;
    this.ranges = shared.ranges;
    this.#bytes = shared.windows.map((w) => (w === null ? undefined : new Uint8Array(w)));
    this.#words = shared.windows.map((w) => (w === null ? undefined : new Uint32Array(w)));
    this.#signed = shared.windows.map((w) => (w === null ? undefined : new Int32Array(w)));
    this.#touched = new Uint8Array(shared.touched);
  }

  contains(pa: number, lengthBytes: number): boolean {
    if (!(pa >= 0 && lengthBytes >= 0)) return false;
    for (const range of this.ranges) {
      if (pa >= range.start && pa + lengthBytes <= range.start + range.lengthBytes) return true;
    }
    return false;
  }

  /**
   * Takes the memory away from who holds this object, for good: every access from here on throws. For a kernel
   * that has ended in a thread that goes on. Costs accesses nothing before.
   */
  disconnect(): void {
    for (const windows of [this.#bytes, this.#words, this.#signed]) windows.fill(undefined);
  }

  /** Whether anything in the 2 MiB around `pa` was ever stored. Never false for memory that is not zero. */
  isTouched(pa: number): boolean {
    return this.#touched[Math.floor(pa / TOUCH_BYTES)] !== 0;
  }

  /** Start of the first 2 MiB at or after the one around `pa` that was ever stored to; Infinity when none was. */
  nextTouched(pa: number): number {
    const index = this.#touched.indexOf(1, Math.floor(pa / TOUCH_BYTES));
    return index < 0 ? Number.POSITIVE_INFINITY : index * TOUCH_BYTES;
  }

  load8(pa: number): number {
    const window = (pa / WINDOW_BYTES) | 0;
    const bytes = this.#bytes[window];
    const index = pa - window * WINDOW_BYTES;
    if (bytes === undefined || !(index < bytes.length)) outside(pa);
    return bytes[index];
  }

  load16(pa: number): number {
    if ((windowOffset(pa) & 1) !== 0) unaligned(pa, 2);
    return this.load8(pa) | (this.load8(pa + 1) << 8);
  }

  load32(pa: number): number {
    const window = (pa / WINDOW_BYTES) | 0;
    const words = this.#words[window];
    const offset = pa - window * WINDOW_BYTES;
    if ((offset & 3) !== 0) unaligned(pa, 4);
    if (words === undefined || offset >>> 2 >= words.length) outside(pa);
    return words[offset >>> 2];
  }

  loadOrdered32(pa: number): number {
    const offset = windowOffset(pa);
    if ((offset & 3) !== 0) unaligned(pa, 4);
    return Atomics.load(this.#wordsAt(pa), offset >>> 2);
  }

  load64(pa: number): number {
    if ((windowOffset(pa) & 7) !== 0) unaligned(pa, 8);
    const low = this.load32(pa);
    return this.load32(pa + 4) * 2 ** 32 + low;
  }

  loadBig64(pa: number): bigint {
    if ((windowOffset(pa) & 7) !== 0) unaligned(pa, 8);
    const low = this.load32(pa);
    return (BigInt(this.load32(pa + 4)) << 32n) | BigInt(low);
  }

  store8(pa: number, value: number): void {
    const window = (pa / WINDOW_BYTES) | 0;
    const bytes = this.#bytes[window];
    const index = pa - window * WINDOW_BYTES;
    if (bytes === undefined || !(index < bytes.length)) outside(pa);
    this.#touch(pa);
    bytes[index] = value;
  }

  store16(pa: number, value: number): void {
    if ((windowOffset(pa) & 1) !== 0) unaligned(pa, 2);
    this.store8(pa, value & 0xff);
    this.store8(pa + 1, (value >>> 8) & 0xff);
  }

  store32(pa: number, value: number): void {
    const window = (pa / WINDOW_BYTES) | 0;
    const words = this.#words[window];
    const offset = pa - window * WINDOW_BYTES;
    if ((offset & 3) !== 0) unaligned(pa, 4);
    if (words === undefined || offset >>> 2 >= words.length) outside(pa);
    this.#touch(pa);
    words[offset >>> 2] = value;
  }

  store64(pa: number, value: number): void {
    if ((windowOffset(pa) & 7) !== 0) unaligned(pa, 8);
    assert(Number.isSafeInteger(value) && value >= 0, () => `store64 of ${value}`);
    this.store32(pa, value % 2 ** 32);
    this.store32(pa + 4, Math.floor(value / 2 ** 32));
  }

  storeBig64(pa: number, value: bigint): void {
    if ((windowOffset(pa) & 7) !== 0) unaligned(pa, 8);
    this.store32(pa, Number(value & 0xffffffffn));
    this.store32(pa + 4, Number((value >> 32n) & 0xffffffffn));
  }

  publish64(pa: number, low: number, high: number): void {
    if ((windowOffset(pa) & 7) !== 0) unaligned(pa, 8);
    this.store32(pa + 4, high);
    // The atomic store keeps the two halves in order for readers in other threads.
    this.#storeOrdered(pa, low);
  }

  retract64(pa: number): void {
    if ((windowOffset(pa) & 7) !== 0) unaligned(pa, 8);
    this.#storeOrdered(pa, 0);
    this.store32(pa + 4, 0);
  }

  exchange64(pa: number, low: number, high: number): void {
    if ((windowOffset(pa) & 7) !== 0) unaligned(pa, 8);
    const words = this.#wordsAt(pa);
    const window = new BigUint64Array(words.buffer, pa % WINDOW_BYTES, 1);
    this.#touch(pa);
    Atomics.store(window, 0, (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0));
  }

  publishRun64(pa: number, count: number, low: number, high: number, strideBytes: number): void {
    const words = this.#runAt(pa, count);
    const first = windowOffset(pa) >>> 2;
    const end = first + 2 * count;
    const stride = strideBytes | 0;
    // High halves change only every 4 GiB, so they are stored in stretches, four entries a turn: this is hot.
    const step = Math.max(1, strideBytes / 2 ** 32);
    const stretch = 2 * Math.max(1, 2 ** 32 / strideBytes);
    let h = high | 0;
    let i = first;
    let stop = first + 2 * Math.max(1, Math.ceil((2 ** 32 - (low >>> 0)) / strideBytes));
    while (i < end) {
      if (stop > end) stop = end;
      for (; i + 8 <= stop; i += 8) {
        words[i + 1] = h;
        words[i + 3] = h;
        words[i + 5] = h;
        words[i + 7] = h;
      }
      for (; i < stop; i += 2) words[i + 1] = h;
      h = (h + step) | 0;
      stop += stretch;
      // Leaves of 1 GiB: a stretch is one turn.
      for (; stretch === 8 && i + 8 <= end; i += 8) {
        words[i + 1] = h;
        words[i + 3] = h;
        words[i + 5] = h;
        words[i + 7] = h;
        h = (h + 1) | 0;
        stop += 8;
      }
    }
    this.fence();
    let l = low | 0;
    for (i = first; i + 8 <= end; i += 8) {
      words[i] = l;
      l = (l + stride) | 0;
      words[i + 2] = l;
      l = (l + stride) | 0;
      words[i + 4] = l;
      l = (l + stride) | 0;
      words[i + 6] = l;
      l = (l + stride) | 0;
    }
    for (; i < end; i += 2) {
      words[i] = l;
      l = (l + stride) | 0;
    }
  }

  storeRun64(pa: number, count: number, low: number, high: number, strideBytes: number): void {
    const words = this.#runAt(pa, count);
    const first = windowOffset(pa) >>> 2;
    const end = first + 2 * count;
    const stride = strideBytes | 0;
    // In stretches of the same high half, as publishRun64.
    const step = Math.max(1, strideBytes / 2 ** 32);
    const stretch = 2 * Math.max(1, 2 ** 32 / strideBytes);
    let h = high | 0;
    let l = low | 0;
    let i = first;
    if (strideBytes === GIB && low >>> 0 < GIB) {
      // Four to each high half, and the same four low halves again and again.
      const [l1, l2, l3] = [(l + stride) | 0, (l + 2 * stride) | 0, (l + 3 * stride) | 0];
      for (; i + 8 <= end; i += 8) {
        words[i] = l;
        words[i + 1] = h;
        words[i + 2] = l1;
        words[i + 3] = h;
        words[i + 4] = l2;
        words[i + 5] = h;
        words[i + 6] = l3;
        words[i + 7] = h;
        h = (h + 1) | 0;
      }
    }
    let stop = i + 2 * Math.max(1, Math.ceil((2 ** 32 - (low >>> 0)) / strideBytes));
    while (i < end) {
      if (stop > end) stop = end;
      for (; i + 8 <= stop; i += 8) {
        words[i] = l;
        words[i + 1] = h;
        l = (l + stride) | 0;
        words[i + 2] = l;
        words[i + 3] = h;
        l = (l + stride) | 0;
        words[i + 4] = l;
        words[i + 5] = h;
        l = (l + stride) | 0;
        words[i + 6] = l;
        words[i + 7] = h;
        l = (l + stride) | 0;
      }
      for (; i < stop; i += 2) {
        words[i] = l;
        words[i + 1] = h;
        l = (l + stride) | 0;
      }
      h = (h + step) | 0;
      stop += stretch;
    }
  }

  retractRun64(pa: number, count: number): void {
    const words = this.#runAt(pa, count);
    const first = windowOffset(pa) >>> 2;
    const end = first + 2 * count;
    zeroEverySecond(words, first, end);
    this.fence();
    zeroEverySecond(words, first + 1, end);
  }

  fence(): void {
    Atomics.add(this.#fence, 0, 1);
  }

  /** Zeroing passes over what nothing was ever stored to: it is zero, and stays without backing. */
  fill(pa: number, lengthBytes: number, value: number): void {
    for (let done = 0; done < lengthBytes; ) {
      const start = pa + done;
      const bytes = pieceBytes(start, lengthBytes - done);
      if (value !== 0) this.#mapped(start, bytes).fill(value);
      else this.#zeroTouched(start, bytes);
      done += bytes;
    }
  }

  write(pa: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const piece = this.#mapped(pa + done, pieceBytes(pa + done, bytes.length - done));
      piece.set(bytes.subarray(done, done + piece.length));
      done += piece.length;
    }
  }

  read(pa: number, target: Uint8Array): void {
    for (let done = 0; done < target.length; ) {
      const lengthBytes = pieceBytes(pa + done, target.length - done);
      target.set(this.#bytesAt(pa + done, lengthBytes), done);
      done += lengthBytes;
    }
  }

  view(pa: number, lengthBytes: number): Uint8Array<SharedArrayBuffer> {
    return this.#mapped(pa, lengthBytes);
  }

  /** What `view` gives. Not `view` itself, which a subclass may override to tell of mappings. */
  #mapped(pa: number, lengthBytes: number): Uint8Array<SharedArrayBuffer> {
    const view = this.#bytesAt(pa, lengthBytes);
    if (lengthBytes > 0) {
      const last = Math.floor((pa + lengthBytes - 1) / TOUCH_BYTES);
      this.#touched.fill(1, Math.floor(pa / TOUCH_BYTES), last + 1);
    }
    return view;
  }

  #bytesAt(pa: number, lengthBytes: number): Uint8Array<SharedArrayBuffer> {
    if (!this.contains(pa, lengthBytes)) outside(pa);
    const offset = pa % WINDOW_BYTES;
    assert(offset + lengthBytes <= WINDOW_BYTES, () => `${hex(pa)}+${lengthBytes} crosses 1 GiB`);
    const bytes = this.#bytes[Math.floor(pa / WINDOW_BYTES)];
    if (bytes === undefined) outside(pa);
    return bytes.subarray(offset, offset + lengthBytes);
  }

  #zeroTouched(pa: number, lengthBytes: number): void {
    const bytes = this.#bytesAt(pa, lengthBytes);
    for (let done = 0; done < lengthBytes; ) {
      const end = Math.min(lengthBytes, done + touchPieceBytes(pa + done));
      if (this.isTouched(pa + done)) bytes.fill(0, done, end);
      done = end;
    }
  }

  #wordsAt(pa: number): Uint32Array<SharedArrayBuffer> {
    const words = this.#words[(pa / WINDOW_BYTES) | 0];
    const offset = windowOffset(pa);
    if (words === undefined || !(offset >= 0 && offset < words.byteLength)) outside(pa);
    return words;
  }

  /** Signed words, because 32-bit signed arithmetic is what a JIT does without conversions. */
  #runAt(pa: number, count: number): Int32Array<SharedArrayBuffer> {
    const offset = windowOffset(pa);
    if ((offset & 7) !== 0) unaligned(pa, 8);
    assert(count >= 1 && (offset & (PAGE_SIZE - 1)) + 8 * count <= PAGE_SIZE, "a run in one table");
    const words = this.#signed[(pa / WINDOW_BYTES) | 0];
    if (words === undefined || !(offset >= 0 && offset + 8 * count <= words.byteLength))
      outside(pa);
    this.#touch(pa);
    return words;
  }

  #storeOrdered(pa: number, value: number): void {
    const words = this.#wordsAt(pa);
    this.#touch(pa);
    Atomics.store(words, windowOffset(pa) >>> 2, value);
  }

  #touch(pa: number): void {
    this.#touched[(pa / TOUCH_BYTES) | 0] = 1;
  }
}

/**
 * RAM that tells of every store before it happens: for machines that interleave devices with the kernel's
 * stores, and for tests that stop a kernel at any of them (the hook then throws).
 *
 * Runs are told half by half, byte copies in pieces of 8, fills by page.
 */
export class ObservedRam extends Ram {
  readonly #beforeStore: (pa: number) => void;

  constructor(shared: SharedRam, beforeStore: (pa: number) => void) {
    super(shared);
    this.#beforeStore = beforeStore;
  }

  override store8(pa: number, value: number): void {
    this.#beforeStore(pa);
    super.store8(pa, value);
  }

  override store16(pa: number, value: number): void {
    this.#beforeStore(pa);
    super.store8(pa, value & 0xff);
    super.store8(pa + 1, (value >>> 8) & 0xff);
  }

  override store32(pa: number, value: number): void {
    this.#beforeStore(pa);
    super.store32(pa, value);
  }

  override publish64(pa: number, low: number, high: number): void {
    this.store32(pa + 4, high);
    this.store32(pa, low);
  }

  override retract64(pa: number): void {
    this.store32(pa, 0);
    this.store32(pa + 4, 0);
  }

  override exchange64(pa: number, low: number, high: number): void {
    this.#beforeStore(pa);
    super.exchange64(pa, low, high);
  }

  override publishRun64(
    pa: number,
    count: number,
    low: number,
    high: number,
    strideBytes: number,
  ): void {
    const base = low + high * 2 ** 32;
    for (let i = 0; i < count; i++)
      this.store32(pa + 8 * i + 4, Math.floor((base + i * strideBytes) / 2 ** 32));
    for (let i = 0; i < count; i++) this.store32(pa + 8 * i, (base + i * strideBytes) % 2 ** 32);
  }

  override storeRun64(
    pa: number,
    count: number,
    low: number,
    high: number,
    strideBytes: number,
  ): void {
    this.publishRun64(pa, count, low, high, strideBytes);
  }

  override retractRun64(pa: number, count: number): void {
    for (let i = 0; i < count; i++) this.store32(pa + 8 * i, 0);
    for (let i = 0; i < count; i++) this.store32(pa + 8 * i + 4, 0);
  }

  override fill(pa: number, lengthBytes: number, value: number): void {
    for (let done = 0; done < lengthBytes; ) {
      const at = pa + done;
      // What zeroing passes over is not stored to: nothing to tell.
      const isSkipped = value === 0 && this.contains(at, 1) && !this.isTouched(at);
      const pieceEnd = isSkipped ? touchPieceBytes(at) : PAGE_SIZE;
      const bytes = Math.min(pieceEnd, lengthBytes - done);
      if (!isSkipped) this.#beforeStore(at);
      super.fill(at, bytes, value);
      done += bytes;
    }
  }

  override write(pa: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; done += 8) {
      this.#beforeStore(pa + done);
      super.write(pa + done, bytes.subarray(done, done + 8));
    }
  }
}

/** Stores 0 to words `first`, `first` + 2, ... below `end`; eight a turn, because unmapping is hot. */
function zeroEverySecond(words: Int32Array, first: number, end: number): void {
  let i = first;
  for (; i + 16 <= end; i += 16) {
    words[i] = 0;
    words[i + 2] = 0;
    words[i + 4] = 0;
    words[i + 6] = 0;
    words[i + 8] = 0;
    words[i + 10] = 0;
    words[i + 12] = 0;
    words[i + 14] = 0;
  }
  for (; i < end; i += 2) words[i] = 0;
}

/** Offset in its window. Not by `%`: on numbers beyond 31 bits that is a call of fmod, and this is in every access. */
function windowOffset(pa: number): number {
  return pa - ((pa / WINDOW_BYTES) | 0) * WINDOW_BYTES;
}

function pieceBytes(pa: number, lengthBytes: number): number {
  return Math.min(lengthBytes, WINDOW_BYTES - (pa % WINDOW_BYTES));
}

/** Bytes from `pa` to the end of the 2 MiB of which it is known whether they were touched. */
function touchPieceBytes(pa: number): number {
  return TOUCH_BYTES - (pa % TOUCH_BYTES);
}

function outside(pa: number): never {
  throw new BugError(`access outside RAM at ${hex(pa)}`);
}

function unaligned(pa: number, sizeBytes: number): never {
  throw new BugError(`access of ${sizeBytes} bytes at ${hex(pa)} is not aligned`);
}
