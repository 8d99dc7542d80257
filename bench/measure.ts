/** Timing for the benchmarks: repeated, best of several, with its spread. @module */

/**
 * The least seconds that an action takes, of as many rounds as fit into `budgetMs`. Rounds should be short: what else
 * the machine does then counts as little as it can. The first rounds warm up.
 */
export function bestSeconds(budgetMs: number, action: () => number): number {
  const end = process.hrtime.bigint() + BigInt(budgetMs) * 1_000_000n;
  let best = Number.POSITIVE_INFINITY;
  while (process.hrtime.bigint() < end) best = Math.min(best, action());
  return best;
}

/** The clock, in nanoseconds. */
export function nowNs(): number {
  return Number(process.hrtime.bigint());
}

/** Seconds that an action takes. */
export function seconds(action: () => void): number {
  const start = process.hrtime.bigint();
  action();
  return Number(process.hrtime.bigint() - start) / 1e9;
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
