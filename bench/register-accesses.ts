/**
 * (g) Register accesses of a live update on QEMU, by kind and by phase: each costs a message over a socket there, and a
 * transaction on the bus on real hardware.
 * @module
 */
import { assert } from "../src/base/assert.ts";
import { runHost } from "../tests/qemu/demo-host.ts";
import type { Row } from "./report.ts";

/** How the counting kernel begins a line of counts. */
export const ACCESSES = "accesses ";
/** What it calls its end. */
export const JUMP = "jump";

/** Config space, registers of remapping units, registers of devices. */
export interface AccessCounts {
  readonly ecam: number;
  readonly drhd: number;
  readonly bar: number;
}

const UPDATES = 2;
const FRAMES_PER_SECOND = 2000;
/** While guests stand still, for two VMs. More than this is a step back. */
const BLACKOUT_MAX = 320;

export async function accessRows(): Promise<Row[]> {
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  const { logged, problems } = await runHost(
    { diagnostic: (line) => console.error(line) },
    {
      updates: UPDATES,
      framesPerSecond: FRAMES_PER_SECOND,
      image: new URL(`./counted-image.${extension}`, import.meta.url),
    },
  );
  assert(problems.length === 0, () => problems.join("; "));
  const told = logged
    .filter((line) => line.startsWith(ACCESSES))
    .map(
      (line) => JSON.parse(line.slice(ACCESSES.length)) as { event: string; counts: AccessCounts },
    );
  // Of the last update: what the one kernel did last before its end, and the next one until the last guest runs.
  const jump = told.findLastIndex(({ event }) => event === JUMP);
  const after = told.slice(jump + 1);
  const boot = after.find(({ event }) => event === "boot");
  const restored = after.findLast(({ event }) => event === "restored");
  assert(jump > 0 && boot !== undefined && restored !== undefined, "an update took place");
  const freeze = minus(told[jump].counts, told[jump - 1].counts);
  const restore = minus(restored.counts, boot.counts);
  const all = total(freeze) + total(restored.counts);
  return [
    row("freeze", freeze),
    row("boot", boot.counts),
    row("restore", restore),
    {
      ...row("in the blackout", {
        ecam: freeze.ecam + restored.counts.ecam,
        drhd: freeze.drhd + restored.counts.drhd,
        bar: freeze.bar + restored.counts.bar,
      }),
      ratio: all / BLACKOUT_MAX,
      limit: `at most ${BLACKOUT_MAX}`,
      holds: all <= BLACKOUT_MAX,
    },
  ];
}

function row(name: string, counts: AccessCounts): Row {
  return {
    name,
    value: String(total(counts)),
    against: [`config ${counts.ecam}`, `DRHD ${counts.drhd}`, `BARs ${counts.bar}`],
    ratio: null,
    limit: "",
    holds: null,
  };
}

function total({ ecam, drhd, bar }: AccessCounts): number {
  return ecam + drhd + bar;
}

function minus(a: AccessCounts, b: AccessCounts): AccessCounts {
  return { ecam: a.ecam - b.ecam, drhd: a.drhd - b.drhd, bar: a.bar - b.bar };
}
