/** The manifest that images of our kernel consist of, read as a target. @module */
import { type ImageManifest, MANIFEST_FORMAT } from "../../abi/image-manifest.ts";

/** Bytes of a manifest at most. */
export const MANIFEST_BYTES_MAX = 64 * 1024;

/** @returns null when `bytes` is no manifest of the format that this agent knows */
export function decodeManifest(bytes: Uint8Array): ImageManifest | null {
  if (bytes.length > MANIFEST_BYTES_MAX) return null;
  try {
    const value = JSON.parse(new TextDecoder().decode(bytes)) as Partial<ImageManifest> | null;
    const restores: unknown = value?.restores;
    if (
      value?.format === MANIFEST_FORMAT &&
      typeof value.name === "string" &&
      typeof value.release === "string" &&
      Array.isArray(restores) &&
      restores.every((compatible) => typeof compatible === "string")
    )
      return { format: MANIFEST_FORMAT, name: value.name, release: value.release, restores };
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  return null;
}
