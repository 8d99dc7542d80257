/**
 * Makes sure that a kexec loses what was not handed over.
 *
 * A real kexec leaves memory as it is, so a kernel that relies on something it forgot to preserve works by luck
 * until its memory is reused. Here all of that memory is overwritten before the next kernel starts.
 * It lies within the blackout, so it goes at memory bandwidth and looks only at memory that was ever stored to and is
 * not kept.
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
 * Overwrites memory.
 *
 * @param ranges - what the kernel had: RAM without firmware's part
 * @param keep - sorted, not overlapping, any length
 * @param pattern - from {@link scribblePattern}
 * @param between - called after each piece of at most 2 MiB, so that devices can run on
 * @returns bytes overwritten
 */
export function scribble(
  ram: Ram,
  ranges: readonly MemoryRange[],
  keep: readonly MemoryRange[],
  pattern: Uint8Array,
  between?: () => void,
): number {
  let overwritten = 0;
  let next = 0;
  for (const range of ranges) {
    const end = range.start + range.lengthBytes;
    let at = Math.max(range.start, ram.nextTouched(range.start));
    while (at < end) {
      const pieceEnd = Math.min(end, at - (at % PIECE_BYTES) + PIECE_BYTES);
      while (next < keep.length && keep[next].start + keep[next].lengthBytes <= at) next++;
      if (next < keep.length && keep[next].start <= at) {
        // Guest memory that is mapped counts as stored to, and there may be a terabyte of it: in one step over it.
        const keptEnd = keep[next].start + keep[next].lengthBytes;
        at = Math.max(keptEnd, ram.nextTouched(keptEnd));
        continue;
      }
      let from = at;
      for (let k = next; k < keep.length && keep[k].start < pieceEnd; k++) {
        if (keep[k].start > from) overwritten += overwrite(ram, pattern, from, keep[k].start);
        from = Math.max(from, keep[k].start + keep[k].lengthBytes);
      }
      if (from < pieceEnd) overwritten += overwrite(ram, pattern, from, pieceEnd);
      between?.();
      at = ram.nextTouched(pieceEnd);
    }
  }
  return overwritten;
}

/** @returns bytes overwritten */
function overwrite(ram: Ram, pattern: Uint8Array, start: number, end: number): number {
  // A piece lies in an aligned 2 MiB, so within one window of RAM and within the pattern.
  const offset = start % PIECE_BYTES;
  const lengthBytes = end - start;
  ram.view(start, lengthBytes).set(pattern.subarray(offset, offset + lengthBytes));
  return lengthBytes;
}

/** What to overwrite with: made beforehand, since the blackout is short. */
export function scribblePattern(seed: number): Uint8Array {
  const words = new Uint32Array(PIECE_BYTES / 4);
  const prng = new Prng(seed);
  // One page of chance, repeated: a kernel cannot tell it from 2 MiB of it, and it is made in microseconds.
  const page = words.subarray(0, 1024);
  for (let i = 0; i < page.length; i++) page[i] = prng.next();
  for (let i = page.length; i < words.length; i += page.length) words.set(page, i);
  return new Uint8Array(words.buffer);
}
