/**
 * What the program in the guest prints: a mark and a result in JSON for each case, then that it is done.
 * @module
 */
import type { StageResult } from "./conformance-case.ts";

/** Before each result. */
export const RESULT_MARK = "result ";
/** When all cases of the stage have run. */
export const STAGE_DONE = "done";

/** The results among what a program has printed. */
export function readResults(stdout: string): StageResult[] {
  return stdout
    .split("\n")
    .filter((line) => line.startsWith(RESULT_MARK))
    .map((line) => JSON.parse(line.slice(RESULT_MARK.length)) as StageResult);
}
