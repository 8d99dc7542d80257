/**
 * An operator's connection to the agent: calls, their progress, their results.
 *
 * Why Node's sockets and not those of src/linux: operators pass no descriptors, so nothing needs FFI.
 * @module
 */
import { createConnection, type Socket } from "node:net";
import {
  type AgentMessage,
  type CallName,
  decodeAgentMessage,
} from "../../agent/control/protocol.ts";
import { KernelError } from "../../base/errno.ts";
import { LINE_BYTES_MAX } from "../../host/channel.ts";

/** Nobody answers at the socket. */
export class AgentUnreachable extends Error {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = "AgentUnreachable";
  }
}

/** The agent closed the connection, or went away, before it answered. */
export class ConnectionLost extends Error {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, options);
    this.name = "ConnectionLost";
  }
}

interface PendingCall {
  readonly onEvent: (event: unknown) => void;
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: Error) => void;
}

export class AgentConnection {
  readonly #socket: Socket;
  readonly #pending = new Map<number, PendingCall>();
  #received = Buffer.alloc(0);
  #lastId = 0;
  #end: Error | null = null;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (bytes: Buffer) => this.#receive(bytes));
    socket.on("error", (error) =>
      this.#finish(new ConnectionLost(`the connection to the agent broke: ${error.message}`)),
    );
    socket.on("close", () => this.#finish(new ConnectionLost("the agent closed the connection")));
  }

  /** @throws {AgentUnreachable} with the way out */
  static open(path: string): Promise<AgentConnection> {
    return new Promise((resolve, reject) => {
      const socket = createConnection(path);
      const fail = (error: NodeJS.ErrnoException) =>
        reject(new AgentUnreachable(unreachable(path, error), { cause: error }));
      socket.once("error", fail);
      socket.once("connect", () => {
        socket.off("error", fail);
        resolve(new AgentConnection(socket));
      });
    });
  }

  /**
   * Makes a call, and waits for its end.
   *
   * @param onEvent - told of progress
   * @returns the result, as it came
   * @throws {KernelError} what the agent answers; EPROTO when it answers what the protocol does not have
   * @throws {ConnectionLost} when there is no answer
   */
  call(
    call: CallName,
    fields: Readonly<Record<string, unknown>> = {},
    onEvent: (event: unknown) => void = () => undefined,
  ): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.#end !== null) {
        reject(this.#end);
        return;
      }
      const id = ++this.#lastId;
      this.#pending.set(id, { onEvent, resolve, reject });
      this.#socket.write(`${JSON.stringify({ id, call, ...fields })}\n`);
    });
  }

  close(): void {
    this.#socket.destroy();
  }

  #receive(bytes: Buffer): void {
    this.#received = Buffer.concat([this.#received, bytes]);
    try {
      for (let end = this.#received.indexOf("\n"); end >= 0; end = this.#received.indexOf("\n")) {
        const line = this.#received.toString("utf8", 0, end);
        this.#received = this.#received.subarray(end + 1);
        this.#message(decodeAgentMessage(line));
      }
      if (this.#received.length > LINE_BYTES_MAX)
        throw new KernelError("EPROTO", "message of the agent", "a line does not end");
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      this.#finish(error);
      this.close();
    }
  }

  /** @throws {KernelError} EPROTO */
  #message(message: AgentMessage): void {
    if (message.kind === "ask" || message.kind === "refused")
      throw new KernelError("EPROTO", "message of the agent", "it takes this command for a VMM");
    const call = this.#pending.get(message.id);
    if (call === undefined)
      throw new KernelError("EPROTO", "message of the agent", `nothing was asked as ${message.id}`);
    if (message.kind === "event") {
      call.onEvent(message.event);
      return;
    }
    this.#pending.delete(message.id);
    if (message.kind === "error") call.reject(message.error);
    else call.resolve(message.result);
  }

  #finish(error: Error): void {
    this.#end ??= error;
    for (const call of this.#pending.values()) call.reject(this.#end);
    this.#pending.clear();
  }
}

function unreachable(path: string, { code, message }: NodeJS.ErrnoException): string {
  const way = 'start one as root with "holdfast agent", or name its socket with --socket';
  switch (code) {
    case "ENOENT":
      return `no agent: there is no socket at ${path}; ${way}`;
    case "ECONNREFUSED":
      return `no agent: nobody listens at ${path} any more; ${way}`;
    case "EACCES":
      return `${path} is not open to this user: be root, or in the group that the agent was given`;
    default:
      return `no agent at ${path}: ${message}; ${way}`;
  }
}
