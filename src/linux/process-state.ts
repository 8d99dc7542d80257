/**
 * Whether a process of this machine has ended.
 *
 * Source: proc_pid_stat(5)
 * @module
 */
import { readFileSync } from "node:fs";

/** num_threads, counted from the state on. */
const THREADS_FIELD = 17;

/**
 * @param pid - as SO_PEERCRED tells it; 0 is one of another pid namespace, of which nothing is known
 * @returns true only when it has ended for certain, and its descriptors are closed: also as a zombie. A process that has got the
 *   same number since counts as the one that was asked for
 */
export function processHasEnded(pid: number): boolean {
  if (pid === 0) return false;
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    // ESRCH: it ended between open and read.
    if (code === "ENOENT" || code === "ESRCH") return true;
    throw error;
  }
  // The name of the program stands before it, in parentheses, and may have any character in it.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const [state] = fields;
  // A first thread can end before the others.
  const threads = Number(fields[THREADS_FIELD]);
  return (state === "Z" || state === "X") && threads <= 1;
}
