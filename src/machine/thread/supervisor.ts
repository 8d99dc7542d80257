/**
 * Kernels as threads, one after the other, on hardware that runs elsewhere and goes on.
 *
 * A kernel is a worker thread with no state outside physical memory. At `kexec.execute` its thread is terminated;
 * then, while no kernel exists and devices run on, all memory that is not handed over is overwritten; then the
 * thread of the next kernel, which was started and loaded its code at `kexec.load`, is given memory and boot
 * parameters, for the first time.
 * Lifecycle: construct, `run` once (kernels run, one after the other), `close` at any time.
 * @module
 */
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { MessageChannel, type MessagePort, type Worker } from "node:worker_threads";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { keptRanges } from "../embedded/kexec-kept.ts";
import { scribble, scribblePattern } from "../embedded/kexec-scribble.ts";
import type { BootParameters, Firmware, KernelImage } from "../machine.ts";
import { Ram, type SharedRam } from "../physical-memory.ts";
import type { KernelDevices } from "./kernel-devices.ts";
import type { KernelEntry, KernelMessage, KernelThreadData, LoadAnswer } from "./messages.ts";
import { monotonicNs } from "./monotonic-clock.ts";
import { startWorker } from "./start-worker.ts";
import { answer, callForKernel, createAnswers, setInputLines } from "./supervisor-link.ts";

/** The phases of one jump; times by the machine's clock, so that a kernel's own can be set beside them. */
export interface LiveJump {
  readonly image: KernelImage;
  /** The old kernel called `kexec.execute`. */
  readonly stopRequestedNs: number;
  /** Its thread was gone: from here on no kernel exists. */
  readonly endedNs: number;
  /** All memory that was not handed over was overwritten. */
  readonly scribbledNs: number;
  /** The next kernel's `start` was called. */
  readonly enteredNs: number;
  readonly keptBytes: number;
  readonly overwrittenBytes: number;
  /** Why nothing was overwritten: what is wrong with the handover. Null when all is well. */
  readonly problem: string | null;
}

export interface LiveOptions {
  readonly onSerialLine?: (line: string) => void;
  /** Called when the next kernel has started. */
  readonly onJump?: (jump: LiveJump) => void;
  /**
   * Called in each jump, while no kernel exists and what was not handed over is overwritten. Devices run on; the next
   * kernel waits for its return, so what it takes adds to the blackout.
   */
  readonly onHandover?: (parameters: BootParameters) => void;
}

/** How a machine ended. */
export type LiveEnd =
  | { readonly kind: "powered-off"; readonly status: number }
  /** By `close`. */
  | { readonly kind: "closed" };

/** A kernel threw an error: the machine has ended. `stack` is the kernel's. */
export class KernelPanic extends Error {
  readonly release: string;

  constructor(image: KernelImage, message: string, stack: string) {
    super(`kernel ${image.release} panicked: ${message}`);
    this.name = "KernelPanic";
    this.release = image.release;
    this.stack = `${this.name}: ${this.message}\n${stack}`;
  }
}

/** A kernel's thread, from load to its end. */
interface KernelThread {
  readonly image: KernelImage;
  readonly worker: Worker;
  readonly port: MessagePort;
  readonly answers: SharedArrayBuffer;
}

/** Who waits for the end of the machine. */
interface Waiter {
  resolve(end: LiveEnd): void;
  reject(error: Error): void;
}

/** A jump under way: what is known before the next kernel enters. */
type JumpUnderWay = Omit<LiveJump, "enteredNs">;

/** The hardware under the kernels: it runs on its own, from before the first kernel until `powerOff`. */
export interface Platform {
  readonly ram: SharedRam;
  readonly firmware: Firmware;
  /** Images on the machine's boot disk. */
  readonly installed: readonly KernelImage[];
  /** Int32: 1 while a kernel exists. */
  readonly kernelPresent: SharedArrayBuffer;
  /** The way of a kernel that is about to enter to its devices. */
  connect(): KernelDevices;
  /**
   * A kernel has ended, by a jump.
   * @returns memory, in which what was never stored to, by whomever, counts as untouched
   */
  kernelEnded(): Ram;
  /** Ends the hardware. Every thread of a kernel is gone by then. */
  powerOff(): Promise<void>;
}

