/**
 * What processes have open, as /proc tells it.
 * Source: proc_pid_fd(5)
 * @module
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

/** A process that has a file open. */
export interface Holder {
  readonly pid: number;
  /** As in ps(1); "" when it has ended since. */
  readonly name: string;
}

/** Processes that have `path` open, as far as this user may look: root may everywhere. */
export function holdersOf(path: string): Holder[] {
  const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
  return pids
    .filter((pid) => fdsOf(pid).some((fd) => openFile(`/proc/${pid}/fd/${fd}`) === path))
    .map((pid) => ({ pid: Number(pid), name: ifThere(() => commandName(pid)) ?? "" }));
}

/** Whether a descriptor of this process is a live-update session, by the name that the kernel gives its file. */
export function isSessionFile(fd: number): boolean {
  return openFile(`/proc/self/fd/${fd}`)?.startsWith("anon_inode:[luo_session]") === true;
}

function fdsOf(pid: string): readonly string[] {
  return ifThere(() => readdirSync(`/proc/${pid}/fd`)) ?? [];
}

function openFile(link: string): string | null {
  return ifThere(() => readlinkSync(link));
}

function commandName(pid: string): string {
  return readFileSync(`/proc/${pid}/comm`, "utf8").trimEnd();
}

/** Null for what has ended meanwhile, or is not to be looked at. */
function ifThere<T>(look: () => T): T | null {
  try {
    return look();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ESRCH" || code === "EACCES" || code === "EPERM") return null;
    throw error;
  }
}
