/**
 * The agent's client in a VMM: keeps a VM registered, and does what the agent asks of it.
 *
 * For a VMM: make one `VmClient` for each VM with the callbacks below, and call `turn()` wherever the VMM looks for events
 * (its main loop, between slices of the guest). `turn(0)` never waits. A callback whose work is long returns a function
 * instead, which is called once in each turn until it returns true; the guest runs on between them.
 *
 * Lifecycle of a VM:
 * 1. `starting`: registered, the agent says whether there is a session of that name from the kernel before.
 *    No: `callbacks.begin()`, and it is `running`.
 *    Yes: `callbacks.restore(session)`, it is `restoring`; once the guest has done its first write the VMM calls `running()`.
 * 2. `restored`: the agent asks `rebuild`, `swap`, and says `finished`: `running`, an ordinary VM.
 * 3. An update: `preserve` (`preserved`), `pause` (`paused`), then the kernel is replaced: this process ends with it.
 *    Or the update does not happen: `resume`, `unpreserve`, and it is `running`.
 *
 * When the agent goes away, the VM does not: out of an update it goes back to `running` by itself, since who asked for the
 * jump is gone; the session of a restoration stays with it, and is handed to the next agent.
 *
 * Descriptors: sessions are the client's, it closes them. A callback uses a session as long as it is called.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import type { Channel, Endpoint, EndpointEvent } from "../../host/channel.ts";
import type { Host } from "../../host/host.ts";
import type { Resource, ResourceKind } from "../../vmm/managed-vm.ts";
import {
  type AgentMessage,
  type Ask,
  CONNECTION_ID,
  decodeAgentMessage,
  decodeRegisterResult,
  encodeError,
  type RegisterState,
} from "./protocol.ts";

/** Null: it is done. A function: called in each turn until it returns true, then it is done. */
export type Work = null | (() => boolean);

/** What a VMM does for the agent. Each throws {@link KernelError} when it cannot; the agent is told, and undoes. */
export interface VmCallbacks {
  /** What an update has to carry, as things are now. */
  resources(): readonly Resource[];
  /** There is no session of this VM: it begins anew. */
  begin(): void;
  /** RETRIEVE_FD of everything. When the guest has done its first write, the VMM calls {@link VmClient.running}. */
  restore(session: number): Work;
  /** PRESERVE_FD of everything but `without`, which it lets go of. The guest runs on. */
  preserve(session: number, without: readonly ResourceKind[]): Work;
  /** The session is about to be closed: the VM is ordinary again. Also after a `preserve` that failed or was given up. */
  unpreserve(): void;
  /** Stops the guest and saves its registers into what is preserved. */
  pause(): Work;
  /** The guest runs again. Also after a `pause` that failed or was given up. */
  resume(): void;
  /** Builds the ordinary chain of translations anew. Nothing to do without assigned devices. */
  rebuild(): Work;
  /** Moves the devices to what was rebuilt. */
  swap(): Work;
  /** The session is finished: its files are ordinary. */
  finished(): void;
}

export interface VmClientOptions {
  /** Of the VM, and of its session. */
  readonly name: string;
  /** Connects to the agent. @throws {KernelError} when there is none; it is tried again */
  readonly connect: () => Endpoint;
  readonly host: Pick<Host, "close" | "clockNs">;
  readonly callbacks: VmCallbacks;
  /** Between two attempts to connect or register; default 0.5 s. */
  readonly retryNs?: number;
}

const RETRY_NS = 5e8;
/** Asks that wait to be done. The agent has one or two out, and after a failure two that undo. */
const JOBS_MAX = 8;

interface Connection {
  readonly endpoint: Endpoint;
  channel: Channel | null;
  /** `refused`: the last attempt was; there will be another. */
  registration: "none" | "asked" | "refused" | "done";
  /** Our calls that are not answered, by id. */
  readonly calls: Map<number, "register" | "running" | "failed" | "resources">;
}

