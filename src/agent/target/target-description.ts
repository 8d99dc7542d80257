/**
 * What a target is and can restore, and what speaks against it, all before it is loaded.
 *
 * Why: what is wrong with a target shows in the next kernel, too late. The worst of it is silent: a Linux booted without
 * `liveupdate=on` reserves what was preserved for it, and nobody can reach it any more.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import type { Host } from "../../host/host.ts";
import { readBytes } from "../../host/read-file.ts";
import { decodeBzImage } from "./bzimage.ts";
import { decodeManifest } from "./image-manifest.ts";
import type { KernelTarget, TargetDescription } from "./kernel-target.ts";
import { describeLinux } from "./linux-image.ts";
import { liveUpdateProblems } from "./live-update-parameters.ts";

/** Bytes of a kernel image at most. */
const IMAGE_BYTES_MAX = 256 * 1024 * 1024;

/**
 * Looks at a target through the kernel at hand. Changes nothing.
 *
 * @throws {KernelError} ENOENT there is no such kernel; EINVAL it is neither an image of ours nor a Linux bzImage; EFBIG it
 *   is larger than 256 MiB; what open(2) and read(2) throw
 */
export function describeTarget(host: Host, target: KernelTarget): TargetDescription {
  const bytes = readBytes(host, target.kernel, IMAGE_BYTES_MAX);
  const image = decodeBzImage(bytes, target.kernel);
  if (image !== null) return describeLinux(host, target, image);
  const manifest = decodeManifest(bytes);
  if (manifest !== null) {
    const problems = liveUpdateProblems(target.commandLine, { khoByDefault: true });
    const { release, restores } = manifest;
    return { ...target, kind: "holdfast", release, restores, problems, unknowns: [] };
  }
  throw new KernelError(
    "EINVAL",
    "preflight",
    `${target.kernel} is neither an image of ours, a manifest, nor a Linux bzImage`,
  );
}
