/**
 * Where others reach the agent: lines of text in both directions, with file descriptors where the place has them.
 *
 * Why: the agent's control protocol is the same on every place, but what carries it is not: Unix sockets with
 * SCM_RIGHTS on Linux (src/linux), a console on the embedded machine. An endpoint frames, bounds and delivers; it knows
 * nothing of what the lines say but how many descriptors belong to one.
 * @module
 */

/** Most bytes of one line, without its newline. */
export const LINE_BYTES_MAX = 64 * 1024;
/** Most descriptors that belong to one line. */
export const LINE_FDS_MAX = 16;

/** Who is at the other end when it connected, as the kernel says. */
export interface Peer {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
  /** Supplementary groups. */
  readonly groups: readonly number[];
}

/** One who is connected. */
export interface Channel {
  /** Null where the place has no such thing. */
  readonly peer: Peer | null;
  /**
   * Takes the whole message or none of it.
   * @param line - without a newline
   * @param fds - stay the caller's; the other end gets copies
   * @returns false when the other end does not take it (its buffer is full, or it is gone): the caller closes
   */
  send(line: string, fds?: readonly number[]): boolean;
  /** Again is fine. No event follows. */
  close(): void;
}

export type EndpointEvent =
  | { readonly kind: "open"; readonly channel: Channel }
  /** `fds`: those that came with this line, owned by the receiver of the event, who closes them. */
  | {
      readonly kind: "line";
      readonly channel: Channel;
      readonly line: string;
      readonly fds: readonly number[];
    }
  /** `reason`: the limit that it broke; null when the other end closed. The channel is closed already. */
  | { readonly kind: "closed"; readonly channel: Channel; readonly reason: string | null };

/** Where channels come from: a listening socket, or a client's one connection, which is "open" in its first poll. */
export interface Endpoint {
  /**
   * Waits until something happens, but not longer than `timeoutNs` (0: does not wait).
   * @returns what has happened, for each channel "open", its lines in order, "closed"; a bounded number of lines of each, so
   *   that one that floods does not starve others
   */
  poll(timeoutNs: number): readonly EndpointEvent[];
  /** Closes all channels, and every descriptor that came and was not handed out. */
  close(): void;
}
