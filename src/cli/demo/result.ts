/**
 * The demo's result, put together from what three witnesses tell: the guests (over the serial line), the hardware
 * (what went over the NICs' cables, both ways), and the clock around each jump.
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
  /** Frames that the network sent to the NIC. */
  readonly sent: number;
  /** Of these: frames for which it had no free descriptor. */
  readonly missed: number;
  /** Of these: frames that reached guest memory while no kernel existed. */
  readonly duringJump: number;
  /** In both directions. */
  readonly dmaFaults: number;
  /** Frames that the NIC sent, and what the network found wrong with them. */
  readonly transmitted: number;
  readonly transmitCorrupt: number;
  readonly transmitGaps: number;
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

/** `frames`: towards the VM; what went wrong on the way out counts as lost and corrupt too. */
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
  /** By VM: frames of it that reached the network. */
  readonly transmitted: readonly number[];
  readonly problems: readonly string[];
  /** What a reader should know of a result that is no failure. */
  readonly notes: readonly string[];
}

/** What was asked for, and all that was seen. */
export interface Testimony {
  readonly place: string;
  readonly requested: {
    readonly updates: number;
    readonly vms: number;
    /** To each NIC. */
    readonly framesPerSecond: number;
  };
  readonly events: readonly DemoEvent[];
  readonly jumps: readonly JumpTimes[];
  /** By NIC number. */
  readonly nics: readonly NicCounts[];
  /** By PCI segment: requests that its remapping unit blocked, of all functions. */
  readonly blockedRequests: readonly number[];
}

/** So many frames are due without a kernel before none of them is taken for a fault. */
export const FRAMES_IN_JUMPS_EXPECTED = 20;

/** Sets the witnesses beside one another. */
export function judge(testimony: Testimony): Verdict {
  const { place, requested, events, jumps, nics } = testimony;
  const problems: string[] = [];
  const notes: string[] = [];
  const reports = events.filter((e) => e.event === "vm").map((e) => e.vm);
  const leaks = events.find((e) => e.event === "leaks")?.leaks;
  if (leaks === undefined) problems.push("the run ended before its report");
  else if (reports.length !== requested.vms)
    problems.push(`${reports.length} of ${requested.vms} VMs were there at the end`);
  for (const e of events)
    if (e.event === "failure")
      problems.push(`update ${e.update}: ${e.vm} ${e.phase}: ${e.message}`.replace(/ {2,}/g, " "));
  if (jumps.length !== requested.updates)
    problems.push(`${jumps.length} of ${requested.updates} updates took place`);

  const vms: DemoVm[] = [];
  for (const report of reports) {
    const nic = nics[report.nic];
    const vm = vmResult(report, events, nic);
    vms.push(vm);
    const found = [
      ...(nic === undefined
        ? [`the machine has no NIC ${report.nic}`]
        : frameProblems(report, nic)),
      ...vmProblems(vm, requested.updates),
      ...report.problems,
    ];
    problems.push(...found.map((problem) => `${vm.name}: ${problem}`));
    if (nic === undefined || nic.duringJump > 0 || jumps.length === 0) continue;
    const due = framesDueInJumps(jumps, requested.framesPerSecond);
    const silence = `${vm.name}: no frame came into its memory while no kernel existed; ${due} were due`;
    if (due >= FRAMES_IN_JUMPS_EXPECTED) problems.push(silence);
    else notes.push(silence);
  }
  problems.push(...faultProblems(events, testimony.blockedRequests));
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
    transmitted: reports.map((report) => nics[report.nic]?.transmitted ?? 0),
    problems,
    notes,
  };
}

/** Of one NIC, from the old kernel's end to the next one's first instruction. */
function framesDueInJumps(jumps: readonly JumpTimes[], framesPerSecond: number): number {
  const ns = jumps.reduce((sum, jump) => sum + jump.enteredNs - jump.endedNs, 0);
  return Math.floor((ns * framesPerSecond) / 1e9);
}

/** DMA that was blocked, of any function: as the kernels found it on record, and as the hardware counted it. */
function faultProblems(
  events: readonly DemoEvent[],
  blockedRequests: readonly number[],
): readonly string[] {
  const problems: string[] = [];
  for (const e of events) {
    if (e.event !== "faults") continue;
    const when = `kernel ${e.update}`;
    for (const { function: name, reads, writes } of e.functions)
      problems.push(
        `${name}: ${reads} DMA reads and ${writes} DMA writes blocked, found by ${when}`,
      );
    if (e.overflows > 0)
      problems.push(`${when} found that DMA faults were lost ${e.overflows} times`);
  }
  for (const [segment, count] of blockedRequests.entries())
    if (count > 0)
      problems.push(`the remapping unit of segment ${segment} blocked ${count} requests`);
  return problems;
}

const SILENT: NicCounts = {
  sent: 0,
  missed: 0,
  duringJump: 0,
  dmaFaults: 0,
  transmitted: 0,
  transmitCorrupt: 0,
  transmitGaps: 0,
};

function vmResult(report: VmReport, events: readonly DemoEvent[], nic = SILENT): DemoVm {
  const restored = events.filter((e) => e.event === "restored").filter((e) => e.vm === report.name);
  return {
    name: report.name,
    memoryBytes: report.memoryBytes,
    blackoutMs: restored.map((e) => toMs(e.blackoutNs)),
    frames: {
      sent: nic.sent,
      received: report.received,
      lost: lostInward(report, nic) + lostOutward(report, nic),
      corrupt:
        report.corrupt + nic.transmitCorrupt + Math.max(0, nic.transmitted - report.transmitted),
      duringJump: nic.duringJump,
    },
    dmaFaults: nic.dmaFaults,
    guestBytesCopied: restored.reduce((sum, e) => sum + e.guestBytesCopied, 0),
  };
}

/** What the network sent and the guest never saw; gaps that it saw itself are among them. */
function lostInward(report: VmReport, nic: NicCounts): number {
  return Math.max(0, nic.sent - report.received - report.corrupt, report.lost);
}

/** What the guest sent and the network never saw. */
function lostOutward(report: VmReport, nic: NicCounts): number {
  return Math.max(0, report.transmitted - nic.transmitted, nic.transmitGaps);
}

function frameProblems(report: VmReport, nic: NicCounts): string[] {
  const problems: string[] = [];
  const lost = lostInward(report, nic);
  if (lost > 0)
    problems.push(
      nic.missed === 0
        ? `${lost} frames lost`
        : `${lost} frames lost; the NIC had no free descriptor for ${nic.missed}: the rate is too high for this guest`,
    );
  if (report.corrupt > 0) problems.push(`${report.corrupt} frames corrupt`);
  if (report.transmitted !== nic.transmitted)
    problems.push(`it sent ${report.transmitted} frames, and ${nic.transmitted} arrived`);
  if (nic.transmitCorrupt > 0)
    problems.push(`${nic.transmitCorrupt} frames that it sent are corrupt`);
  if (nic.transmitGaps > 0) problems.push(`${nic.transmitGaps} gaps in the sequence that it sent`);
  return problems;
}

function vmProblems(vm: DemoVm, updates: number): string[] {
  const problems: string[] = [];
  if (vm.dmaFaults > 0) problems.push(`${vm.dmaFaults} DMA faults`);
  if (vm.guestBytesCopied > 0) problems.push(`${vm.guestBytesCopied} bytes of guest memory moved`);
  if (vm.blackoutMs.length !== updates)
    problems.push(`restored ${vm.blackoutMs.length} of ${updates} times`);
  return problems;
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
