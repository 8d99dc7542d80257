/**
 * The control protocol of the agent: what operators and VMMs say to it, and it to them.
 *
 * A message is one line of JSON. Descriptors go with the line that declares them (`"fds": n`).
 *
 *     client → agent   {"id": 1, "call": NAME, ...}      an id is the client's choice, not one that is still out
 *     agent → client   {"id": 1, "event": {...}}         while the call lasts
 *                      {"id": 1, "result": {...}}        once, or:
 *                      {"id": 1, "error": {"code": "EBUSY", "message": "..."}}
 *                      {"id": 0, "error": {...}}         why the connection ends now
 *     agent → VMM      {"ask": 7, "do": NAME, ...}
 *     VMM → agent      {"answer": 7, "result": {}}       once, or with "error" as above
 *
 * What cannot be read as a message ends the connection; a call with a wrong field is answered with EINVAL and changes
 * nothing. Fields that the reader does not know are ignored, so that a newer end can say more to an older one.
 * @module
 */
import { ERRNO, type ErrnoCode, KernelError } from "../../base/errno.ts";
import { RESOURCE_KINDS, type Resource, type ResourceKind } from "../../vmm/managed-vm.ts";
import { AGENT_SESSION } from "../journal.ts";
import { JsonField } from "../json-field.ts";
import type { Degradation } from "../preflight.ts";
import type { KernelTarget } from "../target/kernel-target.ts";

/** Instead of a call's id: of the error that ends the connection as a whole. Calls have ids from 1 on. */
export const CONNECTION_ID = 0;
/** Calls of one client that are not answered yet. */
export const OUTSTANDING_CALLS_MAX = 8;
/** Resources of a VM. */
export const RESOURCES_MAX = 64;
/** Entries of a list in a result; the number of all of them is beside it. */
export const LISTED_MAX = 64;
/** Longest wait that a call can ask for. */
export const TIMEOUT_SECONDS_MAX = 3600;

const SECOND_NS = 1e9;
const LABEL_BYTES = 96;
const BLOCKER_BYTES = 128;
const COMPATIBLES_MAX = 3;
/** As in a session's file: 48 bytes with its NUL. */
const COMPATIBLE_BYTES = 47;
const PATH_BYTES = 4095;
/** As long as a kernel of x86-64 takes: COMMAND_LINE_SIZE 2048 with its NUL. */
const COMMAND_LINE_BYTES = 2047;
const ERROR_LENGTH = 1024;
const ABANDON_MAX = 256;

/**
 * What a VMM says of its VM when it registers it.
 * - `starting`: it has no guest yet: it takes its session if there is one, else it begins anew
 * - `running`: the guest is ordinary; nothing of it is in a session
 * - `preserved`, `paused`: it holds an outgoing session, of an update that an agent before did not finish; hands a copy in
 * - `restoring`, `restored`: it holds an incoming session, and its guest does not yet, or does, run; hands a copy in
 */
export type RegisterState =
  | "starting"
  | "running"
  | "preserved"
  | "paused"
  | "restoring"
  | "restored";
const REGISTER_STATES: readonly RegisterState[] = [
  "starting",
  "running",
  "preserved",
  "paused",
  "restoring",
  "restored",
];
/** States with which a VMM hands a copy of its session in. */
const WITH_SESSION: readonly RegisterState[] = ["preserved", "paused", "restoring", "restored"];

/** What an update is to be. */
export interface UpdateChoice {
  /** What is absent is the running kernel's; `initrd: null` is none. */
  readonly target: Partial<KernelTarget>;
  readonly degradation: Required<Degradation>;
}

/** What the other end failed with. */
export interface PeerError {
  readonly code: ErrnoCode;
  /** Without the code. */
  readonly message: string;
}

