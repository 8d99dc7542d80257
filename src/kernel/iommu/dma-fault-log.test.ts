import assert from "node:assert/strict";
import { test } from "node:test";
import { FAULT_READ, FAULT_WRITE } from "../../abi/vtd/faults.ts";
import { DmaFaultLog } from "./dma-fault-log.ts";
import type { IommuFault } from "./vtd-iommu.ts";

/** A log whose units have recorded what `records` holds. */
function makeLog() {
  const records: IommuFault[] = [];
  const lines: string[] = [];
  const source = { readFaults: () => records.splice(0), faultOverflows: 0 };
  return { records, lines, source, faults: new DmaFaultLog(source, (line) => lines.push(line)) };
}

function fault(sourceId: number, isWrite: boolean, address = 0x12345000, segment = 0): IommuFault {
  return { segment, sourceId, address, isWrite, reason: isWrite ? FAULT_WRITE : FAULT_READ };
}

test("DmaFaultLog counts by function, apart what was recorded before boot, and tells each fault", () => {
  const { records, lines, faults } = makeLog();
  faults.drainAtBoot();
  assert.deepEqual(faults.counts(), { functions: [], overflows: 0 });
  records.push(fault(0x0100, true), fault(0x0208, false, 0x8_0000_0000, 1));
  faults.drainAtBoot();
  records.push(fault(0x0100, false), fault(0x0100, true));
  assert.equal(faults.counts().functions[0].writes, 1, "only what was taken counts");
  faults.drain();
  faults.drain();
  assert.deepEqual(faults.counts(), {
    functions: [
      { function: "0000:01:00.0", reads: 1, writes: 2, beforeBoot: 1 },
      { function: "0001:02:01.0", reads: 1, writes: 0, beforeBoot: 1 },
    ],
    overflows: 0,
  });
  assert.deepEqual(lines, [
    "DMAR: [DMA Write] Request device 0000:01:00.0 fault addr 0x12345000 reason 5",
    "DMAR: [DMA Read] Request device 0001:02:01.0 fault addr 0x800000000 reason 6",
    "DMAR: [DMA Read] Request device 0000:01:00.0 fault addr 0x12345000 reason 6",
    "DMAR: [DMA Write] Request device 0000:01:00.0 fault addr 0x12345000 reason 5",
  ]);
});

test("DmaFaultLog ends its lines when there are too many, and says so once", () => {
  const { records, lines, faults } = makeLog();
  for (let i = 0; i < 50; i++) {
    records.push(fault(0x0100, true));
    faults.drain();
  }
  assert.equal(faults.counts().functions[0].writes, 50);
  assert.equal(lines.length, 11);
  assert.match(lines[10], /further faults are counted/);
});

test("DmaFaultLog tells when a unit lost faults", () => {
  const { lines, source, faults } = makeLog();
  const readFaults = () => {
    source.faultOverflows++;
    return [];
  };
  source.readFaults = readFaults;
  faults.drain();
  assert.equal(faults.counts().overflows, 1);
  assert.match(lines[0], /some are lost/);
});
