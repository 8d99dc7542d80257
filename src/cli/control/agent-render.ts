/** What the agent says, as lines for a person. @module */
import type {
  PlanResult,
  ProgressEvent,
  RestoreResult,
  StatusResult,
  VmStatus,
} from "../../agent/control/protocol.ts";
import { formatBytes } from "../../base/units.ts";
import { counted, type Style } from "../../inspect/text.ts";
import { columns, phaseLine } from "../text.ts";

/** @param vms - all of them, not only those of the first page */
export function renderStatus(
  { release, updates, activity, phases, notes }: StatusResult,
  vms: readonly VmStatus[],
  style: Style,
): string[] {
  const lines = [
    `kernel ${style.strong(release)}, ${counted(updates, "update")} since the cold boot, ${activity}`,
  ];
  lines.push(...notes.map((note) => `note: ${note}`));
  lines.push("", ...renderVms(vms, style));
  if (phases.length > 0) {
    lines.push("", `update ${phases.at(-1)?.update}`);
    lines.push(...phases.map(({ name, startNs, endNs }) => phaseLine(name, endNs - startNs)));
    for (const { name, blackoutNs } of vms)
      if (blackoutNs !== null) lines.push(phaseLine(name, blackoutNs, "blackout"));
  }
  return lines;
}

function renderVms(vms: readonly VmStatus[], style: Style): string[] {
  if (vms.length === 0) return ["no VM is registered"];
  const rows = vms.map(({ name, state, pid, uid, resources }) => [
    name,
    state,
    pid === null ? "-" : String(pid),
    uid === null ? "-" : String(uid),
    formatBytes(
      resources.reduce((sum, { kind, bytes }) => sum + (kind === "memory" ? bytes : 0), 0),
    ),
    resources.map(({ kind, label }) => `${kind} ${label}`).join(", "),
  ]);
  const table = columns(
    [["vm", "state", "pid", "uid", "memory", "resources"], ...rows],
    (column) => column >= 2 && column <= 4,
  );
  return [
    ...table,
    ...vms.flatMap(({ name, problem, resources }) => [
      ...(problem === null ? [] : [style.bad(`${name}: ${problem}`)]),
      ...resources.flatMap(({ kind, label, blocker }) =>
        blocker === null ? [] : [style.bad(`${name}: ${kind} ${label}: ${blocker}`)],
      ),
    ]),
  ];
}

export function renderPlan(plan: PlanResult, style: Style): string[] {
  const { target, vms, guestBytes, leftBehind, warnings, blocked, blockers } = plan;
  return [
    `kernel        ${target.kernel}, ${style.strong(target.release)}`,
    `initrd        ${target.initrd ?? "none"}`,
    `command line  ${target.commandLine}`,
    `kept          ${counted(vms, "VM")} with ${formatBytes(guestBytes)} of memory`,
    ...leftBehind.map((one) => `left behind   ${one}`),
    ...warnings.map((warning) => `warning       ${warning}`),
    ...blockers.map((blocker) => style.bad(`blocked       ${blocker}`)),
    ...(blocked > blockers.length
      ? [style.bad(`blocked       by ${blocked - blockers.length} more reasons`)]
      : []),
    blocked === 0 ? style.good("nothing stands in the way") : "the update cannot be done like this",
  ];
}

/** A line for what happens; null where a person need not see it. */
export function renderProgress(event: ProgressEvent, style: Style): string | null {
  switch (event.kind) {
    case "phase":
      return event.endNs === null ? null : phaseLine(event.name, event.endNs - event.startNs);
    case "vm":
      if (event.problem !== null)
        return style.bad(`  ${event.vm} ${event.state}: ${event.problem}`);
      if (event.state === "restored" && event.blackoutNs !== null)
        return phaseLine(event.vm, event.blackoutNs, "blackout: it runs again");
      return null;
    case "jump":
      return 'jumping: this connection ends with the kernel; "holdfast restore" waits for the VMs in the next';
  }
}

export function renderRestore(result: RestoreResult, style: Style): string[] {
  const { restored, left, waiting, abandoned } = result;
  return [
    ...abandoned.map((name) => `${name}: given up`),
    ...waiting.map(({ vm, state, problem }) =>
      style.bad(`${vm}: ${state}${problem === null ? "" : `: ${problem}`}`),
    ),
    ...(left > waiting.length ? [style.bad(`and ${left - waiting.length} more`)] : []),
    left === 0
      ? style.good(`${counted(restored, "VM")} restored`)
      : `${restored} of ${counted(restored + left, "VM")} restored`,
  ];
}
