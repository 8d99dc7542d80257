/**
 * All who are connected to the agent: whom it lets in, what it reads of them, whom it shows out.
 *
 * A client may be heard while a message of another is being handled: an update waits in the middle of its operator's call.
 * @module
 */
import { type ErrnoCode, KernelError } from "../../base/errno.ts";
import type { Channel, Endpoint, EndpointEvent } from "../../host/channel.ts";
import type { Host } from "../../host/host.ts";
import { VMS_MAX } from "./agent-state.ts";
import { Client } from "./client.ts";
import { type ClientMessage, decodeClientMessage } from "./protocol.ts";

/** Connections of one user that have no VM: operators' commands, and VMMs that have just come. */
export const VISITORS_MAX = 32;

export interface ClientHandler {
  /**
   * @param fds - as many as the message may have; the handler's from here on
   * @throws {KernelError} when the client does not keep to the protocol: it loses its connection
   */
  message(client: Client, message: ClientMessage, fds: readonly number[]): void;
  gone(client: Client, reason: string): void;
}

export class ClientHub {
  readonly #endpoint: Endpoint;
  readonly #host: Pick<Host, "close">;
  /** Whose members may talk to the agent, beside root; null: none. */
  readonly #group: number | null;
  readonly #handler: ClientHandler;
  readonly #clients = new Map<Channel, Client>();
  /** What has happened and was not looked at yet. */
  readonly #events: EndpointEvent[] = [];

  constructor(
    endpoint: Endpoint,
    host: Pick<Host, "close">,
    group: number | null,
    handler: ClientHandler,
  ) {
    this.#endpoint = endpoint;
    this.#host = host;
    this.#group = group;
    this.#handler = handler;
  }

  /** Handles what has happened; waits for something at most `timeoutNs` if nothing has. */
  hear(timeoutNs: number): void {
    if (this.#events.length === 0) this.#events.push(...this.#endpoint.poll(timeoutNs));
    for (let event = this.#events.shift(); event !== undefined; event = this.#events.shift())
      this.#take(event);
  }

  /** Ends a client's connection, and tells it why if it still listens. */
  drop(client: Client, code: ErrnoCode, reason: string): void {
    if (!client.isOpen) return;
    client.refuse(new KernelError(code, "connection", reason));
    this.#remove(client, reason);
  }

  close(): void {
    for (const event of this.#events.splice(0)) if (event.kind === "line") this.closeAll(event.fds);
    for (const client of this.#clients.values()) client.close();
    this.#clients.clear();
    this.#endpoint.close();
  }

  closeAll(fds: readonly number[]): void {
    for (const fd of fds) this.#host.close(fd);
  }

  #take(event: EndpointEvent): void {
    if (event.kind === "open") {
      this.#open(event.channel);
      return;
    }
    const client = this.#clients.get(event.channel);
    if (client === undefined) {
      // It was shown out after it had said this.
      if (event.kind === "line") this.closeAll(event.fds);
    } else if (event.kind === "closed")
      this.#remove(client, event.reason ?? "it closed its connection");
    else this.#line(client, event.line, event.fds);
  }

  #open(channel: Channel): void {
    const client = new Client(channel);
    const same = [...this.#clients.values()].filter(
      ({ isVmm, uid }) => !isVmm && uid === client.uid,
    );
    this.#clients.set(channel, client);
    if (!client.isAllowed(this.#group))
      this.drop(client, "EACCES", `${client.name} is neither root nor in the agent's group`);
    else if (same.length >= VISITORS_MAX)
      this.drop(
        client,
        "EMFILE",
        `uid ${client.uid} has ${VISITORS_MAX} connections without a VM; it closes some of them first`,
      );
    // Nobody keeps root out.
    else if (!client.isRoot && this.#clients.size > VMS_MAX + VISITORS_MAX)
      this.drop(
        client,
        "EMFILE",
        `${VMS_MAX + VISITORS_MAX} connections are open, no more are taken`,
      );
  }

  #line(client: Client, line: string, fds: readonly number[]): void {
    try {
      let message: ClientMessage;
      try {
        message = decodeClientMessage(line);
        const fdsDue = message.kind === "call" ? message.fds : 0;
        if (message.kind !== "refused" && fds.length !== fdsDue)
          throw new KernelError(
            "EPROTO",
            "control message",
            `${fds.length} descriptors came with a message that has ${fdsDue}`,
          );
      } catch (error) {
        this.closeAll(fds);
        throw error;
      }
      this.#handler.message(client, message, fds);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      this.drop(client, error.code, error.message);
    }
  }

  #remove(client: Client, reason: string): void {
    this.#clients.delete(client.channel);
    client.close();
    this.#handler.gone(client, reason);
  }
}
