/**
 * Makes a subtest of each case from what its stages came to.
 * @module
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { KernelName, StageResult } from "./conformance-case.ts";
import { SUITE } from "./suite.ts";

/**
 * @param results - what all stages came to, once they have run; called when the first case is looked at
 */
export function describeCases(kernel: KernelName, results: () => readonly StageResult[]): void {
  for (const [subject, cases] of SUITE)
    describe(subject, () => {
      for (const { name, stages, skip } of cases)
        test(name, { skip: skip?.[kernel] ?? false }, () => {
          const expected = stages.flatMap((stage, index) => (stage === null ? [] : [index]));
          const found = results().filter((result) => result.name === name);
          const failures = found.filter(({ outcome }) => outcome !== "passed");
          assert.deepEqual(
            failures.map(({ stage, detail }) => `stage ${stage}: ${detail}`).join("\n"),
            "",
          );
          assert.deepEqual(
            found.map(({ stage }) => stage),
            expected,
            "every stage has run",
          );
        });
    });
}
