/**
 * Carries clients of a Unix socket to the agent in a machine of ours, over the machine's serial line.
 *
 * As on a host of its own, a client's connection ends with the kernel that it was made to: at each jump all are closed.
 * @module
 */
import { chmodSync, mkdirSync, rmSync } from "node:fs";
import { createConnection, createServer, type Server, type Socket } from "node:net";
import { dirname } from "node:path";
import { KernelError } from "../../base/errno.ts";
import { LINE_BYTES_MAX } from "../../host/channel.ts";
import {
  type ChannelMessage,
  decodeChannelMessage,
  encodeChannelMessage,
} from "../../host/serial-endpoint.ts";

const CLIENTS_MAX = 64;
/** What a client has not read; one that leaves more lying is closed. */
const UNREAD_BYTES_MAX = 1024 * 1024;
/** For what clients have not read when the relay ends. */
const CLOSE_MS = 1000;

export class ChannelRelay {
  readonly #server: Server;
  readonly #path: string;
  readonly #clients = new Map<number, Socket>();
  /** Also those that have still to read what the last kernel said. */
  readonly #sockets = new Set<Socket>();
  /** What has come before there is a machine. */
  readonly #early: string[] = [];
  #send: (line: string) => void = (line) => this.#early.push(line);
  #last = 0;

  private constructor(path: string, server: Server) {
    this.#path = path;
    this.#server = server;
    server.on("connection", (socket: Socket) => this.#connected(socket));
  }

  /**
   * Listens. A socket that a dead process has left is replaced; the new one is its owner's alone.
   * @throws {KernelError} EADDRINUSE somebody answers there; EACCES and others of the path
   */
  static async listen(path: string): Promise<ChannelRelay> {
    try {
      mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
      if (await answers(path))
        throw new KernelError("EADDRINUSE", "listen", `another agent answers at ${path}`);
      rmSync(path, { force: true });
      const server = createServer();
      await new Promise<void>((resolve, reject) => {
        server.once("error", reject);
        server.listen(path, resolve);
      });
      chmodSync(path, 0o600);
      return new ChannelRelay(path, server);
    } catch (error) {
      if (error instanceof KernelError) throw error;
      const { message } = error as Error;
      throw new KernelError("EACCES", "listen", `${message}; choose another place with --socket`, {
        cause: error,
      });
    }
  }

  /** @param send - takes lines to the machine */
  connect(send: (line: string) => void): void {
    this.#send = send;
    for (const line of this.#early.splice(0)) send(line);
  }

  /** A line of the machine. @returns whether it was for a client */
  receive(line: string): boolean {
    const message = decodeChannelMessage(line);
    if (message === null) return false;
    const socket = this.#clients.get(message.channel);
    if (socket === undefined) return true;
    if (message.kind === "line") socket.write(`${message.line}\n`);
    if (message.kind === "closed") this.#forget(message.channel, socket);
    if (socket.writableLength > UNREAD_BYTES_MAX) this.#hangUp(message.channel, socket);
    return true;
  }

  /** The kernel that clients were connected to is no more. */
  kernelEnded(): void {
    for (const [channel, socket] of this.#clients) this.#forget(channel, socket);
  }

  async close(): Promise<void> {
    this.kernelEnded();
    const late = setTimeout(() => {
      for (const socket of this.#sockets) socket.destroy();
    }, CLOSE_MS);
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
    clearTimeout(late);
    rmSync(this.#path, { force: true });
  }

  #connected(socket: Socket): void {
    if (this.#clients.size >= CLIENTS_MAX) {
      socket.destroy();
      return;
    }
    const channel = ++this.#last;
    this.#clients.set(channel, socket);
    this.#sockets.add(socket);
    this.#tell({ channel, kind: "open" });
    let received = Buffer.alloc(0);
    socket.on("data", (bytes: Buffer) => {
      received = Buffer.concat([received, bytes]);
      for (let end = received.indexOf(10); end >= 0; end = received.indexOf(10)) {
        const line = received.toString("utf8", 0, end);
        received = received.subarray(end + 1);
        if (end > LINE_BYTES_MAX) return this.#hangUp(channel, socket);
        this.#tell({ channel, kind: "line", line });
      }
      if (received.length > LINE_BYTES_MAX) this.#hangUp(channel, socket);
    });
    // Its "close" follows.
    socket.on("error", () => undefined);
    socket.on("close", () => {
      this.#sockets.delete(socket);
      this.#hangUp(channel, socket);
    });
  }

  /** The client is at fault, or gone. */
  #hangUp(channel: number, socket: Socket): void {
    socket.destroy();
    if (this.#clients.delete(channel)) this.#tell({ channel, kind: "closed" });
  }

  /** The machine is: what it has said before still goes out. */
  #forget(channel: number, socket: Socket): void {
    this.#clients.delete(channel);
    socket.destroySoon();
  }

  #tell(message: ChannelMessage): void {
    this.#send(encodeChannelMessage(message));
  }
}

/** Whether a process listens at the socket. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection(path);
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => resolve(false));
  });
}
