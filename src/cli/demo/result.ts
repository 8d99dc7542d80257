/**
 * The demo's result, put together from what three witnesses tell: the guests (over the serial line), the hardware
 * (what the NICs sent and delivered), and the clock around each jump.
 * @module
 */
import type { DemoEvent, Leaks, VmReport } from "./events.ts";

/** Times of one jump on the machine's clock. */
export interface JumpTimes {
  /** The old kernel asked for it; nothing of it runs any more from `endedNs` on. */
  readonly requestedNs: number;
  readonly endedNs: number;
  readonly scribbledNs: number;
  /** The new kernel's first instruction. */
  readonly enteredNs: number;
}

/** What the hardware counted for one NIC since power-on. */
export interface NicCounts {
  readonly sent: number;
  readonly duringJump: number;
  readonly dmaFaults: number;
}

/** What `--json` prints. */
export interface DemoResult {
  readonly place: string;
  readonly updates: number;
  readonly vms: readonly DemoVm[];
  readonly handover: { readonly bytes: number; readonly guestBytes: number };
  readonly leaks: Leaks;
  readonly phases: readonly {
    readonly update: number;
    readonly name: string;
    readonly ms: number;
  }[];
}

export interface DemoVm {
  readonly name: string;
  readonly memoryBytes: number;
  readonly blackoutMs: readonly number[];
  readonly frames: {
    readonly sent: number;
    readonly received: number;
    readonly lost: number;
    readonly corrupt: number;
    readonly duringJump: number;
  };
  readonly dmaFaults: number;
  readonly guestBytesCopied: number;
}

/** A result and why it is not a success; an empty list is. */
export interface Verdict {
  readonly result: DemoResult;
  readonly problems: readonly string[];
}

/**
 * @param nics - by NIC number
 * @param requested - updates that were asked for
 */
export function judge(
  place: string,
  requested: number,
  events: readonly DemoEvent[],
  jumps: readonly JumpTimes[],
  nics: readonly NicCounts[],
): Verdict {
  const problems: string[] = [];
  const reports = events.filter((e) => e.event === "vm").map((e) => e.vm);
  const leaks = events.find((e) => e.event === "leaks")?.leaks;
  if (reports.length === 0 || leaks === undefined) problems.push("the run ended before its report");
  for (const e of events)
    if (e.event === "failure")
      problems.push(`update ${e.update}: ${e.vm} ${e.phase}: ${e.message}`.replace(/ {2,}/g, " "));
  if (jumps.length !== requested)
    problems.push(`${jumps.length} of ${requested} updates took place`);

  const vms = reports.map((report) => vmResult(report, events, nics[report.nic]));
  for (const [i, vm] of vms.entries()) {
    const { lost, corrupt } = vm.frames;
    if (lost > 0) problems.push(`${vm.name}: ${lost} frames lost`);
    if (corrupt > 0) problems.push(`${vm.name}: ${corrupt} frames corrupt`);
    if (vm.dmaFaults > 0) problems.push(`${vm.name}: ${vm.dmaFaults} DMA faults`);
    if (vm.guestBytesCopied > 0)
      problems.push(`${vm.name}: ${vm.guestBytesCopied} bytes of guest memory moved`);
    if (vm.blackoutMs.length !== requested)
      problems.push(`${vm.name}: restored ${vm.blackoutMs.length} of ${requested} times`);
    for (const problem of reports[i].problems) problems.push(`${vm.name}: ${problem}`);
  }
  for (const [what, count] of Object.entries(leaks ?? {}))
    if (count !== 0) problems.push(`${count} ${what} leaked`);

  const handover = events.findLast((e) => e.event === "handover");
  return {
    result: {
      place,
      updates: jumps.length,
      vms,
      handover: { bytes: handover?.bytes ?? 0, guestBytes: handover?.guestBytes ?? 0 },
      leaks: leaks ?? { pages: 0, pins: 0, domains: 0 },
      phases: phases(events, jumps),
    },
    problems,
  };
}

function vmResult(
  report: VmReport,
  events: readonly DemoEvent[],
  nic: NicCounts | undefined,
): DemoVm {
  const restored = events.filter((e) => e.event === "restored").filter((e) => e.vm === report.name);
  const sent = nic?.sent ?? 0;
  return {
    name: report.name,
    memoryBytes: report.memoryBytes,
    blackoutMs: restored.map((e) => toMs(e.blackoutNs)),
    frames: {
      sent,
      received: report.received,
      // What the wire sent and the guest never saw; gaps that it saw itself are among them.
      lost: Math.max(sent - report.received - report.corrupt, report.lost),
      corrupt: report.corrupt,
      duringJump: nic?.duringJump ?? 0,
    },
    dmaFaults: nic?.dmaFaults ?? 0,
    guestBytesCopied: restored.reduce((sum, e) => sum + e.guestBytesCopied, 0),
  };
}

/** All phases in the order of time; the jump's own come from the clock around it. */
export function phases(
  events: readonly DemoEvent[],
  jumps: readonly JumpTimes[],
): DemoResult["phases"] {
  const list: { update: number; name: string; ms: number }[] = [];
  const named = events.filter((e) => e.event === "phase");
  const boots = events.filter((e) => e.event === "boot");
  for (const [i, jump] of jumps.entries()) {
    const update = i + 1;
    const mine = named.filter((e) => e.update === update);
    const before = mine.filter((e) => e.endNs <= jump.requestedNs);
    for (const e of before) list.push({ update, name: e.name, ms: toMs(e.endNs - e.startNs) });
    const frozenFrom = before.at(-1)?.endNs ?? jump.requestedNs;
    list.push({ update, name: "freeze", ms: toMs(jump.requestedNs - frozenFrom) });
    list.push({ update, name: "stop", ms: toMs(jump.endedNs - jump.requestedNs) });
    list.push({ update, name: "scribble", ms: toMs(jump.scribbledNs - jump.endedNs) });
    const booted = boots.find((e) => e.update === update)?.atNs ?? jump.enteredNs;
    list.push({ update, name: "enter", ms: toMs(jump.enteredNs - jump.scribbledNs) });
    list.push({ update, name: "boot", ms: toMs(booted - jump.enteredNs) });
    for (const e of mine)
      if (e.startNs >= jump.enteredNs)
        list.push({ update, name: e.name, ms: toMs(e.endNs - e.startNs) });
  }
  return list;
}

/** Milliseconds with three decimals. */
export function toMs(ns: number): number {
  return Math.round(ns / 1000) / 1000;
}
