/**
 * Runs kernels that switch domains, on any machine whose kernels are threads, and says what must hold.
 * @module
 */
import assert from "node:assert/strict";
import { MIB } from "../../src/base/units.ts";
import type { MachineKind } from "../../src/cli/demo/machine-kinds.ts";
import { powerOn } from "../../src/cli/demo/threaded-machine.ts";
import { standardConfig } from "../../src/machine/embedded/config.ts";
import type { NicStatistics } from "../../src/machine/embedded/hardware-statistics.ts";
import { MEMORY_BYTES, type SwitchReport } from "./domain-switcher.ts";

export type BrokenSwitch = "flush" | "gap" | "hole";

export interface SwitchRun {
  readonly switches: number;
  readonly seed: number;
  readonly framesPerSecond: number;
  readonly broken?: BrokenSwitch;
}

export interface SwitchOutcome {
  readonly report: SwitchReport;
  readonly nic: NicStatistics;
  readonly blocked: number;
}

export async function runSwitches(
  kind: MachineKind,
  { switches, seed, framesPerSecond, broken }: SwitchRun,
): Promise<SwitchOutcome> {
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  const url = new URL(`./domain-switch-image.${extension}`, import.meta.url);
  url.searchParams.set("switches", String(switches));
  url.searchParams.set("seed", String(seed));
  if (broken !== undefined) url.searchParams.set("broken", broken);
  const image = { name: "switching", entry: url.href, release: "switching", restores: [] };
  const memoryBytes = 2 * (MEMORY_BYTES + 64 * MIB);
  const config = standardConfig({ memoryBytes, nics: 1, framesPerSecond, installed: [image] });
  const reports: SwitchReport[] = [];
  const machine = await powerOn(kind, config, {
    onSerialLine: (line) => {
      if (line.startsWith("{")) reports.push(JSON.parse(line) as SwitchReport);
    },
  });
  try {
    assert.deepEqual(await machine.run(image, "liveupdate=on"), { kind: "powered-off", status: 0 });
  } finally {
    await machine.close();
  }
  assert.equal(reports.length, 1);
  // As the hardware tells, beside those that the kernel took.
  const blocked = machine.blockedRequests().reduce((sum, count) => sum + count, 0);
  return { report: reports[0], nic: machine.nics()[0], blocked };
}

/** What a switch must not do: lose or damage a frame, or block the device for a moment. */
export function assertSeamless({ report, nic, blocked }: SwitchOutcome, switches: number): void {
  assert.deepEqual([report.faults, blocked], [0, 0], "a request was blocked");
  assert.equal(report.frames.corrupt, 0, "frames are corrupt");
  // Where no descriptor was free the NIC says so.
  assert.equal(report.frames.received + nic.missed, nic.sent, "frames are lost");
  // Last: a guest whose frames are damaged may end before its switches are done.
  assert.equal(report.switches, switches);
  assert.deepEqual(report.audit, []);
  assert.deepEqual([nic.transmitCorrupt, nic.transmitGaps], [0, 0], "frames it sent are wrong");
}
