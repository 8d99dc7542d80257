/**
 * Endpoint over Unix stream sockets: the agent's listening one, and a client's connection to it.
 *
 * Why not Node's own sockets: they pass no descriptors and do not say who is at the other end, and an update must serve
 * its clients while Node's event loop stands still.
 * The agent's main loop awaits `waitReadable`, which waits on another thread, so that Node's signals and timers work.
 * Source: unix(7), socket(7), poll(2), flock(2)
 * @module
 */
import {
  chmodSync,
  chownSync,
  closeSync,
  lstatSync,
  openSync,
  rmSync,
  type Stats,
  unlinkSync,
} from "node:fs";
import { dirname } from "node:path";
import { O_NONBLOCK } from "../abi/uapi/fs.ts";
import { isKernelError, KernelError } from "../base/errno.ts";
import { withUndo } from "../base/undo.ts";
import type { Endpoint, EndpointEvent, Peer } from "../host/channel.ts";
import {
  AF_UNIX,
  F_SETFD,
  F_SETFL,
  FD_CLOEXEC,
  type Ffi,
  POLLIN,
  POLLOUT,
  SO_ACCEPTCONN,
  SO_DOMAIN,
  SO_PEERCRED,
  SO_PEERGROUPS,
  SO_TYPE,
  SOCK_NONBLOCK,
  SOCK_STREAM,
} from "./ffi.ts";
import { makeFolder } from "./folder.ts";
import { LineSocket } from "./line-socket.ts";
import { nodeCall } from "./node-call.ts";
import { PollSet, type Wanted } from "./poll-set.ts";
import { SocketMessages } from "./socket-messages.ts";

/** Lines of one channel in one poll. */
export const LINES_PER_POLL = 16;
/**
 * Channels of all, and of all users but root, so that nobody keeps root out. It is more than an agent takes: whom the
 * agent refuses it tells why.
 */
export const CHANNELS_MAX = 1280;
export const CHANNELS_OF_USERS_MAX = 1152;
/** Connections that wait to be accepted; one more gets EAGAIN. */
const BACKLOG = CHANNELS_MAX;
const ACCEPTS_PER_POLL = 16;
/** No connection is accepted for so long after the process or the system had no room for one. */
const ACCEPT_PAUSE_NS = 100e6;
const NS_PER_MS = 1e6;
/** struct ucred: pid, uid, gid. */
const UCRED_BYTES = 12;
const GID_BYTES = 4;
/** Room for the supplementary groups of most; then for as many as there can be. */
const GROUPS_GUESS = 64;
const NGROUPS_MAX = 65536;
/** What accept4(2) says when there is no room for one more descriptor. */
const NO_ROOM: ReadonlySet<string> = new Set(["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"]);

export interface ListenOptions {
  readonly path: string;
  /** Permissions: who may write may connect. */
  readonly mode: number;
  /** Null: this process's group. */
  readonly gid: number | null;
}

export class UnixEndpoint implements Endpoint {
  readonly #ffi: Ffi;
  readonly #messages: SocketMessages;
  readonly #listener: number | null;
  readonly #channels = new Set<LineSocket>();
  /** Not announced yet. */
  readonly #fresh = new Set<LineSocket>();
  readonly #onClose: () => void;
  /** As process.hrtime. */
  #acceptFromNs = 0;
  /** What ends a wait on the other thread, while there is one. */
  #wakeup: number | null = null;
  #isClosed = false;

  private constructor(ffi: Ffi, listener: number | null, onClose: () => void) {
    this.#ffi = ffi;
    this.#messages = new SocketMessages(ffi);
    this.#listener = listener;
    this.#onClose = onClose;
  }

  /**
   * Listens at a path, whose folder is made when it is missing. What an agent that is dead has left there is replaced.
   * @throws {KernelError} EADDRINUSE somebody listens there, or the path is something else than a socket; EACCES;
   *   ENAMETOOLONG above 107 bytes
   */
  static listen(ffi: Ffi, { path, mode, gid }: ListenOptions): UnixEndpoint {
    return withUndo((undo) => {
      makeFolder(dirname(path));
      const lock = lockPath(ffi, path);
      undo(() => closeSync(lock));
      removeStale(ffi, path);
      const listener = ffi.socket(SOCK_STREAM | SOCK_NONBLOCK);
      undo(() => ffi.close(listener));
      ffi.bind(listener, path);
      undo(() => rmSync(path, { force: true }));
      // Nobody can connect before listen.
      nodeCall("chmod", path, () => chmodSync(path, mode));
      if (gid !== null) nodeCall("chown", path, () => chownSync(path, -1, gid));
      ffi.listen(listener, BACKLOG);
      return new UnixEndpoint(ffi, listener, () => {
        rmSync(path, { force: true });
        closeSync(lock);
      });
    });
  }

