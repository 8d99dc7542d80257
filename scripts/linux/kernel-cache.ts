/**
 * Where the real Linux kernel for the tests lies: given by HOLDFAST_KERNEL, or built once into the user's cache.
 *
 * The folder is named after the version and a hash of the configuration, so a changed fragment builds anew.
 * @module
 */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** How a developer gets a kernel. */
export const BUILD_KERNEL_COMMAND = "npm run linux:kernel";

/** A kernel that can be booted. */
export interface FoundKernel {
  readonly bzImage: string;
}

/** The checkout, from the sources as from what they are compiled to. */
export function repositoryRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, "package.json"))) folder = dirname(folder);
  return folder;
}

/** What is kept between runs: kernels. */
export function cacheFolder(): string {
  return join(process.env["XDG_CACHE_HOME"] || join(homedir(), ".cache"), "holdfast");
}

/** Path of the configuration fragment that is merged into `tinyconfig`. */
export function kernelFragment(): string {
  return join(repositoryRoot(), "scripts", "linux", "kernel.config");
}

/** The folder of a kernel built from this version of the sources and the present fragment. */
export function kernelFolder(version: string): string {
  return join(cacheFolder(), `linux-${version}-${fragmentHash()}`);
}

/**
 * The kernel to test with: HOLDFAST_KERNEL, else the one that was built last from the present fragment.
 *
 * @returns null when there is none
 * @throws {Error} when HOLDFAST_KERNEL names no file: taking another one instead would hide it
 */
export function findKernel(): FoundKernel | null {
  const given = process.env["HOLDFAST_KERNEL"];
  if (given !== undefined && given !== "") {
    if (!existsSync(given)) throw new Error(`HOLDFAST_KERNEL=${given}: there is no such file`);
    return { bzImage: given };
  }
  const cache = cacheFolder();
  if (!existsSync(cache)) return null;
  const ending = `-${fragmentHash()}`;
  const built = readdirSync(cache)
    .filter((name) => name.startsWith("linux-") && name.endsWith(ending))
    .map((name) => join(cache, name, "bzImage"))
    .filter((path) => existsSync(path))
    .sort((a, b) => statSync(b).mtimeMs - statSync(a).mtimeMs);
  return built.length === 0 ? null : { bzImage: built[0] };
}

function fragmentHash(): string {
  return createHash("sha256").update(readFileSync(kernelFragment())).digest("hex").slice(0, 12);
}
