/** Folders below /run, where processes of a boot meet. @module */
import { chmodSync, mkdirSync } from "node:fs";
import { isKernelError } from "../base/errno.ts";
import { nodeCall } from "./node-call.ts";

/**
 * Makes a folder if there is none. Processes of a boot begin at once: another may make it at the same moment.
 *
 * One level only: mkdirSync with `recursive` never returns for a path below /proc.
 * @throws {KernelError} ENOENT its parent is missing; EACCES, EROFS, ENOSPC, ENOTDIR
 */
export function makeFolder(path: string): void {
  try {
    nodeCall("mkdir", path, () => mkdirSync(path));
    // Whatever this process's umask is: others than root come through it to the agent's socket.
    nodeCall("chmod", path, () => chmodSync(path, 0o755));
  } catch (error) {
    if (!isKernelError(error, "EEXIST")) throw error;
  }
}
