/**
 * The demo on the embedded machine, in threads or by a seed.
 * @module
 */

import { MIB } from "../../base/units.ts";
import { RESTORES } from "../../kernel/restores.ts";
import { type MachineConfig, standardConfig } from "../../machine/embedded/config.ts";
import { DeterministicMachine } from "../../machine/embedded/deterministic.ts";
import type { KernelImage } from "../../machine/machine.ts";
import { LiveMachine } from "../../machine/thread/live-machine.ts";
import { type DemoEvent, type DemoPlan, planToCommandLine } from "./events.ts";
import { demoKernel } from "./kernel-module.ts";
import type { JumpTimes, NicCounts } from "./result.ts";

/** What the user asked for. */
export interface DemoOptions {
  readonly updates: number;
  readonly vms: number;
  /** For each VM. */
  readonly memoryBytes: number;
  /** For each NIC. */
  readonly framesPerSecond: number;
  /** Null: threads and real time. */
  readonly seed: number | null;
}

/** Told of what happens while it happens. */
export interface DemoWatcher {
  event(event: DemoEvent): void;
  /** A line of the kernel's log. */
  log(line: string): void;
  jump(times: JumpTimes, framesDuringJump: number): void;
}

export interface DemoRun {
  readonly jumps: readonly JumpTimes[];
  readonly nics: readonly NicCounts[];
  /** Of the deterministic machine: what a replay must reproduce. */
  readonly hashes: { readonly log: string; readonly memory: string } | null;
}

/** Kernel's own memory: page tables, metadata, scratch. */
const HOST_BYTES = 192 * MIB;
/** How long guests run before and after each update. */
const LIVE_RUN_NS = 800_000_000;
const DETERMINISTIC_RUN_NS = 3_000_000;

/** Runs the demo. @param version - of this package: kernels are its builds 1, 2, 3, ... */
export function runDemo(
  options: DemoOptions,
  version: string,
  watcher: DemoWatcher,
  signal: AbortSignal,
): Promise<DemoRun> {
  const images = demoImages(version, options.updates);
  const config = standardConfig({
    memoryBytes: hostMemoryBytes(options),
    nics: options.vms,
    framesPerSecond: options.framesPerSecond,
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
    ? runLive(config, commandLine, watcher, signal)
    : Promise.resolve(runDeterministic(config, commandLine, options.seed, watcher));
}

/** Two nodes: each must hold its share of the VMs, and node 0 what does not fit anywhere else. */
function hostMemoryBytes({ vms, memoryBytes }: DemoOptions): number {
  return 2 * (Math.ceil(vms / 2) * memoryBytes + HOST_BYTES);
}

function demoImages(version: string, updates: number): KernelImage[] {
  return Array.from({ length: updates + 1 }, (_, i) => {
    const release = `${version}-${i + 1}`;
    const file = import.meta.url.endsWith(".ts") ? "./image.ts" : "./image.js";
    const url = new URL(file, import.meta.url);
    url.searchParams.set("release", release);
    return { name: `vmlinuz-${release}`, entry: url.href, release, restores: RESTORES };
  });
}

async function runLive(
  config: MachineConfig,
  commandLine: string,
  watcher: DemoWatcher,
  signal: AbortSignal,
): Promise<DemoRun> {
  const jumps: JumpTimes[] = [];
  let seen = 0;
  const machine = new LiveMachine(config, {
    onSerialLine: (line) => receiveLine(line, watcher),
    onJump: (jump) => {
      const times = {
        requestedNs: jump.stopRequestedNs,
        endedNs: jump.endedNs,
        scribbledNs: jump.scribbledNs,
        enteredNs: jump.enteredNs,
      };
      jumps.push(times);
      const frames = machine.statistics.nics().reduce((sum, nic) => sum + nic.withoutKernel, 0);
      watcher.jump(times, frames - seen);
      seen = frames;
    },
  });
  const close = () => void machine.close();
  signal.addEventListener("abort", close);
  try {
    await machine.run(config.installed[0], commandLine);
    return { jumps, nics: machine.statistics.nics().map(nicCounts), hashes: null };
  } finally {
    signal.removeEventListener("abort", close);
    await machine.close();
  }
}

function runDeterministic(
  config: MachineConfig,
  commandLine: string,
  seed: number,
  watcher: DemoWatcher,
): DemoRun {
  const jumps: JumpTimes[] = [];
  let seen = 0;
  const machine = new DeterministicMachine(config, {
    seed,
    modules: (entry) => demoKernel(new URL(entry).searchParams.get("release") ?? ""),
    onSerialLine: (line) => receiveLine(line, watcher),
  });
  machine.onJump((_ram, { parameters }) => {
    const nowNs = machine.nowNs;
    const times = { requestedNs: nowNs, endedNs: nowNs, scribbledNs: nowNs, enteredNs: nowNs };
    jumps.push(times);
    const frames = machine.statistics.nics().reduce((sum, nic) => sum + nic.withoutKernel, 0);
    watcher.jump(times, frames - seen);
    seen = frames;
    return parameters;
  });
  machine.run(demoKernel(config.installed[0].release), { commandLine, kho: null });
  return {
    jumps,
    nics: machine.statistics.nics().map(nicCounts),
    hashes: { log: machine.logHash(), memory: machine.memoryHash() },
  };
}

function nicCounts(nic: {
  readonly sent: number;
  readonly withoutKernel: number;
  readonly dmaFailed: number;
}): NicCounts {
  return { sent: nic.sent, duringJump: nic.withoutKernel, dmaFaults: nic.dmaFailed };
}

function receiveLine(line: string, watcher: DemoWatcher): void {
  if (line.startsWith("{")) watcher.event(JSON.parse(line) as DemoEvent);
  else watcher.log(line);
}
