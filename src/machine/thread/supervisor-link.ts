/**
 * A kernel thread's line to the supervisor: notices, and calls that block until they are answered.
 * @module
 */
import { type MessagePort, receiveMessageOnPort } from "node:worker_threads";
import type { KernelMessage, KernelThreadData } from "./messages.ts";

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

  /** Whether an answer is there that {@link answer} has not returned. */
  isAnswered(): boolean {
    return Atomics.load(this.#answers, 0) !== this.#taken;
  }

  /** Blocks until the supervisor answers what was last asked. */
  answer(): unknown {
    for (;;) {
      Atomics.wait(this.#answers, 0, this.#taken);
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
  Atomics.add(count, 0, 1);
  Atomics.notify(count, 0);
}
