/**
 * The orchestrator of live updates: preflight, load, preserve, pause, jump; then, in the next kernel, restore,
 * rebuild, swap, finish. Everything before the jump can be rolled back, and is when a step fails.
 *
 * Lifecycle: an `Agent` for the ordinary life of a host; `update()` ends in the jump or throws with everything as it
 * was. In the next kernel `Agent.takeOver()` finds the journal in preserved memory, and `restore()` brings the
 * machines back: each runs as soon as its memory and registers are there; the rest is off the critical path.
 * @module
 */

import { LINUX_REBOOT_CMD_KEXEC } from "../abi/uapi/reboot.ts";
import { KernelError } from "../base/errno.ts";
import { withUndo } from "../base/undo.ts";
import type { Host } from "../host/host.ts";
import {
  createSession,
  finish,
  preserveFd,
  retrieveFd,
  retrieveSession,
} from "../host/liveupdate.ts";
import { MemfdRecord } from "../host/memfd-record.ts";
import type { ManagedVm, Pending, RestoredVm } from "../vmm/managed-vm.ts";
import {
  AGENT_SESSION,
  decodeJournal,
  JOURNAL_FORMAT,
  JOURNAL_SLOT_BYTES,
  JOURNAL_TOKEN,
  type Journal,
  type PhaseRecord,
} from "./journal.ts";
import { type Preflight, preflight } from "./preflight.ts";

/** Attempts at a step of the restoration that may be repeated. */
const ATTEMPTS = 3;

/** A VM that could not be brought back, and why. The others are not touched by it. */
export interface RestoreFailure {
  readonly vm: string;
  readonly phase: string;
  readonly error: KernelError;
}

export interface RestoreResult<V extends RestoredVm> {
  /** Those that run. */
  readonly vms: readonly V[];
  readonly failures: readonly RestoreFailure[];
}

/** What {@link Agent.restore} needs of whoever knows the VMs. */
export interface Restorer<V extends RestoredVm> {
  /** Retrieves a VM from its session, ready to run. */
  open(session: number, name: string): V;
  /** A VM has done its first step: `blackoutNs` after its last one in the old kernel. */
  running(vm: V, blackoutNs: number): void;
  /** Lets everything that runs go on for a short while: called between the steps that are off the critical path. */
  runOthers(vms: readonly V[]): void;
}

/** Told of each phase as it ends. */
export type PhaseObserver = (phase: PhaseRecord) => void;

export class Agent {
  readonly #host: Host;
  readonly #liveUpdate: number;
  readonly #observe: PhaseObserver;
  #update: number;
  #phases: PhaseRecord[] = [];
  /** Sessions that could not be finished, by VM. */
  readonly #unfinished = new Map<string, number>();

  private constructor(host: Host, liveUpdate: number, update: number, observe: PhaseObserver) {
    this.#host = host;
    this.#liveUpdate = liveUpdate;
    this.#update = update;
    this.#observe = observe;
  }

  /**
   * The agent of a host that was booted cold.
   * @throws {KernelError} EBUSY when another agent has /dev/liveupdate open; ENOENT when the kernel has no live update
   */
  static start(host: Host, observe: PhaseObserver): Agent {
    return new Agent(host, host.open("/dev/liveupdate", 0), 0, observe);
  }

  /**
   * The agent of a host that came out of a live update.
   *
   * @returns the agent and the journal of the one before it; or null when no agent preserved one
   * @throws {KernelError} as `start`; EIO when the journal is damaged (the message names the field) or of a format that this agent does not know
   */
  static takeOver(host: Host, observe: PhaseObserver): { agent: Agent; journal: Journal } | null {
    return withUndo((undo) => {
      const liveUpdate = host.open("/dev/liveupdate", 0);
      undo(() => host.close(liveUpdate));
      let session: number;
      try {
        session = retrieveSession(host, liveUpdate, AGENT_SESSION);
      } catch (error) {
        if (!(error instanceof KernelError) || error.code !== "ENOENT") throw error;
        host.close(liveUpdate);
        return null;
      }
      undo(() => host.close(session));
      const fd = retrieveFd(host, session, JOURNAL_TOKEN);
      undo(() => host.close(fd));
      const journal = decodeJournal(MemfdRecord.open<unknown>(host, fd).read());
      // Giving up here would lose the names of all VMs.
      retry(() => finish(host, session));
      host.close(session);
      host.close(fd);
      const agent = new Agent(host, liveUpdate, journal.update, observe);
      agent.#phases = [...journal.phases];
      return { agent, journal };
    });
  }

  /** Updates begun since the cold boot. */
  get updates(): number {
    return this.#update;
  }

  /** Phases of the update that is under way or was the last. */
  get phases(): readonly PhaseRecord[] {
    return this.#phases;
  }

