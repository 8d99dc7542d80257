/**
 * The conformance suite on a real Linux in QEMU: one machine, one boot and as many jumps as the cases have stages.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { LinuxMachine, programAt, skipReason } from "../linux/rig.ts";
import { describeCases } from "./case-tests.ts";
import type { StageResult } from "./conformance-case.ts";
import { DEVICE_OPTIONS, giveToVfioPci } from "./device-machines.ts";
import { readResults, STAGE_DONE } from "./linux-report.ts";
import { stageCount } from "./stage-run.ts";
import { CASES } from "./suite.ts";

const PROGRAM = "tests/conformance/linux-program.ts";

describe("conformance of Linux", { skip: skipReason() }, () => {
  let machine: LinuxMachine;
  const results: StageResult[] = [];

  before(async () => {
    machine = await LinuxMachine.start(DEVICE_OPTIONS);
    await giveToVfioPci(machine);
    const stages = stageCount(CASES);
    for (let stage = 0; stage < stages; stage++) {
      const program = await machine.spawn(programAt(PROGRAM, `${stage}`));
      await program.line(new RegExp(`^${STAGE_DONE}$`));
      results.push(...readResults(program.stdout));
      if (stage + 1 === stages) break;
      await program.write("jump\n");
      await machine.booted();
    }
  });
  after(() => machine?.close());

  describeCases("linux", () => results);

  test("the kernels find nothing wrong with themselves meanwhile", () => {
    assert.doesNotMatch(machine.console(), /WARNING: |BUG: |Oops|Kernel panic|refcount_t/);
  });
});
