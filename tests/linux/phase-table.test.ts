import assert from "node:assert/strict";
import { test } from "node:test";
import { jumpTimes, renderTimes, timesOf, type UpdateRecord } from "./phase-table.ts";

const PHASES = (
  [
    ["preflight", 0, 1],
    ["load", 1, 3],
    ["preserve", 3, 6],
    ["pause", 6, 10],
    ["reboot", 11, 30],
    ["boot", 30, 60],
  ] as const
).map(([name, startMs, endMs]) => ({
  update: 1,
  name,
  startNs: 1e9 + startMs * 1e6,
  endNs: 1e9 + endMs * 1e6,
}));

const RECORD: UpdateRecord = {
  oldBootAtNs: 5e8,
  startingNs: 5e8 + 15e6,
  phases: PHASES,
  retrievedAtNs: [1e9 + 66e6, 1e9 + 61e6],
  runningAtNs: [1e9 + 68e6, 1e9 + 63e6],
  blackoutNs: [62e6, 60e6],
};

test("an update is cut where the old kernel's log says that it has jumped, and where the last VM is back", () => {
  assert.deepEqual(timesOf(RECORD), {
    preflight: 1,
    load: 2,
    preserve: 3,
    pause: 4,
    freeze: 5,
    kexec: 15,
    boot: 30,
    retrieve: 6,
    "first write": 2,
    blackout: 62,
  });
  assert.throws(() => timesOf({ ...RECORD, phases: PHASES.slice(1) }), /no phase "preflight"/);
  assert.deepEqual(renderTimes([timesOf(RECORD)]), [
    "update  preflight  load  preserve  pause  freeze  kexec  boot  retrieve  first write  blackout",
    "     1          1     2         3      4       5     15    30         6            2        62",
  ]);
});

test("jumps are found in a console's log", () => {
  const log =
    "[    0.000000] Linux\r\n[   60.274300] kexec_core: Starting new kernel\r\n[    0.1] x";
  assert.deepEqual(jumpTimes(log), [60_274_300_000]);
  assert.deepEqual(jumpTimes(""), []);
});
