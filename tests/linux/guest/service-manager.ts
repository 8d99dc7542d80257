/**
 * A service manager for one service, as systemd is one: it has the socket, passes it on with each start, and keeps the
 * descriptors that the service gives it until it starts again.
 *
 * Usage: service-manager.js SOCKET PROGRAM ARGUMENTS. Standard input: `start`, `kill`. Prints a JSON object a line: what it was
 * told, and the service's end; the service prints to the same output.
 * Source: sd_listen_fds(3), sd_notify(3)
 * @module
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { isKernelError } from "../../../src/base/errno.ts";
import { loadFfi, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_STREAM } from "../../../src/linux/ffi.ts";
import { SocketMessages } from "../../../src/linux/socket-messages.ts";

const NOTIFY_PATH = "/run/notify";
const POLL_MS = 20;
const BACKLOG = 16;
const MESSAGE_BYTES = 4096;
/** Stands for what a service manager does between fork(2) and execve(2): LISTEN_PID is the service's own. */
const LISTEN_PID = new URL("./listen-pid.js", import.meta.url).pathname;

const [path, program, ...args] = process.argv.slice(2);
const ffi = loadFfi();
const listening = ffi.socket(SOCK_STREAM);
ffi.bind(listening, path);
ffi.listen(listening, BACKLOG);
const notified = ffi.socket(SOCK_DGRAM | SOCK_NONBLOCK);
ffi.bind(notified, NOTIFY_PATH);
const messages = new SocketMessages(ffi);
/** By name. */
const store = new Map<string, number>();
let service: ChildProcess | null = null;

setInterval(hear, POLL_MS);
createInterface({ input: process.stdin }).on("line", (order) => {
  if (order === "start") start();
  else service?.kill("SIGKILL");
});
say({ manages: path });

function start(): void {
  const passed = [["control", listening] as const, ...store];
  service = spawn(process.execPath, ["--import", LISTEN_PID, program, ...args], {
    env: {
      ...process.env,
      LISTEN_FDS: `${passed.length}`,
      LISTEN_FDNAMES: passed.map(([name]) => name).join(":"),
      NOTIFY_SOCKET: NOTIFY_PATH,
    },
    stdio: ["ignore", "inherit", "inherit", ...passed.map(([, fd]) => fd)],
  });
  service.once("exit", (code, signal) => {
    hear();
    say({ exit: signal ?? code, stored: [...store.keys()] });
  });
}

/** Takes what the service has told. */
function hear(): void {
  for (;;) {
    const bytes = new Uint8Array(MESSAGE_BYTES);
    try {
      const { lengthBytes, fds } = messages.receive(notified, bytes);
      take(Buffer.from(bytes.subarray(0, lengthBytes)).toString().split("\n"), fds);
    } catch (error) {
      if (!isKernelError(error, "EAGAIN")) throw error;
      return;
    }
  }
}

function take(lines: readonly string[], fds: readonly number[]): void {
  const name = lines.find((line) => line.startsWith("FDNAME="))?.slice("FDNAME=".length) ?? "";
  const before = store.get(name);
  const isStored = lines.includes("FDSTORE=1");
  if (before !== undefined && (isStored || lines.includes("FDSTOREREMOVE=1"))) {
    ffi.close(before);
    store.delete(name);
  }
  if (isStored) store.set(name, fds[0]);
  say({ notified: lines, descriptors: fds.length });
}

function say(what: Readonly<Record<string, unknown>>): void {
  console.log(JSON.stringify(what));
}
