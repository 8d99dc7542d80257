/**
 * QEMU as a child that does not outlive us, and leaves nothing behind.
 *
 * Why a watchdog: a process that is killed by SIGKILL cannot end its children. So a shell beside QEMU reads a pipe whose
 * other end we hold; when it ends without a word, we are gone: the shell kills QEMU and removes the folder of its
 * sockets. A session of its own keeps a terminal's ^C from ending QEMU before us.
 * Lifecycle: `start`; QEMU creates its sockets in `folder`; `stop` at any time, or QEMU ends by itself and
 * `ended` says why.
 * @module
 */
import { type ChildProcess, spawn } from "node:child_process";
import { accessSync, constants, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import type { Writable } from "node:stream";
import { KernelError } from "../../base/errno.ts";

const PROGRAM = "qemu-system-x86_64";
const INSTALL = "sudo apt-get install --no-install-recommends qemu-system-x86";
/** Its first and its last descriptor that only the watchdog has. */
const PIPE = 3;
/** QEMU's descriptors are numbered from here. */
export const FIRST_QEMU_FD = 4;

/** $1 is the folder, the rest QEMU and its arguments. A word on the pipe: all is well, QEMU has ended. */
const SCRIPT = `folder=$1; shift
( read -r word <&${PIPE} || kill -9 $$; rm -rf "$folder" ) </dev/null >/dev/null 2>&1 &
exec ${PIPE}<&-
exec "$@"`;

/**
 * Finds QEMU: the file that the environment's QEMU names, else the program on PATH.
 *
 * @throws {KernelError} ENOENT when there is none; it says how to install it
 */
export function findQemu(environment: NodeJS.ProcessEnv = process.env): string {
  const wanted = environment["QEMU"];
  if (wanted !== undefined && wanted !== "") {
    if (isExecutable(wanted)) return wanted;
    throw new KernelError("ENOENT", "power on", `QEMU=${wanted} is not a program`);
  }
  for (const folder of (environment["PATH"] ?? "").split(delimiter)) {
    const path = join(folder, PROGRAM);
    if (folder !== "" && isExecutable(path)) return path;
  }
  throw new KernelError(
    "ENOENT",
    "power on",
    `there is no ${PROGRAM} on PATH; install it with "${INSTALL}" or set QEMU to its path`,
  );
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

export class QemuProcess {
  /** For sockets and the firmware's file; nobody else can look into it. */
  readonly folder: string;
  /** Resolves when QEMU has ended, with what it said. */
  readonly ended: Promise<string>;
  #child: ChildProcess | null = null;
  #resolveEnded: (reason: string) => void = () => {};
  #isStopped = false;
  #isRunning = false;

  constructor() {
    this.folder = mkdtempSync(join(tmpdir(), "holdfast-qemu-"));
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
  }

  /** QEMU's process id. */
  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** @param fds - become descriptors {@link FIRST_QEMU_FD} and so on in QEMU; they stay ours too */
  start(program: string, args: readonly string[], fds: readonly number[]): void {
    const child = spawn("/bin/sh", ["-c", SCRIPT, "sh", this.folder, program, ...args], {
      detached: true,
      stdio: ["ignore", "ignore", "pipe", "pipe", ...fds],
    });
    this.#child = child;
    this.#isRunning = true;
    void this.ended.then(() => {
      this.#isRunning = false;
    });
    let said = "";
    child.stderr?.on("data", (chunk) => {
      said += String(chunk);
    });
    // The pipe breaks when the watchdog has ended first; then there is nothing left to tell it.
    const pipe = child.stdio[PIPE] as Writable;
    pipe.on("error", () => {});
    child.once("error", (error) => this.#resolveEnded(error.message));
    // Nobody may kill that process id any more.
    child.once("exit", () => pipe.end("ended\n"));
    // Later: all that it said is here, and the watchdog has ended, too.
    child.once("close", (code, signal) => {
      const how = signal === null ? `exit status ${code}` : signal;
      this.#resolveEnded(said.trim() === "" ? `it ended with ${how}` : said.trim());
    });
  }

  /** Whether `stop` was called. */
  get isStopped(): boolean {
    return this.#isStopped;
  }

  get isRunning(): boolean {
    return this.#isRunning;
  }

  /** Ends QEMU at once, and waits for it. Nothing of it is left. */
  async stop(): Promise<void> {
    this.#isStopped = true;
    if (this.#child !== null) {
      this.#child.kill("SIGKILL");
      await this.ended;
    }
    rmSync(this.folder, { recursive: true, force: true });
  }
}
