/**
 * The switch of domains under load on QEMU's hardware: tables with other page sizes, a thousand times, with frames
 * arriving at the highest rate that it holds.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { assertSeamless, type BrokenSwitch, runSwitches } from "../support/domain-switch-run.ts";
import { skipReason } from "./rig.ts";

const SWITCHES = 1000;
const SEED = Number(process.env["SEED"] ?? 1);
/** Far more than QEMU takes: what it cannot take waits in the socket, and nothing is dropped. */
const FRAMES_PER_SECOND = 200_000;

const run = (switches: number, broken?: BrokenSwitch) =>
  runSwitches("qemu", {
    switches,
    seed: SEED,
    framesPerSecond: FRAMES_PER_SECOND,
    ...(broken !== undefined && { broken }),
  });

describe("on QEMU's q35, tables with other page sizes", { skip: skipReason() }, () => {
  test("a thousand switches under load lose and damage no frame, and nothing is blocked", async (t) => {
    const outcome = await run(SWITCHES);
    const { frames, seconds } = outcome.report;
    t.diagnostic(`seed ${SEED}: ${frames.received} frames in ${seconds.toFixed(1)} s`);
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
