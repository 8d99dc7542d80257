/**
 * A VM whose VMM is another process: what the orchestrator wants of it is asked over the VMM's channel.
 *
 * Why a wait is safe: a VMM that is slow, hangs or dies costs the agent at most the time it was given; while the agent waits for
 * one, it hears all others.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import type { ManagedVm, Pending, Resource, ResourceKind } from "../../vmm/managed-vm.ts";
import type { Client } from "./client.ts";
import type { Ask, PeerError, VmState } from "./protocol.ts";

/** What a remote VM needs of the server. */
export interface Waiter {
  /** For each answer, in nanoseconds. */
  readonly timeoutNs: number;
  nowNs(): number;
  /**
   * Hears what comes until `isDone`, or the time is over.
   * @throws {KernelError} what ends all waiting: an update in which a VM's VMM is gone
   */
  waitUntil(isDone: () => boolean, deadlineNs: number): void;
  /** The VM is somewhere else now. */
  moved(vm: RemoteVm): void;
  /** The VMM does not take messages. */
  drop(client: Client, reason: string): void;
}

/** How an ask ended. */
type Outcome = KernelError | "done";

export class RemoteVm implements ManagedVm {
  readonly name: string;
  readonly ownerUid: number | null;
  readonly client: Client;
  readonly #waiter: Waiter;
  #resources: readonly Resource[];
  #state: VmState;
  #problem: string | null = null;
  #lastAsk = 0;
  /** Asks that are not answered, with what is done when they are. */
  readonly #asks = new Map<number, (outcome: Outcome) => void>();

  constructor(
    waiter: Waiter,
    client: Client,
    vm: { name: string; resources: readonly Resource[]; state: VmState },
  ) {
    this.#waiter = waiter;
    this.client = client;
    this.name = vm.name;
    this.ownerUid = client.uid;
    this.#resources = vm.resources;
    this.#state = vm.state;
  }

  get state(): VmState {
    return this.#state;
  }

  set state(state: VmState) {
    this.#state = state;
    this.#waiter.moved(this);
  }

  /** What went wrong last; null when nothing did. */
  get problem(): string | null {
    return this.#problem;
  }

  set problem(problem: string | null) {
    this.#problem = problem;
    this.#waiter.moved(this);
  }

  resources(): readonly Resource[] {
    return this.#resources;
  }

  setResources(resources: readonly Resource[]): void {
    this.#resources = resources;
  }

  preserve(session: number, without: readonly ResourceKind[]): Pending {
    this.state = "preserving";
    return this.#begin({ do: "preserve", without }, "preserved", session);
  }

  pause(): Pending {
    this.state = "pausing";
    return this.#begin({ do: "pause" }, "paused");
  }

  // Undoing does not wait: the other VMs are not to stand still because one does not answer. Until it has, it is `undoing`.
  resume(): void {
    this.#undo({ do: "resume" });
  }

  unpreserve(): void {
    this.#undo({ do: "unpreserve" });
  }

  /** Its guest runs by itself. */
  step(): boolean {
    return false;
  }

  /** Asks, and goes on when it is answered, or cannot be any more. */
  ask(ask: Ask, ended: (outcome: Outcome) => void, session: number | null = null): void {
    const id = ++this.#lastAsk;
    this.#asks.set(id, ended);
    const message = session === null ? { ask: id, ...ask } : { ask: id, ...ask, fds: 1 };
    if (!this.client.send(message, session === null ? [] : [session]))
      this.#waiter.drop(this.client, "it does not take messages");
  }

  /** @returns false when nothing of that number was asked */
  answered(id: number, error: PeerError | null): boolean {
    const ended = this.#asks.get(id);
    if (ended === undefined) return false;
    this.#asks.delete(id);
    ended(error === null ? "done" : this.#failure(error.code, error.message));
    return true;
  }

  /** Its VMM is gone: what was asked of it fails. */
  gone(reason: string): void {
    const asks = [...this.#asks.values()];
    this.#asks.clear();
    for (const ended of asks) ended(this.#failure("ECONNRESET", reason));
  }

  #begin(ask: Ask, then: VmState, session: number | null = null): Pending {
    const waiter = this.#waiter;
    const deadlineNs = waiter.nowNs() + waiter.timeoutNs;
    let outcome: Outcome | null = null;
    const ended = (how: Outcome) => {
      outcome = how;
    };
    this.ask(ask, ended, session);
    return () => {
      waiter.waitUntil(() => outcome !== null, deadlineNs);
      if (outcome instanceof KernelError) throw outcome;
      if (outcome === null)
        throw this.#failure(
          "ETIMEDOUT",
          `no answer to "${ask.do}" within ${waiter.timeoutNs / 1e9} s`,
        );
      this.state = then;
    };
  }

  #undo(ask: Ask): void {
    this.state = "undoing";
    this.ask(ask, (outcome) => {
      if (outcome !== "done") this.problem = outcome.message;
      // The last of its asks: whatever else was asked before is answered or will not be.
      else if (ask.do === "unpreserve") this.state = "running";
    });
  }

  #failure(code: KernelError["code"], message: string): KernelError {
    return new KernelError(code, `VM ${this.name}`, message);
  }
}
