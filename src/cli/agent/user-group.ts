/** Groups by name. @module */
import { readFileSync } from "node:fs";
import { UsageError } from "../usage-error.ts";

const GROUP_FILE = "/etc/group";
const GID_LAST = 2 ** 32 - 2;

/**
 * The number of a group of this host.
 * @param name - a name, or a number
 * @param file - group(5)
 * @throws {UsageError} when there is no such group
 */
export function groupId(name: string, file: string = GROUP_FILE): number {
  const gid = /^\d{1,10}$/.test(name) ? Number(name) : localGroup(name, file);
  if (gid === null || gid > GID_LAST)
    throw new UsageError(
      `--group ${name}: ${file} has no such group; make it (groupadd --system ${name}), or give a group's number`,
    );
  return gid;
}

/** Null when the file does not have it. */
export function localGroup(name: string, file: string = GROUP_FILE): number | null {
  for (const line of readFileSync(file, "utf8").split("\n")) {
    const [group, , gid] = line.split(":");
    if (group === name && /^\d+$/.test(gid ?? "")) return Number(gid);
  }
  return null;
}
