/**
 * QEMU's qtest protocol: register accesses over a socket, one line each, each waited for.
 *
 * Why synchronous reads and writes of the socket: a driver is synchronous, and so a kernel's thread speaks to QEMU
 * itself. QEMU answers every line at once, so the thread is never held longer than one access, about 50 us; a QEMU that hangs
 * holds it as long as the socket's timeout says.
 * Source: QEMU 7.2 softmmu/qtest.c
 * @module
 */
import { readSync, writeSync } from "node:fs";
import { BugError } from "../../base/assert.ts";
import { assertAligned } from "../embedded/mmio-bus.ts";
import type { Mmio } from "../machine.ts";
import { monotonicNs } from "../thread/monotonic-clock.ts";

const SUFFIX = { 1: "b", 2: "w", 4: "l" } as const;
const NEWLINE = 0x0a;

/** One connection to QEMU. */
export class QtestClient implements Mmio {
  readonly #socket: number;
  readonly #answer = Buffer.alloc(4096);

  /** @param socket - connected and blocking, with a timeout; it stays the caller's */
  constructor(socket: number) {
    this.#socket = socket;
  }

  read(pa: number, size: 1 | 2 | 4): number {
    assertAligned(pa, size);
    return this.#ask(`read${SUFFIX[size]} 0x${pa.toString(16)}`);
  }

  write(pa: number, size: 1 | 2 | 4, value: number): void {
    assertAligned(pa, size);
    this.#ask(`write${SUFFIX[size]} 0x${pa.toString(16)} 0x${(value >>> 0).toString(16)}`);
  }

  /** Writes 64 bits in one access: for registers that take nothing less. @param value - exact below 2^53 */
  write64(pa: number, value: number): void {
    assertAligned(pa, 4);
    this.#ask(`writeq 0x${pa.toString(16)} 0x${value.toString(16)}`);
  }

  /** Port output, 32 bits: as firmware does it before there is an ECAM. */
  outl(port: number, value: number): void {
    this.#ask(`outl 0x${port.toString(16)} 0x${(value >>> 0).toString(16)}`);
  }

  /**
   * @returns the value of a read, 0 for a write
   * @throws {Error} when QEMU has ended, or does not answer in time. No KernelError: a kernel takes that for the failure of a
   *   call, and goes on, where there is no machine left
   */
  #ask(command: string): number {
    const length = this.#exchange(command);
    const [status, value] = this.#answer.toString("latin1", 0, length - 1).split(" ");
    // FAIL: what we said is no command.
    if (status !== "OK")
      throw new BugError(`QEMU answers "${command}" with "${status} ${value ?? ""}"`);
    return value === undefined ? 0 : Number.parseInt(value.slice(-8), 16) >>> 0;
  }

  /** @returns how long the answer is */
  #exchange(command: string): number {
    const startNs = monotonicNs();
    try {
      unlessInterrupted(() => writeSync(this.#socket, `${command}\n`));
      for (let length = 0; ; ) {
        const room = this.#answer.length - length;
        const got = unlessInterrupted(() =>
          readSync(this.#socket, this.#answer, length, room, null),
        );
        if (got === 0) throw new Error(`QEMU has ended; it was asked to "${command}"`);
        length += got;
        if (this.#answer[length - 1] === NEWLINE) return length;
      }
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "EAGAIN") throw cause;
      const seconds = ((monotonicNs() - startNs) / 1e9).toFixed(1);
      throw new Error(`QEMU hangs: no answer to "${command}" for ${seconds} s`, { cause });
    }
  }
}

/** A signal of our process interrupts a call on a socket with a timeout (signal(7)): then it is made again. */
function unlessInterrupted(call: () => number): number {
  for (;;)
    try {
      return call();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EINTR") throw error;
    }
}
