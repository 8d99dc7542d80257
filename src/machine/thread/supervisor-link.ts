/**
 * A kernel thread's line to the supervisor: notices, and calls that block until they are answered.
 * @module
 */
import { type MessagePort, receiveMessageOnPort } from "node:worker_threads";
import type { KernelMessage, KernelThreadData } from "./messages.ts";

const COUNT = 0;
const WANTED = 1;
const INPUT = 2;

/** The shared memory of a link, Int32: count of answers, whether the thread's kernel is wanted, lines that wait for it. */
export function createAnswers(): SharedArrayBuffer {
  return new SharedArrayBuffer(12);
}

/** The supervisor tells a thread how many lines wait to be read, so that a kernel asks only when there is one. */
export function setInputLines(answers: SharedArrayBuffer, count: number): void {
  Atomics.store(new Int32Array(answers), INPUT, count);
}

/** The supervisor tells a thread that the jump into it has begun: what it still prepares only takes time from others. */
export function callForKernel(answers: SharedArrayBuffer): void {
  Atomics.store(new Int32Array(answers), WANTED, 1);
}

/** The kernel thread's end. */
export class SupervisorLink {
  readonly #up: MessagePort;
  readonly #down: MessagePort;
  readonly #answers: Int32Array;
  /** Answers that were received. */
  #taken = 0;

  constructor(parent: MessagePort, data: KernelThreadData) {
    this.#up = parent;
    this.#down = data.port;
    this.#answers = new Int32Array(data.answers);
  }

  notify(message: KernelMessage): void {
    this.#up.postMessage(message);
  }

  /** Blocks until the supervisor answers. Never returns where it does not: it ends this thread then. */
  call(message: KernelMessage): unknown {
    this.#up.postMessage(message);
    return this.answer();
  }

  /** Whether the jump into this thread's kernel has begun: {@link callForKernel}. */
  isWanted(): boolean {
    return Atomics.load(this.#answers, WANTED) !== 0;
  }

  /** Whether a line waits: {@link setInputLines}. */
  hasInput(): boolean {
    return Atomics.load(this.#answers, INPUT) !== 0;
  }

  /** Blocks until the supervisor answers what was last asked. */
  answer(): unknown {
    for (;;) {
      Atomics.wait(this.#answers, COUNT, this.#taken);
      const received = receiveMessageOnPort(this.#down);
      if (received === undefined) continue;
      this.#taken++;
      return received.message;
    }
  }
}

/** The supervisor's end: answers a call. The message is in the port before the thread wakes. */
export function answer(port: MessagePort, answers: SharedArrayBuffer, message: unknown): void {
  port.postMessage(message);
  const count = new Int32Array(answers);
  Atomics.add(count, COUNT, 1);
  Atomics.notify(count, COUNT);
}
