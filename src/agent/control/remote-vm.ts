/**
 * A VM whose VMM is another process: what the orchestrator wants of it is asked over the VMM's channel.
 *
 * Why a wait is safe: a VMM that is slow, hangs or dies costs the agent at most the time it was given; while the agent waits for
 * one, it hears all others.
 * @module
 */
import { type ErrnoCode, KernelError } from "../../base/errno.ts";
import type { ManagedVm, Pending, Resource, ResourceKind } from "../../vmm/managed-vm.ts";
import type { Client } from "./client.ts";
import type { Ask, PeerError, VmState } from "./protocol.ts";
import type { VmEntry } from "./vm-entry.ts";

/** What a remote VM needs of the server. */
export interface Waiter {
  /** For each answer, as things are now. */
  timeoutNs(): number;
  nowNs(): number;
  /**
   * Hears what comes until `isDone`, or until the time is over.
   * @throws {KernelError} what ends all waiting: in an update, a VMM that is gone
   */
  waitUntil(isDone: () => boolean, deadlineNs: number): void;
  /** Told after each change of a VM. */
  changed(entry: VmEntry): void;
  /** Ends the connection of a VMM that does not take messages. */
  drop(client: Client, code: ErrnoCode, reason: string): void;
}

/** How an ask ended. */
export type Outcome = KernelError | "done";

interface PendingAsk {
  readonly name: Ask["do"];
  readonly deadlineNs: number;
  readonly ended: (outcome: Outcome) => void;
}

export class RemoteVm implements ManagedVm {
  readonly client: Client;
  readonly entry: VmEntry;
  readonly #waiter: Waiter;
  #lastAsk = 0;
  #isGone = false;
  /** Not answered. */
  readonly #asks = new Map<number, PendingAsk>();

  constructor(waiter: Waiter, client: Client, entry: VmEntry) {
    this.#waiter = waiter;
    this.client = client;
    this.entry = entry;
  }

  get name(): string {
    return this.entry.name;
  }

  get ownerUid(): number | null {
    return this.entry.ownerUid;
  }

  resources(): readonly Resource[] {
    return this.entry.resources;
  }

  preserve(session: number, without: readonly ResourceKind[]): Pending {
    return this.#begin({ do: "preserve", without }, ["preserving", "preserved"], session);
  }

  pause(): Pending {
    return this.#begin({ do: "pause" }, ["pausing", "paused"]);
  }

  // Undoing does not wait: no VM stands still for want of another one's answer. Until it has answered it is `undoing`.
  resume(): void {
    this.#undo("resume");
  }

  unpreserve(): void {
    this.#undo("unpreserve");
  }

  /** Its guest runs by itself. */
  step(): boolean {
    return false;
  }

  /** Asks, and calls `ended` when it is answered or cannot be any more. */
  ask(ask: Ask, ended: (outcome: Outcome) => void, session: number | null = null): void {
    if (this.#isGone) {
      ended(this.#failure("ECONNRESET", "its VMM is gone"));
      return;
    }
    const id = ++this.#lastAsk;
    const deadlineNs = this.#waiter.nowNs() + this.#waiter.timeoutNs();
    this.#asks.set(id, { name: ask.do, deadlineNs, ended });
    const fds = session === null ? [] : [session];
    const message = { ask: id, ...ask };
    if (!this.client.send(session === null ? message : { ...message, fds: 1 }, fds))
      this.#waiter.drop(this.client, "EPIPE", "it does not take messages");
  }

  /** @returns false when nothing of that number was asked */
  answered(id: number, error: PeerError | null): boolean {
    const pending = this.#asks.get(id);
    if (pending === undefined) return false;
    this.#asks.delete(id);
    pending.ended(error === null ? "done" : this.#failure(error.code, error.message));
    return true;
  }

  /** Whether its VMM is gone. */
  get isGone(): boolean {
    return this.#isGone;
  }

  /** What it has not answered in time; null when there is nothing. */
  overdue(): Ask["do"] | null {
    const nowNs = this.#waiter.nowNs();
    for (const { name, deadlineNs } of this.#asks.values()) if (deadlineNs <= nowNs) return name;
    return null;
  }

  /** Its VMM is gone: what was asked of it fails. */
  gone(reason: string): void {
    this.#isGone = true;
    const asks = [...this.#asks.values()];
    this.#asks.clear();
    for (const { ended } of asks) ended(this.#failure("ECONNRESET", reason));
  }

  #begin(
    ask: Ask,
    [during, after]: readonly [VmState, VmState],
    session: number | null = null,
  ): Pending {
    const waiter = this.#waiter;
    const timeoutNs = waiter.timeoutNs();
    const deadlineNs = waiter.nowNs() + timeoutNs;
    let outcome: Outcome | null = null;
    const ended = (how: Outcome) => {
      outcome = how;
      if (how === "done" && this.entry.state === during) this.#move(after);
    };
    this.#move(during);
    this.ask(ask, ended, session);
    return () => {
      waiter.waitUntil(() => outcome !== null, deadlineNs);
      if (outcome === null)
        throw this.#failure("ETIMEDOUT", `no answer to "${ask.do}" within ${timeoutNs / 1e9} s`);
      if (outcome instanceof KernelError) throw outcome;
    };
  }

  #undo(name: "resume" | "unpreserve"): void {
    // Of a VMM that is gone the kernel has undone everything.
    if (this.#isGone) return;
    this.#move("undoing");
    this.ask({ do: name }, (outcome) => {
      if (outcome !== "done") {
        this.entry.problem = outcome.message;
        this.#waiter.changed(this.entry);
        // It is asked last: what was asked before it is answered.
      } else if (name === "unpreserve" && this.entry.state === "undoing") this.#move("running");
    });
  }

  #move(state: VmState): void {
    this.entry.state = state;
    this.#waiter.changed(this.entry);
  }

  #failure(code: ErrnoCode, message: string): KernelError {
    return new KernelError(code, `VM ${this.name}`, message);
  }
}
