/**
 * Blocked DMA is told to whoever looks: by the kernel in which it happens, and by the next one when no kernel existed.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { readTextFile } from "../../src/host/read-file.ts";
import type { DmaFaults } from "../../src/kernel/iommu/dma-fault-log.ts";
import { EDU_HOST, EDU_ORDINARY, EduUser, hostAt, waitForTransfer } from "../support/edu-user.ts";
import { type Moment, simulate } from "../support/simulated-host.ts";

const SEED = 11;
/** Of the machine's remapping units. */
const FAULT_RECORDS = 8;
const FAULTS = "/sys/kernel/debug/holdfast/faults";

function readFaults(moment: Moment): DmaFaults {
  return JSON.parse(readTextFile(hostAt(moment), FAULTS)) as DmaFaults;
}

/** An edu writes where nothing is mapped. */
function writeAstray(moment: Moment): EduUser {
  const user = new EduUser(hostAt(moment), EDU_ORDINARY.slot);
  user.start(user.mapFile() + 0x10_0000);
  return user;
}

const isLine = (line: string) =>
  line.startsWith(
    `DMAR: [DMA Write] Request device ${EDU_ORDINARY.slot} fault addr 0x200000 reason 5`,
  );

test("a device's blocked writes are in the kernel's fault file and in its log, and stay there", () => {
  let seen: DmaFaults | null = null;
  const { machine, lines } = simulate({
    ...EDU_HOST,
    seed: SEED,
    updates: 0,
    mayFault: true,
    look(moment) {
      if (moment.point !== "created") return;
      assert.deepEqual(readFaults(moment), { functions: [], overflows: 0 });
      const user = writeAstray(moment);
      waitForTransfer(moment);
      seen = readFaults(moment);
      assert.deepEqual(readFaults(moment), seen, "reading takes nothing away");
      user.close();
      hostAt(moment).unlink("/mnt/guests/edu-target");
    },
  });
  // More than the unit has records: what it could not record it counts, and the kernel tells that some are lost.
  const blocked = machine.statistics.dmaFaults(0);
  assert.ok(blocked > FAULT_RECORDS, `${blocked} requests, seed ${SEED}`);
  assert.deepEqual(seen, {
    functions: [{ function: EDU_ORDINARY.slot, reads: 0, writes: FAULT_RECORDS, beforeBoot: 0 }],
    overflows: 1,
  });
  assert.equal(lines.filter(isLine).length, FAULT_RECORDS);
  assert.equal(lines.filter((line) => /some are lost/.test(line)).length, 1);
});

test("what is blocked while no kernel exists is found by the next one, as of the time before its boot", () => {
  const seen: DmaFaults[] = [];
  const { lines } = simulate({
    ...EDU_HOST,
    seed: SEED,
    updates: 2,
    mayFault: true,
    look(moment) {
      const { point, update, machine } = moment;
      if (point === "jumped" && update === 1) {
        const pa = machine.hardware.vtds[0]?.translate(EDU_ORDINARY.bdf, 0x200000, true) ?? 0;
        assert.ok(pa < 0, "the request is blocked");
      }
      if (point === "restored" || point === "ended") seen.push(readFaults(moment));
    },
  });
  const nothing = { functions: [], overflows: 0 };
  const before = { function: EDU_ORDINARY.slot, reads: 0, writes: 1, beforeBoot: 1 };
  // The second update's kernel finds nothing any more: the first one's has taken the record.
  assert.deepEqual(seen, [{ functions: [before], overflows: 0 }, nothing, nothing]);
  assert.equal(lines.filter((line) => line.startsWith("DMAR: ")).length, 1);
});

test("what is blocked after the last look of a kernel is in its log, and not in the next one's file", () => {
  const seen: DmaFaults[] = [];
  const { lines } = simulate({
    ...EDU_HOST,
    seed: SEED,
    updates: 1,
    mayFault: true,
    look(moment) {
      const { point, machine } = moment;
      if (point === "created")
        machine.hardware.vtds[0]?.translate(EDU_ORDINARY.bdf, 0x200000, false);
      if (point === "restored") seen.push(readFaults(moment));
    },
  });
  assert.deepEqual(seen, [{ functions: [], overflows: 0 }]);
  assert.equal(lines.filter((line) => line.startsWith("DMAR: [DMA Read]")).length, 1);
});
