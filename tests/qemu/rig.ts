/**
 * Machines of QEMU for tests: when they are to be skipped, and a second way to look at their hardware.
 * @module
 */
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createConnection, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { isKernelError } from "../../src/base/errno.ts";
import { findQemu } from "../../src/machine/qemu/qemu-process.ts";
import { skipUnless } from "../support/skip.ts";

/** For the `skip` of tests, as {@link skipUnless}. */
export function skipReason(): string | false {
  return skipUnless("QEMU's hardware", missingQemu());
}

/** Why there is no QEMU to run, or null. */
export function missingQemu(): string | null {
  if (process.platform !== "linux") return "needs Linux";
  try {
    findQemu();
    return null;
  } catch (error) {
    if (!isKernelError(error, "ENOENT")) throw error;
    return error.message;
  }
}

/** QEMU's monitor (QMP): sees registers while a kernel has the qtest socket to itself. */
export class Monitor {
  /** QEMU's arguments for it. */
  readonly arguments: readonly string[];
  readonly #folder = mkdtempSync(join(tmpdir(), "holdfast-monitor-"));
  #socket: Socket | null = null;
  /** Takes the next answer; null when QEMU has ended. */
  #take: ((line: string | null) => void) | null = null;

  constructor() {
    const path = join(this.#folder, "qmp");
    this.arguments = [
      ...["-chardev", `socket,id=qmp,path=${path},server=on,wait=off`],
      ...["-mon", "chardev=qmp,mode=control"],
    ];
  }

  async connect(): Promise<void> {
    this.#socket = createConnection(join(this.#folder, "qmp"));
    await once(this.#socket, "connect");
    const greeted = this.#next();
    const lines = createInterface(this.#socket);
    lines.on("line", (line) => this.#take?.(line));
    // QEMU may end before it has answered.
    for (const source of [lines, this.#socket]) source.on("error", () => this.#take?.(null));
    this.#socket.on("close", () => this.#take?.(null));
    await greeted;
    await this.#ask({ execute: "qmp_capabilities" });
  }

  /** A physical word as a processor would read it, of registers too; null when QEMU has ended. */
  async read32(pa: number): Promise<number | null> {
    const said = await this.command(`xp /1wx 0x${pa.toString(16)}`);
    const word = /: 0x([0-9a-f]{8})/.exec(said ?? "")?.[1];
    return word === undefined ? null : Number.parseInt(word, 16);
  }

  /** @returns what the human monitor answers; null when QEMU has ended */
  async command(line: string): Promise<string | null> {
    const answer = await this.#ask({
      execute: "human-monitor-command",
      arguments: { "command-line": line },
    });
    return answer === null ? null : String(answer["return"]);
  }

  close(): void {
    this.#socket?.destroy();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async #ask(command: object): Promise<Record<string, unknown> | null> {
    if (this.#socket === null || this.#socket.destroyed) return null;
    const answered = this.#next();
    this.#socket.write(`${JSON.stringify(command)}\n`);
    const answer = await answered;
    return answer === null ? null : (JSON.parse(answer) as Record<string, unknown>);
  }

  #next(): Promise<string | null> {
    return new Promise((resolve) => {
      this.#take = resolve;
    });
  }
}

/** Whether a process exists and is no zombie. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return false;
    throw error;
  }
}
