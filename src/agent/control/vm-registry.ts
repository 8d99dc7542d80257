/**
 * The VMs that an agent knows, by name: who may have one, who has it, and what becomes of it when its VMM ends.
 *
 * Invariants: at most one VMM has a VM. A session that an update carried goes to a VMM of its owner's user only, and never
 * to one after its guest has run, or while the VMM that had it before may live. A descriptor that is handed in is a session of that VM, or closed.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import type { Host } from "../../host/host.ts";
import { getName } from "../../host/liveupdate.ts";
import type { Restoration } from "../restoration.ts";
import { type PastVm, VMS_MAX } from "./agent-state.ts";
import type { Client } from "./client.ts";
import type { RegisterState, Request } from "./protocol.ts";
import { RemoteVm, type Waiter } from "./remote-vm.ts";
import { VmEntry } from "./vm-entry.ts";

/** Each process measures on its own how far the kernel's clock is from that which goes on through a kexec. */
const CLOCK_SKEW_NS = 1e9;

/** Who else keeps copies of sessions, so that they outlive the agent's process: a service manager. */
export interface Custody {
  /** @param session - stays the agent's */
  keep(name: string, session: number): void;
  release(name: string): void;
}

export interface RegistryOptions {
  readonly host: Host;
  readonly waiter: Waiter;
  readonly restoration: Restoration;
  readonly custody: Custody | null;
  /**
   * Whether a descriptor that came from somebody is a session, as far as can be told without a call that its file answers:
   * such a call could do anything, in the agent's name.
   */
  readonly isSession: (fd: number) => boolean;
  /** Whether a process has ended for certain: a VMM that has lost its connection may still run its guest. */
  readonly hasEnded: (pid: number) => boolean;
  /** What became of the VMs of the last update is not known: a state or a journal could not be read. */
  readonly isPastUnknown: boolean;
}

type Registration = Extract<Request, { call: "register" }>;

export class VmRegistry {
  readonly #options: RegistryOptions;
  readonly #entries = new Map<string, VmEntry>();
  /** By their VMMs. */
  readonly #vms = new Map<Client, RemoteVm>();

  constructor(options: RegistryOptions, past: readonly PastVm[]) {
    this.#options = options;
    for (const vm of past) this.#entries.set(vm.name, VmEntry.ofPast(vm));
  }

