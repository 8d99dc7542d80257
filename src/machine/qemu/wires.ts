/**
 * The network cables of a QEMU machine, the thread at their other end, and what went over them.
 *
 * @see traffic-thread.ts for what they are
 * @module
 */
import { closeSync, readSync } from "node:fs";
import { TrafficStats } from "../embedded/pci/devices/traffic-stats.ts";
import { startWorker } from "../thread/start-worker.ts";
import type { Libc } from "./libc.ts";
import { NIC_MAC_PREFIX, type NicPlace } from "./q35.ts";
import type { TrafficThreadData } from "./traffic-thread.ts";

export class Wires {
  readonly stats: TrafficStats;
  /** QEMU's ends, by NIC. */
  readonly qemuEnds: readonly number[];
  readonly #ourEnds: readonly number[];
  readonly #stop = new SharedArrayBuffer(4);
  /** Resolves when the thread has ended. */
  #ended: Promise<unknown> = Promise.resolve();

  constructor(libc: Libc, places: readonly NicPlace[]) {
    this.stats = TrafficStats.create(places.length);
    const pairs = places.map(() => libc.messageSocketPair());
    this.#ourEnds = pairs.map(([end]) => end);
    this.qemuEnds = pairs.map(([, end]) => end);
  }

  /** The network begins to send. */
  start(
    places: readonly NicPlace[],
    kernelPresent: SharedArrayBuffer,
    onError: (error: Error) => void,
  ): void {
    const data: TrafficThreadData = {
      nics: places.map(({ nic }, id) => ({
        socket: this.#ourEnds[id],
        macAddress: Uint8Array.of(...NIC_MAC_PREFIX, id),
        framesPerSecond: nic.framesPerSecond,
      })),
      stats: this.stats.shared,
      kernelPresent,
      stop: this.#stop,
    };
    const thread = startWorker("../qemu/traffic-thread", data, []);
    thread.on("error", onError);
    this.#ended = new Promise((resolve) => thread.once("exit", resolve));
  }

  /** The network falls silent, and takes what the NICs have sent. */
  async stop(): Promise<void> {
    const stop = new Int32Array(this.#stop);
    Atomics.store(stop, 0, 1);
    Atomics.notify(stop, 0);
    await this.#ended;
  }

  /** After QEMU's end: takes the frames that it has not read. @returns how many, by NIC */
  takeUnread(): number[] {
    const frame = new Uint8Array(4096);
    return this.qemuEnds.map((end) => {
      for (let frames = 0; ; frames++) {
        try {
          readSync(end, frame);
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code === "EAGAIN") return frames;
          throw error;
        }
      }
    });
  }

  close(): void {
    for (const fd of [...this.#ourEnds, ...this.qemuEnds]) closeSync(fd);
  }
}
