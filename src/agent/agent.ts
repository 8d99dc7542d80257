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
import { isKernelError, KernelError } from "../base/errno.ts";
import { withUndo } from "../base/undo.ts";
import type { Host } from "../host/host.ts";
import { finish, preserveFd, retrieveFd } from "../host/liveupdate.ts";
import { MemfdRecord } from "../host/memfd-record.ts";
import type { ManagedVm, Pending, ResourceKind, RestoredVm } from "../vmm/managed-vm.ts";
import { probeCapabilities } from "./capabilities.ts";
import {
  AGENT_SESSION,
  decodeJournal,
  JOURNAL_FORMAT,
  JOURNAL_TOKEN,
  type Journal,
  journalSlotBytes,
  type PhaseRecord,
} from "./journal.ts";
import { LiveUpdateDevice } from "./live-update-device.ts";
import { type Degradation, type Preflight, preflight } from "./preflight.ts";
import { Restoration } from "./restoration.ts";
import { retry } from "./retry.ts";
import type { KernelTarget } from "./target/kernel-target.ts";
import { identityOf } from "./target/optional-file.ts";
import { describeTarget } from "./target/target-description.ts";

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
  /** A VM has done its first step: `blackoutNs` after its last one in the old kernel; null when that cannot be told. */
  running(vm: V, blackoutNs: number | null): void;
  /** Lets everything that runs go on for a short while: called between the steps that are off the critical path. */
  runOthers(vms: readonly V[]): void;
}

/** Told of each phase as it ends. */
export type PhaseObserver = (phase: PhaseRecord) => void;

/** What an update may do without, and what it takes along. */
export interface UpdateOptions extends Degradation {
  /** Found again in the journal. */
  readonly userData?: unknown;
  /**
   * Told of each phase before it begins, with the time; the last is "reboot", the jump itself. A {@link KernelError} that it
   * throws fails the update.
   */
  readonly begins?: (phase: string, atNs: number) => void;
}

/** An agent, and what it found of the one before it. */
export interface TakeOver {
  readonly agent: Agent;
  readonly journal: Journal;
  /** Why the journal could not be kept elsewhere; null when it was, or need not be. */
  readonly unkept: KernelError | null;
}

export class Agent {
  readonly #host: Host;
  readonly #device: LiveUpdateDevice;
  readonly #observe: PhaseObserver;
  #update: number;
  #phases: PhaseRecord[];
  #restoration: Restoration | null = null;
  /** The session that the journal came in, as long as the journal is nowhere else. */
  #journalSession: number | null = null;

  private constructor(
    host: Host,
    device: LiveUpdateDevice,
    journal: Journal | null,
    observe: PhaseObserver,
  ) {
    this.#host = host;
    this.#device = device;
    this.#observe = observe;
    this.#update = journal?.update ?? 0;
    this.#phases = [...(journal?.phases ?? [])];
  }

  /**
   * The agent of a host that was booted cold, or of one where an agent took over before.
   *
   * @param journal - of the last update, when an agent before this one has kept it
   * @throws {KernelError} as {@link LiveUpdateDevice.open}
   */
  static start(host: Host, observe: PhaseObserver, journal: Journal | null = null): Agent {
    return new Agent(host, LiveUpdateDevice.open(host), journal, observe);
  }

  /**
   * The agent of a host that came out of a live update.
   *
   * @param keep - puts the journal where an agent that is started after this one finds it. Only then the session that it came
   *   in is finished: when `keep` fails the session stays, until {@link keepJournal}
   * @param announce - called before anything is retrieved: if this process ends with the journal in its hands, the journal
   *   is lost
   * @returns null when no agent preserved a journal
   * @throws {KernelError} as `start`; EIO when the journal is damaged (the message names the field) or of a format that this
   *   agent does not know
   */
  static takeOver(
    host: Host,
    observe: PhaseObserver,
    keep: (journal: Journal) => void = () => undefined,
    announce: () => void = () => undefined,
  ): TakeOver | null {
    return withUndo((undo) => {
      const device = LiveUpdateDevice.open(host);
      undo(() => device.close());
      announce();
      let session: number;
      try {
        session = device.retrieve(AGENT_SESSION);
      } catch (error) {
        if (!isKernelError(error, "ENOENT")) throw error;
        device.close();
        return null;
      }
      undo(() => host.close(session));
      const journal = readJournal(host, session);
      const agent = new Agent(host, device, journal, observe);
      agent.#journalSession = session;
      agent.#observeJump(journal);
      let unkept: KernelError | null = null;
      try {
        keep(journal);
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
        unkept = error;
      }
      if (unkept === null) agent.#finishJournal();
      return { agent, journal, unkept };
    });
  }

  /**
   * Finishes the session that the journal came in, which {@link takeOver} has left: the journal is somewhere else now.
   * @throws {KernelError} what FINISH throws; the session is still there then
   */
  keepJournal(): void {
    this.#finishJournal();
  }

  /** Updates begun since the cold boot. */
  get updates(): number {
    return this.#update;
  }

