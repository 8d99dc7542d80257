/**
 * What an update of a real Linux consists of, on the machine's own clock.
 *
 * The agent tells when it asked and when it called reboot(2), the VMs when they had their memory and wrote again. When the
 * sessions were written and the next kernel was entered only the old kernel knows: by the last line of its log, whose time is
 * since that kernel's start.
 * @module
 */
import type { PhaseStatus } from "../../src/agent/control/protocol.ts";

/** In order; they follow one another without a gap, but for what init does before the agent. */
export const PHASE_NAMES = [
  "preflight",
  "load",
  "preserve",
  "pause",
  "freeze",
  "kexec",
  "boot",
  "retrieve",
  "first write",
] as const;
export type PhaseName = (typeof PHASE_NAMES)[number];

/** Milliseconds. */
export type UpdateTimes = Readonly<Record<PhaseName | "blackout", number>>;

/** What was seen of one update; times in nanoseconds on the clock that goes on through a kexec. */
export interface UpdateRecord {
  /** When the old kernel's clock began. */
  readonly oldBootAtNs: number;
  /** "Starting new kernel", on the old kernel's own clock. */
  readonly startingNs: number;
  readonly phases: readonly PhaseStatus[];
  /** Of all VMs: when each had its memory, and wrote for the first time. */
  readonly retrievedAtNs: readonly number[];
  readonly runningAtNs: readonly number[];
  readonly blackoutNs: readonly number[];
}

/** @throws {Error} when a phase is not among those that the agent has told */
export function timesOf(record: UpdateRecord): UpdateTimes {
  const phase = (name: string) => {
    const found = record.phases.find((one) => one.name === name);
    if (found === undefined) throw new Error(`the agent has told no phase "${name}"`);
    return found;
  };
  const between = (startNs: number, endNs: number) => (endNs - startNs) / 1e6;
  const length = ({ startNs, endNs }: PhaseStatus) => between(startNs, endNs);
  const pause = phase("pause");
  const reboot = phase("reboot");
  const boot = phase("boot");
  const startingAtNs = record.oldBootAtNs + record.startingNs;
  const retrievedAtNs = Math.max(...record.retrievedAtNs);
  return {
    preflight: length(phase("preflight")),
    load: length(phase("load")),
    preserve: length(phase("preserve")),
    pause: length(pause),
    // The journal is written in between.
    freeze: between(pause.endNs, startingAtNs),
    kexec: between(startingAtNs, reboot.endNs),
    boot: length(boot),
    retrieve: between(boot.endNs, retrievedAtNs),
    "first write": between(retrievedAtNs, Math.max(...record.runningAtNs)),
    blackout: Math.max(...record.blackoutNs) / 1e6,
  };
}

/** A table, a line for each update. */
export function renderTimes(updates: readonly UpdateTimes[]): string[] {
  const columns = [...PHASE_NAMES, "blackout"] as const;
  const rows = updates.map((times, i) => [
    `${i + 1}`,
    ...columns.map((name) => times[name].toFixed(0)),
  ]);
  const table = [["update", ...columns], ...rows];
  const widths = table[0].map((_, column) => Math.max(...table.map((row) => row[column].length)));
  return table.map((row) => row.map((cell, column) => cell.padStart(widths[column])).join("  "));
}

const STARTING = /\[\s*(\d+)\.(\d{6})\] kexec_core: Starting new kernel/g;

/** When each kernel jumped, in nanoseconds since it began, out of the console's log. */
export function jumpTimes(console: string): number[] {
  return [...console.matchAll(STARTING)].map(
    ([, seconds, micros]) => Number(seconds) * 1e9 + Number(micros) * 1e3,
  );
}