export class KernelSupervisor {
  /** Raw memory: for tests and `inspect`. */
  readonly ram: Ram;
  /** All jumps so far. */
  readonly jumps: LiveJump[] = [];

  readonly #platform: Platform;
  readonly #options: LiveOptions;
  readonly #threads = new Set<Worker>();
  readonly #end: Promise<LiveEnd>;
  /** Null once the machine has ended. */
  #waiter: Waiter | null = null;
  /** Null once all has ended well. */
  #finished: Promise<Error | null> | null = null;
  #running: KernelThread | null = null;
  #loaded: KernelThread | null = null;
  #underWay: JumpUnderWay | null = null;
  /** What has come over the serial line and no kernel has read. */
  readonly #input: string[] = [];

  constructor(platform: Platform, options: LiveOptions) {
    this.#platform = platform;
    this.#options = options;
    this.ram = new Ram(platform.ram);
    this.#end = new Promise((resolve, reject) => {
      this.#waiter = { resolve, reject };
    });
    // Whoever calls `run` sees the error; until then it must not end the process as unhandled.
    this.#end.catch(() => {});
  }

  /**
   * Boots a kernel and waits until the machine ends.
   *
   * @param image - the first kernel's; need not be among the installed ones
   * @throws {KernelPanic} when a kernel throws
   * @throws {KernelError} ENOENT or EINVAL when the first image is none
   */
  async run(image: KernelImage, commandLine: string): Promise<LiveEnd> {
    assert(this.#running === null && this.#loaded === null, "run() once");
    const loaded = await this.#load(image);
    if (!loaded.ok)
      this.fail(new KernelError(loaded.code, "boot", `image "${image.name}": ${loaded.problem}`));
    else this.#enter({ commandLine, kho: null });
    return this.#end;
  }

  /** Ends all threads. `run` then resolves with "closed" unless the machine had ended already. */
  async close(): Promise<void> {
    await this.#finish({ kind: "closed" });
  }

  /** Sends a line to the kernel that runs, or else to the next. */
  writeSerialLine(line: string): void {
    this.#input.push(line);
    this.#tellInput();
  }

  #tellInput(): void {
    if (this.#running !== null) setInputLines(this.#running.answers, this.#input.length);
  }

  #start(name: string, data: unknown, transfer: MessagePort[]): Worker {
    const worker = startWorker(name, data, transfer);
    this.#threads.add(worker);
    worker.once("exit", () => this.#threads.delete(worker));
    return worker;
  }

  /** Starts a thread for a kernel, and waits until its code is loaded. */
  async #load(image: KernelImage): Promise<LoadAnswer> {
    if (image.entry.startsWith("file:") && !existsSync(fileURLToPath(image.entry)))
      return { ok: false, code: "ENOENT", problem: `there is no ${image.entry}` };
    const { port1, port2 } = new MessageChannel();
    const answers = createAnswers();
    const data: KernelThreadData = { entry: image.entry, port: port2, answers };
    const worker = this.#start("kernel-thread", data, [port2]);
    const thread: KernelThread = { image, worker, port: port1, answers };
    const problem = await new Promise<string | null>((resolve) => {
      worker.once("message", (message: KernelMessage) =>
        resolve(message.kind === "not-a-kernel" ? message.problem : null),
      );
      worker.once("error", (error) => resolve(error.message));
      worker.once("exit", () => resolve("its thread ended while loading"));
    });
    if (problem !== null) {
      await worker.terminate();
      return { ok: false, code: "EINVAL", problem };
    }
    worker.on("message", (message: KernelMessage) => this.#receive(thread, message));
    worker.on("error", (error) =>
      this.fail(new KernelPanic(image, error.message, error.stack ?? "")),
    );
    worker.on("exit", () => {
      if (thread === this.#running) this.fail(new KernelPanic(image, "its thread ended", ""));
    });
    await this.#unload();
    this.#loaded = thread;
    return { ok: true };
  }

  async #unload(): Promise<void> {
    const thread = this.#loaded;
    this.#loaded = null;
    await thread?.worker.terminate();
  }

  /** The loaded kernel gets the machine. */
  #enter(parameters: BootParameters): void {
    const thread = this.#loaded;
    assert(thread !== null, "an image is loaded");
    callForKernel(thread.answers);
    this.#loaded = null;
    this.#running = thread;
    const { ram, firmware, installed, kernelPresent } = this.#platform;
    this.#tellInput();
    const devices = this.#platform.connect();
    const entry: KernelEntry = { ram, firmware, installed, kernelPresent, devices, parameters };
    answer(thread.port, thread.answers, entry);
  }

  #receive(thread: KernelThread, message: KernelMessage): void {
    if (thread !== this.#running || this.#waiter === null) return;
    switch (message.kind) {
      case "serial":
        this.#options.onSerialLine?.(message.line);
        return;
      case "serial-read": {
        const line = this.#input.shift() ?? null;
        this.#tellInput();
        answer(thread.port, thread.answers, line);
        return;
      }
      case "entered":
        this.#entered(message.atNs);
        return;
      case "load":
        this.#watch(this.#answerLoad(thread, message.image));
        return;
      case "execute":
        this.#watch(this.#jump(thread, message.parameters, message.atNs));
        return;
      case "power-off":
        this.#watch(this.#finish({ kind: "powered-off", status: message.status }));
        return;
      case "panic":
        this.fail(new KernelPanic(thread.image, message.message, message.stack));
        return;
      default:
        this.fail(new Error(`a kernel said "${message.kind}" while running`));
    }
  }

  async #answerLoad(thread: KernelThread, image: KernelImage | null): Promise<void> {
    let result: LoadAnswer = { ok: true };
    if (image === null) await this.#unload();
    // Code that is in place has prepared itself, and images do not change: it stays. Who asks for it again is about to
    // jump, and preparing any longer would only slow that down.
    else if (image.entry === this.#loaded?.image.entry) callForKernel(this.#loaded.answers);
    else result = await this.#load(image);
    answer(thread.port, thread.answers, result);
  }

  async #jump(
    old: KernelThread,
    parameters: BootParameters,
    stopRequestedNs: number,
  ): Promise<void> {
    const next = this.#loaded;
    assert(next !== null, "an image is loaded");
    this.#running = null;
    callForKernel(next.answers);
    const ended = old.worker.terminate();
    // The old kernel waits for its end and stores nothing more, so the handover can be read meanwhile.
    const kept = keptRanges(this.ram, parameters.kho);
    const pattern = scribblePattern(this.jumps.length + 1);
    await ended;
    const endedNs = monotonicNs();
    const touched = this.#platform.kernelEnded();
    let overwrittenBytes = 0;
    if (kept.problem === null) {
      const { memory } = this.#platform.firmware;
      overwrittenBytes = scribble(touched, memory, kept.ranges, pattern);
    }
    this.#underWay = {
      image: next.image,
      stopRequestedNs,
      endedNs,
      scribbledNs: monotonicNs(),
      keptBytes: kept.ranges.reduce((sum, range) => sum + range.lengthBytes, 0),
      overwrittenBytes,
      problem: kept.problem,
    };
    this.#options.onHandover?.(parameters);
    if (this.#waiter !== null) this.#enter(parameters);
  }

  #entered(enteredNs: number): void {
    if (this.#underWay === null) return;
    const jump: LiveJump = { ...this.#underWay, enteredNs };
    this.#underWay = null;
    this.jumps.push(jump);
    this.#options.onJump?.(jump);
  }

  /** A failure in what nobody awaits ends the machine. */
  #watch(work: Promise<void>): void {
    work.catch((error: unknown) => this.fail(asError(error)));
  }

  /** Ends the machine; `run` rejects with `error` unless the machine had ended already. */
  fail(error: Error): void {
    this.#watch(this.#finish(error));
  }

  /**
   * Ends all threads, then the hardware, then settles; the first reason to end counts. Hardware that does not end as it
   * should makes a good end a bad one.
   */
  async #finish(reason: LiveEnd | Error): Promise<void> {
    const waiter = this.#waiter;
    this.#waiter = null;
    this.#finished ??= this.#endAll().then(() => null, asError);
    const problem = await this.#finished;
    if (waiter === null) return;
    if (reason instanceof Error) waiter.reject(reason);
    else if (problem !== null) waiter.reject(problem);
    else waiter.resolve(reason);
  }

  async #endAll(): Promise<void> {
    await Promise.all([...this.#threads].map((worker) => worker.terminate()));
    await this.#platform.powerOff();
  }
}

function asError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown));
}