  /** By name. */
  get entries(): readonly VmEntry[] {
    return [...this.#entries.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** VMs whose VMMs are connected. */
  get vms(): readonly RemoteVm[] {
    return this.entries.flatMap(({ client }) => (client && this.#vms.get(client)) ?? []);
  }

  /** Forgets ordinary VMs whose VMMs have ended. */
  forgetEnded(): void {
    const { hasEnded, waiter } = this.#options;
    for (const entry of this.#entries.values()) {
      if (entry.state !== "absent" || entry.holderPid === null || !hasEnded(entry.holderPid))
        continue;
      this.#entries.delete(entry.name);
      waiter.changed(entry);
    }
  }

  /** Says of each VM what its VMM has not answered in time. */
  noteOverdue(): void {
    for (const { entry, overdue } of this.vms.map((vm) => ({
      entry: vm.entry,
      overdue: vm.overdue(),
    }))) {
      if (overdue === null || entry.problem !== null) continue;
      entry.problem = `its VMM has not answered "${overdue}" in time`;
      this.#options.waiter.changed(entry);
    }
  }

  /** The VM whose VMM a client is; null: none. */
  vmOf(client: Client): RemoteVm | null {
    return this.#vms.get(client) ?? null;
  }

  /** What must not be forgotten of them. */
  get past(): readonly PastVm[] {
    return this.entries.map((entry) => entry.past);
  }

  /** How many VMs of the last update are back. */
  get restored(): number {
    return this.#options.restoration.vms.filter(({ state }) => state === "finished").length;
  }

  get hasUnrestored(): boolean {
    return this.entries.some((entry) => entry.isUnrestored);
  }

  /** Why there can be no update as things are. */
  get blockers(): readonly string[] {
    this.forgetEnded();
    return this.entries.flatMap(({ name, state, holderPid, problem }) => {
      const why = problem === null ? "" : ` (${problem})`;
      if (state === "absent")
        return `${name}: its VMM (pid ${holderPid ?? "not known"}) is not connected${why}, and would end with this kernel: it comes back, or ends`;
      if (state === "undoing")
        return `${name}: its VMM has not undone the last update${why}: wait for it, or end it`;
      return [];
    });
  }

  /**
   * Makes a client the VMM of a VM.
   *
   * @param handedIn - a session, or null; the registry's from here on
   * @returns the VM, and the incoming session that it restores itself from, which stays the registry's
   * @throws {KernelError} EINVAL the client has a VM, or what is handed in is not the VM's session; EEXIST another client has
   *   the VM; EACCES it is another user's; EBUSY the last update's VM of that name is in the way; ENOSPC there are too many
   *   VMs; what RETRIEVE_SESSION throws
   */
  register(
    client: Client,
    { vm: name, resources, state }: Registration,
    handedIn: number | null,
  ): { vm: RemoteVm; session: number | null } {
    const { host, waiter } = this.#options;
    return withUndo((undo) => {
      if (handedIn !== null) undo(() => host.close(handedIn));
      const entry = this.#entryFor(client, name);
      const session = this.#take(entry, state, handedIn);
      const vm = new RemoteVm(waiter, client, entry);
      this.#vms.set(client, vm);
      client.isVmm = true;
      entry.client = client;
      entry.resources = resources;
      // 0: a process that this one does not see, of which nothing is ever known.
      entry.holderPid = client.pid === 0 ? null : client.pid;
      entry.problem = null;
      this.#entries.set(name, entry);
      waiter.changed(entry);
      return { vm, session };
    });
  }

  /**
   * A VM has no VMM any more.
   *
   * @param isLetGo - the VMM has said so; else it may live on, without a connection
   */
  leave(vm: RemoteVm, reason: string, isLetGo: boolean): void {
    const { entry, client } = vm;
    this.#vms.delete(client);
    client.isVmm = false;
    entry.client = null;
    vm.gone(reason);
    if (isLetGo) entry.holderPid = null;
    switch (entry.state) {
      case "restoring":
        entry.state = "incoming";
        entry.problem ??= `its VMM (${client.name}) left before its guest ran: ${reason}`;
        break;
      case "restored":
        entry.state = "lost";
        entry.problem = `its VMM (${client.name}) left after its guest had run and before its session was finished: ${reason}`;
        break;
      default:
        entry.state = "absent";
        entry.problem = reason;
        if (isLetGo) this.#entries.delete(entry.name);
    }
    this.#options.waiter.changed(entry);
  }

  /**
   * The guest of a VM runs out of its session.
   * @throws {KernelError} EINVAL it has no session, or `atNs` cannot be
   */
  running({ entry }: RemoteVm, atNs: number): void {
    if (entry.state !== "restoring" && entry.state !== "restored")
      throw new KernelError("EINVAL", "running", `${entry.name} is ${entry.state}`);
    entry.blackoutNs = this.#options.restoration.running(
      entry.name,
      this.#within(entry.name, atNs),
    );
    entry.state = "restored";
    entry.problem = null;
    this.#options.waiter.changed(entry);
  }

  /** A time that is off by no more than two processes' clocks may be, brought to where it can be. */
  #within(name: string, atNs: number): number {
    const { restoration, host } = this.#options;
    const firstNs = restoration.vm(name)?.pausedAtNs ?? 0;
    const nowNs = host.clockNs();
    const nearest = Math.max(Math.min(atNs, nowNs), Math.min(firstNs, nowNs));
    return Math.abs(nearest - atNs) <= CLOCK_SKEW_NS ? nearest : atNs;
  }

  /** Finishes the session of a VM whose guest runs. @throws {KernelError} EBUSY, as FINISH */
  finish(name: string): void {
    const { restoration, custody } = this.#options;
    restoration.finish(name);
    custody?.release(name);
  }

  /**
   * Gives a VM up that nobody has: frees what is preserved of it.
   * @throws {KernelError} ENOENT there is none; EBUSY a VMM has it, connected or not, or its session cannot be finished
   */
  abandon(name: string): void {
    const { restoration, custody } = this.#options;
    const entry = this.#entries.get(name);
    if (entry === undefined) throw new KernelError("ENOENT", "abandon", `there is no VM "${name}"`);
    if (entry.client !== null)
      throw new KernelError(
        "EBUSY",
        "abandon",
        `${entry.client.name} is the VMM of ${name}, which is ${entry.state}: end it first`,
      );
    if (this.#mayBeHeld(entry))
      throw new KernelError(
        "EBUSY",
        "abandon",
        `pid ${entry.holderPid} has ${name}, if without a connection: end it first`,
      );
    if (entry.isUnrestored && !this.#isGone(name)) {
      if (restoration.vm(name)?.state === "running") restoration.finish(name);
      else restoration.abandon(name);
    }
    custody?.release(name);
    this.#entries.delete(name);
    this.#options.waiter.changed(entry);
  }

  /**
   * Takes a session over that an agent before this one had in custody.
   * @throws {KernelError} EINVAL it is not the session of a VM that came through the last update; then it is closed
   */
  adopt(name: string, session: number): void {
    withUndo((undo) => {
      undo(() => this.#options.host.close(session));
      const entry = this.#entries.get(name);
      if (entry?.isUnrestored !== true)
        throw new KernelError("EINVAL", "adopt", `no VM "${name}" of the last update is left`);
      this.#adopt(entry, session);
    });
  }

  /** @throws {KernelError} as {@link register} */
  #entryFor(client: Client, name: string): VmEntry {
    const own = this.#vms.get(client);
    if (own !== undefined)
      throw refused("EINVAL", `this connection has the VM ${own.name}; a VM has its own`);
    const found = this.#entries.get(name);
    if (found === undefined) {
      if (this.#entries.size >= VMS_MAX)
        throw refused("ENOSPC", `${VMS_MAX} VMs are registered; no more are taken`);
      return new VmEntry(name, client.uid, "running");
    }
    if (found.client !== null)
      throw refused("EEXIST", `${name} is registered already, by ${found.client.name}`);
    if (found.ownerUid !== null && client.uid !== found.ownerUid)
      throw refused("EACCES", `${name} belongs to uid ${found.ownerUid}, not to ${client.name}`);
    const { holderPid } = found;
    if (holderPid !== client.pid && this.#mayBeHeld(found))
      throw refused(
        "EEXIST",
        `pid ${holderPid} was the VMM of ${name}, and lives, if without a connection: it comes back or ends first`,
      );
    return found;
  }

  /** Whether a VMM without a connection may have it. */
  #mayBeHeld({ holderPid }: VmEntry): boolean {
    return holderPid !== null && !this.#options.hasEnded(holderPid);
  }

  /** Brings together what a VMM says and what the agent knows. @returns the session that the VMM gets */
  #take(entry: VmEntry, state: RegisterState, handedIn: number | null): number | null {
    const { name } = entry;
    const hasRun = entry.state === "restored" || entry.state === "lost";
    switch (state) {
      case "starting": {
        if (hasRun) throw inTheWay(entry);
        if (!entry.isUnrestored && !this.#mayBeUnrestored(entry)) break;
        const session = this.#retrieve(name);
        entry.state = "restoring";
        return session;
      }
      case "running":
        // Or an agent before this one has finished it, and ended before it could write that down.
        if (entry.isUnrestored && !this.#isGone(name)) throw inTheWay(entry);
        break;
      case "preserved":
      case "paused":
        if (entry.isUnrestored) throw inTheWay(entry);
        if (handedIn !== null) this.#checkName(name, handedIn);
        if (handedIn !== null) this.#options.host.close(handedIn);
        break;
      case "restoring":
      case "restored":
        if (hasRun && state === "restoring") throw inTheWay(entry);
        if (handedIn !== null) this.#adopt(entry, handedIn);
        entry.state = state;
        return null;
    }
    entry.state = "running";
    return null;
  }

  /** @throws {KernelError} as {@link Restoration.retrieve} */
  #retrieve(name: string): number {
    const { restoration, custody } = this.#options;
    const session = restoration.retrieve(name);
    custody?.keep(name, session);
    return session;
  }

  /** As {@link Restoration.isGone}; what is retrieved by that is given in custody: with its last descriptor memory would go. */
  #isGone(name: string): boolean {
    const { restoration } = this.#options;
    if (restoration.isGone(name)) return true;
    if (restoration.vm(name)?.state !== "waiting") this.#retrieve(name);
    return false;
  }

  /** Whether there may be a session of a VM that nothing is known of. @throws {KernelError} EACCES only root finds out */
  #mayBeUnrestored(entry: VmEntry): boolean {
    const { isPastUnknown, restoration } = this.#options;
    const { name, ownerUid } = entry;
    if (!isPastUnknown || this.#entries.has(name)) return false;
    if (ownerUid !== null && ownerUid !== 0)
      throw refused(
        "EACCES",
        `whether ${name} came through the last update, and whose it was, is not known, since the agent's state or journal could not be read: only root's VMMs find out (without the agent's state file, an agent that is started anew takes all for new)`,
      );
    // Found out before, for a VMM that has ended since.
    if (restoration.vm(name) !== null) return false;
    restoration.admit({ name, ownerUid, pausedAtNs: 0 });
    return !this.#isGone(name);
  }

  #adopt(entry: VmEntry, session: number): void {
    const { restoration, custody, host } = this.#options;
    const { name, ownerUid } = entry;
    this.#checkName(name, session);
    // Retrieved before an agent lost its state; it stays with whom it is.
    if (restoration.vm(name) === null) restoration.admit({ name, ownerUid, pausedAtNs: 0 });
    if (restoration.vm(name)?.state !== "waiting") {
      host.close(session);
      return;
    }
    restoration.adopt(name, session);
    custody?.keep(name, session);
  }

  /** @throws {KernelError} EINVAL it is no session of that name */
  #checkName(name: string, fd: number): void {
    const { host, isSession } = this.#options;
    if (!isSession(fd)) throw refused("EINVAL", `what was handed in for ${name} is no session`);
    const found = getName(host, fd);
    if (found !== name)
      throw refused("EINVAL", `what was handed in for ${name} is the session "${found}"`);
  }
}

function refused(code: "EINVAL" | "EEXIST" | "EACCES" | "EBUSY" | "ENOSPC", why: string) {
  return new KernelError(code, "register", why);
}

function inTheWay({ name, state }: VmEntry): KernelError {
  return refused(
    "EBUSY",
    state === "incoming" || state === "restoring"
      ? `${name} came out of the last update, and its session waits: its VMM takes it ("starting") or it is abandoned`
      : `${name} has run after the last update, so that its session does not fit its guest any more: it is abandoned to begin anew`,
  );
}