/** Calls, checked. */
export type Request =
  /** @see StatusResult. `from`: the first VM of the page, by its place in the order of names */
  | { readonly call: "status"; readonly from: number }
  /** uid 0. @see PlanResult */
  | { readonly call: "plan"; readonly choice: UpdateChoice }
  /** uid 0. With `dryRun` as `plan`; without it there is no result: the connection ends with the kernel, or an error comes. */
  | {
      readonly call: "update";
      readonly choice: UpdateChoice;
      readonly dryRun: boolean;
      /** For each answer of a VM; null: the agent's default. */
      readonly timeoutNs: number | null;
    }
  /** Waits until all VMs of the last update are back. With `abandon` uid 0. @see RestoreResult */
  | {
      readonly call: "restore";
      /** Null: waits as long as it takes. */
      readonly timeoutNs: number | null;
      /** VMs whose sessions are given up, and all that nobody has retrieved of them. */
      readonly abandon: readonly string[];
    }
  /** Makes the caller the VMM of a VM. @see RegisterResult */
  | {
      readonly call: "register";
      readonly vm: string;
      readonly resources: readonly Resource[];
      readonly state: RegisterState;
    }
  /** The guest has done its first write since its session was retrieved. `atNs`: on the machine's clock. */
  | { readonly call: "running"; readonly atNs: number }
  /** The VM cannot be restored from its session. The session stays: another VMM may try, or it is abandoned. */
  | { readonly call: "failed"; readonly error: PeerError }
  /** The VM's resources have changed. */
  | { readonly call: "resources"; readonly resources: readonly Resource[] }
  /** The VM ends, or is no more the agent's business. */
  | { readonly call: "unregister" };

export type CallName = Request["call"];
const CALLS: readonly CallName[] = [
  "status",
  "plan",
  "update",
  "restore",
  "register",
  "running",
  "failed",
  "resources",
  "unregister",
];

/** What the agent asks of a VMM, each answered when it is done. */
export type Ask =
  /** With one descriptor, an outgoing session: everything of the VM goes into it, but kinds of `without`. The guest runs on. */
  | { readonly do: "preserve"; readonly without: readonly ResourceKind[] }
  /** The update does not happen: the VMM closes its session and is ordinary again. Also after a `preserve` that failed. */
  | { readonly do: "unpreserve" }
  /** Stops the guest and saves its registers into what is preserved. */
  | { readonly do: "pause" }
  /** The guest runs again, after a jump that did not happen. */
  | { readonly do: "resume" }
  /** Builds the ordinary chain anew, beside the guest that runs: mapping, IOAS, HWPT. */
  | { readonly do: "rebuild" }
  /** Moves the devices to what was rebuilt. */
  | { readonly do: "swap" }
  /** The session is finished: the VMM closes its copy, its files are ordinary. */
  | { readonly do: "finished" };
export type AskName = Ask["do"];
const ASKS: readonly AskName[] = [
  "preserve",
  "unpreserve",
  "pause",
  "resume",
  "rebuild",
  "swap",
  "finished",
];

/**
 * Where a VM is.
 * - `running`: registered, ordinary
 * - `absent`: its VMM lives, and is not connected: it has not come back since the agent was started anew, or since it broke
 *   the protocol. An update would end it
 * - `preserving`, `preserved`, `pausing`, `paused`: on its way into an update
 * - `undoing`: told that the update does not happen, has not answered yet
 * - `incoming`: came through the jump, its VMM is not there (again)
 * - `restoring`: its VMM has its session
 * - `restored`: its guest runs, its session is not finished
 * - `lost`: its guest ran after the jump, and its VMM ended before its session was finished: what is preserved is no more
 *   what the guest was; `restore` with `abandon` frees it
 */
export const VM_STATES = [
  "running",
  "absent",
  "preserving",
  "preserved",
  "pausing",
  "paused",
  "undoing",
  "incoming",
  "restoring",
  "restored",
  "lost",
] as const;
export type VmState = (typeof VM_STATES)[number];

export interface VmStatus {
  readonly name: string;
  readonly state: VmState;
  /** Its VMM; null when that is not connected, or the VM is in the agent's own process. */
  readonly pid: number | null;
  /** Who owns it; null where the place has no users. */
  readonly uid: number | null;
  readonly resources: readonly Resource[];
  /** From the pause in the kernel before to its guest's first write in this one; null before that, and without an update. */
  readonly blackoutNs: number | null;
  /** What went wrong last, with the way out; null when nothing did. */
  readonly problem: string | null;
}