/** Something to do: what the agent asks, or what follows from its answer to the registration. */
interface Job {
  /** Of the ask; null: it is no answer that is waited for. */
  readonly id: number | null;
  readonly task: Ask | { readonly do: "begin" | "restore" };
  /** A session that came with it, until the job begins. */
  session: number | null;
  /** The rest of its work; undefined: not begun. */
  work: Work | undefined;
}

export class VmClient {
  readonly #options: VmClientOptions;
  readonly #retryNs: number;
  #state: RegisterState = "starting";
  /** Outgoing when `preserved` or `paused`, incoming when `restoring` or `restored`. */
  #session: number | null = null;
  #connection: Connection | null = null;
  #nextAttemptNs = Number.NEGATIVE_INFINITY;
  #lastCall = 0;
  /** In the order in which they came. */
  #jobs: Job[] = [];
  /** Steps of the restoration that are done: an agent that was started anew asks again. */
  readonly #done = new Set<Ask["do"]>();
  #ranAtNs: number | null = null;
  /** What `restore` failed with. */
  #failure: KernelError | null = null;
  #areResourcesTold = true;
  #problem: string | null = null;
  #update = 0;

  constructor(options: VmClientOptions) {
    this.#options = options;
    this.#retryNs = options.retryNs ?? RETRY_NS;
  }

  get state(): RegisterState {
    return this.#state;
  }

  /** Whether the agent knows the VM. */
  get isRegistered(): boolean {
    return this.#connection?.registration === "done";
  }

  /** Why it is not registered, or what else went wrong last; null when all is well. */
  get problem(): string | null {
    return this.#problem;
  }

  /** Updates begun since the cold boot, as the agent last said. */
  get update(): number {
    return this.#update;
  }

  /**
   * Does what has come from the agent, and a step of what is in work.
   *
   * @param timeoutNs - waits so long for the agent when there is nothing to do; 0: does not wait
   */
  turn(timeoutNs = 0): void {
    if (this.#connection === null && this.#isTime()) this.#connect();
    const connection = this.#connection;
    if (connection !== null) {
      const events = connection.endpoint.poll(this.#jobs.length === 0 ? timeoutNs : 0);
      for (const event of events) this.#receive(connection, event);
    }
    this.#tellAgent();
    this.#work();
  }

  /**
   * The guest has done its first write since `restore`.
   * @param atNs - when, on the machine's clock
   */
  running(atNs: number): void {
    if (this.#state !== "restoring") return;
    this.#state = "restored";
    this.#ranAtNs = atNs;
    this.#failure = null;
    this.#tellRestoration();
  }

  /** The resources are others than they were when they were last asked for. */
  resourcesChanged(): void {
    this.#areResourcesTold = false;
  }

  /**
   * The VM ends. That fails an update that is under way, as it must; a session of a restoration stays with the agent.
   */
  close(): void {
    this.#connection?.channel?.send(JSON.stringify({ id: ++this.#lastCall, call: "unregister" }));
    this.#disconnect(null);
    this.#closeSession();
  }

  #isTime(): boolean {
    return this.#options.host.clockNs() >= this.#nextAttemptNs;
  }

  #delayNextAttempt(): void {
    this.#nextAttemptNs = this.#options.host.clockNs() + this.#retryNs;
  }

  #connect(): void {
    this.#delayNextAttempt();
    try {
      const endpoint = this.#options.connect();
      this.#connection = { endpoint, channel: null, registration: "none", calls: new Map() };
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      this.#problem = error.message;
    }
  }

  /** Registers the VM, and tells what has changed since. */
  #tellAgent(): void {
    const { name, callbacks } = this.#options;
    const connection = this.#connection;
    if (connection === null || connection.channel === null) return;
    const { registration } = connection;
    if (registration === "none" || (registration === "refused" && this.#isTime())) {
      this.#delayNextAttempt();
      connection.registration = "asked";
      this.#areResourcesTold = true;
      const fields = { vm: name, state: this.#state, resources: callbacks.resources() };
      this.#call("register", fields, this.#session);
    } else if (registration === "done" && !this.#areResourcesTold && this.#isTime()) {
      this.#delayNextAttempt();
      this.#areResourcesTold = true;
      this.#call("resources", { resources: callbacks.resources() });
    }
  }

  #call(
    call: "register" | "running" | "failed" | "resources",
    fields: Readonly<Record<string, unknown>>,
    session: number | null = null,
  ): void {
    const id = ++this.#lastCall;
    this.#connection?.calls.set(id, call);
    this.#send({ id, call, ...fields }, session);
  }

