/**
 * Upstream's defect that docs/divergences.md starts with: a name asked for twice when sessions fill a block exactly leaves
 * an empty block behind, and the next kernel panics.
 *
 * Why a test of somebody else's defect: our rows say what Linux does. When this fails because it was repaired, the row and
 * this test go.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { HandoverError } from "../../src/abi/handover-error.ts";
import type { KhoData } from "./gate.ts";
import type { DuplicateReport } from "./guest/reports.ts";
import { viewHandover } from "./handover-view.ts";
import { khoParameters, readRam } from "./our-kernel.ts";
import { LinuxMachine, skipReason } from "./rig.ts";

describe("Linux with 51 sessions and one name twice", { skip: skipReason() }, () => {
  let machine: LinuxMachine;
  let duplicate: DuplicateReport;
  let kho: KhoData;
  let refusal: unknown;

  before(async () => {
    machine = LinuxMachine.start("duplicate");
    duplicate = await machine.next("duplicate");
    machine.goOn();
    kho = await machine.jumped();
    try {
      viewHandover(readRam(machine.ram), khoParameters(kho));
    } catch (error) {
      refusal = error;
    }
    machine.goOn();
    await machine.end();
  });
  after(() => machine?.close());

  test("refuses the second CREATE", () => {
    assert.deepEqual(duplicate, { stage: "duplicate", sessions: 51, code: "EEXIST" });
  });

  test("hands an empty block over, which our decoder refuses by name", () => {
    assert(refusal instanceof HandoverError, String(refusal));
    assert.match(refusal.message, /count/);
  });

  test("panics in the next kernel", () => {
    assert.match(machine.console(), /luo: .*invalid entry count: 0/);
    assert.match(machine.console(), /Kernel panic - not syncing/);
  });
});
