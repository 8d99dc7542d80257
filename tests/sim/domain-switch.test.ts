/**
 * The switch of domains under load on the live embedded machine: its unit caches all that the specification lets it, and
 * its NIC writes while the kernel builds and switches tables.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { assertSeamless, type BrokenSwitch, runSwitches } from "../support/domain-switch-run.ts";

const SWITCHES = 1000;
const SEED = Number(process.env["SEED"] ?? 1);
const FRAMES_PER_SECOND = 30_000;

const run = (switches: number, broken?: BrokenSwitch) =>
  runSwitches("embedded", {
    switches,
    seed: SEED,
    framesPerSecond: FRAMES_PER_SECOND,
    ...(broken !== undefined && { broken }),
  });

describe("on the embedded machine, tables with other page sizes", () => {
  test("a thousand switches under load lose and damage no frame, and nothing is blocked", async (t) => {
    const outcome = await run(SWITCHES);
    const { frames, seconds } = outcome.report;
    t.diagnostic(
      `seed ${SEED}: ${frames.received} frames in ${seconds.toFixed(1)} s, ${outcome.nic.missed} without a descriptor`,
    );
    assertSeamless(outcome, SWITCHES);
    assert.ok(frames.received / seconds > 1000, `${frames.received} frames in ${seconds} s`);
  });

  for (const broken of ["flush", "gap", "hole"] as const)
    test(`a kernel whose switch is broken (${broken}) is found out`, async (t) => {
      const outcome = await run(100, broken);
      const { switches, faults, frames } = outcome.report;
      t.diagnostic(JSON.stringify({ switches, faults, frames, blocked: outcome.blocked }));
      assert.throws(() => assertSeamless(outcome, 100), /was blocked|are corrupt|are lost/);
      if (broken !== "flush") assert.ok(faults + outcome.blocked > 0, "the unit has blocked it");
    });
});