  /**
   * Takes a listening socket over that the service manager has made; its path stays when this endpoint closes.
   * @throws {KernelError} EBADF, ENOTSOCK; EINVAL it is no Unix stream socket that listens. The descriptor is still the caller's
   */
  static adopt(ffi: Ffi, fd: number): UnixEndpoint {
    for (const [option, wanted] of [
      [SO_DOMAIN, AF_UNIX],
      [SO_TYPE, SOCK_STREAM],
      [SO_ACCEPTCONN, 1],
    ]) {
      const found = socketOption(ffi, fd, option);
      if (found !== wanted)
        throw new KernelError(
          "EINVAL",
          "adopt",
          `fd ${fd} is no Unix stream socket that listens: option ${option} is ${found}, not ${wanted}`,
        );
    }
    ffi.fcntl(fd, F_SETFD, FD_CLOEXEC);
    ffi.fcntl(fd, F_SETFL, O_NONBLOCK);
    return new UnixEndpoint(ffi, fd, () => {});
  }

  /**
   * Connects to one who listens; that is the only channel.
   * @throws {KernelError} ENOENT, ECONNREFUSED nobody listens there; EACCES; EAGAIN too many wait to be accepted
   */
  static connect(ffi: Ffi, path: string): UnixEndpoint {
    return withUndo((undo) => {
      const fd = ffi.socket(SOCK_STREAM | SOCK_NONBLOCK);
      undo(() => ffi.close(fd));
      ffi.connect(fd, path);
      const endpoint = new UnixEndpoint(ffi, null, () => {});
      endpoint.#add(fd, peerOf(ffi, fd));
      return endpoint;
    });
  }

