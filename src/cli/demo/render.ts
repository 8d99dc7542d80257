/** The demo as a person watches it: lines as things happen, a table at the end. @module */
import { formatBytes } from "../../base/units.ts";
import type { DemoEvent } from "./events.ts";
import { type JumpTimes, toMs, type Verdict } from "./result.ts";

/** What happens at a jump, as the hardware saw it. */
export interface JumpSight {
  readonly update: number;
  readonly times: JumpTimes;
  /** Frames that reached guest memory since the last jump's end and while no kernel existed. */
  readonly framesDuringJump: number;
}

/** A line for an event, or null for those that a person need not see. */
export function eventLine(event: DemoEvent): string | null {
  switch (event.event) {
    case "boot":
      return event.update === 0
        ? `boot      ${event.release}, cold`
        : `  boot      ${event.release}`;
    case "phase":
      return `  ${event.name.padEnd(9)} ${ms(event.endNs - event.startNs)}`;
    case "restored":
      return `  ${event.vm.padEnd(9)} runs again, blackout ${ms(event.blackoutNs).trim()}`;
    case "handover":
      return `  handover  ${formatBytes(event.bytes)} beside ${formatBytes(event.guestBytes)} of guest memory`;
    case "failure":
      return `  FAILED    ${event.vm} ${event.phase}: ${event.message}`;
    default:
      return null;
  }
}

/** Lines for a jump. */
export function jumpLines(sight: JumpSight): string[] {
  const t = sight.times;
  return [
    `  jump      ${ms(t.enteredNs - t.requestedNs)}  no kernel; ${sight.framesDuringJump} frames reached guest memory`,
  ];
}

/** The final table. */
export function table({ result, problems }: Verdict): string {
  const rows = [
    [
      "vm",
      "memory",
      "sent",
      "received",
      "lost",
      "corrupt",
      "in jumps",
      "faults",
      "copied",
      "blackout ms",
    ],
    ...result.vms.map((vm) => [
      vm.name,
      formatBytes(vm.memoryBytes),
      String(vm.frames.sent),
      String(vm.frames.received),
      String(vm.frames.lost),
      String(vm.frames.corrupt),
      String(vm.frames.duringJump),
      String(vm.dmaFaults),
      formatBytes(vm.guestBytesCopied),
      vm.blackoutMs.map((value) => value.toFixed(1)).join(" "),
    ]),
  ];
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  const lines = rows.map((row) =>
    row
      .map((cell, column) =>
        column === 0 || column === row.length - 1
          ? cell.padEnd(widths[column])
          : cell.padStart(widths[column]),
      )
      .join("  ")
      .trimEnd(),
  );
  const { leaks, handover } = result;
  lines.push(
    "",
    `updates ${result.updates}; handover ${formatBytes(handover.bytes)} beside ${formatBytes(handover.guestBytes)} of guest memory`,
    `leaked: ${leaks.pages} pages, ${leaks.pins} pins, ${leaks.domains} domains`,
  );
  if (problems.length === 0)
    lines.push("nothing lost, nothing corrupt, nothing copied, nothing leaked");
  else lines.push(...problems.map((problem) => `PROBLEM: ${problem}`));
  return lines.join("\n");
}

function ms(ns: number): string {
  return `${toMs(ns).toFixed(2).padStart(8)} ms`;
}