  /** Phases of the update that is under way or was the last. */
  get phases(): readonly PhaseRecord[] {
    return this.#phases;
  }

  /** How far the VMs of the last update have come back; null when nobody has begun to bring them back. */
  get restoration(): Restoration | null {
    return this.#restoration;
  }

  /**
   * Looks at the kernel at hand, the target and the VMs: what {@link update} would do, and what stands in its way. Changes
   * nothing.
   * @throws {KernelError} as {@link describeTarget} and {@link probeCapabilities}
   */
  preflight(
    vms: readonly ManagedVm[],
    target: KernelTarget,
    degradation: Degradation = {},
  ): Preflight {
    const host = this.#host;
    const description = describeTarget(host, target);
    const capabilities = probeCapabilities(host, this.#device);
    const left = this.#restoration?.left ?? [];
    return preflight({ target: description, capabilities, vms, left }, degradation);
  }

  /**
   * Replaces the kernel. Does not return: the next thing that runs is the next kernel.
   *
   * @throws {KernelError} when a step before the jump fails: EOPNOTSUPP for what preflight finds, EAGAIN the kernel or its initrd
   *   was replaced meanwhile, ETIMEDOUT a VM did not answer; everything is rolled back and the VMs run on. What could not be rolled back is in the message
   */
  update(vms: readonly ManagedVm[], target: KernelTarget, options: UpdateOptions = {}): never {
    const host = this.#host;
    const before = { update: this.#update, phases: this.#phases };
    this.#update++;
    this.#phases = [];
    const stuck: string[] = [];
    const phase = <T>(name: string, action: () => T): T => {
      options.begins?.(name, host.clockNs());
      return this.#phase(name, action);
    };
    try {
      return withUndo((undo): never => {
        const judged = targetFiles(host, target);
        const check = phase("preflight", () => this.preflight(vms, target, options));
        if (check.blockers.length > 0)
          throw new KernelError("EOPNOTSUPP", "update", check.blockers.join("; "));
        phase("load", () => host.kexecFileLoad(target.kernel, target.initrd, target.commandLine));
        undo(() => host.kexecUnload());
        // What was loaded must be what was judged.
        if (targetFiles(host, target) !== judged)
          throw new KernelError(
            "EAGAIN",
            "update",
            `${target.kernel} or its initrd was replaced while it was looked at: try again`,
          );

        /** Undoing one VM must not depend on another: each is a process of its own, which may be gone. */
        const undoVm = (vm: ManagedVm, what: string, step: () => void) =>
          undo(() => {
            try {
              step();
            } catch (error) {
              if (!(error instanceof KernelError)) throw error;
              stuck.push(`${vm.name}: ${what}: ${error.message}`);
            }
          });
        const journal: Journal = {
          format: JOURNAL_FORMAT,
          update: this.#update,
          fromRelease: host.release,
          toRelease: check.target.release,
          rebootAtNs: null,
          vms: vms.map(({ name, ownerUid }) => ({ name, ownerUid, pausedAtNs: 0 })),
          phases: [],
          userData: options.userData ?? null,
        };
        const record = phase("preserve", () => {
          const record = this.#preserveJournal(journal, undo);
          this.#preserveVms(vms, options.without ?? [], undoVm);
          return record;
        });
        const pausedAtNs = phase("pause", () => this.#pauseVms(vms, undoVm));
        const rebootAtNs = host.clockNs();
        record.write({
          ...journal,
          rebootAtNs,
          vms: journal.vms.map((vm, i) => ({ ...vm, pausedAtNs: pausedAtNs[i] })),
          phases: this.#phases,
        });
        options.begins?.("reboot", rebootAtNs);
        return host.reboot(LINUX_REBOOT_CMD_KEXEC);
      });
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      this.#update = before.update;
      this.#phases = before.phases;
      if (stuck.length === 0) throw error;
      const detail = `${error.message}; not undone: ${stuck.join("; ")}`;
      throw new KernelError(error.code, "update", detail, { cause: error });
    }
  }

  /**
   * Begins to bring the VMs of an update back, one by one; {@link restore} does it all at once.
   *
   * @param settled - names of those that an agent before this one has finished with
   */
  beginRestoration(journal: Pick<Journal, "vms">, settled: readonly string[] = []): Restoration {
    this.#restoration = new Restoration(this.#host, this.#device, journal.vms, settled);
    return this.#restoration;
  }

  /**
   * Brings all VMs of the journal back, when they are this process's own. What fails is left as it is: its session stays
   * retrieved, for another attempt or to be abandoned ({@link restoration}).
   */
  restore<V extends RestoredVm>(
    journal: Pick<Journal, "vms">,
    restorer: Restorer<V>,
  ): RestoreResult<V> {
    const host = this.#host;
    const restoration = this.beginRestoration(journal);
    const vms: V[] = [];
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
      for (const { name } of journal.vms) {
        // A failed RETRIEVE_FD fails for ever, as on Linux: a second attempt would not help.
        attempt(name, "restore", () => {
          const vm = restorer.open(restoration.retrieve(name), name);
          vm.resume();
          vm.step();
          vms.push(vm);
          restorer.running(vm, restoration.running(name, host.clockNs()));
        });
      }
    });
    const rebuilt = this.#phase("rebuild", () =>
      vms.filter((vm) => {
        restorer.runOthers(vms);
        return attempt(vm.name, "rebuild", () => restoration.rebuild(vm));
      }),
    );
    this.#phase("swap", () => {
      for (const vm of rebuilt) {
        restorer.runOthers(vms);
        attempt(vm.name, "swap", () => restoration.swap(vm));
      }
    });
    this.#phase("finish", () => {
      for (const { name } of vms) {
        restorer.runOthers(vms);
        attempt(name, "finish", () => restoration.finish(name));
      }
    });
    return { vms, failures };
  }

  /**
   * Finishes the sessions of VMs that run and could not be finished: once they have been rebuilt and swapped after all, or
   * destroyed.
   * @returns names of the VMs whose sessions are still there
   */
  finishLeft(): readonly string[] {
    const restoration = this.#restoration;
    if (restoration === null) return [];
    for (const { name, state } of restoration.left) {
      if (state !== "running") continue;
      try {
        restoration.finish(name);
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
      }
    }
    return restoration.left.map(({ name }) => name);
  }

  /** Puts the journal into the agent's own session. @returns its record, for what is known at the end only */
  #preserveJournal(journal: Journal, undo: (step: () => void) => void): MemfdRecord<Journal> {
    const host = this.#host;
    const session = this.#device.create(AGENT_SESSION);
    undo(() => host.close(session));
    const fd = host.memfdCreate(AGENT_SESSION, 0);
    // The session holds the file; the record keeps using the descriptor until the jump.
    undo(() => host.close(fd));
    const slotBytes = journalSlotBytes(journal.vms.length);
    const record = MemfdRecord.create<Journal>(host, fd, slotBytes, journal);
    preserveFd(host, session, fd, JOURNAL_TOKEN);
    return record;
  }

  #preserveVms(
    vms: readonly ManagedVm[],
    without: readonly ResourceKind[],
    undoVm: (vm: ManagedVm, what: string, step: () => void) => void,
  ): void {
    const preserved: Pending[] = [];
    for (const vm of vms) {
      const session = this.#device.create(vm.name);
      undoVm(vm, "unpreserve", () => vm.unpreserve());
      undoVm(vm, "close session", () => this.#host.close(session));
      preserved.push(vm.preserve(session, without));
    }
    for (const wait of preserved) wait();
  }

  /** @returns when each was told to stop */
  #pauseVms(
    vms: readonly ManagedVm[],
    undoVm: (vm: ManagedVm, what: string, step: () => void) => void,
  ): readonly number[] {
    const pausedAtNs: number[] = [];
    const paused: Pending[] = [];
    for (const vm of vms) {
      pausedAtNs.push(this.#host.clockNs());
      undoVm(vm, "resume", () => vm.resume());
      paused.push(vm.pause());
    }
    for (const wait of paused) wait();
    return pausedAtNs;
  }

  /** Giving up here would lose the names of all VMs. */
  #finishJournal(): void {
    const session = this.#journalSession;
    if (session === null) return;
    retry(() => finish(this.#host, session));
    this.#host.close(session);
    this.#journalSession = null;
  }

  /** The jump as phases, where the kernels' own clocks tell when one ended and the other began. */
  #observeJump({ update, rebootAtNs }: Journal): void {
    const { bootedAtNs } = this.#host;
    const nowNs = this.#host.clockNs();
    if (rebootAtNs === null || bootedAtNs === null) return;
    // Not when the clock did not go on from one kernel to the other.
    if (!(rebootAtNs <= bootedAtNs && bootedAtNs <= nowNs)) return;
    this.#addPhase({ update, name: "reboot", startNs: rebootAtNs, endNs: bootedAtNs });
    this.#addPhase({ update, name: "boot", startNs: bootedAtNs, endNs: nowNs });
  }

  #phase<T>(name: string, action: () => T): T {
    const startNs = this.#host.clockNs();
    const result = action();
    this.#addPhase({ update: this.#update, name, startNs, endNs: this.#host.clockNs() });
    return result;
  }

  #addPhase(phase: PhaseRecord): void {
    this.#phases.push(phase);
    this.#observe(phase);
  }
}

function targetFiles(host: Host, { kernel, initrd }: KernelTarget): string {
  return `${identityOf(host, kernel)}; ${initrd && identityOf(host, initrd)}`;
}

/** @throws {KernelError} ENOENT the session has no journal; EIO it is damaged */
function readJournal(host: Host, session: number): Journal {
  const fd = retrieveFd(host, session, JOURNAL_TOKEN);
  try {
    return decodeJournal(MemfdRecord.open<unknown>(host, fd).read());
  } finally {
    host.close(fd);
  }
}
