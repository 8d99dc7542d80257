/**
 * Ten live updates in a row on QEMU's hardware: frames arrive by DMA through QEMU's VT-d in every jump, none is lost, and
 * translation is never off.
 */
import assert from "node:assert/strict";
import { describe, type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { GSTS_REG, GSTS_TES } from "../../src/abi/vtd/registers.ts";
import { MIB } from "../../src/base/units.ts";
import { type DemoEvent, planToCommandLine } from "../../src/cli/demo/events.ts";
import { judge } from "../../src/cli/demo/result.ts";
import { RESTORES } from "../../src/kernel/restores.ts";
import { standardConfig } from "../../src/machine/embedded/config.ts";
import type { KernelImage } from "../../src/machine/machine.ts";
import { QemuMachine } from "../../src/machine/qemu/qemu-machine.ts";
import { Monitor, skipReason } from "./rig.ts";

const VMS = 2;
const VM_BYTES = 64 * MIB;
const WATCH_MS = 1;

/** What a run is asked for. */
interface Run {
  readonly updates: number;
  readonly framesPerSecond: number;
}

function demoImages(updates: number): KernelImage[] {
  return Array.from({ length: updates + 1 }, (_, i) => {
    const release = `test-${i + 1}`;
    const file = import.meta.url.endsWith(".ts") ? "image.ts" : "image.js";
    const url = new URL(`../../src/cli/demo/${file}`, import.meta.url);
    url.searchParams.set("release", release);
    return { name: `vmlinuz-${release}`, entry: url.href, release, restores: RESTORES };
  });
}

/** Runs the demo's host and checks what must hold at any rate. */
async function runHost(t: TestContext, { updates, framesPerSecond }: Run) {
  const images = demoImages(updates);
  const memoryBytes = 2 * VMS * VM_BYTES + 256 * MIB;
  const config = standardConfig({ memoryBytes, nics: VMS, framesPerSecond, installed: images });
  const plan = planToCommandLine({
    vms: VMS,
    memoryBytes: VM_BYTES,
    updates,
    runNs: 200e6,
    images: images.map((image) => `/boot/${image.name}`),
  });
  const events: DemoEvent[] = [];
  const logged: string[] = [];
  /** By jump, by NIC. */
  const inJumps: number[][] = [];
  const monitor = new Monitor();
  const machine = await QemuMachine.start(config, {
    extraArguments: monitor.arguments,
    onSerialLine: (line) => {
      if (line.startsWith("{")) events.push(JSON.parse(line) as DemoEvent);
      else logged.push(line);
    },
    onJump: () => inJumps.push(machine.nics().map((nic) => nic.withoutKernel)),
  });
  const seen = { on: 0, off: 0 };
  try {
    await monitor.connect();
    const ended = new AbortController();
    const watching = watchTranslation(machine, monitor, seen, ended.signal);
    const end = await machine.run(images[0], `liveupdate=on ${plan}`);
    assert.deepEqual(end, { kind: "powered-off", status: 0 }, logged.join("\n"));
    ended.abort();
    await watching;
  } finally {
    await machine.close();
    monitor.close();
  }

  const nics = machine.nics().map((nic) => ({
    ...nic,
    duringJump: nic.withoutKernel,
    dmaFaults: nic.dmaFailed,
  }));
  for (const { problem } of machine.jumps) assert.equal(problem, null);
  const { result, problems } = judge({
    place: "qemu",
    requested: { updates, vms: VMS, framesPerSecond },
    events,
    jumps: machine.jumps.map((jump) => ({ ...jump, requestedNs: jump.stopRequestedNs })),
    nics,
    blockedRequests: [machine.faults.length],
  });
  for (const vm of result.vms)
    t.diagnostic(
      `${vm.name}: ${JSON.stringify(vm.frames)}, blackouts ${vm.blackoutMs.map(Math.round).join(" ")} ms`,
    );
  t.diagnostic(`GSTS read ${seen.on} times`);
  assert.deepEqual(problems, [], logged.join("\n"));
  for (const vm of result.vms) assert.equal(vm.frames.received, vm.frames.sent, vm.name);
  for (const nic of nics) assert.equal(nic.missed, 0, nic.name);
  assert.deepEqual(machine.faults, []);
  assert.equal(machine.faultsLost, false);
  assert.ok(seen.on > 50, `GSTS was read ${seen.on} times`);
  assert.equal(seen.off, 0, "translation was found off");
  return { inJumps, frames: result.vms.map((vm) => vm.frames) };
}

/** Reads GSTS from the side, through every phase: kernels neither know nor wait. */
async function watchTranslation(
  { firmware }: QemuMachine,
  monitor: Monitor,
  seen: { on: number; off: number },
  ended: AbortSignal,
): Promise<void> {
  const [{ registerBase }] = firmware.drhds;
  while (!ended.aborted) {
    const status = await monitor.read32(registerBase + GSTS_REG);
    if (status === null) return;
    if ((status & GSTS_TES) !== 0) seen.on++;
    // Off it may be before the first kernel has switched it on.
    else if (seen.on > 0) seen.off++;
    await sleep(WATCH_MS);
  }
}

describe("QEMU's q35", { skip: skipReason() }, () => {
  test("ten updates lose no frame, DMA goes on in each jump, and translation is never off", async (t) => {
    const { inJumps } = await runHost(t, { updates: 10, framesPerSecond: 5_000 });
    assert.equal(inJumps.length, 10);
    let before = [0, 0];
    for (const [i, counts] of inJumps.entries()) {
      for (const [nic, count] of counts.entries())
        assert.ok(count > before[nic], `NIC ${nic} wrote no frame in jump ${i + 1}`);
      before = counts;
    }
  });

  test("two updates lose no frame at the highest rate that the sockets and the guests hold", async (t) => {
    // Far more than they hold: a full ring or socket holds frames back, and nothing drops any.
    const { frames } = await runHost(t, { updates: 2, framesPerSecond: 200_000 });
    for (const { received } of frames) assert.ok(received > 10_000, `${received} frames`);
  });
});
