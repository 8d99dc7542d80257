/**
 * The demo on the embedded machine, in threads or by a seed, and on QEMU.
 * @module
 */

import { MIB } from "../../base/units.ts";
import { type MachineConfig, standardConfig } from "../../machine/embedded/config.ts";
import { DeterministicMachine } from "../../machine/embedded/deterministic.ts";
import type { NicStatistics } from "../../machine/embedded/hardware-statistics.ts";
import { type DemoEvent, type DemoPlan, planToCommandLine } from "./events.ts";
import { imageSaver } from "./image-saver.ts";
import { kernelImages } from "./kernel-images.ts";
import { demoKernel } from "./kernel-module.ts";
import type { MachineKind } from "./machine-kinds.ts";
import type { JumpTimes, NicCounts } from "./result.ts";
import { blockedRequests, powerOn, type ThreadedMachine } from "./threaded-machine.ts";

/** What the user asked for. */
export interface DemoOptions {
  /** Default: embedded. QEMU's has no seed. */
  readonly machine?: MachineKind;
  readonly updates: number;
  readonly vms: number;
  /** For each VM. */
  readonly memoryBytes: number;
  /** For each NIC. */
  readonly framesPerSecond: number;
  /** Null: threads and real time. */
  readonly seed: number | null;
  /** Where to write the image of memory at each jump; "%u" is the update's number. Default: nowhere. */
  readonly saveImage?: string | null;
}

/** Told of what happens while it happens. */
export interface DemoWatcher {
  event(event: DemoEvent): void;
  /** A line of the kernel's log. */
  log(line: string): void;
  jump(times: JumpTimes, frames: FramesInJump): void;
}

/** What the NICs did while no kernel existed. */
export interface FramesInJump {
  /** Frames that reached guest memory. */
  readonly received: number;
  /** Frames that the NICs fetched from guest memory and sent. */
  readonly transmitted: number;
}

export interface DemoRun {
  readonly jumps: readonly JumpTimes[];
  readonly nics: readonly NicCounts[];
  /** By PCI segment: requests that its remapping unit blocked, of all functions, as the hardware counts them. */
  readonly blockedRequests: readonly number[];
  /** Of the deterministic machine: what a replay must reproduce. Takes a second for each GiB that was stored to. */
  readonly hashes: (() => { readonly log: string; readonly memory: string }) | null;
}

/** Kernel's own memory: page tables, metadata, scratch. */
const HOST_BYTES = 192 * MIB;
/** How long guests run before and after each update. */
const LIVE_RUN_NS = 800_000_000;
const DETERMINISTIC_RUN_NS = 3_000_000;
/**
 * What the other end takes from each NIC: less than the guests send at the default rate, so that transmit descriptors
 * are queued when a kernel ends, and the NIC fetches them while there is none.
 */
const TRANSMIT_FRAMES_PER_SECOND = 2000;

/** Runs the demo. @param version - of this package: kernels are its builds 1, 2, 3, ... */
export function runDemo(
  options: DemoOptions,
  version: string,
  watcher: DemoWatcher,
  signal: AbortSignal,
): Promise<DemoRun> {
  const images = kernelImages(
    new URL("./image", import.meta.url).href,
    version,
    options.updates + 1,
  );
  const isQemu = options.machine === "qemu";
  const config = standardConfig({
    memoryBytes: hostMemoryBytes(options),
    nics: options.vms,
    framesPerSecond: options.framesPerSecond,
    // QEMU's NICs send within the register access that starts it.
    ...(!isQemu && { transmitFramesPerSecond: TRANSMIT_FRAMES_PER_SECOND }),
    installed: images,
  });
  const plan: DemoPlan = {
    vms: options.vms,
    memoryBytes: options.memoryBytes,
    updates: options.updates,
    runNs: options.seed === null ? LIVE_RUN_NS : DETERMINISTIC_RUN_NS,
    images: images.map((image) => `/boot/${image.name}`),
  };
  const commandLine = `liveupdate=on ${planToCommandLine(plan)}`;
  return options.seed === null
    ? runLive(options.machine ?? "embedded", config, commandLine, options, watcher, signal)
    : Promise.resolve(runDeterministic(config, commandLine, options.seed, options, watcher));
}

