/** Signals by which a process is asked to end. @module */

/** SIGHUP: the terminal that it was started on is gone. In the middle of an update that must not end the agent at once. */
const ENDING_SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/**
 * @param end - told of the first of each
 * @returns what has them end the process again
 */
export function onEndingSignal(end: (signal: NodeJS.Signals) => void): () => void {
  for (const signal of ENDING_SIGNALS) process.once(signal, end);
  return () => {
    for (const signal of ENDING_SIGNALS) process.off(signal, end);
  };
}
