/**
 * The network of a QEMU machine: feeds its NICs test frames at a set rate, and checks what they send, in a thread of its
 * own that never waits for a kernel.
 *
 * Why pairs of local message sockets and not UDP: nothing is ever dropped between us and the NIC. A NIC without a free
 * descriptor, or with reception off, leaves frames in the socket, and the source waits, as Ethernet's flow control
 * has it. So every frame that is missing was lost by what is tested.
 * Lifecycle: silent until the NIC has sent a frame, as a switch that has not learnt its address: before that QEMU's
 *   e1000e drops a frame now and then, since reception is off (e1000e_start_recv() in its core delivers what waits
 *   when bus mastering comes on or the tail moves).
 * @module
 */
import { readSync, writeSync } from "node:fs";
import { workerData } from "node:worker_threads";
import { encodeTestFrame } from "../../abi/test-frame.ts";
import { TrafficStats } from "../embedded/pci/devices/traffic-stats.ts";
import { CheckingWire } from "../embedded/pci/devices/wire.ts";
import { monotonicNs } from "../thread/monotonic-clock.ts";

/** The thread is started with it. */
export interface TrafficThreadData {
  readonly nics: readonly {
    /** Our end of its wire: a message socket that does not block. */
    readonly socket: number;
    readonly macAddress: Uint8Array;
    /** 0: it is sent nothing. */
    readonly framesPerSecond: number;
  }[];
  /** @see TrafficStats */
  readonly stats: SharedArrayBuffer;
  /** Int32: 1 while a kernel exists. */
  readonly kernelPresent: SharedArrayBuffer;
  /** Int32: 1 ends the thread: nothing is sent any more, and what was sent to us is read to its end. */
  readonly stop: SharedArrayBuffer;
}

const SOURCE_ADDRESS = Uint8Array.of(0x02, 0x48, 0x46, 0x00, 0x00, 0xff);
const FRAME_BYTES = 256;
/** Frames in a row for one NIC. */
const BURST = 16;
/** Frames that are late by more than this are not sent any more, so that a pause is not followed by a flood. */
const BACKLOG_NS = 100e6;
const SLEEP_MS = 0.2;
/** When nothing comes for so long after the last kernel's end, nothing is left. */
const QUIET_NS = 20e6;
/** Larger than any frame. */
const RECEIVE_BYTES = 4096;

/** Whether the system call was made. False: it would have had to wait. */
function unlessBlocked(call: () => void): boolean {
  try {
    call();
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EAGAIN") return false;
    throw error;
  }
}

class Port {
  readonly #nic: TrafficThreadData["nics"][number];
  readonly #nicId: number;
  readonly #stats: TrafficStats;
  readonly #wire: CheckingWire;
  readonly #frame = new Uint8Array(FRAME_BYTES);
  readonly #received = new Uint8Array(RECEIVE_BYTES);
  #sequence = 0;
  /** Null until the NIC was heard. */
  #dueNs: number | null = null;

  constructor(data: TrafficThreadData, nicId: number) {
    this.#nic = data.nics[nicId];
    this.#nicId = nicId;
    this.#stats = new TrafficStats(data.stats);
    const kernelPresent = new Int32Array(data.kernelPresent);
    this.#wire = new CheckingWire({ nicId, stats: this.#stats, kernelPresent });
  }

  /** @returns whether there may be more to do at once */
  send(): boolean {
    const { framesPerSecond, macAddress, socket } = this.#nic;
    if (framesPerSecond === 0 || this.#dueNs === null) return false;
    const nowNs = monotonicNs();
    this.#dueNs = Math.max(this.#dueNs, nowNs - BACKLOG_NS);
    for (let i = 0; i < BURST && this.#dueNs <= nowNs; i++) {
      encodeTestFrame(this.#frame, macAddress, SOURCE_ADDRESS, this.#nicId, this.#sequence);
      if (!unlessBlocked(() => writeSync(socket, this.#frame))) return false;
      this.#sequence++;
      this.#stats.increment(this.#nicId, "sent");
      this.#dueNs += 1e9 / framesPerSecond;
    }
    return this.#dueNs <= nowNs;
  }

  /** @returns whether there may be more to do at once */
  receive(): boolean {
    for (let i = 0; i < BURST; i++) {
      let lengthBytes = 0;
      const came = unlessBlocked(() => {
        lengthBytes = readSync(this.#nic.socket, this.#received);
      });
      if (!came) return i > 0;
      this.#dueNs ??= monotonicNs();
      this.#wire.transmit(this.#received.subarray(0, lengthBytes), monotonicNs());
    }
    return true;
  }
}

const data = workerData as TrafficThreadData;
const ports = data.nics.map((_nic, nicId) => new Port(data, nicId));
const stop = new Int32Array(data.stop);
for (let quietNs = 0; quietNs < QUIET_NS; ) {
  const startNs = monotonicNs();
  const stopped = Atomics.load(stop, 0) !== 0;
  let more = false;
  for (const port of ports) {
    more = port.receive() || more;
    if (!stopped) more = port.send() || more;
  }
  if (!more) Atomics.wait(stop, 0, stopped ? 1 : 0, SLEEP_MS);
  quietNs = stopped && !more ? quietNs + monotonicNs() - startNs : 0;
}
