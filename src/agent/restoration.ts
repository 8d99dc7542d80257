/**
 * The way back of the VMs that one update carried, VM by VM, each step when its VM asks for it.
 *
 * Why: on Linux VMs are processes that come back in any order, or never, and the agent itself may have ended meanwhile. What
 * is irrevocable is done once and on demand only: retrieving (closing a retrieved session is FINISH, which discards what
 * nobody took out of it) and giving a VM up.
 * Lifecycle: waiting → `retrieve` (or `adopt`, of a session that another process holds) → retrieved → `running` → running
 *   → `rebuild`, `swap` of VMs with an IOMMU → `finish` → finished. `abandon` ends a VM that does not run.
 * @module
 */
import { isKernelError, KernelError } from "../base/errno.ts";
import type { Host } from "../host/host.ts";
import { finish, getName, retrieveFd } from "../host/liveupdate.ts";
import type { RestoredVm } from "../vmm/managed-vm.ts";
import type { VmRecord } from "./journal.ts";
import type { LiveUpdateDevice } from "./live-update-device.ts";
import { retry } from "./retry.ts";

export type RestorationState = "waiting" | "retrieved" | "running" | "finished" | "abandoned";

/** How far a VM has come back; times on the host's clock, null for what has not happened. */
export interface VmRestoration extends VmRecord {
  readonly state: RestorationState;
  readonly retrievedAtNs: number | null;
  /** First step of its guest. */
  readonly runningAtNs: number | null;
  /** How long it stood still; null also where that cannot be told. */
  readonly blackoutNs: number | null;
  readonly finishedAtNs: number | null;
}

interface Entry extends VmRecord {
  state: RestorationState;
  retrievedAtNs: number | null;
  runningAtNs: number | null;
  blackoutNs: number | null;
  finishedAtNs: number | null;
  /** Its descriptor, from retrieved on until finished. */
  session: number | null;
}

const OP = "restore";
/** A token that no VM uses, to ask a session what it is. */
const NO_TOKEN = 0xffff_ffff_ffff_ffffn;

export class Restoration {
  readonly #host: Host;
  readonly #device: LiveUpdateDevice;
  readonly #entries: Map<string, Entry>;

