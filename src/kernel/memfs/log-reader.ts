/** Memory as it will be once a committed change is finished. @module */
import type { WordReader } from "../../abi/words.ts";

/** A 64-bit word that the log names. */
export interface LoggedWord {
  readonly pa: number;
  readonly low: number;
  readonly high: number;
}

/** A reader in which the logged words have their new values; later entries win. */
export function withLog(memory: WordReader, logged: readonly LoggedWord[]): WordReader {
  if (logged.length === 0) return memory;
  const halves = new Map<number, number>();
  for (const { pa, low, high } of logged) {
    halves.set(pa, low);
    halves.set(pa + 4, high);
  }
  const load32 = (at: number) => halves.get(at) ?? memory.load32(at);
  const load8 = (at: number) => (load32(at - (at % 4)) >>> (8 * (at % 4))) & 0xff;
  return {
    load8,
    load16: (at) => load8(at) | (load8(at + 1) << 8),
    load32,
    load64: (at) => load32(at + 4) * 2 ** 32 + load32(at),
    loadBig64: (at) => (BigInt(load32(at + 4)) << 32n) | BigInt(load32(at)),
  };
}