  /** What {@link update} would do, and what stands in its way. Changes nothing. */
  preflight(vms: readonly ManagedVm[], image: string): Preflight {
    return preflight(this.#host, vms, image);
  }

  /**
   * Replaces the kernel. Does not return: the next thing that runs is the next kernel.
   *
   * @param image - path of the image, "/boot/NAME"
   * @param userData - found again in the journal
   * @throws {KernelError} when a step before the jump fails: EOPNOTSUPP for what preflight finds; everything is rolled
   *   back and the VMs run on
   */
  update(
    vms: readonly ManagedVm[],
    image: string,
    commandLine: string,
    userData: unknown = null,
  ): never {
    const host = this.#host;
    const before = { update: this.#update, phases: this.#phases };
    this.#update++;
    this.#phases = [];
    try {
      return withUndo((undo): never => {
        const check = this.#phase("preflight", () => this.preflight(vms, image));
        if (check.blockers.length > 0)
          throw new KernelError("EOPNOTSUPP", "update", check.blockers.join("; "));
        this.#phase("load", () => host.kexecFileLoad(image, null, commandLine));
        undo(() => host.kexecUnload());

        const journal = this.#phase("preserve", () => this.#preserve(vms, undo));
        const pausedAtNs = new Map<string, number>();
        this.#phase("pause", () => {
          const paused: Pending[] = [];
          for (const vm of vms) {
            pausedAtNs.set(vm.name, host.clockNs());
            undo(() => vm.resume());
            paused.push(vm.pause());
          }
          for (const wait of paused) wait();
        });
        journal.write({
          format: JOURNAL_FORMAT,
          update: this.#update,
          fromRelease: host.release,
          toRelease: check.image.release,
          vms: vms.map(({ name }) => ({ name, pausedAtNs: pausedAtNs.get(name) ?? 0 })),
          phases: this.#phases,
          userData,
        });
        return host.reboot(LINUX_REBOOT_CMD_KEXEC);
      });
    } catch (error) {
      if (error instanceof KernelError) {
        this.#update = before.update;
        this.#phases = before.phases;
      }
      throw error;
    }
  }

  /**
   * Brings the VMs of the journal back.
   */
  restore<V extends RestoredVm>(journal: Journal, restorer: Restorer<V>): RestoreResult<V> {
    const host = this.#host;
    const vms: V[] = [];
    const sessions = new Map<string, number>();
    const failures: RestoreFailure[] = [];
    const attempt = (vm: string, phase: string, step: () => void): boolean => {
      try {
        step();
        return true;
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
        failures.push({ vm, phase, error });
        return false;
      }
    };

    this.#phase("restore", () => {
      for (const { name, pausedAtNs } of journal.vms) {
        // A failed RETRIEVE_FD fails for ever, as on Linux: a second attempt would not help.
        attempt(name, "restore", () => {
          const session = retry(() => retrieveSession(host, this.#liveUpdate, name));
          sessions.set(name, session);
          const vm = restorer.open(session, name);
          vm.resume();
          vm.step();
          vms.push(vm);
          restorer.running(vm, host.clockNs() - pausedAtNs);
        });
      }
    });
    const rebuilt = this.#phase("rebuild", () =>
      vms.filter((vm) => {
        restorer.runOthers(vms);
        return attempt(vm.name, "rebuild", () => retry(() => vm.rebuild()));
      }),
    );
    this.#phase("swap", () => {
      for (const vm of rebuilt) {
        restorer.runOthers(vms);
        attempt(vm.name, "swap", () => retry(() => vm.swap()));
      }
    });
    this.#phase("finish", () => {
      for (const [name, session] of sessions) {
        restorer.runOthers(vms);
        const isFinished = attempt(name, "finish", () => retry(() => finish(host, session)));
        if (isFinished) host.close(session);
        else this.#unfinished.set(name, session);
      }
    });
    return { vms, failures };
  }

  /**
   * Finishes sessions that {@link restore} could not finish: once their VM has been rebuilt and swapped after all, or
   * destroyed.
   * @returns names of the VMs whose sessions still cannot be finished
   */
  finishLeft(): readonly string[] {
    const host = this.#host;
    for (const [name, session] of this.#unfinished) {
      try {
        finish(host, session);
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
        continue;
      }
      host.close(session);
      this.#unfinished.delete(name);
    }
    return [...this.#unfinished.keys()];
  }

  /** Preserves the journal and all VMs. @returns the journal's record */
  #preserve(vms: readonly ManagedVm[], undo: (step: () => void) => void): MemfdRecord<Journal> {
    const host = this.#host;
    const session = createSession(host, this.#liveUpdate, AGENT_SESSION);
    undo(() => host.close(session));
    const fd = host.memfdCreate(AGENT_SESSION, 0);
    // The session holds the file; the record keeps using the descriptor until the jump.
    undo(() => host.close(fd));
    const record = MemfdRecord.create<Journal>(host, fd, JOURNAL_SLOT_BYTES, {
      format: JOURNAL_FORMAT,
      update: this.#update,
      fromRelease: host.release,
      toRelease: "",
      vms: [],
      phases: [],
      userData: null,
    });
    preserveFd(host, session, fd, JOURNAL_TOKEN);
    const preserved: Pending[] = [];
    for (const vm of vms) {
      const vmSession = createSession(host, this.#liveUpdate, vm.name);
      undo(() => {
        host.close(vmSession);
        vm.unpreserve();
      });
      preserved.push(vm.preserve(vmSession, []));
    }
    for (const wait of preserved) wait();
    return record;
  }

  #phase<T>(name: string, action: () => T): T {
    const startNs = this.#host.clockNs();
    const result = action();
    const phase = { update: this.#update, name, startNs, endNs: this.#host.clockNs() };
    this.#phases.push(phase);
    this.#observe(phase);
    return result;
  }
}

/** Runs a step again when it fails. @throws {KernelError} of the last attempt */
function retry<T>(step: () => T): T {
  for (let left = ATTEMPTS; ; left--) {
    try {
      return step();
    } catch (error) {
      if (!(error instanceof KernelError) || left === 1) throw error;
    }
  }
}
