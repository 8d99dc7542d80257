/**
 * One who is connected to the agent: an operator's command or a VMM. What it may ask, how much at once, and what it is sent.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import type { Channel } from "../../host/channel.ts";
import {
  CONNECTION_ID,
  encodeError,
  OUTSTANDING_CALLS_MAX,
  type ProgressEvent,
} from "./protocol.ts";

export class Client {
  readonly channel: Channel;
  /** Whether it is the VMM of a VM. */
  isVmm = false;
  /** Ids of calls that are not answered. */
  readonly #outstanding = new Set<number>();
  #isOpen = true;

  constructor(channel: Channel) {
    this.channel = channel;
  }

  /** "pid 41, uid 0", for messages. */
  get name(): string {
    const { peer } = this.channel;
    return peer === null ? "the other end" : `pid ${peer.pid}, uid ${peer.uid}`;
  }

  get uid(): number | null {
    return this.channel.peer?.uid ?? null;
  }

  get pid(): number | null {
    return this.channel.peer?.pid ?? null;
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** Whether it may do what only root may: where there are no users, all may. */
  get isRoot(): boolean {
    return this.uid === null || this.uid === 0;
  }

  /** @param group - whose members may talk to the agent; null: only root */
  isAllowed(group: number | null): boolean {
    const { peer } = this.channel;
    if (peer === null || peer.uid === 0) return true;
    return group !== null && (peer.gid === group || peer.groups.includes(group));
  }

  /** @throws {KernelError} EPROTO the id is out already; EMFILE too many are out */
  begin(id: number): void {
    if (this.#outstanding.has(id))
      throw new KernelError("EPROTO", "call", `id ${id} is that of a call that is not answered`);
    if (this.#outstanding.size >= OUTSTANDING_CALLS_MAX)
      throw new KernelError(
        "EMFILE",
        "call",
        `${OUTSTANDING_CALLS_MAX} calls are not answered; wait for one of them`,
      );
    this.#outstanding.add(id);
  }

  /** @returns false when the client does not take it */
  succeed(id: number, result: object, fds: readonly number[] = []): boolean {
    this.#outstanding.delete(id);
    return this.send(fds.length === 0 ? { id, result } : { id, fds: fds.length, result }, fds);
  }

  fail(id: number, error: KernelError): boolean {
    this.#outstanding.delete(id);
    return this.send({ id, error: encodeError(error) });
  }

  /** An error of the connection as a whole, which ends: that of no call. */
  refuse(error: KernelError): void {
    this.send({ id: CONNECTION_ID, error: encodeError(error) });
  }

  progress(id: number, event: ProgressEvent): boolean {
    return this.send({ id, event });
  }

  send(message: object, fds: readonly number[] = []): boolean {
    return this.#isOpen && this.channel.send(JSON.stringify(message), fds);
  }

  close(): void {
    this.#isOpen = false;
    this.channel.close();
  }
}
