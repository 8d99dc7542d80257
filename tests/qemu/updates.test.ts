/**
 * Ten live updates in a row on QEMU's hardware: frames arrive by DMA through QEMU's VT-d in every jump, none is lost, and
 * translation is never off.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { type Outcome, runHost } from "./demo-host.ts";
import { skipReason } from "./rig.ts";

const HOLD_MS = 20;

/** What must hold at any rate. */
function assertNothingLost({ problems, logged, frames, nics, machine, translation }: Outcome) {
  assert.deepEqual(problems, [], logged.join("\n"));
  for (const { received, sent } of frames) assert.equal(received, sent);
  for (const nic of nics) assert.equal(nic.missed, 0, nic.name);
  for (const { problem } of machine.jumps) assert.equal(problem, null);
  assert.deepEqual(machine.faults, []);
  assert.equal(machine.faultsLost, false);
  assert.ok(translation.on > 50, `GSTS was read ${translation.on} times`);
  assert.equal(translation.off, 0, "translation was found off");
}

describe("QEMU's q35", { skip: skipReason() }, () => {
  test("ten updates lose no frame, DMA goes on in each jump, and translation is never off", async (t) => {
    const outcome = await runHost(t, {
      updates: 10,
      framesPerSecond: 5_000,
      // Without a kernel for a while: a busy computer may not get to the network's thread in 2 ms.
      onHandover: () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, HOLD_MS),
    });
    assertNothingLost(outcome);
    const { inJumps } = outcome;
    assert.equal(inJumps.length, 10);
    let before: readonly number[] = [0, 0];
    for (const [i, counts] of inJumps.entries()) {
      for (const [nic, count] of counts.entries())
        assert.ok(count > before[nic], `NIC ${nic} wrote no frame in jump ${i + 1}`);
      before = counts;
    }
  });

  test("two updates lose no frame at the highest rate that the sockets and the guests hold", async (t) => {
    // Far more than they hold: a full ring or socket holds frames back, and nothing drops any.
    const outcome = await runHost(t, { updates: 2, framesPerSecond: 200_000 });
    assertNothingLost(outcome);
    for (const { received } of outcome.frames) assert.ok(received > 10_000, `${received} frames`);
  });
});
