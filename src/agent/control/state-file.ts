/**
 * The agent's state in a file, by default /run/holdfast/state.json: a file system that ends with its kernel, as what it
 * says does.
 *
 * Invariants: a reader finds the old state or the new one, never a part; a state that could not be written leaves the old one.
 * @module
 */
import {
  closeSync,
  constants,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { dirname } from "node:path";
import { systemCallError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { type AgentState, decodeAgentState, type StateStore } from "./agent-state.ts";

/** Root alone: who owns which VM is nobody else's to read or change. */
const MODE = 0o600;
const FOLDER_MODE = 0o755;

export class StateFile implements StateStore {
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
  }

  read(): AgentState | null {
    let text: string;
    try {
      text = readFileSync(this.#path, "utf8");
    } catch (error) {
      const failure = asKernelError(error, "read", this.#path);
      if (failure.code === "ENOENT") return null;
      throw failure;
    }
    return decodeAgentState(text);
  }

  write(state: AgentState): void {
    const path = this.#path;
    const next = `${path}.new`;
    attempt("write", next, () =>
      withUndo((undo) => {
        mkdirSync(dirname(path), { recursive: true, mode: FOLDER_MODE });
        const { O_WRONLY, O_CREAT, O_NOFOLLOW } = constants;
        const fd = openSync(next, O_WRONLY | O_CREAT | O_NOFOLLOW, MODE);
        undo(() => rmSync(next, { force: true }));
        try {
          const bytes = Buffer.from(`${JSON.stringify(state, null, 1)}\n`);
          // What an agent that was killed here has left.
          ftruncateSync(fd);
          for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
          fsyncSync(fd);
        } finally {
          closeSync(fd);
        }
        renameSync(next, path);
      }),
    );
    attempt("fsync", dirname(path), () => syncFolder(dirname(path)));
  }
}

/** The name, too, must be on the medium. */
function syncFolder(path: string): void {
  const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function attempt(op: string, path: string, action: () => void): void {
  try {
    action();
  } catch (error) {
    throw asKernelError(error, op, path);
  }
}

/** @throws what is not an error of a system call */
function asKernelError(error: unknown, op: string, path: string) {
  const errno = (error as NodeJS.ErrnoException | null)?.errno;
  if (typeof errno !== "number") throw error;
  return systemCallError(-errno, op, path);
}
