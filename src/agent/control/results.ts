/** What the agent answers to operators, of a size that a message has. @module */
import { encodeUtf8 } from "../../abi/struct.ts";
import type { ManagedVm } from "../../vmm/managed-vm.ts";
import type { Agent } from "../agent.ts";
import type { Preflight } from "../preflight.ts";
import type { Restoration } from "../restoration.ts";
import {
  LISTED_MAX,
  type PlanResult,
  type RestoreResult,
  type StatusResult,
  type VmStatus,
} from "./protocol.ts";
import type { VmEntry } from "./vm-entry.ts";

/** Of VMs in a page of the status: a line holds more, and the rest is beside them. */
const PAGE_BYTES = 40 * 1024;
const NOTES_MAX = 16;
const TEXT_LENGTH = 320;

export interface StatusSource {
  /** The page's first VM. */
  readonly from: number;
  readonly release: string;
  readonly ownVms: readonly ManagedVm[];
  readonly isUpdating: boolean;
  readonly notes: readonly string[];
}

export function statusResult(
  agent: Agent,
  entries: readonly VmEntry[],
  { from, release, ownVms, isUpdating, notes }: StatusSource,
): StatusResult {
  const own = ownVms.map((vm) => ownStatus(vm, agent.restoration));
  const all = [...own, ...entries.map((entry) => entry.status)];
  const vms: VmStatus[] = [];
  let bytes = 0;
  for (const vm of all.slice(from)) {
    bytes += encodeUtf8(JSON.stringify(vm)).length;
    if (vms.length > 0 && bytes > PAGE_BYTES) break;
    vms.push(vm);
  }
  const end = from + vms.length;
  const isRestoring = entries.some((entry) => entry.isUnrestored);
  return {
    release,
    updates: agent.updates,
    activity: isUpdating ? "updating" : isRestoring ? "restoring" : "idle",
    phases: agent.phases.slice(0, LISTED_MAX),
    notes: first(notes, NOTES_MAX),
    total: all.length,
    vms,
    next: end < all.length ? end : null,
  };
}

/** @param obstacles - what else stands in the way */
export function planResult(preflight: Preflight, obstacles: readonly string[]): PlanResult {
  const { kernel, initrd, commandLine, release } = preflight.target;
  const blockers = [...obstacles, ...preflight.blockers];
  const leftBehind = preflight.vms.flatMap(({ name, leftBehind }) =>
    leftBehind.map(({ kind, label }) => `${name}: ${kind} ${label}`),
  );
  return {
    target: { kernel, initrd, commandLine, release },
    vms: preflight.vms.length,
    guestBytes: preflight.guestBytes,
    leftBehind: first(leftBehind, LISTED_MAX),
    warnings: first(preflight.warnings, LISTED_MAX),
    blocked: blockers.length,
    blockers: first(blockers, LISTED_MAX),
  };
}

export function restoreResult(
  restored: number,
  entries: readonly VmEntry[],
  abandoned: readonly string[],
): RestoreResult {
  const left = entries.filter((entry) => entry.isUnrestored);
  return {
    restored,
    left: left.length,
    waiting: left
      .slice(0, LISTED_MAX)
      .map(({ name, state, problem }) => ({ vm: name, state, problem: problem && cut(problem) })),
    abandoned,
  };
}

function ownStatus(vm: ManagedVm, restoration: Restoration | null): VmStatus {
  return {
    name: vm.name,
    state: "running",
    pid: null,
    uid: vm.ownerUid,
    resources: vm.resources(),
    blackoutNs: restoration?.vm(vm.name)?.blackoutNs ?? null,
    problem: null,
  };
}

function first(texts: readonly string[], count: number): string[] {
  return texts.slice(0, count).map(cut);
}

function cut(text: string): string {
  return text.length <= TEXT_LENGTH ? text : `${text.slice(0, TEXT_LENGTH - 1)}…`;
}