  poll(timeoutNs: number): readonly EndpointEvent[] {
    const { wanted, waitNs } = this.#waitFor(timeoutNs);
    const set = new PollSet(wanted);
    this.#ffi.poll(set.bytes, waitNs);
    if (this.#listener !== null && set.found(this.#listener) !== 0) this.#accept();
    const events: EndpointEvent[] = [];
    for (const channel of [...this.#channels]) {
      const found = set.found(channel.fd);
      if ((found & POLLOUT) !== 0) channel.flush();
      if ((found & ~POLLOUT) !== 0) channel.receive();
      this.#report(channel, events);
    }
    return events;
  }

  /** Waits until `poll` has something to do, or `wake` is called. Node's event loop runs meanwhile. One at a time. */
  async waitReadable(): Promise<void> {
    const { wanted, waitNs } = this.#waitFor(Number.POSITIVE_INFINITY);
    if (waitNs === 0 || this.#isClosed) return;
    const wakeup = this.#ffi.eventfd(0, 0);
    this.#wakeup = wakeup;
    const timeoutMs = waitNs === Number.POSITIVE_INFINITY ? -1 : Math.ceil(waitNs / NS_PER_MS);
    try {
      const set = new PollSet([...wanted, [wakeup, POLLIN]]);
      await this.#ffi.pollAsync(set.bytes, timeoutMs);
    } finally {
      this.#wakeup = null;
      this.#ffi.close(wakeup);
    }
  }

  /** Ends the `waitReadable` that there is. */
  wake(): void {
    if (this.#wakeup === null) return;
    const one = new Uint8Array(8);
    one[0] = 1;
    this.#ffi.write(this.#wakeup, one);
  }

  /** Again is fine. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.wake();
    for (const channel of this.#channels) channel.close();
    this.#channels.clear();
    if (this.#listener !== null) this.#ffi.close(this.#listener);
    this.#onClose();
  }

  /** What to wait for, and how long at most. */
  #waitFor(timeoutNs: number): { readonly wanted: readonly Wanted[]; readonly waitNs: number } {
    const wanted: Wanted[] = [];
    let waitNs = timeoutNs;
    for (const channel of this.#channels) {
      if (channel.isClosed) this.#channels.delete(channel);
      else if (channel.hasEnded || channel.hasLine || this.#fresh.has(channel)) waitNs = 0;
      else wanted.push([channel.fd, POLLIN | (channel.hasOutgoing ? POLLOUT : 0)]);
    }
    if (this.#listener !== null) {
      const pauseNs = this.#acceptFromNs - nowNs();
      if (pauseNs <= 0) wanted.push([this.#listener, POLLIN]);
      else waitNs = Math.min(waitNs, pauseNs);
    }
    return { wanted, waitNs };
  }

  #report(channel: LineSocket, events: EndpointEvent[]): void {
    if (this.#fresh.delete(channel)) events.push({ kind: "open", channel });
    for (let i = 0; i < LINES_PER_POLL && channel.hasLine; i++) {
      const taken = channel.takeLine();
      if (taken !== null) events.push({ kind: "line", channel, ...taken });
    }
    if (!channel.hasEnded || channel.hasLine) return;
    this.#channels.delete(channel);
    // One that the caller has closed itself is not told.
    if (channel.isClosed) return;
    channel.close();
    events.push({ kind: "closed", channel, reason: channel.reason });
  }

  #accept(): void {
    for (let i = 0; i < ACCEPTS_PER_POLL && this.#listener !== null; i++) {
      let fd: number;
      try {
        fd = this.#ffi.accept(this.#listener);
      } catch (error) {
        if (isKernelError(error, "EAGAIN")) return;
        if (isKernelError(error, "ECONNABORTED")) continue;
        if (!isKernelError(error) || !NO_ROOM.has(error.code)) throw error;
        this.#acceptFromNs = nowNs() + ACCEPT_PAUSE_NS;
        return;
      }
      this.#admit(fd);
    }
  }

  #admit(fd: number): void {
    const peer = withUndo((undo) => {
      undo(() => this.#ffi.close(fd));
      return peerOf(this.#ffi, fd);
    });
    const open = [...this.#channels].filter((channel) => !channel.isClosed);
    const ofUsers = open.filter((channel) => channel.peer?.uid !== 0);
    if (open.length >= CHANNELS_MAX || (peer.uid !== 0 && ofUsers.length >= CHANNELS_OF_USERS_MAX))
      this.#ffi.close(fd);
    else this.#add(fd, peer);
  }

  #add(fd: number, peer: Peer): void {
    const channel = new LineSocket(this.#ffi, this.#messages, fd, peer);
    this.#channels.add(channel);
    this.#fresh.add(channel);
  }
}

function nowNs(): number {
  return Number(process.hrtime.bigint());
}

/** Held while this process lives, so that two agents that start together do not both find the path stale. */
function lockPath(ffi: Ffi, path: string): number {
  const lock = `${path}.lock`;
  const fd = nodeCall("open", lock, () => openSync(lock, "w", 0o600));
  try {
    ffi.lockFile(fd);
    return fd;
  } catch (error) {
    closeSync(fd);
    if (isKernelError(error, "EAGAIN"))
      throw new KernelError("EADDRINUSE", "listen", `another agent listens at ${path}`);
    throw error;
  }
}

/** @throws {KernelError} EADDRINUSE what is there is in use, or no socket */
function removeStale(ffi: Ffi, path: string): void {
  const found: Stats | undefined = nodeCall("stat", path, () =>
    lstatSync(path, { throwIfNoEntry: false }),
  );
  if (found === undefined) return;
  if (!found.isSocket())
    throw new KernelError("EADDRINUSE", "listen", `${path} is no socket: remove it`);
  const probe = ffi.socket(SOCK_STREAM | SOCK_NONBLOCK);
  try {
    ffi.connect(probe, path);
  } catch (error) {
    if (!isKernelError(error, "ECONNREFUSED") && !isKernelError(error, "EAGAIN")) throw error;
    if (isKernelError(error, "ECONNREFUSED")) {
      nodeCall("unlink", path, () => unlinkSync(path));
      return;
    }
  } finally {
    ffi.close(probe);
  }
  throw new KernelError("EADDRINUSE", "listen", `another process listens at ${path}`);
}

function socketOption(ffi: Ffi, fd: number, option: number): number {
  const value = new Uint8Array(4);
  ffi.getsockopt(fd, option, value);
  return new DataView(value.buffer).getInt32(0, true);
}

function peerOf(ffi: Ffi, fd: number): Peer {
  const credentials = new Uint8Array(UCRED_BYTES);
  ffi.getsockopt(fd, SO_PEERCRED, credentials);
  const words = new DataView(credentials.buffer);
  return {
    pid: words.getInt32(0, true),
    uid: words.getUint32(4, true),
    gid: words.getUint32(8, true),
    groups: peerGroups(ffi, fd, GROUPS_GUESS),
  };
}

function peerGroups(ffi: Ffi, fd: number, room: number): readonly number[] {
  const groups = new Uint8Array(room * GID_BYTES);
  try {
    const words = new DataView(groups.buffer, 0, ffi.getsockopt(fd, SO_PEERGROUPS, groups));
    const count = words.byteLength / GID_BYTES;
    return Array.from({ length: count }, (_, i) => words.getUint32(i * GID_BYTES, true));
  } catch (error) {
    if (!isKernelError(error, "ERANGE") || room === NGROUPS_MAX) throw error;
    return peerGroups(ffi, fd, NGROUPS_MAX);
  }
}
