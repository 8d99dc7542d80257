/**
 * Which kernel we come from, and how many kexecs there were: KHO subtree "kexec-metadata".
 *
 * Source: Linux 7.3 include/linux/kho/abi/kexec_metadata.h
 * @module
 */
import { HandoverError } from "./handover-error.ts";
import { cString, struct, u32 } from "./struct.ts";
import type { WordReader } from "./words.ts";

export const KHO_METADATA_NODE_NAME = "kexec-metadata";
export const KHO_KEXEC_METADATA_VERSION = 1;
/** __NEW_UTS_LEN: bytes of a release, without the NUL. */
export const UTS_LEN = 64;

/** Packed: `kexec_count` is at byte 69, aligned to nothing. */
export const KHO_KEXEC_METADATA = struct("kho_kexec_metadata", {
  version: u32,
  previous_release: cString(UTS_LEN + 1),
  kexec_count: u32,
});

/** What {@link readKexecMetadata} found. */
export interface KexecMetadata {
  /** Release of the kernel that wrote it. */
  readonly previousRelease: string;
  /** Kexecs since the cold boot, the one that is under way counted. */
  readonly kexecCount: number;
}

/**
 * Decodes the blob.
 *
 * @param words - the blob's own bytes, from 0 on; unaligned access must be allowed
 * @param sizeBytes - the subtree's blob-size
 * @throws {HandoverError} on another version, a short blob, or a release without end
 */
export function readKexecMetadata(words: WordReader, sizeBytes: number): KexecMetadata {
  const name = KHO_KEXEC_METADATA.name;
  if (sizeBytes < KHO_KEXEC_METADATA.sizeBytes)
    throw new HandoverError(name, `${sizeBytes} bytes, not ${KHO_KEXEC_METADATA.sizeBytes}`);
  const { version, previous_release, kexec_count } = KHO_KEXEC_METADATA.read(words, 0);
  if (version !== KHO_KEXEC_METADATA_VERSION)
    throw new HandoverError(`${name}.version`, `${version} is not ${KHO_KEXEC_METADATA_VERSION}`);
  if (previous_release === null)
    throw new HandoverError(`${name}.previous_release`, "is not a string of at most 64 bytes");
  if (kexec_count === 0) throw new HandoverError(`${name}.kexec_count`, "is 0 after a kexec");
  return { previousRelease: previous_release, kexecCount: kexec_count };
}
