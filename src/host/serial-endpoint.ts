/**
 * Channels over a machine's serial line: how others reach an agent that runs in a machine of ours.
 *
 * The line's other end (the process that the machine is in) listens for clients and carries what they say. Every client is
 * a channel with a number of its own; descriptors cannot pass.
 * Layout of a line, in both directions: `@channel {"channel": n, "kind": "open" | "line" | "closed", "line": text}`.
 *   Other lines are not for channels: from the machine they are its log, to it they are ignored.
 * Lifecycle: a kexec ends all channels, as it ends a process; what comes for a channel that this kernel has not seen
 *   opened was meant for the one before.
 * @module
 */

import { encodeUtf8 } from "../abi/struct.ts";
import { O_NONBLOCK, O_RDWR } from "../abi/uapi/fs.ts";
import { isKernelError } from "../base/errno.ts";
import type { Channel, Endpoint, EndpointEvent } from "./channel.ts";
import { LINE_BYTES_MAX } from "./channel.ts";
import type { Host } from "./host.ts";

const MARK = "@channel ";
/** Longest sleep between two looks at the line. */
const LOOK_NS = 1_000_000;
/** Lines of one poll, of all channels. */
const LINES_MAX = 64;
const READ_BYTES = 4096;

/** What one line of the serial line says of a channel. */
export interface ChannelMessage {
  readonly channel: number;
  readonly kind: "open" | "line" | "closed";
  /** Of kind "line". */
  readonly line?: string;
}

/** @returns the line to send */
export function encodeChannelMessage(message: ChannelMessage): string {
  return `${MARK}${JSON.stringify(message)}`;
}

/** @returns null when the line is not one of channels, or broken */
export function decodeChannelMessage(text: string): ChannelMessage | null {
  if (!text.startsWith(MARK)) return null;
  let message: Partial<ChannelMessage> | null;
  try {
    message = JSON.parse(text.slice(MARK.length)) as Partial<ChannelMessage> | null;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    return null;
  }
  const { channel, kind, line } = message ?? {};
  if (typeof channel !== "number" || !Number.isSafeInteger(channel)) return null;
  if (kind === "line") return typeof line === "string" ? { channel, kind, line } : null;
  return kind === "open" || kind === "closed" ? { channel, kind } : null;
}

export class SerialEndpoint implements Endpoint {
  readonly #host: Host;
  readonly #fd: number;
  readonly #channels = new Map<number, Channel>();
  readonly #decoder = new TextDecoder();
  readonly #buffer = new Uint8Array(READ_BYTES);
  #partial = "";

  /** @throws {KernelError} what open(2) throws */
  constructor(host: Host, path = "/dev/ttyS0") {
    this.#host = host;
    this.#fd = host.open(path, O_RDWR | O_NONBLOCK);
  }

  poll(timeoutNs: number): readonly EndpointEvent[] {
    const endNs = this.#host.clockNs() + timeoutNs;
    for (;;) {
      const events = this.#receive();
      if (events.length > 0) return events;
      const leftNs = endNs - this.#host.clockNs();
      if (leftNs <= 0) return [];
      this.#host.sleep(Math.min(leftNs, LOOK_NS));
    }
  }

  close(): void {
    for (const channel of [...this.#channels.values()]) channel.close();
    this.#host.close(this.#fd);
  }

  #receive(): EndpointEvent[] {
    const events: EndpointEvent[] = [];
    for (let lines = 0; lines < LINES_MAX; lines++) {
      const line = this.#readLine();
      if (line === null) break;
      const message = decodeChannelMessage(line);
      const event = message === null ? null : this.#take(message);
      if (event !== null) events.push(event);
    }
    return events;
  }

  #take({ channel: number, kind, line }: ChannelMessage): EndpointEvent | null {
    const known = this.#channels.get(number);
    if (kind === "open") {
      if (known !== undefined) return null;
      const channel = this.#open(number);
      return { kind: "open", channel };
    }
    if (known === undefined) return null;
    if (kind === "line") return { kind, channel: known, line: line ?? "", fds: [] };
    this.#channels.delete(number);
    return { kind, channel: known, reason: null };
  }

  #open(number: number): Channel {
    const print = (message: ChannelMessage) => this.#host.print(encodeChannelMessage(message));
    const channel: Channel = {
      peer: null,
      send: (line, fds = []) => {
        const isOpen = this.#channels.get(number) === channel;
        if (!isOpen || fds.length > 0 || encodeUtf8(line).length > LINE_BYTES_MAX) return false;
        print({ channel: number, kind: "line", line });
        return true;
      },
      close: () => {
        if (this.#channels.delete(number)) print({ channel: number, kind: "closed" });
      },
    };
    this.#channels.set(number, channel);
    return channel;
  }

  #readLine(): string | null {
    for (;;) {
      const end = this.#partial.indexOf("\n");
      if (end >= 0) {
        const line = this.#partial.slice(0, end);
        this.#partial = this.#partial.slice(end + 1);
        return line;
      }
      try {
        const length = this.#host.read(this.#fd, this.#buffer);
        const bytes = this.#buffer.subarray(0, length);
        this.#partial += this.#decoder.decode(bytes, { stream: true });
      } catch (error) {
        if (!isKernelError(error, "EAGAIN")) throw error;
        return null;
      }
    }
  }
}
