/**
 * The agent as a server: operators and VMMs speak the control protocol with it over an endpoint, whatever carries that.
 *
 * Everything is done in `poll()`, on one thread: an update, too. While it waits for VMMs it hears all clients, answers `status`,
 * and refuses what would begin something with EBUSY. A restoration goes on by itself as VMMs come and answer.
 *
 * Invariants:
 * - A client that dies, floods, or does not keep to the protocol loses its connection, and nothing else happens; a VMM's
 *   end in an update ends the update, and everything is rolled back.
 * - Every call is answered once, unless its connection or the kernel ends first.
 * - Every descriptor that comes is owned by a VM, or closed.
 * - What is begun is written down before: an agent that is started anew finds the VMs of the last update and their owners.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import type { Endpoint } from "../../host/channel.ts";
import type { Host } from "../../host/host.ts";
import type { ManagedVm } from "../../vmm/managed-vm.ts";
import type { Agent } from "../agent.ts";
import type { Journal, PhaseRecord } from "../journal.ts";
import { completeTarget } from "../target/default-target.ts";
import { keptJournal, STATE_FORMAT, type StateStore } from "./agent-state.ts";
import type { Client } from "./client.ts";
import { ClientHub } from "./client-hub.ts";
import { Completion } from "./completion.ts";
import { type Past, readPast } from "./past.ts";
import type {
  ClientMessage,
  PlanResult,
  ProgressEvent,
  Request,
  UpdateChoice,
} from "./protocol.ts";
import type { RemoteVm, Waiter } from "./remote-vm.ts";
import { planResult, restoreResult, statusResult } from "./results.ts";
import type { VmEntry } from "./vm-entry.ts";
import { type Custody, VmRegistry } from "./vm-registry.ts";

/** For an answer of a VMM, when nobody says otherwise. */
const DEFAULT_TIMEOUT_NS = 30e9;
/** Between two attempts to write a state that could not be written. */
const SAVE_RETRY_NS = 5e9;

export interface AgentServerOptions {
  readonly host: Host;
  readonly endpoint: Endpoint;
  /** Null: nothing is kept, where this process does not outlive its kernel, nor its kernel it. */
  readonly store: StateStore | null;
  /** Of this kernel: /proc/sys/kernel/random/boot_id; "" where there is none. */
  readonly bootId: string;
  /** Group whose members may talk to the agent, beside root; null: none. */
  readonly group: number | null;
  /** VMs of this process itself; whoever gives them brings them back after a jump. Default: none. */
  readonly ownVms?: () => readonly ManagedVm[];
  /** For each answer of a VMM; default 30 s. */
  readonly timeoutNs?: number;
  /** Default: nobody. */
  readonly custody?: Custody | null;
  /** Sessions that an agent before this one had given in custody: the server's from here on. */
  readonly handedIn?: readonly { readonly name: string; readonly session: number }[];
  /** As {@link VmRegistry} needs it; default: what answers GET_NAME is one. */
  readonly isSession?: (fd: number) => boolean;
  /** As {@link VmRegistry} needs it; default: of no process that is known. */
  readonly hasEnded?: (pid: number) => boolean;
  /** Told of all that happens, for a log; default: nobody. */
  readonly observe?: (event: ProgressEvent) => void;
}

/** The update that is under way. */
interface UpdateRun {
  readonly client: Client;
  readonly id: number;
  readonly timeoutNs: number;
  /** What ends it: a VMM that is gone. */
  failure: KernelError | null;
  /** It has failed: what happens from here on does not end the waiting any more. */
  isUndoing: boolean;
}

/** A call of `restore` that waits. */
interface RestoreWait {
  readonly client: Client;
  readonly id: number;
  readonly deadlineNs: number;
  readonly abandoned: readonly string[];
}

export class AgentServer {
  readonly #options: AgentServerOptions;
  readonly #agent: Agent;
  readonly #journal: Journal | null;
  readonly #hub: ClientHub;
  readonly #registry: VmRegistry;
  readonly #completion: Completion;
  /** What was found when it started. */
  readonly #notes: string[];
  #run: UpdateRun | null = null;
  #waits: RestoreWait[] = [];
  /** There may be sessions that nobody knows of. */
  readonly #isPastUnknown: boolean;
  /** The journal is still in the session that it came in. */
  #isJournalUnkept: boolean;
  #isSaved = false;
  #saveProblem: string | null = null;
  #nextSaveNs = Number.NEGATIVE_INFINITY;

