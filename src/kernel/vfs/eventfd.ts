/**
 * eventfd: a 64-bit counter behind a file descriptor, by which interrupts reach userspace.
 *
 * Why two halves: the counter is a number that is added up, not a token, so it is kept without bigint.
 * Not modelled: blocking. Nothing can run while a system call of ours waits, so every eventfd behaves as with
 * EFD_NONBLOCK.
 * Source: Linux 7.3 fs/eventfd.c
 * @module
 */
import { EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE } from "../../abi/uapi/fs.ts";
import { ByteWords } from "../../abi/words.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { isIndex } from "../../base/units.ts";
import { File } from "./file.ts";
import { describe } from "./user-value.ts";

const COUNTER_BYTES = 8;
const U32_LAST = 0xffffffff;

export class Eventfd extends File {
  readonly kind = "eventfd";
  readonly #isSemaphore: boolean;
  #low: number;
  #high = 0;

  /**
   * @param initial - first value of the counter, 0 .. 2^32 - 1
   * @param flags - EFD_SEMAPHORE, EFD_CLOEXEC, EFD_NONBLOCK
   * @throws {KernelError} EINVAL on any other value or flag
   */
  constructor(initial: number, flags: number) {
    super();
    if (!isIndex(initial, U32_LAST))
      throw new KernelError("EINVAL", "eventfd", `initial value ${describe(initial)} is not a u32`);
    if (!isIndex(flags, U32_LAST) || (flags & ~(EFD_SEMAPHORE | EFD_CLOEXEC | EFD_NONBLOCK)) !== 0)
      throw new KernelError("EINVAL", "eventfd", `unknown flags ${describe(flags)}`);
    this.#isSemaphore = (flags & EFD_SEMAPHORE) !== 0;
    this.#low = initial;
  }

  /**
   * Adds to the counter from within the kernel, as an interrupt does. A full counter stays full.
   * @param count - 1 .. 2^32 - 1
   */
  signal(count: number): void {
    assert(count >= 1 && isIndex(count, U32_LAST), `eventfd signal of ${count}`);
    if (this.#add(count, 0)) return;
    this.#low = U32_LAST;
    this.#high = U32_LAST;
  }

  /** Whether a read would find something. */
  get isReadable(): boolean {
    return this.#low !== 0 || this.#high !== 0;
  }

  /**
   * Takes the whole counter (or 1 of a semaphore) as a little-endian u64.
   * @throws {KernelError} EINVAL when `target` is shorter than 8 bytes; EAGAIN when the counter is 0
   */
  override read(target: Uint8Array): number {
    if (target.length < COUNTER_BYTES)
      throw new KernelError("EINVAL", "read", `an eventfd needs 8 bytes, not ${target.length}`);
    if (!this.isReadable) throw new KernelError("EAGAIN", "read", "the eventfd's counter is 0");
    const words = new ByteWords(target);
    if (this.#isSemaphore) {
      words.store64(0, 1);
      if (this.#low === 0) this.#high--;
      this.#low = (this.#low - 1) >>> 0;
    } else {
      words.store32(0, this.#low);
      words.store32(4, this.#high);
      this.#low = 0;
      this.#high = 0;
    }
    return COUNTER_BYTES;
  }

  /**
   * Adds a little-endian u64 to the counter.
   * @throws {KernelError} EINVAL when `bytes` has not 8 bytes or the value is 2^64 - 1; EAGAIN when the counter
   *   would pass 2^64 - 2
   */
  override write(bytes: Uint8Array): number {
    if (bytes.length !== COUNTER_BYTES)
      throw new KernelError("EINVAL", "write", `an eventfd takes 8 bytes, not ${bytes.length}`);
    const words = new ByteWords(bytes);
    const low = words.load32(0);
    const high = words.load32(4);
    if (low === U32_LAST && high === U32_LAST)
      throw new KernelError("EINVAL", "write", "2^64 - 1 cannot be added to an eventfd");
    if (!this.#add(low, high))
      throw new KernelError("EAGAIN", "write", "the eventfd's counter is full");
    return COUNTER_BYTES;
  }

  /** Succeeds and does nothing, whatever is asked: it has one position. */
  override seek(_offset: number, _whence: number): number {
    return 0;
  }

  protected override release(): void {}

  /** Whether the sum was at most 2^64 - 2; otherwise nothing has changed. */
  #add(low: number, high: number): boolean {
    const sumLow = this.#low + low;
    const sumHigh = this.#high + high + (sumLow > U32_LAST ? 1 : 0);
    if (sumHigh > U32_LAST || (sumHigh === U32_LAST && sumLow >>> 0 === U32_LAST)) return false;
    this.#low = sumLow >>> 0;
    this.#high = sumHigh;
    return true;
  }
}
