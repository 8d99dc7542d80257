import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BugError } from "../../base/assert.ts";
import type { Stepper } from "./hardware.ts";
import { SeededScheduler } from "./seeded-scheduler.ts";

/** Due every `periodNs`; writes its name and the time into `log`. */
function periodic(name: string, periodNs: number, log: string[]): Stepper {
  let dueNs = periodNs;
  return {
    step(nowNs) {
      if (nowNs < dueNs) return false;
      log.push(`${name}@${dueNs}`);
      dueNs += periodNs;
      return nowNs >= dueNs;
    },
    nextDueNs: () => dueNs,
  };
}

const stuck: Stepper = { step: () => false, nextDueNs: () => 0 };

describe("SeededScheduler", () => {
  it("runDevices() steps each device when it is due, and ends at the deadline", () => {
    const log: string[] = [];
    const scheduler = new SeededScheduler(1);
    scheduler.attach([periodic("a", 1000, log), periodic("b", 2500, log)]);
    scheduler.runDevices(5500);
    assert.deepEqual(
      log.sort(),
      ["a@1000", "a@2000", "a@3000", "a@4000", "a@5000", "b@2500", "b@5000"].sort(),
    );
    assert.ok(scheduler.nowNs >= 5500 && scheduler.nowNs < 5600);
  });

  it("orders devices that are due together by the seed", () => {
    const order = (seed: number) => {
      const log: string[] = [];
      const scheduler = new SeededScheduler(seed);
      scheduler.attach(["a", "b", "c", "d"].map((name) => periodic(name, 1000, log)));
      scheduler.runDevices(20_000);
      return log.join();
    };
    assert.equal(order(1), order(1));
    assert.notEqual(order(1), order(2));
  });

  it("tick() steps devices after every event, or about every n-th, as asked", () => {
    for (const [eventsPerStep, least, most] of [
      [1, 1000, 10_000],
      [64, 10, 200],
    ]) {
      let steps = 0;
      const scheduler = new SeededScheduler(3, eventsPerStep);
      const busy: Stepper = {
        step() {
          steps++;
          return true;
        },
        nextDueNs: () => 0,
      };
      scheduler.attach([busy]);
      for (let i = 0; i < 1000; i++) scheduler.tick(5);
      assert.ok(steps >= least && steps <= most, `${steps} steps for ${eventsPerStep}`);
      assert.ok(scheduler.nowNs >= 5000);
    }
  });

  it("halt() ends when the kernel wakes, at its timeout, and not later for a device that is stuck", () => {
    const scheduler = new SeededScheduler(1);
    let awake = false;
    const waker: Stepper = {
      step() {
        awake = true;
        return false;
      },
      nextDueNs: () => (awake ? Number.POSITIVE_INFINITY : 7000),
    };
    scheduler.attach([waker]);
    scheduler.halt(1e9, () => awake);
    assert.ok(scheduler.nowNs >= 7000 && scheduler.nowNs < 8000);
    scheduler.attach([stuck]);
    const before = scheduler.nowNs;
    scheduler.halt(10_000, () => false);
    assert.ok(scheduler.nowNs - before >= 10_000 && scheduler.nowNs - before < 11_000);
  });

  it("halt() without a timeout is a bug when nothing can wake the kernel", () => {
    const scheduler = new SeededScheduler(1);
    assert.throws(() => scheduler.halt(Number.POSITIVE_INFINITY, () => false), BugError);
    const log: string[] = [];
    scheduler.attach([periodic("a", 1e9, log)]);
    assert.throws(() => scheduler.halt(Number.POSITIVE_INFINITY, () => false), /minute/);
    assert.equal(log.length, 60);
  });
});
