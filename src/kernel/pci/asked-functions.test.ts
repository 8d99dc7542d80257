import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { HandoverError } from "../../abi/handover-error.ts";
import { AskedFunctions } from "./asked-functions.ts";
import type { FunctionRecord } from "./handed-over.ts";

function record(bdf: number, refcount: number, isBridge = false): FunctionRecord {
  return {
    segment: 0,
    bdf,
    refcount,
    vendorId: 1,
    deviceId: 1,
    isBridge,
    bars: [],
    barSizes: [],
    primaryBus: 0,
    secondaryBus: 0,
    subordinateBus: 0,
  };
}

const RECORDS = [record(8, 0), record(0x20, 3, true), record(0x100, 1), record(0x108, 2)];

function refusal(asked: AskedFunctions): string | null {
  try {
    asked.check("pci");
  } catch (error) {
    assert.ok(error instanceof HandoverError);
    return error.field;
  }
  return null;
}

describe("AskedFunctions", () => {
  it("gives preserved functions to files, and nothing else", () => {
    const asked = new AskedFunctions(RECORDS);
    assert.equal(asked.askFor(0, 0x100), true);
    assert.equal(asked.askFor(0, 8), false, "not preserved");
    assert.equal(asked.askFor(0, 0x20), false, "a bridge");
    assert.equal(asked.askFor(0, 0x110), false, "unknown");
    assert.equal(asked.askFor(1, 0x100), false, "another segment");
  });

  it("refuses functions that were preserved for more or fewer files than there are", () => {
    const asked = new AskedFunctions(RECORDS);
    assert.equal(refusal(asked), "pci: pci_function_ser[2].refcount");
    asked.askFor(0, 0x100);
    assert.equal(refusal(asked), "pci: pci_function_ser[3].refcount");
    asked.askFor(0, 0x108);
    assert.equal(refusal(asked), "pci: pci_function_ser[3].refcount");
    asked.askFor(0, 0x108);
    assert.equal(refusal(asked), null);
    asked.askFor(0, 0x108);
    assert.equal(refusal(asked), "pci: pci_function_ser[3].refcount");
  });
});
