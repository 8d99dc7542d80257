/**
 * Register accesses from a kernel's thread to the hardware's: one at a time, each waited for.
 *
 * Why a mailbox and not messages: a driver is synchronous, and both threads never return to an event loop.
 * Each side spins a little before it sleeps, because a wake-up takes ten times as long as an answer.
 * Layout (Int32): state, size (negative: write), address low, address high, value, server sleeps, client sleeps.
 * States: idle or done → request (client) → done (server).
 * Invariants: the side that goes to sleep says so before it looks at the state for the last time, and the side that
 * changes the state does so before it looks whether the other sleeps: no wake-up is lost. A request is always
 * answered, also for a kernel that was ended meanwhile; the next kernel waits for that first.
 * @module
 */
import { assert } from "../../base/assert.ts";
import { assertAligned } from "../embedded/mmio-bus.ts";
import type { Mmio } from "../machine.ts";

const STATE = 0;
const SIZE = 1;
const ADDRESS_LOW = 2;
const ADDRESS_HIGH = 3;
const VALUE = 4;
const SERVER_SLEEPS = 5;
const CLIENT_SLEEPS = 6;
const WORDS = 7;

const REQUEST = 1;
const DONE = 2;

/** Some 10 us: longer than an answer takes. Where both threads share one processor, spinning only delays it. */
const CLIENT_SPINS = 1_000;

/** The shared memory of one mailbox. */
export function createMailbox(): SharedArrayBuffer {
  return new SharedArrayBuffer(WORDS * Int32Array.BYTES_PER_ELEMENT);
}

/** The kernel's side: its Mmio. */
export class MailboxClient implements Mmio {
  readonly #words: Int32Array;

  constructor(mailbox: SharedArrayBuffer) {
    this.#words = new Int32Array(mailbox);
    this.#awaitAnswer();
  }

  read(pa: number, size: 1 | 2 | 4): number {
    return this.#access(pa, size, size, 0);
  }

  write(pa: number, size: 1 | 2 | 4, value: number): void {
    this.#access(pa, size, -size, value);
  }

  #access(pa: number, size: 1 | 2 | 4, sizeWord: number, value: number): number {
    // A kernel's bug must end the kernel, not the hardware.
    assertAligned(pa, size);
    const words = this.#words;
    words[SIZE] = sizeWord;
    words[ADDRESS_LOW] = (pa % 2 ** 32) | 0;
    words[ADDRESS_HIGH] = Math.floor(pa / 2 ** 32);
    words[VALUE] = value;
    Atomics.store(words, STATE, REQUEST);
    if (Atomics.load(words, SERVER_SLEEPS) !== 0) Atomics.notify(words, STATE);
    this.#awaitAnswer();
    return words[VALUE] >>> 0;
  }

  #awaitAnswer(): void {
    const words = this.#words;
    for (let i = 0; i < CLIENT_SPINS; i++) if (Atomics.load(words, STATE) !== REQUEST) return;
    Atomics.store(words, CLIENT_SLEEPS, 1);
    while (Atomics.load(words, STATE) === REQUEST) Atomics.wait(words, STATE, REQUEST);
    Atomics.store(words, CLIENT_SLEEPS, 0);
  }
}

/** The hardware's side. */
export class MailboxServer {
  readonly #words: Int32Array;
  readonly #mmio: Mmio;

  constructor(mailbox: SharedArrayBuffer, mmio: Mmio) {
    this.#words = new Int32Array(mailbox);
    this.#mmio = mmio;
  }

  /** Answers the request that waits. @returns whether there was one */
  serve(): boolean {
    const words = this.#words;
    if (Atomics.load(words, STATE) !== REQUEST) return false;
    const pa = (words[ADDRESS_LOW] >>> 0) + words[ADDRESS_HIGH] * 2 ** 32;
    const size = Math.abs(words[SIZE]);
    assert(size === 1 || size === 2 || size === 4, `MMIO access of ${size} bytes`);
    if (words[SIZE] < 0) this.#mmio.write(pa, size, words[VALUE] >>> 0);
    else words[VALUE] = this.#mmio.read(pa, size);
    Atomics.store(words, STATE, DONE);
    if (Atomics.load(words, CLIENT_SLEEPS) !== 0) Atomics.notify(words, STATE);
    return true;
  }

  /** Sleeps until a request comes or the time has passed. */
  sleep(timeoutMs: number): void {
    const words = this.#words;
    Atomics.store(words, SERVER_SLEEPS, 1);
    const state = Atomics.load(words, STATE);
    if (state !== REQUEST) Atomics.wait(words, STATE, state, timeoutMs);
    Atomics.store(words, SERVER_SLEEPS, 0);
  }
}
