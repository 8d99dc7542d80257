/**
 * The agent of a Linux host: the server, the socket that it is reached by, and the service manager that started it.
 *
 * Lifecycle: descriptors that came with the start (the listening socket, sessions in custody) → the socket → /dev/liveupdate
 *   and what an agent before has left → READY=1 → clients, until a signal or the jump.
 * A signal in the middle of an update is seen when the update is undone; until then it is done without a break, and the kernel
 * ends this process when it succeeds.
 * @module
 */
import { readFileSync } from "node:fs";
import { setImmediate } from "node:timers/promises";
import type { ProgressEvent } from "../../agent/control/protocol.ts";
import { AgentServer } from "../../agent/control/server.ts";
import { StateFile } from "../../agent/control/state-file.ts";
import type { Custody } from "../../agent/control/vm-registry.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { type Ffi, loadFfi } from "../../linux/ffi.ts";
import { LinuxHost } from "../../linux/linux-host.ts";
import { isSessionFile } from "../../linux/open-files.ts";
import { processHasEnded } from "../../linux/process-state.ts";
import {
  type PassedDescriptor,
  ServiceManager,
  takePassedDescriptors,
} from "../../linux/service-manager.ts";
import { UnixEndpoint } from "../../linux/unix-socket.ts";
import { onEndingSignal } from "../ending-signals.ts";
import { explainDeviceError } from "./device-diagnosis.ts";

export interface LinuxAgentOptions {
  readonly socket: string;
  readonly stateFile: string;
  /** Null: root alone. */
  readonly group: number | null;
  /** Null: the server's default. */
  readonly timeoutNs: number | null;
}

/** What is told as it happens. */
export type AgentEvent =
  | { readonly event: "listening"; readonly socket: string; readonly updates: number }
  | { readonly event: "note"; readonly note: string }
  | { readonly event: "progress"; readonly progress: ProgressEvent }
  /** A line that a machine of ours has said. */
  | { readonly event: "machine"; readonly line: string }
  | { readonly event: "stopping"; readonly signal: string; readonly left: readonly string[] };

/** Permissions of the socket: root and the group. */
const SOCKET_MODE = 0o660;
/** Of sessions in the service manager's store. */
const SESSION_PREFIX = "session-";
/** The server wants to look after what is due. */
const TICK_MS = 500;

/**
 * Runs until SIGINT, SIGTERM or SIGHUP, or until the kernel ends.
 *
 * @throws {KernelError} EADDRINUSE another agent; EBUSY, ENOENT, EACCES of /dev/liveupdate, with the reason; EIO what the kernel
 *   before handed over cannot be read; EOPNOTSUPP no koffi, or no Linux
 */
export async function runLinuxAgent(
  options: LinuxAgentOptions,
  say: (event: AgentEvent) => void,
): Promise<void> {
  const ffi = loadFfi();
  const host = new LinuxHost(ffi);
  const note = (text: string) => say({ event: "note", note: text });
  const manager = ServiceManager.fromEnvironment(ffi, process.env);
  const passed = takePassedDescriptors(ffi, process.env);
  const isSession = ({ name }: PassedDescriptor) => name.startsWith(SESSION_PREFIX);
  const endpoint = listen(
    ffi,
    options,
    passed.filter((one) => !isSession(one)),
  );
  let server: AgentServer;
  try {
    server = AgentServer.start({
      host,
      endpoint,
      store: new StateFile(options.stateFile),
      bootId: readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim(),
      group: options.group,
      ...(options.timeoutNs === null ? {} : { timeoutNs: options.timeoutNs }),
      custody: manager === null ? null : custodyOf(manager, note),
      handedIn: passed
        .filter(isSession)
        .map(({ fd, name }) => ({ name: name.slice(SESSION_PREFIX.length), session: fd })),
      isSession: isSessionFile,
      hasEnded: processHasEnded,
      observe: (progress) => say({ event: "progress", progress }),
    });
  } catch (error) {
    endpoint.close();
    throw isKernelError(error) ? explainDeviceError(host, error) : error;
  }
  try {
    for (const text of server.notes) note(text);
    say({ event: "listening", socket: options.socket, updates: server.agent.updates });
    manager?.ready();
    const signal = await serve(server, endpoint);
    manager?.stopping();
    const left = (server.agent.restoration?.left ?? []).map(({ name }) => name);
    say({ event: "stopping", signal, left });
  } finally {
    server.close();
  }
}

/** @returns the signal that ended it */
async function serve(server: AgentServer, endpoint: UnixEndpoint): Promise<NodeJS.Signals> {
  let ended: NodeJS.Signals | null = null;
  const end = (signal: NodeJS.Signals) => {
    ended = signal;
    endpoint.wake();
  };
  const tick = setInterval(() => endpoint.wake(), TICK_MS);
  const ignore = onEndingSignal(end);
  try {
    while (ended === null) {
      await endpoint.waitReadable();
      // Where clients leave nothing to wait for, signals and timers must have their turn all the same.
      await setImmediate();
      if (ended === null) server.poll(0);
    }
    return ended;
  } finally {
    clearInterval(tick);
    ignore();
  }
}

/** The socket that the service manager passes, or a new one. */
function listen(
  ffi: Ffi,
  { socket, group }: LinuxAgentOptions,
  passed: readonly PassedDescriptor[],
): UnixEndpoint {
  if (passed.length > 1)
    throw new KernelError(
      "EINVAL",
      "listen",
      `the service manager passes ${passed.length} sockets (${passed.map(({ name }) => name).join(", ")}): one ListenStream= is enough`,
    );
  return passed.length === 1
    ? UnixEndpoint.adopt(ffi, passed[0].fd)
    : UnixEndpoint.listen(ffi, { path: socket, mode: SOCKET_MODE, gid: group });
}

/** Sessions in the store of the service manager. That it does not take one must not end what the VM is in. */
function custodyOf(manager: ServiceManager, note: (text: string) => void): Custody {
  const attempt = (name: string, action: () => void) => {
    try {
      action();
    } catch (error) {
      if (!isKernelError(error)) throw error;
      note(`the service manager does not take the session of ${name}: ${error.message}`);
    }
  };
  return {
    keep: (name, session) =>
      attempt(name, () => manager.store(`${SESSION_PREFIX}${name}`, session)),
    release: (name) => attempt(name, () => manager.remove(`${SESSION_PREFIX}${name}`)),
  };
}
