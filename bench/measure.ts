/** Timing for the benchmarks: repeated, best of several, with its spread. @module */

/** Rate of an action in units per second: the best of `rounds` rounds after one that warms up. */
export function rate(units: number, rounds: number, action: () => void): number {
  action();
  let best = 0;
  for (let i = 0; i < rounds; i++) {
    const start = process.hrtime.bigint();
    action();
    const seconds = Number(process.hrtime.bigint() - start) / 1e9;
    best = Math.max(best, units / seconds);
  }
  return best;
}

/** Milliseconds that an action takes. */
export function milliseconds(action: () => void): number {
  const start = process.hrtime.bigint();
  action();
  return Number(process.hrtime.bigint() - start) / 1e6;
}

/** The middle value. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

/** "412 M/s" */
export function perSecond(value: number): string {
  return value >= 1e6 ? `${(value / 1e6).toFixed(1)} M/s` : `${(value / 1e3).toFixed(1)} k/s`;
}
