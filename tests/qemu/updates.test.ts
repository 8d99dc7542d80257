/**
 * Ten live updates in a row on QEMU's hardware: frames arrive by DMA through QEMU's VT-d in every jump, none is lost, and
 * translation is never off.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { QemuMachine } from "../../src/machine/qemu/qemu-machine.ts";
import { type Outcome, runHost } from "./demo-host.ts";
import { skipReason } from "./rig.ts";

/** For QEMU to take what is in its sockets. */
const HOLD_MS = 20;
const FRAMES_IN_JUMP = 20;
/** For a computer that is busy with something else. */
const FRAMES_MS_MAX = 5000;

/** In a jump: waits until the network has sent more to each NIC. On a busy computer its thread gets no turn in 2 ms. */
function awaitFrames(machine: QemuMachine): void {
  const sent = () => machine.nics().map((nic) => nic.sent);
  const before = sent();
  const isEnough = () => sent().every((count, nic) => count >= before[nic] + FRAMES_IN_JUMP);
  for (let ms = 0; ms < FRAMES_MS_MAX && !isEnough(); ms++) block(1);
  block(HOLD_MS);
}

/** Blocks this thread. */
function block(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

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
      // A ring holds eight seconds of it, so there are free descriptors in each jump, however busy the computer is.
      framesPerSecond: 1_000,
      onHandover: awaitFrames,
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

  test("ten updates lose no frame at the highest rate that the sockets and the guests hold", async (t) => {
    // Far more than they hold: a full ring or socket holds frames back, and nothing drops any.
    const outcome = await runHost(t, { updates: 10, framesPerSecond: 200_000 });
    assertNothingLost(outcome);
    t.diagnostic(`frames by the end of each jump: ${JSON.stringify(outcome.inJumps)}`);
    for (const { received } of outcome.frames) assert.ok(received > 10_000, `${received} frames`);
  });
});
