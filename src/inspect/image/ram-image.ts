/**
 * A machine's RAM in a file, read piece by piece as it is asked for.
 *
 * Why not read the file: an image may have a terabyte. What is held is a cache of a fixed size, so memory use does not
 * depend on the image.
 * A load outside of RAM is the fault of whoever follows an untrusted address, so it is a {@link HandoverError}.
 * @module
 */
import { closeSync, openSync, readSync } from "node:fs";
import { HandoverError } from "../../abi/handover-error.ts";
import type { RamWords } from "../../abi/ram-words.ts";
import { hex } from "../../base/units.ts";
import type { MemoryRange } from "../../machine/machine.ts";
import type { ImageNote } from "./image-note.ts";

/** Where a piece of RAM lies in the file. */
export interface Segment {
  readonly pa: number;
  readonly lengthBytes: number;
  readonly fileOffset: number;
  /** Bytes that are in the file; those behind them are zero. */
  readonly fileBytes: number;
}

/** What an image is, for a person. */
export interface ImageInfo {
  readonly path: string;
  readonly format: "raw" | "elf";
  readonly ramBytes: number;
  /** What the embedded machine has written beside its RAM. */
  readonly note: ImageNote | null;
  /** What is odd about the file, and does not keep it from being read. */
  readonly warnings: readonly string[];
}

/** RAM as the inspector reads it. */
export interface RamImage extends RamWords {
  readonly info: ImageInfo;
  /** Sorted, not adjacent. */
  readonly ranges: readonly MemoryRange[];
  /** Those parts that are in the file; all others are zero. Sorted. */
  readonly backed: readonly MemoryRange[];
  /** Copies out of RAM; all of it must be there. @throws {HandoverError} */
  read(pa: number, target: Uint8Array): void;
  close(): void;
}

const CHUNK_BYTES = 1 << 16;
/** 16 MiB. */
const CHUNKS_MAX = 256;

interface Chunk {
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

/** Pieces of a file as RAM. */
export class FileImage implements RamImage {
  readonly info: ImageInfo;
  readonly ranges: readonly MemoryRange[];
  readonly backed: readonly MemoryRange[];
  readonly #segments: readonly Segment[];
  readonly #fd: number;
  /** In order of last use. */
  readonly #chunks = new Map<number, Chunk>();
  #last: Segment;
  #lastChunkNumber = -1;
  #lastChunk: Chunk | null = null;

  /**
   * Takes over an open file.
   * @param segments - sorted, not overlapping, at least one
   */
  constructor(fd: number, info: ImageInfo, segments: readonly Segment[]) {
    this.#fd = fd;
    this.info = info;
    this.#segments = segments;
    this.#last = segments[0];
    this.ranges = merge(segments);
    this.backed = merge(segments.map((s) => ({ start: s.pa, lengthBytes: s.fileBytes })));
  }

  close(): void {
    closeSync(this.#fd);
  }

  contains(pa: number, lengthBytes: number): boolean {
    if (!(pa >= 0 && lengthBytes >= 0)) return false;
    let low = 0;
    let high = this.ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.ranges[middle].start <= pa) low = middle + 1;
      else high = middle;
    }
    if (low === 0) return false;
    const range = this.ranges[low - 1];
    return (
      pa + lengthBytes <= range.start + range.lengthBytes && pa < range.start + range.lengthBytes
    );
  }

  load8(pa: number): number {
    const segment = this.#segmentAt(pa);
    const offset = pa - segment.pa;
    if (offset >= segment.fileBytes) return 0;
    const at = segment.fileOffset + offset;
    return this.#chunkAt(at).bytes[at % CHUNK_BYTES] ?? 0;
  }

  load16(pa: number): number {
    return this.load8(pa) | (this.load8(pa + 1) << 8);
  }

  load32(pa: number): number {
    const segment = this.#segmentAt(pa);
    const offset = pa - segment.pa;
    if (offset + 4 <= segment.fileBytes) {
      const at = segment.fileOffset + offset;
      const within = at % CHUNK_BYTES;
      const chunk = this.#chunkAt(at);
      if (within + 4 <= chunk.bytes.length) return chunk.view.getUint32(within, true);
    }
    return (this.load16(pa) | (this.load16(pa + 2) << 16)) >>> 0;
  }

  load64(pa: number): number {
    return this.load32(pa + 4) * 2 ** 32 + this.load32(pa);
  }

  loadBig64(pa: number): bigint {
    return (BigInt(this.load32(pa + 4)) << 32n) | BigInt(this.load32(pa));
  }

  read(pa: number, target: Uint8Array): void {
    for (let done = 0; done < target.length; ) {
      const segment = this.#segmentAt(pa + done);
      const offset = pa + done - segment.pa;
      const length = Math.min(target.length - done, segment.lengthBytes - offset);
      const present = Math.max(0, Math.min(length, segment.fileBytes - offset));
      const part = target.subarray(done, done + length);
      readFully(this.#fd, part.subarray(0, present), segment.fileOffset + offset);
      part.fill(0, present);
      done += length;
    }
  }

  #segmentAt(pa: number): Segment {
    const last = this.#last;
    if (pa >= last.pa && pa < last.pa + last.lengthBytes) return last;
    let low = 0;
    let high = this.#segments.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#segments[middle].pa <= pa) low = middle + 1;
      else high = middle;
    }
    const segment = this.#segments[low - 1];
    if (segment === undefined || !(pa < segment.pa + segment.lengthBytes))
      throw new HandoverError(`memory at ${hex(pa)}`, "is not in the image");
    this.#last = segment;
    return segment;
  }

  #chunkAt(fileOffset: number): Chunk {
    const number = Math.floor(fileOffset / CHUNK_BYTES);
    if (number === this.#lastChunkNumber && this.#lastChunk !== null) return this.#lastChunk;
    let chunk = this.#chunks.get(number);
    if (chunk !== undefined) this.#chunks.delete(number);
    else {
      const bytes = new Uint8Array(CHUNK_BYTES);
      readFully(this.#fd, bytes, number * CHUNK_BYTES);
      chunk = { bytes, view: new DataView(bytes.buffer) };
      for (const oldest of this.#chunks.keys()) {
        if (this.#chunks.size < CHUNKS_MAX) break;
        this.#chunks.delete(oldest);
      }
    }
    this.#chunks.set(number, chunk);
    this.#lastChunkNumber = number;
    this.#lastChunk = chunk;
    return chunk;
  }
}

/** Opens a file for reading. */
export function openFile(path: string): number {
  return openSync(path, "r");
}

/** Reads what there is; what lies behind the end of the file reads as zero. */
export function readFully(fd: number, target: Uint8Array, fileOffset: number): void {
  let done = 0;
  while (done < target.length) {
    const count = readSync(fd, target, done, target.length - done, fileOffset + done);
    if (count === 0) break;
    done += count;
  }
  target.fill(0, done);
}

function merge(
  pieces: readonly {
    readonly pa?: number;
    readonly start?: number;
    readonly lengthBytes: number;
  }[],
): MemoryRange[] {
  const merged: { start: number; lengthBytes: number }[] = [];
  for (const { pa, start = pa ?? 0, lengthBytes } of pieces) {
    if (lengthBytes === 0) continue;
    const last = merged.at(-1);
    if (last !== undefined && last.start + last.lengthBytes === start)
      last.lengthBytes += lengthBytes;
    else merged.push({ start, lengthBytes });
  }
  return merged;
}