  private constructor(options: AgentServerOptions, past: Past) {
    const { host, endpoint, group, custody = null } = options;
    const { isSession = () => true, hasEnded = () => false } = options;
    this.#options = options;
    this.#agent = past.agent;
    this.#journal = past.journal;
    this.#notes = [...past.notes];
    this.#isPastUnknown = past.isUnknown;
    this.#isJournalUnkept = past.isJournalUnkept;
    const waiter: Waiter = {
      timeoutNs: () => this.#timeoutNs,
      nowNs: () => host.clockNs(),
      waitUntil: (isDone, deadlineNs) => this.#waitUntil(isDone, deadlineNs),
      changed: (entry) => this.#changed(entry),
      drop: (client, code, reason) => this.#hub.drop(client, code, reason),
    };
    this.#hub = new ClientHub(endpoint, host, group, {
      message: (client, message, fds) => this.#message(client, message, fds),
      gone: (client, reason) => this.#gone(client, reason),
    });
    const { restoration, isUnknown } = past;
    this.#registry = new VmRegistry(
      { host, waiter, restoration, custody, isSession, hasEnded, isPastUnknown: isUnknown },
      past.vms,
    );
    this.#completion = new Completion({
      finish: (name) => this.#registry.finish(name),
      changed: (entry) => this.#changed(entry),
    });
    for (const { name, session } of options.handedIn ?? []) this.#adopt(name, session);
  }

  /**
   * Takes over what an agent before it has left, in this kernel or the one before, or begins anew.
   *
   * @throws {KernelError} EBUSY somebody else has /dev/liveupdate open; ENOENT the kernel has no live update, or it is off;
   *   EIO what the previous kernel handed over cannot be read
   */
  static start(options: AgentServerOptions): AgentServer {
    // What ends before the server is there is in the agent's own list of phases.
    let observe = (_phase: PhaseRecord): void => undefined;
    const past = readPast(options, (phase) => observe(phase));
    const server = new AgentServer(options, past);
    observe = (phase) => server.#phaseEnded(phase);
    return server;
  }

  get agent(): Agent {
    return this.#agent;
  }

  /** Of the update that this kernel came out of; null when it came out of none. */
  get journal(): Journal | null {
    return this.#journal;
  }

  /** What an operator should know. */
  get notes(): readonly string[] {
    const saving = this.#saveProblem;
    return saving === null
      ? this.#notes
      : [...this.#notes, `the agent's state cannot be written: ${saving}`];
  }

  /**
   * Handles what has come, and what is due. Called at least once a second.
   *
   * @param timeoutNs - waits so long if nothing has come; 0 does not wait
   * @throws only what ends the process: the kernel is replaced
   */
  poll(timeoutNs: number): void {
    this.#hub.hear(timeoutNs);
    this.#registry.forgetEnded();
    this.#registry.noteOverdue();
    this.#answerWaits();
    this.#save();
  }

  /** Ends all connections. Sessions stay open as long as this process has them. */
  close(): void {
    this.#save();
    this.#hub.close();
  }

  get #timeoutNs(): number {
    return this.#run?.timeoutNs ?? this.#options.timeoutNs ?? DEFAULT_TIMEOUT_NS;
  }

  #adopt(name: string, session: number): void {
    try {
      this.#registry.adopt(name, session);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      this.#options.custody?.release(name);
      this.#notes.push(`a session that was in custody for ${name} is closed: ${error.message}`);
    }
  }

  #message(client: Client, message: ClientMessage, fds: readonly number[]): void {
    if (message.kind === "answer") {
      if (this.#registry.vmOf(client)?.answered(message.ask, message.error) !== true)
        throw new KernelError(
          "EPROTO",
          "answer",
          `nothing was asked with the number ${message.ask}`,
        );
      return;
    }
    const { id } = message;
    try {
      client.begin(id);
      if (message.kind === "refused") throw message.error;
      if (this.#run !== null && message.request.call !== "status")
        throw new KernelError(
          "EBUSY",
          message.request.call,
          "an update is under way; try again later",
        );
    } catch (error) {
      this.#hub.closeAll(fds);
      if (!(error instanceof KernelError) || error.code === "EPROTO") throw error;
      this.#fail(client, id, error);
      return;
    }
    try {
      const result = this.#do(client, id, message.request, fds[0] ?? null);
      if (result !== null) this.#succeed(client, id, result);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      this.#fail(client, id, error);
    }
  }

  /** @returns the call's result; null when it is answered later, or already */
  #do(client: Client, id: number, request: Request, session: number | null): object | null {
    switch (request.call) {
      case "status":
        return statusResult(this.#agent, this.#registry.entries, {
          from: request.from,
          release: this.#options.host.release,
          ownVms: this.#ownVms,
          isUpdating: this.#run !== null,
          notes: this.notes,
        });
      case "plan":
        // It opens what the caller names, in root's name, and unpacks it, while nobody else is heard.
        this.#requireRoot(client, "plan");
        return this.#plan(request.choice);
      case "update":
        this.#requireRoot(client, "update");
        if (request.dryRun) return this.#plan(request.choice);
        this.#update(client, id, request.choice, request.timeoutNs);
        return null;
      case "restore":
        this.#restore(client, id, request.timeoutNs, request.abandon);
        return null;
      case "register": {
        const { vm, session: own } = this.#registry.register(client, request, session);
        const fds = own === null ? [] : [own];
        const result = {
          session: own === null ? null : { fds: 1 },
          update: this.#agent.updates,
        };
        // An agent that is started anew must know who may have the VM.
        this.#save();
        this.#succeed(client, id, result, fds);
        // What an agent before this one had begun. Of one that did not take the answer there is nothing to undo.
        if (!client.isOpen) return null;
        if (request.state === "paused") vm.resume();
        if (request.state === "paused" || request.state === "preserved") vm.unpreserve();
        return null;
      }
      case "running": {
        const vm = this.#vmOf(client, request.call);
        this.#registry.running(vm, request.atNs);
        this.#succeed(client, id, {});
        this.#completion.proceed(vm);
        return null;
      }
      case "failed": {
        const { entry } = this.#vmOf(client, request.call);
        entry.problem = `${request.error.code}: ${request.error.message}`;
        this.#changed(entry);
        return {};
      }
      case "resources":
        this.#vmOf(client, request.call).entry.resources = request.resources;
        return {};
      case "unregister":
        this.#registry.leave(this.#vmOf(client, request.call), "it was unregistered", true);
        return {};
    }
  }

  #plan(choice: UpdateChoice): PlanResult {
    const target = completeTarget(this.#options.host, choice.target);
    const vms = [...this.#ownVms, ...this.#registry.vms];
    const preflight = this.#agent.preflight(vms, target, choice.degradation);
    return planResult(preflight, this.#registry.blockers);
  }

  /** Does not return when it succeeds; when it fails, everything is as it was, and the client is told. */
  #update(client: Client, id: number, choice: UpdateChoice, timeoutNs: number | null): void {
    const target = completeTarget(this.#options.host, choice.target);
    const { blockers, vms } = this.#registry;
    if (blockers.length > 0) throw new KernelError("EBUSY", "update", blockers.join("; "));
    const run = {
      client,
      id,
      timeoutNs: timeoutNs ?? this.#timeoutNs,
      failure: null,
      isUndoing: false,
    };
    this.#run = run;
    try {
      this.#write();
      this.#agent.update([...this.#ownVms, ...vms], target, {
        ...choice.degradation,
        begins: (name, startNs) => this.#phaseBegins(name, startNs),
      });
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      run.isUndoing = true;
      const { entries } = this.#registry;
      const isUndone = () =>
        entries.every(({ state, client }) => state !== "undoing" || client === null);
      this.#waitUntil(isUndone, this.#options.host.clockNs() + run.timeoutNs);
      this.#run = null;
      this.#isSaved = false;
      this.#fail(client, id, error);
    }
  }

  #restore(client: Client, id: number, timeoutNs: number | null, abandon: readonly string[]): void {
    if (abandon.length > 0) this.#requireRoot(client, "restore with abandon");
    for (const [i, name] of abandon.entries()) {
      try {
        this.#registry.abandon(name);
      } catch (error) {
        if (!(error instanceof KernelError) || i === 0) throw error;
        const done = abandon.slice(0, i).join(", ");
        throw new KernelError(error.code, "restore", `${error.message}; abandoned before: ${done}`);
      }
    }
    for (const vm of this.#registry.vms) this.#completion.proceed(vm);
    const nowNs = this.#options.host.clockNs();
    const deadlineNs = timeoutNs === null ? Number.POSITIVE_INFINITY : nowNs + timeoutNs;
    this.#waits.push({ client, id, deadlineNs, abandoned: abandon });
  }

  #answerWaits(): void {
    if (this.#waits.length === 0) return;
    const nowNs = this.#options.host.clockNs();
    const isOver = !this.#registry.hasUnrestored;
    const due = this.#waits.filter(({ deadlineNs }) => isOver || deadlineNs <= nowNs);
    this.#waits = this.#waits.filter((wait) => !due.includes(wait));
    for (const { client, id, abandoned } of due)
      this.#succeed(
        client,
        id,
        restoreResult(this.#registry.restored, this.#registry.entries, abandoned),
      );
  }

  #gone(client: Client, reason: string): void {
    this.#waits = this.#waits.filter((wait) => wait.client !== client);
    const vm = this.#registry.vmOf(client);
    if (vm === null) return;
    const run = this.#run;
    if (run !== null && !run.isUndoing)
      run.failure ??= new KernelError(
        "ECONNRESET",
        "update",
        `the VMM of ${vm.name} (${client.name}) is gone: ${reason}`,
      );
    this.#registry.leave(vm, reason, false);
  }

  #waitUntil(isDone: () => boolean, deadlineNs: number): void {
    for (;;) {
      this.#throwFailure();
      if (isDone()) return;
      const leftNs = deadlineNs - this.#options.host.clockNs();
      if (leftNs <= 0) return;
      this.#hub.hear(leftNs);
    }
  }

  #throwFailure(): void {
    const run = this.#run;
    if (run !== null && run.failure !== null && !run.isUndoing) throw run.failure;
  }

  /** @throws {KernelError} a VMM is gone: here at the latest it ends the update */
  #phaseBegins(name: string, startNs: number): void {
    this.#hub.hear(0);
    this.#throwFailure();
    const update = this.#agent.updates;
    this.#progress({ kind: "phase", update, name, startNs, endNs: null });
    if (name === "reboot") this.#progress({ kind: "jump", update });
  }

  #phaseEnded(phase: PhaseRecord): void {
    this.#progress({ kind: "phase", ...phase });
  }

  #changed(entry: VmEntry): void {
    this.#isSaved = false;
    const { name, state, blackoutNs, problem } = entry;
    this.#progress({ kind: "vm", vm: name, state, blackoutNs, problem });
  }

  #progress(event: ProgressEvent): void {
    this.#options.observe?.(event);
    const run = this.#run;
    const listeners = run === null ? this.#waits : [run];
    for (const { client, id } of listeners)
      if (client.isOpen && !client.progress(id, event)) this.#dropSilent(client);
  }

  #succeed(client: Client, id: number, result: object, fds: readonly number[] = []): void {
    if (!client.isOpen) return;
    try {
      if (!client.succeed(id, result, fds)) this.#dropSilent(client);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      // There is no descriptor left to send: what it asked for is done, and it would not know. It comes back.
      this.#hub.drop(client, error.code, error.message);
    }
  }

  #fail(client: Client, id: number, error: KernelError): void {
    if (client.isOpen && !client.fail(id, error)) this.#dropSilent(client);
  }

  #dropSilent(client: Client): void {
    this.#hub.drop(client, "EPIPE", "it does not take messages");
  }

  #requireRoot(client: Client, call: string): void {
    if (!client.isRoot)
      throw new KernelError("EPERM", call, `only root may do this, and ${client.name} is not`);
  }

  get #ownVms(): readonly ManagedVm[] {
    return this.#options.ownVms?.() ?? [];
  }

  /** Writes what has changed; what cannot be written now is told, and tried again. */
  #save(): void {
    const nowNs = this.#options.host.clockNs();
    if (this.#isSaved || (this.#saveProblem !== null && nowNs < this.#nextSaveNs)) return;
    try {
      this.#write();
      this.#saveProblem = null;
      if (this.#isJournalUnkept) this.#agent.keepJournal();
      this.#isJournalUnkept = false;
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      this.#saveProblem = error.message;
      this.#nextSaveNs = nowNs + SAVE_RETRY_NS;
    }
  }

  #write(): void {
    this.#options.store?.write({
      format: STATE_FORMAT,
      bootId: this.#options.bootId,
      isUpdating: this.#run !== null,
      isPastUnknown: this.#isPastUnknown,
      journal: keptJournal(this.#journal),
      vms: this.#registry.past,
    });
    this.#isSaved = true;
  }

  /** @throws {KernelError} EINVAL it is no VM's VMM */
  #vmOf(client: Client, call: string): RemoteVm {
    const vm = this.#registry.vmOf(client);
    if (vm === null)
      throw new KernelError("EINVAL", call, "this connection has no VM; it registers one first");
    return vm;
  }
}
