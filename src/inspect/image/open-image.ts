/**
 * Opens an image of whatever kind it is.
 * @module
 */
import { closeSync, fstatSync } from "node:fs";
import { formatBytes, PAGE_SIZE } from "../../base/units.ts";
import { ImageError, isElf, readElfCore } from "./elf-core.ts";
import { FileImage, openFile, type RamImage, readFully } from "./ram-image.ts";
import { rawSegments } from "./raw-image.ts";

/** What makedumpfile writes: compressed, in a format of its own. */
const KDUMP_SIGNATURES = ["KDUMP   ", "DISKDUMP"];

export interface OpenOptions {
  /** For raw files: how much RAM lies below 4 GiB; null: as QEMU's q35 decides. */
  readonly belowBytes: number | null;
}

/**
 * @throws {ImageError} when the file is no image that can be read
 * @throws SystemError when it cannot be opened
 */
export function openImage(path: string, options: OpenOptions = { belowBytes: null }): RamImage {
  const fd = openFile(path);
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new ImageError("not a regular file");
    const head = new Uint8Array(64);
    readFully(fd, head, 0);
    if (isElf(head)) {
      const { segments, note, warnings } = readElfCore(fd, stat.size);
      const ramBytes = segments.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
      return new FileImage(fd, { path, format: "elf", ramBytes, note, warnings }, segments);
    }
    const signature = String.fromCharCode(...head.subarray(0, 8));
    if (KDUMP_SIGNATURES.includes(signature))
      throw new ImageError(
        "compressed by makedumpfile; write an ELF core instead (makedumpfile -E, or virsh dump --memory-only)",
      );
    if (stat.size < PAGE_SIZE || stat.size % PAGE_SIZE !== 0)
      throw new ImageError(`${formatBytes(stat.size)} is not a number of 4 KiB pages: no RAM file`);
    const info = { path, format: "raw", ramBytes: stat.size, note: null, warnings: [] } as const;
    return new FileImage(fd, info, rawSegments(stat.size, options.belowBytes));
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}
