/**
 * What the agent remembers through a live update: in a memfd that it preserves like any other file.
 *
 * Why: the agent ends with its kernel; the one that starts in the next must know which machines to restore and
 * how far the update got, from preserved memory alone.
 * @module
 */
import { KernelError } from "../base/errno.ts";
import { describeJson } from "./json-field.ts";

/** A step of an update with its time on the clock that goes on through a kexec. */
export interface PhaseRecord {
  readonly update: number;
  readonly name: string;
  readonly startNs: number;
  readonly endNs: number;
}

/** A virtual machine in the journal. */
export interface VmRecord {
  /** Also the name of its session. */
  readonly name: string;
  /** User that its process belonged to; null where VMs are the agent's own. */
  readonly ownerUid: number | null;
  /** When its guest was stopped, on the same clock. */
  readonly pausedAtNs: number;
}

/** Changes with {@link Journal}. */
export const JOURNAL_FORMAT = "holdfast-journal-v2";
/** Of earlier releases: without `rebootAtNs` and `ownerUid`. */
const JOURNAL_FORMAT_V1 = "holdfast-journal-v1";

export interface Journal {
  readonly format: typeof JOURNAL_FORMAT;
  /** Updates begun since the cold boot. */
  readonly update: number;
  readonly fromRelease: string;
  readonly toRelease: string;
  /** When reboot(2) was called; null when it was not yet, or is not known. */
  readonly rebootAtNs: number | null;
  readonly vms: readonly VmRecord[];
  readonly phases: readonly PhaseRecord[];
  /** What the program that runs the agent wants to find again; its own business. */
  readonly userData: unknown;
}

/** Bytes of one slot of the journal's record, and of those the room for each VM: its name and two numbers as JSON. */
const SLOT_BYTES = 256 * 1024;
const VM_BYTES = 512;

/** Bytes of one slot of the journal's record. It has room for the VMs whatever happens after it was made. */
export function journalSlotBytes(vms: number): number {
  return SLOT_BYTES + vms * VM_BYTES;
}

/** The agent's own session, and the token of the journal in it. */
export const AGENT_SESSION = "holdfast-agent";
export const JOURNAL_TOKEN = 1n;

/**
 * Reads a journal. The agent that wrote it may be of another release or broken: what is not as expected is not
 * guessed at. Fields that this agent does not know are left out.
 *
 * @param value - the journal's record, out of preserved memory
 * @throws {KernelError} EIO naming the field
 */
export function decodeJournal(value: unknown): Journal {
  const journal = record(value, "");
  const { format } = journal;
  const isFirst = format === JOURNAL_FORMAT_V1;
  if (format !== JOURNAL_FORMAT && !isFirst)
    throw damaged("format", format, `"${JOURNAL_FORMAT}" or "${JOURNAL_FORMAT_V1}"`);
  const vms = array(journal.vms, "vms").map((one, i) => decodeVm(one, `vms[${i}]`, isFirst));
  const names = new Set<string>();
  for (const [i, { name }] of vms.entries()) {
    if (names.has(name)) throw damaged(`vms[${i}].name`, name, "a name that no other VM has");
    names.add(name);
  }
  return {
    format: JOURNAL_FORMAT,
    update: count(journal.update, "update"),
    fromRelease: string(journal.fromRelease, "fromRelease"),
    toRelease: string(journal.toRelease, "toRelease"),
    rebootAtNs: isFirst ? null : orNull(journal.rebootAtNs, "rebootAtNs", time),
    vms,
    phases: array(journal.phases, "phases").map((one, i) => decodePhase(one, `phases[${i}]`)),
    userData: journal.userData ?? null,
  };
}

function decodeVm(value: unknown, field: string, isFirst: boolean): VmRecord {
  const vm = record(value, field);
  const name = string(vm.name, `${field}.name`);
  if (name === "") throw damaged(`${field}.name`, name, "the name of a session");
  return {
    name,
    ownerUid: isFirst ? null : orNull(vm.ownerUid, `${field}.ownerUid`, uid),
    pausedAtNs: time(vm.pausedAtNs, `${field}.pausedAtNs`),
  };
}

function decodePhase(value: unknown, field: string): PhaseRecord {
  const phase = record(value, field);
  const startNs = time(phase.startNs, `${field}.startNs`);
  const endNs = time(phase.endNs, `${field}.endNs`);
  if (endNs < startNs) throw damaged(`${field}.endNs`, endNs, `${startNs} or later`);
  return {
    update: count(phase.update, `${field}.update`),
    name: string(phase.name, `${field}.name`),
    startNs,
    endNs,
  };
}

function record(value: unknown, field: string): Readonly<Record<string, unknown>> {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw damaged(field, value, "an object");
  return value as Readonly<Record<string, unknown>>;
}

function array(value: unknown, field: string): readonly unknown[] {
  if (!Array.isArray(value)) throw damaged(field, value, "a list");
  return value;
}

function string(value: unknown, field: string): string {
  if (typeof value !== "string") throw damaged(field, value, "a string");
  return value;
}

/** Number of an update: a journal exists from the first on. */
function count(value: unknown, field: string): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < 1)
    throw damaged(field, value, "a whole number from 1 on");
  return value;
}

/** As Linux has them: (uid_t)-1 is nobody. */
function uid(value: unknown, field: string): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value >= 0xffff_ffff)
    throw damaged(field, value, "a user id");
  return value;
}

function orNull<T>(
  value: unknown,
  field: string,
  decode: (value: unknown, field: string) => T,
): T | null {
  return value === null ? null : decode(value, field);
}

function time(value: unknown, field: string): number {
  if (typeof value !== "number" || !Number.isFinite(value) || value < 0)
    throw damaged(field, value, "a time in nanoseconds");
  return value;
}

function damaged(field: string, value: unknown, wanted: string): KernelError {
  const name = field === "" ? "journal" : `journal.${field}`;
  return new KernelError("EIO", "take over", `${name} is ${describeJson(value)}, not ${wanted}`);
}
