/** Files that may be missing. @module */
import { KernelError } from "../../base/errno.ts";
import type { Host } from "../../host/host.ts";
import { readBytes } from "../../host/read-file.ts";

/** Null when there is no such file. @throws {KernelError} as {@link readBytes} else */
export function readIfThere(host: Host, path: string, limitBytes: number): Uint8Array | null {
  return orNull(() => readBytes(host, path, limitBytes));
}

/** Whether there is anything at `path`. @throws {KernelError} what stat(2) throws else */
export function isThere(host: Host, path: string): boolean {
  return orNull(() => host.stat(path)) !== null;
}

/**
 * What tells a file from another that has taken its place, as package managers do it (a new inode) or as cp does it (mostly
 * another size); null when there is none. @throws {KernelError} what stat(2) throws else
 */
export function identityOf(host: Host, path: string): string | null {
  const found = orNull(() => host.stat(path));
  return found && `inode ${found.inode}, ${found.sizeBytes} bytes`;
}

function orNull<T>(look: () => T): T | null {
  try {
    return look();
  } catch (error) {
    if (error instanceof KernelError && (error.code === "ENOENT" || error.code === "ENOTDIR"))
      return null;
    throw error;
  }
}