/** A phase of the last update, on the clock that goes on through a kexec. */
export interface PhaseStatus {
  readonly update: number;
  readonly name: string;
  readonly startNs: number;
  readonly endNs: number;
}

export interface StatusResult {
  /** uname -r */
  readonly release: string;
  /** Updates begun since the cold boot. */
  readonly updates: number;
  /** `updating`: from the call of `update` to the jump; `restoring`: VMs of the last update are not back. */
  readonly activity: "idle" | "updating" | "restoring";
  readonly phases: readonly PhaseStatus[];
  /** What an operator should know: a stale state file, sessions that cannot be finished. */
  readonly notes: readonly string[];
  /** All VMs. */
  readonly total: number;
  /** Those of this page, by name. */
  readonly vms: readonly VmStatus[];
  /** `from` of the next page; null when this is the last. */
  readonly next: number | null;
}

/** What an update would do. Which resources it carries is in the VMs' status. */
export interface PlanResult {
  readonly target: {
    readonly kernel: string;
    readonly initrd: string | null;
    readonly commandLine: string;
    readonly release: string;
  };
  readonly vms: number;
  /** Bytes of guest memory, which stay where they are. */
  readonly guestBytes: number;
  /** What the VMs let go of, as asked: "vm0: iommufd /dev/iommu"; the first {@link LISTED_MAX}. */
  readonly leftBehind: readonly string[];
  /** What could not be found out about the target, and was allowed not to be; the first {@link LISTED_MAX}. */
  readonly warnings: readonly string[];
  /** How many reasons there are why the update cannot be done; 0: it can. */
  readonly blocked: number;
  /** The first {@link LISTED_MAX} of them. */
  readonly blockers: readonly string[];
}

export interface RestoreResult {
  /** VMs that run, with their sessions finished. */
  readonly restored: number;
  /** VMs that are not: after a timeout. */
  readonly left: number;
  /** The first {@link LISTED_MAX} of them. */
  readonly waiting: readonly {
    readonly vm: string;
    readonly state: VmState;
    readonly problem: string | null;
  }[];
  /** VMs that were given up, as asked. */
  readonly abandoned: readonly string[];
}

export interface RegisterResult {
  /** `{"fds": 1}` when the message has the VM's incoming session with it: the VM restores itself from it. */
  readonly session: { readonly fds: 1 } | null;
  /** Updates begun since the cold boot. */
  readonly update: number;
}

/** Progress of `update` and `restore`. */
export type ProgressEvent =
  /** A phase begins (`endNs` null) or has ended. */
  | {
      readonly kind: "phase";
      readonly update: number;
      readonly name: string;
      readonly startNs: number;
      readonly endNs: number | null;
    }
  | {
      readonly kind: "vm";
      readonly vm: string;
      readonly state: VmState;
      readonly blackoutNs: number | null;
      readonly problem: string | null;
    }
  /** The next thing is reboot(2): the connection ends here. */
  | { readonly kind: "jump"; readonly update: number };

/** A message of a client, read and checked. */
export type ClientMessage =
  | { readonly kind: "call"; readonly id: number; readonly fds: number; readonly request: Request }
  /** A call with a wrong field: to be answered with this error. */
  | { readonly kind: "refused"; readonly id: number; readonly error: KernelError }
  /** `error`: what the VMM failed with; null when it has done what it was asked. */
  | { readonly kind: "answer"; readonly ask: number; readonly error: PeerError | null };

/** A message of the agent, read and checked as far as both kinds of clients need it. */
export type AgentMessage =
  | { readonly kind: "result"; readonly id: number; readonly fds: number; readonly result: unknown }
  | { readonly kind: "error"; readonly id: number; readonly error: KernelError }
  | { readonly kind: "event"; readonly id: number; readonly event: unknown }
  | { readonly kind: "ask"; readonly id: number; readonly fds: number; readonly ask: Ask }
  /** An ask that this client does not know, or with a wrong field: to be answered with this error. */
  | { readonly kind: "refused"; readonly id: number; readonly error: KernelError };

