/**
 * What a kernel image says of itself: JSON, readable at the image's path before the image is loaded.
 * @module
 */

/** Version of the manifest's JSON. */
export const MANIFEST_FORMAT = 1;

export interface ImageManifest {
  readonly format: typeof MANIFEST_FORMAT;
  readonly name: string;
  /** uname -r */
  readonly release: string;
  /** `compatible` strings of everything that it can restore. */
  readonly restores: readonly string[];
}