/** Two nodes: each must hold its share of the VMs, and node 0 what does not fit anywhere else. */
function hostMemoryBytes({ vms, memoryBytes }: DemoOptions): number {
  return 2 * (Math.ceil(vms / 2) * memoryBytes + HOST_BYTES);
}

async function runLive(
  kind: MachineKind,
  config: MachineConfig,
  commandLine: string,
  { saveImage }: Pick<DemoOptions, "saveImage">,
  watcher: DemoWatcher,
  signal: AbortSignal,
): Promise<DemoRun> {
  const jumps: JumpTimes[] = [];
  const machine: ThreadedMachine = await powerOn(kind, config, {
    onSerialLine: (line) => receiveLine(line, watcher),
    onHandover: imageSaver(saveImage ?? null, () => machine),
    onJump: (jump) => {
      const times = { ...jump, requestedNs: jump.stopRequestedNs };
      jumps.push(times);
      watcher.jump(times, framesInJump());
    },
  });
  const framesInJump = countFramesInJumps(() => machine.nics());
  const close = () => void machine.close();
  signal.addEventListener("abort", close);
  try {
    // Aborted while it was powered on: nobody would tell it any more.
    if (!signal.aborted) await machine.run(config.installed[0], commandLine);
    return {
      jumps,
      nics: machine.nics().map(nicCounts),
      blockedRequests: machine.blockedRequests(),
      hashes: null,
    };
  } finally {
    signal.removeEventListener("abort", close);
    await machine.close();
  }
}

function runDeterministic(
  config: MachineConfig,
  commandLine: string,
  seed: number,
  { saveImage }: Pick<DemoOptions, "saveImage">,
  watcher: DemoWatcher,
): DemoRun {
  const jumps: JumpTimes[] = [];
  const machine = new DeterministicMachine(config, {
    seed,
    modules: (entry) => demoKernel(new URL(entry).searchParams.get("release") ?? ""),
    onSerialLine: (line) => receiveLine(line, watcher),
  });
  const framesInJump = countFramesInJumps(() => machine.statistics.nics());
  const saveHandover = imageSaver(saveImage ?? null, () => machine);
  machine.onJump((_ram, jump) => {
    saveHandover(jump.parameters);
    jumps.push(jump);
    watcher.jump(jump, framesInJump());
    return jump.parameters;
  });
  machine.run(demoKernel(config.installed[0].release), { commandLine, kho: null });
  return {
    jumps,
    nics: machine.statistics.nics().map(nicCounts),
    blockedRequests: blockedRequests(config, machine.statistics),
    hashes: () => ({ log: machine.logHash(), memory: machine.memoryHash() }),
  };
}

/** @returns a function that tells what came since its last call */
function countFramesInJumps(counts: () => readonly NicStatistics[]): () => FramesInJump {
  let seen: FramesInJump = { received: 0, transmitted: 0 };
  return () => {
    const before = seen;
    const nics = counts();
    seen = {
      received: nics.reduce((sum, nic) => sum + nic.withoutKernel, 0),
      transmitted: nics.reduce((sum, nic) => sum + nic.transmitWithoutKernel, 0),
    };
    return {
      received: seen.received - before.received,
      transmitted: seen.transmitted - before.transmitted,
    };
  };
}

function nicCounts(nic: NicStatistics): NicCounts {
  return {
    sent: nic.sent,
    missed: nic.missed,
    duringJump: nic.withoutKernel,
    dmaFaults: nic.dmaFailed + nic.transmitDmaFailed,
    transmitted: nic.transmitted,
    transmitCorrupt: nic.transmitCorrupt,
    transmitGaps: nic.transmitGaps,
  };
}

function receiveLine(line: string, watcher: DemoWatcher): void {
  if (line.startsWith("{")) watcher.event(JSON.parse(line) as DemoEvent);
  else watcher.log(line);
}