  /** @param settled - names of those that were finished or abandoned by an agent before this one */
  constructor(
    host: Host,
    device: LiveUpdateDevice,
    vms: readonly VmRecord[],
    settled: readonly string[] = [],
  ) {
    this.#host = host;
    this.#device = device;
    this.#entries = new Map(
      vms.map((vm) => [vm.name, newEntry(vm, settled.includes(vm.name) ? "finished" : "waiting")]),
    );
  }

  /** All VMs, in the journal's order. */
  get vms(): readonly VmRestoration[] {
    return [...this.#entries.values()].map(withoutSession);
  }

  /** Those that are neither finished nor abandoned. */
  get left(): readonly VmRestoration[] {
    return this.vms.filter(({ state }) => state !== "finished" && state !== "abandoned");
  }

  /** How far a VM has come; null when the update did not carry it. */
  vm(name: string): VmRestoration | null {
    const entry = this.#entries.get(name);
    return entry === undefined ? null : withoutSession(entry);
  }

  /**
   * Takes in a VM that the journal does not name: of an update whose journal is lost.
   * @param vm - its `pausedAtNs` is 0 when that is not known
   * @throws {KernelError} EEXIST the VM is there
   */
  admit(vm: VmRecord): void {
    if (this.#entries.has(vm.name))
      throw new KernelError("EEXIST", OP, `the last update carried "${vm.name}"`);
    this.#entries.set(vm.name, newEntry(vm, "waiting"));
  }

  /**
   * Whether a VM's session is there no more: whoever retrieved it before this agent has finished it, or has ended. The VM is
   * finished then. The kernel is asked by retrieving: a session that nobody has is this object's afterwards.
   * @throws {KernelError} ENOENT the update did not carry such a VM; EINVAL it is finished or abandoned; EMFILE
   */
  isGone(name: string): boolean {
    try {
      this.retrieve(name);
      return false;
    } catch (error) {
      if (isKernelError(error, "EBUSY")) return false;
      if (!isKernelError(error, "ENOENT")) throw error;
    }
    this.#unsettled(name).state = "finished";
    return true;
  }

  /**
   * The session of a VM, for the VM to take its files out of. It is retrieved from the kernel the first time; later calls
   * give the same descriptor, for a VM that starts over.
   *
   * @returns its descriptor, which stays this object's
   * @throws {KernelError} ENOENT the update did not carry such a VM, or the kernel has no such session; EBUSY another process
   *   holds the session: it must be handed in (`adopt`); EINVAL it is finished or abandoned
   */
  retrieve(name: string): number {
    const entry = this.#unsettled(name);
    if (entry.session !== null) return entry.session;
    try {
      entry.session = retry(() => this.#device.retrieve(name));
    } catch (error) {
      if (!isKernelError(error, "EINVAL")) throw error;
      const detail = `session "${name}" is retrieved already: the process that holds it must hand it in`;
      throw new KernelError("EBUSY", OP, detail, { cause: error });
    }
    entry.state = "retrieved";
    entry.retrievedAtNs = this.#host.clockNs();
    return entry.session;
  }

  /**
   * Takes over the descriptor of a session that an agent before this one retrieved.
   *
   * @param session - untrusted; this object's from here on unless the call fails
   * @throws {KernelError} ENOENT, EINVAL as {@link retrieve}; EINVAL it is not the retrieved session of that VM; EEXIST the
   *   session is here already; what the kernel says to a file that is no session: ENOTTY, EBADF
   */
  adopt(name: string, session: number): void {
    const entry = this.#unsettled(name);
    if (entry.session !== null)
      throw new KernelError("EEXIST", OP, `session "${name}" is here already`);
    const found = getName(this.#host, session);
    if (found !== name)
      throw new KernelError("EINVAL", OP, `it is session "${found}", not "${name}"`);
    this.#checkRetrieved(name, session);
    entry.session = session;
    entry.state = "retrieved";
    entry.retrievedAtNs = this.#host.clockNs();
  }

  /**
   * The guest of a VM runs again.
   *
   * @param atNs - when it did its first step, on the host's clock
   * @returns how long it stood still, in nanoseconds; null when that cannot be told: the clock has not gone on from
   *   the old kernel's, or the VM was admitted
   * @throws {KernelError} ENOENT, EINVAL as {@link retrieve}; EINVAL its session is not retrieved, or the time is not between
   *   its last step in the old kernel and now
   */
  running(name: string, atNs: number): number | null {
    const entry = this.#unsettled(name);
    if (entry.session === null)
      throw new KernelError("EINVAL", OP, `"${name}" cannot run: nobody has retrieved its session`);
    const nowNs = this.#host.clockNs();
    // Where the clock begins anew with each kernel, it passes by the old one's times again.
    const bootedAtNs = this.#host.bootedAtNs ?? nowNs;
    const goesOn = entry.pausedAtNs > 0 && bootedAtNs >= entry.pausedAtNs;
    const firstNs = goesOn ? entry.pausedAtNs : 0;
    if (!(atNs >= firstNs && atNs <= nowNs))
      throw new KernelError(
        "EINVAL",
        OP,
        `"${name}" cannot have run at ${atNs} ns: that is not from ${firstNs} ns to ${nowNs} ns`,
      );
    entry.state = "running";
    // What starts over was stopped for another reason than the update.
    if (entry.runningAtNs === null) {
      entry.runningAtNs = atNs;
      entry.blackoutNs = goesOn ? atNs - entry.pausedAtNs : null;
    }
    return entry.blackoutNs;
  }

  /** Builds the ordinary chain of a VM anew; one without an iommufd has none. Again is fine. @throws {KernelError} what the VM throws */
  rebuild(vm: RestoredVm): void {
    if (hasIommufd(vm)) retry(() => vm.rebuild());
  }

  /** Moves a VM's devices to its rebuilt chain. Again is fine. @throws {KernelError} what the VM throws */
  swap(vm: RestoredVm): void {
    if (hasIommufd(vm)) retry(() => vm.swap());
  }

  /**
   * Ends the session of a VM that runs: it is ordinary from here on.
   * @throws {KernelError} ENOENT, EINVAL as {@link retrieve}; EBUSY the VM has not said that it runs, or has not given up all
   *   that the session holds: nothing has changed
   */
  finish(name: string): void {
    const entry = this.#unsettled(name);
    if (entry.state !== "running" || entry.session === null)
      throw new KernelError(
        "EBUSY",
        OP,
        `"${name}" is ${entry.state}: to finish it now would discard what it has not taken out of its session`,
      );
    this.#end(entry, entry.session, "finished");
  }

  /**
   * Gives a VM up that does not run: its session is retrieved if need be and finished, so that its memory is freed.
   * @throws {KernelError} ENOENT, EINVAL, EBUSY as {@link retrieve}; EBUSY it runs, or its session cannot be finished: nothing
   *   has changed, but that the session is retrieved
   */
  abandon(name: string): void {
    const entry = this.#unsettled(name);
    if (entry.state === "running")
      throw new KernelError("EBUSY", OP, `"${name}" runs: it cannot be given up`);
    this.#end(entry, this.retrieve(name), "abandoned");
  }

  #end(entry: Entry, session: number, state: "finished" | "abandoned"): void {
    retry(() => finish(this.#host, session));
    this.#host.close(session);
    entry.session = null;
    entry.state = state;
    entry.finishedAtNs = this.#host.clockNs();
  }

  #unsettled(name: string): Entry {
    const entry = this.#entries.get(name);
    if (entry === undefined)
      throw new KernelError("ENOENT", OP, `the last update did not carry a VM "${name}"`);
    if (entry.state === "finished" || entry.state === "abandoned")
      throw new KernelError("EINVAL", OP, `"${name}" is ${entry.state} already`);
    return entry;
  }

  /** RETRIEVE_FD is EINVAL of a session that was created, and ENOENT of a token that no file has. */
  #checkRetrieved(name: string, session: number): void {
    try {
      this.#host.close(retrieveFd(this.#host, session, NO_TOKEN));
    } catch (error) {
      if (isKernelError(error, "ENOENT")) return;
      if (!isKernelError(error, "EINVAL")) throw error;
      throw new KernelError("EINVAL", OP, `session "${name}" is one that goes to the next kernel`, {
        cause: error,
      });
    }
  }
}

function withoutSession({ session: _, ...vm }: Entry): VmRestoration {
  return vm;
}

function newEntry(vm: VmRecord, state: RestorationState): Entry {
  return {
    ...vm,
    state,
    retrievedAtNs: null,
    runningAtNs: null,
    blackoutNs: null,
    finishedAtNs: null,
    session: null,
  };
}

function hasIommufd(vm: RestoredVm): boolean {
  return vm.resources().some(({ kind }) => kind === "iommufd");
}
