/**
 * Message channels between processes of a host: lines of text, each with file descriptors, and the peer as the kernel
 * knows it. On Linux they are Unix stream sockets (SO_PEERCRED, SCM_RIGHTS); a place without processes has its own.
 *
 * Why an interface: who speaks over channels (the agent, a VMM) needs no sockets to be tested, and runs where there are none.
 *
 * Descriptors in a stream: they arrive no later than the first byte of their message, so an endpoint hands them out in the
 * order of arrival, to each line as many as its JSON declares (`"fds": n`, absent: 0).
 *
 * Source: unix(7), cmsg(3), socket(7)
 * @module
 */

/** Longest line in bytes of UTF-8, without its newline. */
export const CHANNEL_LINE_BYTES = 64 * 1024;
/** Most descriptors of one message. */
export const CHANNEL_MESSAGE_FDS = 16;

/** The process at the other end when it connected, as the kernel says. */
export interface Peer {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
  /** Supplementary groups. */
  readonly groups: readonly number[];
}

/** One connection. */
export interface Channel {
  /** Null where the place has no processes. */
  readonly peer: Peer | null;
  /**
   * Takes the whole message or none of it.
   *
   * @param line - without newline, at most {@link CHANNEL_LINE_BYTES}
   * @param fds - stay open and the caller's: the other end gets descriptors of its own
   * @returns false when the other end does not take it (its buffer is full, it is gone): the caller closes
   */
  send(line: string, fds?: readonly number[]): boolean;
  /** Ends the connection; nothing is reported of it any more. Again: nothing. */
  close(): void;
}

export type EndpointEvent =
  | { readonly kind: "open"; readonly channel: Channel }
  | {
      readonly kind: "line";
      readonly channel: Channel;
      /** Without its newline. */
      readonly line: string;
      /** Those that came with the line. Whoever takes the event owns them and closes them. */
      readonly fds: readonly number[];
    }
  | {
      readonly kind: "closed";
      readonly channel: Channel;
      /** Which limit it broke; null when the other end closed it. */
      readonly reason: string | null;
    };

/** Where channels come from: a listening socket, or the one connection of a client, which is "open" in its first poll. */
export interface Endpoint {
  /**
   * Waits until something happens, at most `timeoutNs`, and returns it: for each channel "open", its lines in order, "closed".
   * A bounded number of lines for each channel, so that one that floods does not starve the others.
   *
   * @param timeoutNs - nanoseconds; 0 does not wait
   */
  poll(timeoutNs: number): readonly EndpointEvent[];
  /** Closes all channels, and all descriptors that were received and not yet handed out. */
  close(): void;
}