const notAMessage = (message: string) => new KernelError("EPROTO", "control message", message);

/**
 * Reads a line of a client.
 * @throws {KernelError} EPROTO it is no message: there is no id to answer to, so the connection ends
 */
export function decodeClientMessage(line: string): ClientMessage {
  const message = JsonField.parse(line, "message", notAMessage);
  const ask = message.field("answer");
  if (!ask.isAbsent)
    return {
      kind: "answer",
      ask: messageId(ask),
      error: message.field("error").optional(decodeError, null),
    };
  const id = message.field("id").integer(1, Number.MAX_SAFE_INTEGER);
  const fds = message.field("fds").optional((field) => field.integer(0, 16), 0);
  return checked(id, line, (call) => {
    const request = decodeRequest(call);
    const wanted = request.call === "register" && WITH_SESSION.includes(request.state) ? 1 : 0;
    if (fds !== wanted)
      throw invalid(`message.fds is ${fds}; this call goes with ${wanted} descriptors`);
    return { kind: "call", id, fds, request };
  });
}

/**
 * Reads a line of the agent.
 * @throws {KernelError} EPROTO it is no message
 */
export function decodeAgentMessage(line: string): AgentMessage {
  const message = JsonField.parse(line, "message", notAMessage);
  const ask = message.field("ask");
  const fds = message.field("fds").optional((field) => field.integer(0, 16), 0);
  if (!ask.isAbsent) {
    const id = messageId(ask);
    return checked(id, line, (field) => ({ kind: "ask", id, fds, ask: decodeAsk(field) }));
  }
  const id = messageId(message.field("id"));
  const error = message.field("error");
  if (!error.isAbsent) {
    const { code, message: detail } = decodeError(error);
    return { kind: "error", id, error: new KernelError(code, "agent", detail) };
  }
  const { result, event } = JSON.parse(line) as { result?: unknown; event?: unknown };
  if (event !== undefined) return { kind: "event", id, event };
  if (result === undefined) throw notAMessage("message has no result, error or event");
  return { kind: "result", id, fds, result };
}

/** Reads the result of `register`. @throws {KernelError} EPROTO */
export function decodeRegisterResult(value: unknown): RegisterResult {
  const result = new JsonField(value, "result", notAMessage);
  return {
    session: result.field("session").optional((session) => {
      session.field("fds").integer(1, 1);
      return { fds: 1 as const };
    }, null),
    update: result.field("update").integer(0, Number.MAX_SAFE_INTEGER),
  };
}

/** What goes into a message of an error. */
export function encodeError(error: KernelError): { code: ErrnoCode; message: string } {
  return { code: error.code, message: error.message.slice(0, ERROR_LENGTH) };
}

/** A VM's name is that of its session, of its entry in a service manager's descriptor store, and part of messages. */
export const VM_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;

/**
 * The name of a VM.
 * @throws {KernelError} of the field
 */
export function decodeVmName(field: JsonField): string {
  const name = field.matching(
    VM_NAME,
    'the name of a VM: 1 to 63 letters, digits, ".", "_" and "-", not beginning with one of these three',
  );
  if (name === AGENT_SESSION)
    throw field.wrong("the name of a VM: it is that of the agent's own session");
  return name;
}

/** @throws {KernelError} of the field */
export function decodeResources(field: JsonField): Resource[] {
  return field.list(RESOURCES_MAX, (resource) => ({
    kind: resource.field("kind").oneOf(RESOURCE_KINDS),
    label: resource.field("label").text(LABEL_BYTES),
    bytes: resource.field("bytes").integer(0, Number.MAX_SAFE_INTEGER),
    compatibles: resource
      .field("compatibles")
      .list(COMPATIBLES_MAX, (compatible) => compatible.text(COMPATIBLE_BYTES)),
    blocker: resource.field("blocker").optional((blocker) => blocker.text(BLOCKER_BYTES), null),
    essential: resource.field("essential").boolean(),
  }));
}

