/**
 * QEMU's qtest protocol: register accesses over a socket, one line each, each waited for.
 *
 * Why synchronous reads and writes of the socket: a driver is synchronous, and so a kernel's thread speaks to QEMU
 * itself. QEMU answers every line at once, so the thread is never held longer than one access.
 * One access takes about 50 us.
 * Source: QEMU 7.2 softmmu/qtest.c
 * @module
 */
import { readSync, writeSync } from "node:fs";
import { BugError } from "../../base/assert.ts";
import { assertAligned } from "../embedded/mmio-bus.ts";
import type { Mmio } from "../machine.ts";

const SUFFIX = { 1: "b", 2: "w", 4: "l" } as const;
const NEWLINE = 0x0a;

/** One connection to QEMU. */
export class QtestClient implements Mmio {
  readonly #socket: number;
  readonly #answer = Buffer.alloc(4096);
  #accesses = 0;

  /** @param socket - connected and blocking; it stays the caller's */
  constructor(socket: number) {
    this.#socket = socket;
  }

  /** Register accesses so far. */
  get accesses(): number {
    return this.#accesses;
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

  /** @returns the value of a read, 0 for a write */
  #ask(command: string): number {
    this.#accesses++;
    writeSync(this.#socket, `${command}\n`);
    let length = 0;
    do {
      const got = readSync(this.#socket, this.#answer, length, this.#answer.length - length, null);
      if (got === 0) throw new Error(`QEMU has ended; it was asked to "${command}"`);
      length += got;
    } while (this.#answer[length - 1] !== NEWLINE);
    const [status, value] = this.#answer.toString("latin1", 0, length - 1).split(" ");
    // FAIL: what we said is no command.
    if (status !== "OK")
      throw new BugError(`QEMU answers "${command}" with "${status} ${value ?? ""}"`);
    return value === undefined ? 0 : Number.parseInt(value.slice(-8), 16) >>> 0;
  }
}
