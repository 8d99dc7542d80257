/**
 * What the agent answers to operators, checked: it may be of another release than this command.
 * @module
 */

import {
  decodeResources,
  LISTED_MAX,
  type PhaseStatus,
  type PlanResult,
  type ProgressEvent,
  type RestoreResult,
  type StatusResult,
  VM_STATES,
  type VmStatus,
} from "../../agent/control/protocol.ts";
import { JsonField } from "../../agent/json-field.ts";
import { KernelError } from "../../base/errno.ts";
import { LINE_BYTES_MAX } from "../../host/channel.ts";

/** Elements of a list whose length is not told: no line has more. */
const MANY = LINE_BYTES_MAX;

const mismatch = (message: string) => new KernelError("EPROTO", "answer of the agent", message);
const text = (field: JsonField) => field.prose(LINE_BYTES_MAX);
const count = (field: JsonField) => field.integer(0, Number.MAX_SAFE_INTEGER);
const time = (field: JsonField) => field.nanoseconds();

/** @throws {KernelError} EPROTO, naming the field */
export function decodeStatus(value: unknown): StatusResult {
  const status = new JsonField(value, "status", mismatch);
  return {
    release: text(status.field("release")),
    updates: count(status.field("updates")),
    activity: status.field("activity").oneOf(["idle", "updating", "restoring"] as const),
    phases: status.field("phases").list(MANY, decodePhase),
    notes: status.field("notes").list(MANY, text),
    total: count(status.field("total")),
    vms: status.field("vms").list(MANY, decodeVm),
    next: status.field("next").optional(count, null),
  };
}

/** @throws {KernelError} EPROTO, naming the field */
export function decodePlan(value: unknown): PlanResult {
  const plan = new JsonField(value, "plan", mismatch);
  const target = plan.field("target");
  return {
    target: {
      kernel: text(target.field("kernel")),
      initrd: target.field("initrd").optional(text, null),
      commandLine: text(target.field("commandLine")),
      release: text(target.field("release")),
    },
    vms: count(plan.field("vms")),
    guestBytes: count(plan.field("guestBytes")),
    leftBehind: plan.field("leftBehind").list(LISTED_MAX, text),
    warnings: plan.field("warnings").list(LISTED_MAX, text),
    blocked: count(plan.field("blocked")),
    blockers: plan.field("blockers").list(LISTED_MAX, text),
  };
}

/** @throws {KernelError} EPROTO, naming the field */
export function decodeRestore(value: unknown): RestoreResult {
  const result = new JsonField(value, "restore", mismatch);
  return {
    restored: count(result.field("restored")),
    left: count(result.field("left")),
    waiting: result.field("waiting").list(LISTED_MAX, (vm) => ({
      vm: text(vm.field("vm")),
      state: vm.field("state").oneOf(VM_STATES),
      problem: vm.field("problem").optional(text, null),
    })),
    abandoned: result.field("abandoned").list(MANY, text),
  };
}

/** @returns null for an event that this release does not know: it is no more than news. @throws {KernelError} EPROTO */
export function decodeProgress(value: unknown): ProgressEvent | null {
  const event = new JsonField(value, "event", mismatch);
  switch (event.field("kind").raw) {
    case "phase":
      return {
        kind: "phase",
        update: count(event.field("update")),
        name: text(event.field("name")),
        startNs: time(event.field("startNs")),
        endNs: event.field("endNs").optional(time, null),
      };
    case "vm":
      return {
        kind: "vm",
        vm: text(event.field("vm")),
        state: event.field("state").oneOf(VM_STATES),
        blackoutNs: event.field("blackoutNs").optional(time, null),
        problem: event.field("problem").optional(text, null),
      };
    case "jump":
      return { kind: "jump", update: count(event.field("update")) };
    default:
      return null;
  }
}

function decodeVm(vm: JsonField): VmStatus {
  return {
    name: text(vm.field("name")),
    state: vm.field("state").oneOf(VM_STATES),
    pid: vm.field("pid").optional(count, null),
    uid: vm.field("uid").optional(count, null),
    resources: decodeResources(vm.field("resources")),
    blackoutNs: vm.field("blackoutNs").optional(time, null),
    problem: vm.field("problem").optional(text, null),
  };
}

function decodePhase(phase: JsonField): PhaseStatus {
  return {
    update: count(phase.field("update")),
    name: text(phase.field("name")),
    startNs: time(phase.field("startNs")),
    endNs: time(phase.field("endNs")),
  };
}
