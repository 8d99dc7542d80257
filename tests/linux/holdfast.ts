/**
 * The `holdfast` command as a user starts it.
 * @module
 */
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const MAIN = fileURLToPath(
  new URL(
    import.meta.url.endsWith(".ts") ? "../../src/cli/main.ts" : "../../src/cli/main.js",
    import.meta.url,
  ),
);
/** Enough for the largest --json. */
const OUTPUT_BYTES_MAX = 1 << 28;

/** What a command has printed, and how it ended. */
export interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Starts it the way this process was started, and waits. */
export function holdfast(...args: string[]): Outcome {
  const { status, stdout, stderr, error } = spawnSync(
    process.execPath,
    [...process.execArgv, MAIN, ...args],
    { encoding: "utf8", maxBuffer: OUTPUT_BYTES_MAX },
  );
  if (error !== undefined) throw error;
  return { status, stdout, stderr };
}
