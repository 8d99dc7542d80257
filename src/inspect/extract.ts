/**
 * The content of a preserved file, out of an image into a file: sparse, piece by piece.
 * @module
 */
import { closeSync, ftruncateSync, openSync, rmSync } from "node:fs";
import { orderBytes, PAGE_SIZE } from "../base/units.ts";
import { extentBytes } from "../kernel/memfs/change.ts";
import type { FileContent, FileData, Handover } from "./handover.ts";
import { writeFully } from "./image/save-image.ts";

/** A piece of a file's content, and where it lies in memory. */
interface Piece {
  readonly offset: number;
  readonly pa: number;
  readonly lengthBytes: number;
}

/** A file of a session, found by its token. */
export interface FoundFile {
  readonly session: string;
  readonly content: FileContent;
}

/** Files with that token, of any session or of one. */
export function findFiles(
  { liveUpdate }: Handover,
  token: bigint,
  session: string | null,
): FoundFile[] {
  return (liveUpdate?.sessions ?? [])
    .filter(({ name }) => session === null || name === session)
    .flatMap(({ name, files }) =>
      files
        .filter((file) => file.token === token)
        .map(({ data }) => ({ session: name, content: (data as FileData).content })),
    );
}

/** Size of a file's content; null when it has none (a device, an iommufd, a file that cannot be read). */
export function contentBytes(content: FileContent): number | null {
  if (content.kind === "memfd") return content.memfd.sizeBytes;
  return content.kind === "memfs" ? content.inode.sizeBytes : null;
}

const COPY_BYTES = 1 << 20;

/**
 * Writes a file's content. Holes, pages of zeros and pages that the previous kernel had not filled stay holes.
 *
 * @returns bytes written
 * @throws {HandoverError} when the content is not in the image
 * @throws SystemError when the target cannot be written; what there is of it is removed
 */
export function extract({ image }: Handover, content: FileContent, target: string): number {
  const size = contentBytes(content) ?? 0;
  const fd = openSync(target, "w");
  let written = 0;
  try {
    const buffer = new Uint8Array(COPY_BYTES);
    for (const { offset, pa, lengthBytes } of pieces(content)) {
      const end = Math.min(lengthBytes, size - offset);
      for (let done = 0; done < end; done += COPY_BYTES) {
        const bytes = buffer.subarray(0, Math.min(COPY_BYTES, end - done));
        image.read(pa + done, bytes);
        written += writeSparse(fd, bytes, offset + done);
      }
    }
    ftruncateSync(fd, size);
  } catch (error) {
    closeSync(fd);
    rmSync(target, { force: true });
    throw error;
  }
  closeSync(fd);
  return written;
}

function* pieces(content: FileContent): Generator<Piece> {
  if (content.kind === "memfs")
    for (const extent of content.inode.extents)
      yield { offset: extent.offset, pa: extent.pa, lengthBytes: extentBytes(extent) };
  if (content.kind !== "memfd") return;
  const { count, pa, index, order, isStale } = content.memfd.folios;
  for (let i = 0; i < count; i++)
    if (isStale[i] === 0)
      yield { offset: index[i] * PAGE_SIZE, pa: pa[i], lengthBytes: orderBytes(order[i]) };
}

/** @returns bytes written: runs of pages that are not zero */
function writeSparse(fd: number, bytes: Uint8Array, offset: number): number {
  let written = 0;
  for (let from = 0; from < bytes.length; ) {
    let to = from;
    while (to < bytes.length && !isZero(bytes, to)) to = Math.min(bytes.length, to + PAGE_SIZE);
    if (to > from) writeFully(fd, bytes.subarray(from, to), offset + from);
    written += to - from;
    from = to === from ? Math.min(bytes.length, from + PAGE_SIZE) : to;
  }
  return written;
}

function isZero(bytes: Uint8Array, from: number): boolean {
  const end = Math.min(bytes.length, from + PAGE_SIZE);
  for (let i = from; i < end; i++) if (bytes[i] !== 0) return false;
  return true;
}
