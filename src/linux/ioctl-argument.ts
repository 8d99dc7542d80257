/**
 * Memory in which ioctl arguments are given to the kernel.
 *
 * Why: how much of its argument the kernel reads and writes is said by the request and by fields of the argument itself.
 * One that is too short would let it go on into this process's heap. Here it ends where the mapped memory ends, so that
 * the kernel says EFAULT instead.
 * @module
 */

import type { UserArgument } from "../abi/uapi/ioctl.ts";
import { KernelError } from "../base/errno.ts";
import { withUndo } from "../base/undo.ts";
import { KIB } from "../base/units.ts";
import { type Ffi, MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE } from "./ffi.ts";

/** Multiple of the page size of every kernel. */
const ARGUMENT_BYTES = 64 * KIB;
const POINTER_BYTES = 8;

export class IoctlArgument {
  readonly #ffi: Ffi;
  /** What follows it is not accessible. */
  readonly #memory: Uint8Array;

  /** It is never unmapped: a host lives as long as its process. */
  constructor(ffi: Ffi) {
    this.#ffi = ffi;
    this.#memory = withUndo((undo) => {
      const whole = 2 * ARGUMENT_BYTES;
      const address = ffi.mmap(whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      undo(() => ffi.munmap(address, whole));
      ffi.mprotect(address + BigInt(ARGUMENT_BYTES), ARGUMENT_BYTES, 0);
      return new Uint8Array(ffi.view(address, ARGUMENT_BYTES));
    });
  }

  /**
   * Makes a call with an argument, and gives the caller back what the kernel made of it, also when the call fails.
   * @param call - gets the argument where the kernel may have it
   * @throws {KernelError} E2BIG an argument of more than 64 KiB; EFAULT a pointer does not lie in it; what `call` throws
   */
  with(argument: UserArgument, call: (place: Uint8Array) => number): number {
    const { bytes, buffers = [] } = argument;
    if (bytes.length > ARGUMENT_BYTES)
      throw new KernelError("E2BIG", "ioctl", `the argument has ${bytes.length} bytes, not 65536`);
    const place = this.#memory.subarray(ARGUMENT_BYTES - bytes.length);
    place.set(bytes);
    const words = new DataView(place.buffer, place.byteOffset, place.byteLength);
    for (const { pointerOffset, bytes: target } of buffers) {
      if (!(pointerOffset >= 0 && pointerOffset + POINTER_BYTES <= bytes.length))
        throw new KernelError(
          "EFAULT",
          "ioctl",
          `a pointer at ${pointerOffset} of ${bytes.length}`,
        );
      words.setBigUint64(pointerOffset, this.#ffi.addressOf(target), true);
    }
    try {
      return call(place);
    } finally {
      bytes.set(place);
    }
  }
}