  #send(message: Readonly<Record<string, unknown>>, session: number | null = null): void {
    const fds = session === null ? [] : [session];
    const line = JSON.stringify(session === null ? message : { ...message, fds: fds.length });
    if (this.#connection?.channel?.send(line, fds) === false)
      this.#disconnect("the agent does not take messages");
  }

  #receive(connection: Connection, event: EndpointEvent): void {
    if (this.#connection !== connection) {
      // What came before the connection was given up.
      if (event.kind === "line") this.#closeAll(event.fds);
    } else if (event.kind === "open") connection.channel = event.channel;
    else if (event.kind === "closed")
      this.#disconnect(event.reason ?? "the agent closed the connection");
    else {
      try {
        this.#message(connection, decodeAgentMessage(event.line), event.fds);
      } catch (error) {
        this.#closeAll(event.fds);
        if (!(error instanceof KernelError)) throw error;
        this.#disconnect(error.message);
      }
    }
  }

  /** @throws {KernelError} EPROTO when it is not what the protocol has; the descriptors are still the caller's then */
  #message(connection: Connection, message: AgentMessage, fds: readonly number[]): void {
    const call = "id" in message ? connection.calls.get(message.id) : undefined;
    const [session = null, ...others] = fds;
    const mayHaveSession =
      (message.kind === "ask" && message.ask.do === "preserve") ||
      (message.kind === "result" && call === "register");
    if (others.length > 0 || (session !== null && !mayHaveSession))
      throw protocolError(`${fds.length} descriptors came with a message that has none`);
    switch (message.kind) {
      case "ask":
        if (this.#jobs.length >= JOBS_MAX)
          throw protocolError(`${JOBS_MAX} asks are out, no more are taken`);
        if (message.ask.do === "preserve" && session === null)
          throw protocolError("no session came with an ask to preserve");
        this.#jobs.push({ id: message.id, task: message.ask, session, work: undefined });
        return;
      case "refused":
        this.#answer(message.id, message.error);
        return;
      case "event":
        return;
      case "error":
        if (message.id === CONNECTION_ID) {
          this.#disconnect(message.error.message);
          return;
        }
        connection.calls.delete(message.id);
        this.#problem = message.error.message;
        if (call === "register") connection.registration = "refused";
        else if (call === "resources" && message.error.code === "EBUSY") this.resourcesChanged();
        return;
      case "result":
        connection.calls.delete(message.id);
        if (call === "register") this.#registered(connection, message.result, session);
    }
  }

  #registered(connection: Connection, value: unknown, session: number | null): void {
    const result = decodeRegisterResult(value);
    if ((result.session === null) !== (session === null))
      throw protocolError("descriptors and result of the registration do not agree");
    if (session !== null && this.#state !== "starting")
      throw protocolError(`a session came for a VM that is ${this.#state}`);
    connection.registration = "done";
    this.#update = result.update;
    this.#problem = null;
    if (session !== null) {
      this.#session = session;
      this.#state = "restoring";
      this.#jobs.push({ id: null, task: { do: "restore" }, session: null, work: undefined });
    } else if (this.#state === "starting") {
      this.#state = "running";
      this.#jobs.push({ id: null, task: { do: "begin" }, session: null, work: undefined });
    } else this.#tellRestoration();
  }

  /** What the agent does not know of, or an agent before it was told. */
  #tellRestoration(): void {
    if (!this.isRegistered) return;
    if (this.#ranAtNs !== null) this.#call("running", { atNs: this.#ranAtNs });
    else if (this.#failure !== null) this.#call("failed", { error: encodeError(this.#failure) });
  }

  /** Does jobs until one has more to do in the next turn. */
  #work(): void {
    for (let job = this.#jobs[0]; job !== undefined; job = this.#jobs[0]) {
      let failure: KernelError | null = null;
      try {
        if (job.work === undefined) job.work = this.#begin(job);
        if (job.work !== null && !job.work()) return;
        this.#end(job);
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
        failure = error;
      }
      // A callback may have found out that the agent is gone: then the job is, too.
      if (this.#jobs[0] !== job) continue;
      this.#jobs.shift();
      if (job.id !== null) this.#answer(job.id, failure);
      else if (failure !== null) {
        this.#problem = failure.message;
        if (job.task.do === "restore") this.#failure = failure;
        this.#tellRestoration();
      }
    }
  }

  #begin(job: Job): Work {
    const { callbacks } = this.#options;
    const { task } = job;
    switch (task.do) {
      case "begin":
        callbacks.begin();
        return null;
      case "restore":
        return callbacks.restore(this.#expect("restore", "restoring"));
      case "preserve": {
        if (this.#state !== "running" || job.session === null) {
          this.#closeJobSession(job);
          throw this.#notNow("preserve");
        }
        this.#session = job.session;
        job.session = null;
        this.#state = "preserved";
        return callbacks.preserve(this.#session, task.without);
      }
      case "pause":
        this.#expect("pause", "preserved");
        this.#state = "paused";
        return callbacks.pause();
      case "resume":
        this.#resume();
        return null;
      case "unpreserve":
        this.#unpreserve();
        return null;
      case "rebuild":
      case "swap":
        this.#expect(task.do, "restored");
        return this.#done.has(task.do) ? null : callbacks[task.do]();
      case "finished":
        this.#expect("finished", "restored");
        callbacks.finished();
        return null;
    }
  }

  #end(job: Job): void {
    const task = job.task.do;
    if (task === "rebuild" || task === "swap") this.#done.add(task);
    if (task !== "finished") return;
    this.#closeSession();
    this.#done.clear();
    this.#ranAtNs = null;
    this.#state = "running";
  }

  /** @returns the session that the VM has in this state */
  #expect(task: string, state: RegisterState): number {
    if (this.#state !== state || this.#session === null) throw this.#notNow(task);
    return this.#session;
  }

  #notNow(task: string): KernelError {
    return new KernelError("EINVAL", task, `the VM "${this.#options.name}" is ${this.#state}`);
  }

  #resume(): void {
    if (this.#state !== "paused") return;
    this.#state = "preserved";
    this.#options.callbacks.resume();
  }

  #unpreserve(): void {
    this.#resume();
    if (this.#state !== "preserved") return;
    this.#state = "running";
    this.#options.callbacks.unpreserve();
    this.#closeSession();
  }

  #answer(ask: number, failure: KernelError | null): void {
    if (failure === null) this.#send({ answer: ask, result: {} });
    else this.#send({ answer: ask, error: encodeError(failure) });
  }

  /** The agent is gone, or not to be talked to: what it has begun and cannot end is undone. */
  #disconnect(reason: string | null): void {
    this.#connection?.endpoint.close();
    this.#connection = null;
    this.#problem = reason;
    this.#delayNextAttempt();
    for (const job of this.#jobs) this.#closeJobSession(job);
    this.#jobs = this.#jobs.filter((job) => job.id === null);
    this.#unpreserve();
  }

  #closeSession(): void {
    if (this.#session !== null) this.#options.host.close(this.#session);
    this.#session = null;
  }

  #closeJobSession(job: Job): void {
    if (job.session !== null) this.#options.host.close(job.session);
    job.session = null;
  }

  #closeAll(fds: readonly number[]): void {
    for (const fd of fds) this.#options.host.close(fd);
  }
}

function protocolError(message: string): KernelError {
  return new KernelError("EPROTO", "message of the agent", message);
}
