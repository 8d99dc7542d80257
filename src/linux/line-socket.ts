/**
 * Lines with descriptors over one connected Unix socket: a Channel.
 *
 * Why limits: whoever is at the other end may flood, stop reading, or send anything. It costs a bounded amount of memory and
 * descriptors, and ends with that channel.
 * Framing: a line ends with a newline. One that descriptors belong to is JSON with `"fds": n`; it gets the first n of those
 *   that have come. They come no later than the line's first byte, so all of them are there when the line is.
 * Invariant: every descriptor that came is handed out with a line or closed.
 * @module
 */
import { assert } from "../base/assert.ts";
import { isKernelError } from "../base/errno.ts";
import { isIndex } from "../base/units.ts";
import { type Channel, LINE_BYTES_MAX, LINE_FDS_MAX, type Peer } from "../host/channel.ts";
import { F_DUPFD_CLOEXEC, type Ffi } from "./ffi.ts";
import type { SocketMessages } from "./socket-messages.ts";

/** Most bytes that wait for a reader, beyond what the kernel keeps for it. */
export const OUTGOING_BYTES_MAX = 256 * 1024;
const NEWLINE = 0x0a;

interface Outgoing {
  bytes: Uint8Array;
  /** Copies of the sender's; they go with the first byte. */
  fds: readonly number[];
}

export class LineSocket implements Channel {
  readonly peer: Peer | null;
  readonly fd: number;
  readonly #ffi: Ffi;
  readonly #messages: SocketMessages;
  readonly #input = new Uint8Array(LINE_BYTES_MAX + 1);
  /** What has come and is not handed out: from here ... */
  #start = 0;
  /** ... to here. */
  #end = 0;
  /** End of the first line that waits; -1 when none is whole. */
  #newline = -1;
  readonly #fds: number[] = [];
  readonly #outgoing: Outgoing[] = [];
  #outgoingBytes = 0;
  #state: "open" | "ended" | "closed" = "open";
  #reason: string | null = null;

  /** @param fd - connected, without blocking; this object's from here on */
  constructor(ffi: Ffi, messages: SocketMessages, fd: number, peer: Peer | null) {
    this.#ffi = ffi;
    this.#messages = messages;
    this.fd = fd;
    this.peer = peer;
  }

  get isClosed(): boolean {
    return this.#state === "closed";
  }

  /** The other end has closed or broken a limit: no more is received. */
  get hasEnded(): boolean {
    return this.#state !== "open";
  }

  /** The limit that was broken. */
  get reason(): string | null {
    return this.#reason;
  }

  get hasLine(): boolean {
    return this.#newline >= 0;
  }

  /** Whether something waits for the other end to read. */
  get hasOutgoing(): boolean {
    return this.#outgoing.length > 0;
  }