/** Reads what belongs to an id: what is wrong with it is told to whoever used the id. */
function checked<T extends { readonly kind: string }>(
  id: number,
  line: string,
  read: (message: JsonField) => T,
): T | { readonly kind: "refused"; readonly id: number; readonly error: KernelError } {
  try {
    return read(JsonField.parse(line, "message", invalid));
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    return { kind: "refused", id, error };
  }
}

function decodeRequest(message: JsonField): Request {
  const call = message.field("call").oneOf(CALLS);
  switch (call) {
    case "status":
      return { call, from: message.field("from").optional((from) => from.integer(0, 1e6), 0) };
    case "plan":
      return { call, choice: decodeChoice(message) };
    case "update":
      return {
        call,
        choice: decodeChoice(message),
        dryRun: message.field("dryRun").optional((dryRun) => dryRun.boolean(), false),
        timeoutNs: decodeTimeout(message),
      };
    case "restore":
      return {
        call,
        timeoutNs: decodeTimeout(message),
        abandon: message
          .field("abandon")
          .optional((names) => names.list(ABANDON_MAX, decodeVmName), []),
      };
    case "register":
      return {
        call,
        vm: decodeVmName(message.field("vm")),
        resources: decodeResources(message.field("resources")),
        state: message.field("state").oneOf(REGISTER_STATES),
      };
    case "running":
      return { call, atNs: message.field("atNs").nanoseconds() };
    case "failed":
      return { call, error: decodeError(message.field("error")) };
    case "resources":
      return { call, resources: decodeResources(message.field("resources")) };
    case "unregister":
      return { call };
  }
}

function decodeChoice(message: JsonField): UpdateChoice {
  return {
    target: message.field("target").optional(decodeTarget, {}),
    degradation: {
      without: message.field("without").optional(decodeKinds, []),
      allowUnknown: message.field("allowUnknown").optional((allow) => allow.boolean(), false),
    },
  };
}

function decodeTarget(target: JsonField): Partial<KernelTarget> {
  const [kernel, initrd, line] = ["kernel", "initrd", "commandLine"].map((name) =>
    target.field(name),
  );
  return {
    ...(kernel.isAbsent ? {} : { kernel: decodePath(kernel) }),
    ...(initrd.isMissing ? {} : { initrd: initrd.optional(decodePath, null) }),
    ...(line.isAbsent ? {} : { commandLine: line.text(COMMAND_LINE_BYTES) }),
  };
}

function decodePath(field: JsonField): string {
  const path = field.text(PATH_BYTES);
  if (!path.startsWith("/")) throw field.wrong("an absolute path");
  return path;
}

function decodeKinds(field: JsonField): ResourceKind[] {
  const kinds = field.list(RESOURCE_KINDS.length, (kind) => kind.oneOf(RESOURCE_KINDS));
  return RESOURCE_KINDS.filter((kind) => kinds.includes(kind));
}

function decodeTimeout(message: JsonField): number | null {
  return message
    .field("timeoutSeconds")
    .optional((seconds) => seconds.integer(1, TIMEOUT_SECONDS_MAX) * SECOND_NS, null);
}

function decodeAsk(message: JsonField): Ask {
  const name = message.field("do").oneOf(ASKS);
  if (name !== "preserve") return { do: name };
  return { do: name, without: message.field("without").optional(decodeKinds, []) };
}

function messageId(field: JsonField): number {
  return field.integer(0, Number.MAX_SAFE_INTEGER);
}

/** An errno that nobody knows is EIO: the message says more. */
function decodeError(field: JsonField): PeerError {
  const name = field.field("code").prose(32);
  const code = Object.hasOwn(ERRNO, name) ? (name as ErrnoCode) : "EIO";
  const message = field.field("message").prose(ERROR_LENGTH);
  const prefix = `${name}: `;
  return { code, message: message.startsWith(prefix) ? message.slice(prefix.length) : message };
}

function invalid(message: string): KernelError {
  return new KernelError("EINVAL", "control call", message);
}
