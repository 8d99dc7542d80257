/**
 * The target when nobody names one: the running kernel again, with its initrd and its command line.
 * @module
 */
import type { ImageManifest } from "../../abi/image-manifest.ts";
import { KernelError } from "../../base/errno.ts";
import type { Host } from "../../host/host.ts";
import { readBytes } from "../../host/read-file.ts";
import { decodeManifest, MANIFEST_BYTES_MAX } from "./image-manifest.ts";
import { parameterValues } from "./kernel-parameters.ts";
import type { KernelTarget } from "./kernel-target.ts";
import { isThere } from "./optional-file.ts";

/**
 * Completes a target.
 *
 * @param given - what was named; a kernel without an initrd gets the one beside it, `initrd: null` means none
 * @throws {KernelError} ENOENT the kernel, or the initrd beside it, is not where they usually are: the message says where
 *   was looked
 */
export function completeTarget(host: Host, given: Partial<KernelTarget>): KernelTarget {
  const kernel = given.kernel ?? findKernel(host);
  const initrd = given.initrd === undefined ? findInitrd(host, kernel) : given.initrd;
  return { kernel, initrd, commandLine: given.commandLine ?? host.commandLine };
}

function findKernel(host: Host): string {
  const { release } = host;
  // A path with the release in it is surely that kernel's; a boot loader's may have been replaced since.
  const places = [`/boot/vmlinuz-${release}`, `/lib/modules/${release}/vmlinuz`];
  const loaded = parameterValues(host.commandLine, "BOOT_IMAGE").at(-1);
  // GRUB writes "(hd0,gpt2)/vmlinuz-6.12", as seen from the root of the file system that it lies on.
  const path = loaded?.replace(/^\([^)]*\)/, "");
  if (path?.startsWith("/")) places.push(path, `/boot${path}`);
  const found = places.find((place) => isThere(host, place)) ?? findManifest(host);
  if (found !== null) return found;
  throw notFound("the running kernel's image", places, "name one");
}

/** An image of our kernel with the running one's release. */
function findManifest(host: Host): string | null {
  if (!isThere(host, "/boot")) return null;
  for (const name of [...host.readdir("/boot")].sort()) {
    const path = `/boot/${name}`;
    if (readManifest(host, path)?.release === host.release) return path;
  }
  return null;
}

/**
 * A kernel without the initrd that it wants ends in a panic, and the VMs with it: none is never assumed, but for our own
 * kernels, which have none.
 */
function findInitrd(host: Host, kernel: string): string | null {
  const { directory, version } =
    /^(?<directory>.*)\/(?:vmlinuz|bzImage)-?(?<version>[^/]*)$/.exec(kernel)?.groups ?? {};
  const places = [
    `${directory}/initrd.img-${version}`,
    `${directory}/initramfs-${version}.img`,
    `${directory}/initrd-${version}`,
  ];
  if (readManifest(host, kernel) !== null) return null;
  const found = version ? places.find((place) => isThere(host, place)) : undefined;
  if (found !== undefined) return found;
  throw notFound(
    `the initrd of ${kernel}`,
    version ? places : [],
    "name one, or say that it has none",
  );
}

function readManifest(host: Host, path: string): ImageManifest | null {
  // Most of what lies beside kernels is large and none of ours.
  if (!isThere(host, path) || host.stat(path).sizeBytes > MANIFEST_BYTES_MAX) return null;
  return decodeManifest(readBytes(host, path, MANIFEST_BYTES_MAX));
}

function notFound(what: string, places: readonly string[], wayOut: string): KernelError {
  const looked = places.length === 0 ? "" : ` at ${places.join(", ")}`;
  return new KernelError("ENOENT", "preflight", `${what} is not found${looked}: ${wayOut}`);
}
