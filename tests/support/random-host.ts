/**
 * A host drawn from a seed: its units, its VMs, how fast frames come and how finely devices and kernel interleave.
 * @module
 */

import { Prng } from "../../src/base/prng.ts";
import { MIB } from "../../src/base/units.ts";
import type { SegmentConfig } from "../../src/machine/embedded/config.ts";
import { type SimulationOptions, segment, vmPlans } from "./simulated-host.ts";

/** The host of a seed. Adding a choice at the end keeps what earlier seeds mean as far as possible. */
export function randomHost(seed: number): SimulationOptions {
  // Not the machine's own generator: the same seed must not make the same draws there.
  const prng = new Prng(seed ^ 0x5eed);
  const choose = <T>(...values: readonly T[]): T => values[prng.below(values.length)];
  const unit = (): SegmentConfig["drhd"] => ({
    addressBits: choose(39, 48, 48),
    superpages: !prng.oneIn(3),
  });
  const count = choose(1, 1, 2);
  // From a frame now and then to more than a guest takes: the ring overflows, and DMA comes between most stores.
  const framesPerSecond = choose(50_000, 500_000, 2_000_000);
  const segments =
    count === 2 && prng.oneIn(2)
      ? [segment(0, 1, framesPerSecond, unit()), segment(1, 1, framesPerSecond, unit())]
      : [segment(0, count, framesPerSecond, unit())];
  const spOff = prng.below(4);
  const updates = choose(1, 2);
  const cachesNothing = prng.oneIn(2);
  return {
    seed,
    eventsPerStep: choose(1, 1, 2, 4, 16),
    nodeBytes: [32 * MIB, 32 * MIB],
    vms: vmPlans(count),
    segments,
    updates,
    runNs: 20_000 + prng.below(200_000),
    mayOverrun: true,
    cachesNothing,
    commandLine: (update) => (((spOff >>> update) & 1) !== 0 ? "intel_iommu=sp_off" : ""),
  };
}
