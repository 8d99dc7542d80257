/**
 * What went over the NICs' wires and what the remapping units blocked, in shared memory: the hardware counts, any
 * thread reads at any time.
 * @module
 */
import { type MachineConfig, nicsOf } from "./config.ts";
import { type TrafficCounts, TrafficStats } from "./pci/devices/traffic-stats.ts";

/** What another thread needs to share the counters. */
export interface SharedStatistics {
  readonly traffic: SharedArrayBuffer;
  /** Int32 for each segment group. */
  readonly dmaFaults: SharedArrayBuffer;
}

/** Frames of one NIC's traffic source and what became of them, and frames that the NIC sent. */
export interface NicStatistics extends TrafficCounts {
  readonly name: string;
  readonly segment: number;
}

export class HardwareStatistics {
  readonly shared: SharedStatistics;
  readonly traffic: TrafficStats;
  readonly #config: MachineConfig;
  readonly #dmaFaults: Int32Array;

  /** @param shared - of another instance; absent: new counters, at zero */
  constructor(config: MachineConfig, shared?: SharedStatistics) {
    this.#config = config;
    this.shared = shared ?? {
      traffic: TrafficStats.create(nicsOf(config).length).shared,
      dmaFaults: new SharedArrayBuffer(4 * config.segments.length),
    };
    this.traffic = new TrafficStats(this.shared.traffic);
    this.#dmaFaults = new Int32Array(this.shared.dmaFaults);
  }

  /** By NIC, in the order of the description. */
  nics(): NicStatistics[] {
    return nicsOf(this.#config).map(({ name, segment }, id) => ({
      name,
      segment,
      ...this.traffic.read(id),
    }));
  }

  /** Requests that the segment group's remapping unit has blocked, of all functions; wraps at 2^32. */
  dmaFaults(segment: number): number {
    return Atomics.load(this.#dmaFaults, segment) >>> 0;
  }

  /** For the hardware, when a request was blocked. */
  countDmaFault(segment: number): void {
    Atomics.add(this.#dmaFaults, segment, 1);
  }
}
