/**
 * Makes sure that a kexec loses what was not handed over.
 *
 * A real kexec leaves memory as it is, so a kernel that relies on something it forgot to preserve works by luck
 * until its memory is reused. Here all of that memory is overwritten before the next kernel starts.
 * It lies within the blackout, so it goes at memory bandwidth and looks only at memory that was ever stored to.
 * Invariants: no byte of a kept range changes; every other byte of the given ranges that was ever stored to is
 * overwritten.
 * @module
 */
import { Prng } from "../../base/prng.ts";
import { MIB } from "../../base/units.ts";
import type { MemoryRange } from "../machine.ts";
import type { Ram } from "../physical-memory.ts";

const PIECE_BYTES = 2 * MIB;

/**
 * Overwrites memory with pseudo-random bytes.
 *
 * @param ranges - what the kernel had: RAM without firmware's part
 * @param keep - sorted, not overlapping, any length
 * @param seed - of the bytes
 * @param between - called after each piece of at most 2 MiB, so that devices can run on
 * @returns bytes overwritten
 */
export function scribble(
  ram: Ram,
  ranges: readonly MemoryRange[],
  keep: readonly MemoryRange[],
  seed: number,
  between?: () => void,
): number {
  const pattern = makePattern(seed);
  let overwritten = 0;
  let next = 0;
  for (const range of ranges) {
    const end = range.start + range.lengthBytes;
    for (let at = range.start; at < end; ) {
      const pieceEnd = Math.min(end, at - (at % PIECE_BYTES) + PIECE_BYTES);
      while (next < keep.length && keep[next].start + keep[next].lengthBytes <= at) next++;
      if (ram.isTouched(at)) {
        let from = at;
        for (let k = next; k < keep.length && keep[k].start < pieceEnd; k++) {
          if (keep[k].start > from) {
            overwrite(ram, pattern, from, keep[k].start);
            overwritten += keep[k].start - from;
          }
          from = Math.max(from, keep[k].start + keep[k].lengthBytes);
        }
        if (from < pieceEnd) {
          overwrite(ram, pattern, from, pieceEnd);
          overwritten += pieceEnd - from;
        }
        between?.();
      }
      at = pieceEnd;
    }
  }
  return overwritten;
}

function overwrite(ram: Ram, pattern: Uint8Array, start: number, end: number): void {
  // A piece lies in an aligned 2 MiB, so within one window of RAM and within the pattern.
  const offset = start % PIECE_BYTES;
  ram.view(start, end - start).set(pattern.subarray(offset, offset + (end - start)));
}

function makePattern(seed: number): Uint8Array {
  const words = new Uint32Array(PIECE_BYTES / 4);
  const prng = new Prng(seed);
  // One page of chance, repeated: a kernel cannot tell it from 2 MiB of it, and it is made in microseconds.
  const page = words.subarray(0, 1024);
  for (let i = 0; i < page.length; i++) page[i] = prng.next();
  for (let i = page.length; i < words.length; i += page.length) words.set(page, i);
  return new Uint8Array(words.buffer);
}
