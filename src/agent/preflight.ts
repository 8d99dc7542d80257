/**
 * Before anything moves: what an update would carry, what it would leave behind, what stands in its way.
 * @module
 */
import { KHO_FDT_COMPATIBLE } from "../abi/kho.ts";
import { LUO_ABI_COMPATIBLE } from "../abi/luo.ts";
import { MEMFD_LUO_FH_COMPATIBLE } from "../abi/memfd.ts";
import { encodeUtf8 } from "../abi/struct.ts";
import { LIVEUPDATE_SESSION_NAME_LENGTH } from "../abi/uapi/liveupdate.ts";
import type { ManagedVm, Resource, ResourceKind } from "../vmm/managed-vm.ts";
import type { Capabilities } from "./capabilities.ts";
import { AGENT_SESSION } from "./journal.ts";
import type { VmRestoration } from "./restoration.ts";
import type { TargetDescription } from "./target/kernel-target.ts";

/** What the caller of an update has decided. */
export interface Degradation {
  /** Kinds of resources that the VMs let go of: "iommufd", "device". */
  readonly without?: readonly ResourceKind[];
  /** What cannot be found out about the target does not stand in the way. */
  readonly allowUnknown?: boolean;
}

/** A VM in the report. */
export interface VmReport {
  readonly name: string;
  /** What goes with it. */
  readonly resources: readonly Resource[];
  /** What it lets go of. */
  readonly leftBehind: readonly Resource[];
}

/** The report of a preflight; nothing was changed to make it. */
export interface Preflight {
  readonly target: TargetDescription;
  readonly capabilities: Capabilities;
  readonly vms: readonly VmReport[];
  /** Bytes of guest memory, which stay where they are. */
  readonly guestBytes: number;
  /** Why the update cannot be done as things are; empty when it can. */
  readonly blockers: readonly string[];
  /** What is not known, and was allowed not to be. */
  readonly warnings: readonly string[];
}

/** Formats of every handover of ours, whatever VMs are in it: the agent's own session and journal are. */
const ALWAYS_NEEDED: readonly (readonly [compatible: string, user: string])[] = [
  [KHO_FDT_COMPATIBLE, "the handover"],
  [LUO_ABI_COMPATIBLE, "the handover"],
  [MEMFD_LUO_FH_COMPATIBLE, "the agent's journal"],
];

/** What was found out. */
export interface Findings {
  readonly target: TargetDescription;
  readonly capabilities: Capabilities;
  readonly vms: readonly ManagedVm[];
  /** What the last update carried and has not come back in whole. */
  readonly left: readonly VmRestoration[];
}

/** Judges what was found out about the target, the kernel at hand and the VMs. */
export function preflight(
  { target, capabilities, vms, left }: Findings,
  { without = [], allowUnknown = false }: Degradation = {},
): Preflight {
  const report = vms.map((vm) => reportOf(vm, without));
  const targetBlockers = target.problems.map((problem) => `${target.release}: ${problem}`);
  const unknowns = target.unknowns.map((unknown) => `${target.release}: ${unknown}`);
  return {
    target,
    capabilities,
    vms: report,
    guestBytes: report
      .flatMap((vm) => vm.resources)
      .reduce((sum, { kind, bytes }) => sum + (kind === "memory" ? bytes : 0), 0),
    blockers: [
      ...targetBlockers,
      ...(allowUnknown ? [] : unknowns),
      ...left.map(leftBlocker),
      ...nameBlockers(vms.map((vm) => vm.name)),
      ...report.flatMap((vm) => vmBlockers(vm, capabilities)),
      ...formatBlockers(report, target),
    ],
    warnings: allowUnknown ? unknowns : [],
  };
}

function reportOf(vm: ManagedVm, without: readonly ResourceKind[]): VmReport {
  const all = vm.resources();
  const isLeft = ({ kind }: Resource) => without.includes(kind);
  return {
    name: vm.name,
    resources: all.filter((one) => !isLeft(one)),
    leftBehind: all.filter(isLeft),
  };
}

function vmBlockers(vm: VmReport, capabilities: Capabilities): string[] {
  const blockers: string[] = [];
  const block = ({ kind, label }: Resource, why: string) =>
    blockers.push(`${vm.name}: ${kind} ${label}: ${why}`);
  for (const resource of vm.leftBehind)
    if (resource.essential)
      block(resource, "the VM cannot go on without it, so that it cannot be left behind");
  const leavesIommufd = vm.leftBehind.some(({ kind }) => kind === "iommufd");
  for (const resource of vm.resources) {
    if (resource.blocker !== null) block(resource, resource.blocker);
    const capability = capabilities[resource.kind];
    if (capability !== true)
      block(
        resource,
        resource.essential
          ? `it cannot be preserved: ${capability}; the VM cannot go on without it and must be shut down first`
          : `it cannot be preserved: ${capability}; an update without "${resource.kind}" makes the VM let go of it`,
      );
    else if (resource.kind === "device" && leavesIommufd)
      block(resource, 'its iommufd is left behind: an update must be without "device", too');
  }
  return blockers;
}

/** The kernel hands on what was created in it, and drops what came in and was not finished. */
function leftBlocker({ name, state }: VmRestoration): string {
  return state === "running"
    ? `${name}: its session of the last update is not finished yet`
    : `${name}: it has not come back from the last update, and the next one would lose it: let it come back, or abandon it`;
}

/** Each format that the target lacks, once, with the first that needs it. */
function formatBlockers(vms: readonly VmReport[], target: TargetDescription): string[] {
  const { restores, release } = target;
  if (restores === null) return [];
  const needed = new Map(ALWAYS_NEEDED);
  for (const { name, resources } of vms)
    for (const { kind, label, compatibles } of resources)
      for (const compatible of compatibles)
        if (!needed.has(compatible)) needed.set(compatible, `${name}: ${kind} ${label}`);
  return [...needed]
    .filter(([compatible]) => !restores.includes(compatible))
    .map(([compatible, user]) => `${release} cannot restore "${compatible}", needed by ${user}`);
}

/** A name becomes that of a session. */
function nameBlockers(names: readonly string[]): string[] {
  const blockers: string[] = [];
  for (const [i, name] of names.entries()) {
    if (name === AGENT_SESSION) blockers.push(`${name}: the agent's own session has this name`);
    else if (names.indexOf(name) !== i) blockers.push(`${name}: two VMs have this name`);
    else if (name === "" || encodeUtf8(name).length >= LIVEUPDATE_SESSION_NAME_LENGTH)
      blockers.push(
        `${name}: a name has 1 to ${LIVEUPDATE_SESSION_NAME_LENGTH - 1} bytes, since its session has it too`,
      );
  }
  return blockers;
}