  send(line: string, fds: readonly number[] = []): boolean {
    assert(!line.includes("\n"), "a message is one line");
    assert(fds.length === 0 || declaredFds(line) === fds.length, "a message declares descriptors");
    const bytes = new TextEncoder().encode(`${line}\n`);
    if (this.#state !== "open" || this.#outgoingBytes + bytes.length > OUTGOING_BYTES_MAX)
      return false;
    // Copies, since the caller may close its own before they go.
    const copies: number[] = [];
    try {
      for (const fd of fds) copies.push(this.#ffi.fcntl(fd, F_DUPFD_CLOEXEC, 0));
    } catch (error) {
      this.#closeAll(copies);
      throw error;
    }
    this.#outgoing.push({ bytes, fds: copies });
    this.#outgoingBytes += bytes.length;
    this.flush();
    return !this.hasEnded;
  }

  /** Sends what the other end has room for. */
  flush(): void {
    try {
      while (this.#state === "open" && this.#outgoing.length > 0) {
        const next = this.#outgoing[0];
        const sent = this.#messages.send(this.fd, next.bytes, next.fds);
        this.#closeAll(next.fds);
        next.fds = [];
        next.bytes = next.bytes.subarray(sent);
        this.#outgoingBytes -= sent;
        if (next.bytes.length === 0) this.#outgoing.shift();
      }
    } catch (error) {
      if (isKernelError(error, "EAGAIN")) return;
      if (isKernelError(error, "EPIPE") || isKernelError(error, "ECONNRESET")) this.#finish(null);
      // As ETOOMANYREFS, when the other end does not take the descriptors that are on the way.
      else if (isKernelError(error)) this.#finish(error.message);
      else throw error;
    }
  }

  /** Takes what has come, once, unless a line is waiting: then the other end has to. */
  receive(): void {
    if (this.#state !== "open" || this.hasLine) return;
    this.#input.copyWithin(0, this.#start, this.#end);
    this.#end -= this.#start;
    this.#start = 0;
    try {
      const { lengthBytes, fds, isTruncated } = this.#messages.receive(
        this.fd,
        this.#input.subarray(this.#end),
      );
      this.#fds.push(...fds);
      const from = this.#end;
      this.#end += lengthBytes;
      if (isTruncated) this.#finish("more descriptors came than could be taken");
      else if (this.#fds.length > LINE_FDS_MAX)
        this.#finish(`more than ${LINE_FDS_MAX} descriptors wait for their line`);
      else if (lengthBytes === 0) this.#finish(null);
      else this.#findLine(from);
    } catch (error) {
      if (isKernelError(error, "EAGAIN")) return;
      if (isKernelError(error, "ECONNRESET")) this.#finish(null);
      else if (isKernelError(error)) this.#finish(error.message);
      else throw error;
    }
  }

  /** The first line that waits, and its descriptors, which are the caller's. Null when it broke a limit, or there is none. */
  takeLine(): { readonly line: string; readonly fds: readonly number[] } | null {
    if (!this.hasLine) return null;
    const line = decodeLine(this.#input.subarray(this.#start, this.#newline));
    if (line === null) return this.#breakLimit("a line is not UTF-8");
    const count = declaredFds(line);
    if (count === null) return this.#breakLimit(`"fds" is not in 0 .. ${LINE_FDS_MAX}`);
    if (count > this.#fds.length)
      return this.#breakLimit(
        `a line declares ${count} descriptors, and ${this.#fds.length} have come`,
      );
    const fds = this.#fds.splice(0, count);
    const next = this.#newline + 1;
    this.#start = next;
    this.#findLine(next);
    // Those of a line that has begun may wait; nothing has begun here.
    if (this.#start === this.#end && this.#fds.length > 0)
      this.#finish(`${this.#fds.length} descriptors came with a line that does not declare them`);
    return { line, fds };
  }

  /** Closes the socket and every descriptor that was not handed out. */
  close(): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.#newline = -1;
    this.#closeAll(this.#fds.splice(0));
    for (const { fds } of this.#outgoing.splice(0)) this.#closeAll(fds);
    this.#ffi.close(this.fd);
  }

  #findLine(from: number): void {
    const found = this.#input.indexOf(NEWLINE, from);
    this.#newline = found < this.#end ? found : -1;
    if (this.#newline < 0 && this.#end - this.#start > LINE_BYTES_MAX)
      this.#finish(`a line is longer than ${LINE_BYTES_MAX} bytes`);
  }

  #breakLimit(reason: string): null {
    this.#newline = -1;
    this.#finish(reason);
    return null;
  }

  #finish(reason: string | null): void {
    if (this.hasEnded) return;
    this.#state = "ended";
    this.#reason = reason;
  }

  #closeAll(fds: readonly number[]): void {
    for (const fd of fds) this.#ffi.close(fd);
  }
}

/** Null when it is not UTF-8. */
function decodeLine(bytes: Uint8Array): string | null {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    if (error instanceof TypeError) return null;
    throw error;
  }
}

/** How many descriptors a line has; null when it says something else. What is no JSON has none. */
function declaredFds(line: string): number | null {
  if (!line.includes('"fds"')) return 0;
  try {
    const message: unknown = JSON.parse(line);
    if (typeof message !== "object" || message === null || !("fds" in message)) return 0;
    return isIndex(message.fds, LINE_FDS_MAX) ? message.fds : null;
  } catch (error) {
    if (error instanceof SyntaxError) return 0;
    throw error;
  }
}
