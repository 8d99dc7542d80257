/**
 * The demo's host on QEMU, with a second pair of eyes on the hardware, for tests.
 * @module
 */
import assert from "node:assert/strict";
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { GSTS_REG, GSTS_TES, RTADDR_REG } from "../../src/abi/vtd/registers.ts";
import { MIB } from "../../src/base/units.ts";
import { type DemoEvent, planToCommandLine } from "../../src/cli/demo/events.ts";
import { type DemoResult, judge } from "../../src/cli/demo/result.ts";
import { RESTORES } from "../../src/kernel/restores.ts";
import { type MachineConfig, standardConfig } from "../../src/machine/embedded/config.ts";
import type { NicStatistics } from "../../src/machine/embedded/hardware-statistics.ts";
import type { KernelImage } from "../../src/machine/machine.ts";
import { QemuMachine } from "../../src/machine/qemu/qemu-machine.ts";
import { Monitor } from "./rig.ts";

const VMS = 2;
const VM_BYTES = 64 * MIB;
/** Before the first update and after each. */
const RUN_NS = 200e6;
const WATCH_MS = 1;

/** What a run is asked for. */
export interface Run {
  readonly updates: number;
  readonly framesPerSecond: number;
  /** The kernels' module. Default: the demo's. */
  readonly image?: URL;
  /** Called in each jump, while no kernel exists. */
  readonly onHandover?: (machine: QemuMachine, rootTable: number) => void;
}

/** What came of it. */
export interface Outcome {
  /** What the demo would complain of. */
  readonly problems: readonly string[];
  readonly logged: readonly string[];
  readonly frames: readonly DemoResult["vms"][number]["frames"][];
  readonly nics: readonly NicStatistics[];
  /** Frames that were written while no kernel existed: by jump, by NIC, since power-on. */
  readonly inJumps: readonly (readonly number[])[];
  /** How often GSTS was seen with translation on, and off after it had been on. */
  readonly translation: { readonly on: number; readonly off: number };
  readonly machine: QemuMachine;
}

const DEMO_IMAGE = new URL(
  `../../src/cli/demo/image.${import.meta.url.endsWith(".ts") ? "ts" : "js"}`,
  import.meta.url,
);

function makeImages(updates: number, module: URL): KernelImage[] {
  return Array.from({ length: updates + 1 }, (_, i) => {
    const release = `test-${i + 1}`;
    const url = new URL(module);
    url.searchParams.set("release", release);
    return { name: `vmlinuz-${release}`, entry: url.href, release, restores: RESTORES };
  });
}

/** The standard machine; its edu may be attached, so it has no RMRR. */
function makeConfig(framesPerSecond: number, installed: readonly KernelImage[]): MachineConfig {
  const memoryBytes = 2 * VMS * VM_BYTES + 256 * MIB;
  const config = standardConfig({ memoryBytes, nics: VMS, framesPerSecond, installed });
  const segments = config.segments.map((segment) => ({
    ...segment,
    slots: segment.slots.map((slot) => (slot.model === "edu" ? { ...slot, rmrrBytes: 0 } : slot)),
  }));
  return { ...config, segments };
}

/** Runs the demo's host. */
export async function runHost(t: Pick<TestContext, "diagnostic">, run: Run): Promise<Outcome> {
  const { updates, framesPerSecond } = run;
  const images = makeImages(updates, run.image ?? DEMO_IMAGE);
  const plan = planToCommandLine({
    vms: VMS,
    memoryBytes: VM_BYTES,
    updates,
    runNs: RUN_NS,
    images: images.map((image) => `/boot/${image.name}`),
  });
  const events: DemoEvent[] = [];
  const logged: string[] = [];
  const inJumps: number[][] = [];
  const translation = { on: 0, off: 0, rootTable: 0 };
  const monitor = new Monitor();
  const machine: QemuMachine = await QemuMachine.start(makeConfig(framesPerSecond, images), {
    extraArguments: monitor.arguments,
    onSerialLine: (line) => {
      if (line.startsWith("{")) events.push(JSON.parse(line) as DemoEvent);
      else logged.push(line);
    },
    onHandover: () => run.onHandover?.(machine, translation.rootTable),
    onJump: () => inJumps.push(machine.nics().map((nic) => nic.withoutKernel)),
  });
  try {
    await monitor.connect();
    const ended = new AbortController();
    const watching = watchTranslation(machine, monitor, translation, ended.signal);
    const end = await machine.run(images[0], `liveupdate=on ${plan}`);
    assert.deepEqual(end, { kind: "powered-off", status: 0 }, logged.join("\n"));
    ended.abort();
    await watching;
  } finally {
    await machine.close();
    monitor.close();
  }
  const nics = machine.nics();
  const { result, problems } = judge({
    place: "qemu",
    requested: { updates, vms: VMS, framesPerSecond },
    events,
    jumps: machine.jumps.map((jump) => ({ ...jump, requestedNs: jump.stopRequestedNs })),
    nics: nics.map((nic) => ({
      ...nic,
      duringJump: nic.withoutKernel,
      dmaFaults: nic.dmaFailed,
    })),
    blockedRequests: [machine.faults.length + (machine.faultsLost ? 1 : 0)],
  });
  for (const vm of result.vms)
    t.diagnostic(
      `${vm.name}: ${JSON.stringify(vm.frames)}, blackouts ${vm.blackoutMs.map(Math.round).join(" ")} ms`,
    );
  t.diagnostic(`GSTS read ${translation.on} times`);
  const frames = result.vms.map((vm) => vm.frames);
  return { problems, logged, frames, nics, inJumps, translation, machine };
}

/** Reads GSTS from the side, through every phase: kernels neither know nor wait. */
async function watchTranslation(
  { firmware }: QemuMachine,
  monitor: Monitor,
  seen: { on: number; off: number; rootTable: number },
  ended: AbortSignal,
): Promise<void> {
  const [{ registerBase }] = firmware.drhds;
  while (!ended.aborted) {
    const status = await monitor.read32(registerBase + GSTS_REG);
    if (status === null) return;
    // It stays where it is from the first kernel on.
    if (seen.on === 1) seen.rootTable = (await monitor.read32(registerBase + RTADDR_REG)) ?? 0;
    if ((status & GSTS_TES) !== 0) seen.on++;
    // Off it may be before the first kernel has switched it on.
    else if (seen.on > 0) seen.off++;
    await sleep(WATCH_MS);
  }
}
