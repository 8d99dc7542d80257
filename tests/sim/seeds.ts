/**
 * Seeds of `random-hosts.test.ts` that have failed once: they run first, always. A seed stays when its bug is fixed.
 * @module
 */
export const FAILED_SEEDS: readonly number[] = [];
