/**
 * The network cables of a QEMU machine, the thread at their other end, and what went over them.
 *
 * @see traffic-thread.ts for what they are
 * @module
 */
import { closeSync, readSync } from "node:fs";
import type { Worker } from "node:worker_threads";
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
  #thread: Worker | null = null;

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
    };
    this.#thread = startWorker("../qemu/traffic-thread", data, []);
    this.#thread.on("error", onError);
  }

  /** The network falls silent. */
  async stop(): Promise<void> {
    await this.#thread?.terminate();
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
