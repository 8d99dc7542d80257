/**
 * Writes the RAM of an embedded machine as an ELF64 core, with a note that says where the handover is.
 *
 * Only what was ever stored to is in the file (by 2 MiB); all other RAM is there as a header.
 * @module
 */
import { closeSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import type { Ram } from "../../machine/physical-memory.ts";
import { type CorePiece, encodeElfCore } from "./elf-core.ts";
import { encodeNote, type ImageNote } from "./image-note.ts";

const PIECE_BYTES = 2 * 2 ** 20;

/**
 * @param path - replaced in one step when the image is whole
 * @throws SystemError when it cannot be written; there is then no new file
 */
export function saveImage(path: string, ram: Ram, note: ImageNote): void {
  const pieces = piecesOf(ram);
  const { head, offsets } = encodeElfCore(pieces, encodeNote(note));
  const partial = `${path}.partial`;
  const fd = openSync(partial, "w");
  try {
    writeFully(fd, head, 0);
    const buffer = new Uint8Array(PIECE_BYTES);
    for (const [i, { pa, lengthBytes, isInFile }] of pieces.entries()) {
      if (!isInFile) continue;
      for (let done = 0; done < lengthBytes; done += PIECE_BYTES) {
        const bytes = buffer.subarray(0, Math.min(PIECE_BYTES, lengthBytes - done));
        ram.read(pa + done, bytes);
        writeFully(fd, bytes, offsets[i] + done);
      }
    }
  } catch (error) {
    closeSync(fd);
    rmSync(partial, { force: true });
    throw error;
  }
  closeSync(fd);
  renameSync(partial, path);
}

/** RAM as runs of touched and untouched memory. */
function piecesOf(ram: Ram): CorePiece[] {
  const pieces: CorePiece[] = [];
  for (const { start, lengthBytes } of ram.ranges) {
    const end = start + lengthBytes;
    for (let pa = start; pa < end; ) {
      const touched = Math.min(end, Math.max(pa, ram.nextTouched(pa)));
      if (touched > pa) pieces.push({ pa, lengthBytes: touched - pa, isInFile: false });
      let to = touched;
      while (to < end && ram.isTouched(to))
        to = Math.min(end, to - (to % PIECE_BYTES) + PIECE_BYTES);
      if (to > touched) pieces.push({ pa: touched, lengthBytes: to - touched, isInFile: true });
      pa = to;
    }
  }
  return pieces;
}

/** Writes all of it, in as many calls as it takes. */
export function writeFully(fd: number, bytes: Uint8Array, fileOffset: number): void {
  for (let done = 0; done < bytes.length; )
    done += writeSync(fd, bytes, done, bytes.length - done, fileOffset + done);
}
