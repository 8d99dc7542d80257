/**
 * Upstream's defect that docs/divergences.md starts with: a name asked for twice when sessions fill a block exactly leaves
 * an empty block behind, and the next kernel panics.
 *
 * Before that the agent does the same: it takes the block away again (src/agent/live-update-device.ts).
 *
 * Why a test of somebody else's defect: our rows say what Linux does. When this fails because it was repaired, the row and
 * this test go.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import type { DuplicateReport } from "./guest/reports.ts";
import { type HandoverView, viewHandover } from "./handover-view.ts";
import { skipReason } from "./rig.ts";
import { ScenarioMachine } from "./scenario-machine.ts";

describe("Linux with 51 sessions and one name twice", { skip: skipReason() }, () => {
  let machine: ScenarioMachine;
  let byAgent: DuplicateReport;
  let viewOfAgent: HandoverView;
  let duplicate: DuplicateReport;
  let view: HandoverView;

  before(async () => {
    machine = await ScenarioMachine.start("duplicate");
    byAgent = await machine.next("duplicate");
    machine.goOn();
    await machine.jumped();
    viewOfAgent = viewHandover(machine.ram);
    machine.goOn();
    duplicate = await machine.next("duplicate");
    machine.goOn();
    await machine.jumped();
    view = viewHandover(machine.ram);
    machine.goOn();
    await machine.ended();
  });
  after(() => machine?.close());

  test("refuses the second CREATE", () => {
    const refused = { stage: "duplicate", sessions: 51, code: "EEXIST" };
    assert.deepEqual(byAgent, { ...refused, arrived: 0 });
    assert.deepEqual(duplicate, { ...refused, arrived: 51 });
  });

  test("hands no empty block over when it was the agent who asked", () => {
    assert.deepEqual(viewOfAgent.problems, []);
  });

  test("hands an empty block over, which the inspector names", () => {
    const fields = view.problems.map(({ field, problem }) => `${field}: ${problem}`);
    assert.equal(fields.length, 1, fields.join("\n"));
    assert.match(fields[0], /count/);
  });

  test("panics in the next kernel", () => {
    assert.match(machine.console(), /luo: .*invalid entry count: 0/);
    assert.match(machine.console(), /Kernel panic - not syncing/);
  });
});
