/**
 * Runs the cases of one stage and tells what came out.
 * @module
 */
import { CaseUser } from "./case-user.ts";
import type { ConformanceCase, Place, Stage, StageResult } from "./conformance-case.ts";

/** Loads the kernel that the next stage runs on. */
export function loadNextKernel({ host, nextKernel }: Pick<Place, "host" | "nextKernel">): void {
  host.kexecFileLoad(nextKernel.kernel, nextKernel.initrd, nextKernel.commandLine);
}

/** How many kernels in a row the cases need. */
export function stageCount(cases: readonly ConformanceCase[]): number {
  return Math.max(...cases.map(({ stages }) => stages.length));
}

/**
 * @param stage - from 0 on: how many jumps there have been
 * @param nowMs - milliseconds of any clock that goes on
 * @returns a result for each case that has something to do on this kernel, in order
 */
export function runStage(
  place: Place,
  cases: readonly ConformanceCase[],
  stage: number,
  nowMs: () => number,
): StageResult[] {
  const results: StageResult[] = [];
  for (const { name, stages, skip } of cases) {
    const action = stages[stage] ?? null;
    if (action === null) continue;
    const reason = skip?.[place.kernel];
    const startMs = nowMs();
    const problem = reason === undefined ? run(place, action) : null;
    results.push({
      name,
      stage,
      outcome: reason !== undefined ? "skipped" : problem === null ? "passed" : "failed",
      detail: reason ?? problem ?? "",
      durationMs: nowMs() - startMs,
    });
  }
  return results;
}

/** @returns why it failed, or null */
function run(place: Place, action: Stage): string | null {
  const user = new CaseUser(place);
  const problems: string[] = [];
  const attempt = (what: () => void): void => {
    try {
      what();
    } catch (error) {
      // A kernel that ends throws something else, which is nobody's failure.
      if (!(error instanceof Error)) throw error;
      problems.push(`${error.stack}`);
    }
  };
  attempt(() => action(user));
  attempt(() => user.closeAll());
  return problems.length === 0 ? null : problems.join("\n");
}
