/**
 * What an agent must not forget when it is started anew in the same kernel: who owns which VM, which sessions of the last
 * update are not finished, how far an update had got.
 *
 * Why beside the journal: the journal goes through a kexec and is gone once it is read; this stays where the kernel does.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import { decodeJournal, type Journal } from "../journal.ts";
import { JsonField } from "../json-field.ts";
import { decodeVmName } from "./protocol.ts";

/** Changes with {@link AgentState}. */
export const STATE_FORMAT = "holdfast-agent-state-v1";

/** As many VMs as an agent takes. */
export const VMS_MAX = 1024;
const PROBLEM_LENGTH = 1024;

/**
 * What a VM is to an agent that starts.
 * - `registered`: ordinary; its VMM registers it again
 * - `incoming`: its session waits to be retrieved
 * - `restoring`: its session was retrieved
 * - `restored`: and its guest runs
 * - `lost`: and its VMM has ended since
 */
const PAST_STATES = ["registered", "incoming", "restoring", "restored", "lost"] as const;
export type PastState = (typeof PAST_STATES)[number];

export interface PastVm {
  readonly name: string;
  readonly ownerUid: number | null;
  readonly state: PastState;
  /** Process of its last VMM, which may still live; null when it has let go of the VM. */
  readonly holderPid: number | null;
  /** How long it stood still in the last update; null when that is not known. */
  readonly blackoutNs: number | null;
  readonly problem: string | null;
}

export interface AgentState {
  readonly format: typeof STATE_FORMAT;
  /** Of the kernel in which it is true: /proc/sys/kernel/random/boot_id. */
  readonly bootId: string;
  /** An update was begun, and has neither jumped nor been undone. */
  readonly isUpdating: boolean;
  /** A state or a journal could not be read since this kernel was booted: there may be sessions that nobody knows of. */
  readonly isPastUnknown: boolean;
  /** Of the update that this kernel came out of, without `userData`, which is anything of any depth; null: of none. */
  readonly journal: Journal | null;
  readonly vms: readonly PastVm[];
}

/** Where a state is kept. */
export interface StateStore {
  /**
   * @returns null when there is none
   * @throws {KernelError} EIO it is damaged; what reading fails with
   */
  read(): AgentState | null;
  /**
   * All of it or nothing is there afterwards.
   * @throws {KernelError} ENOSPC, EROFS, ...
   */
  write(state: AgentState): void;
}

/** A journal as it is kept here. */
export function keptJournal(journal: Journal | null): Journal | null {
  return journal && { ...journal, userData: null };
}

const damaged = (message: string) => new KernelError("EIO", "read the agent's state", message);

/** Reads a state. @throws {KernelError} EIO naming the field */
export function decodeAgentState(text: string): AgentState {
  const state = JsonField.parse(text, "state", damaged);
  const vms = state.field("vms").list(VMS_MAX, decodePastVm);
  for (const [i, { name }] of vms.entries())
    if (vms.findIndex((vm) => vm.name === name) !== i)
      throw damaged(`state.vms[${i}].name is "${name}", which another VM has`);
  return {
    format: state.field("format").oneOf([STATE_FORMAT]),
    bootId: state.field("bootId").text(64),
    isUpdating: state.field("isUpdating").boolean(),
    isPastUnknown: state.field("isPastUnknown").boolean(),
    journal: state.field("journal").optional((journal) => decodeJournal(journal.raw), null),
    vms,
  };
}

function decodePastVm(vm: JsonField): PastVm {
  return {
    name: decodeVmName(vm.field("name")),
    ownerUid: vm.field("ownerUid").optional((uid) => uid.integer(0, 2 ** 32 - 2), null),
    state: vm.field("state").oneOf(PAST_STATES),
    holderPid: vm.field("holderPid").optional((pid) => pid.integer(0, 2 ** 31 - 1), null),
    blackoutNs: vm.field("blackoutNs").optional((time) => time.nanoseconds(), null),
    problem: vm.field("problem").optional((problem) => problem.prose(PROBLEM_LENGTH), null),
  };
}
