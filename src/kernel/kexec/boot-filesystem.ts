/**
 * /boot: the kernel images on the machine's boot disk, each as a readable manifest.
 *
 * Why: before the point of no return an agent compares what is preserved with what the target can restore; the
 * manifest is where it reads that. The code itself is the machine's affair.
 * Layout of a file: {@link ImageManifest}.
 * @module
 */
import { type ImageManifest, MANIFEST_FORMAT } from "../../abi/image-manifest.ts";
import type { KernelImage } from "../../machine/machine.ts";
import { TextFilesystem } from "../vfs/text-filesystem.ts";

/** Read-only: every call that would change something fails with EROFS. */
export function bootFilesystem(images: readonly KernelImage[]): TextFilesystem {
  return new TextFilesystem(
    "bootfs",
    new Map(images.map((image) => [image.name, () => manifestText(image)])),
  );
}

function manifestText({ name, release, restores }: KernelImage): string {
  const manifest: ImageManifest = { format: MANIFEST_FORMAT, name, release, restores };
  return `${JSON.stringify(manifest, null, 2)}\n`;
}
