import assert from "node:assert/strict";
import { test } from "node:test";
import { KernelError } from "./errno.ts";
import { FaultInjector } from "./fault-injector.ts";

const failure = (point: string) => new KernelError("ENOMEM", "test", point);

/** Passes points a, b, c; returns those that were passed without a failure. */
function work(faults: FaultInjector): string[] {
  const passed: string[] = [];
  try {
    for (const point of ["a", "b", "c"]) {
      faults.point(point);
      passed.push(point);
    }
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    passed.push(`!${error.message.at(-1)}`);
  }
  return passed;
}

test("an unarmed injector lets everything pass", () => {
  assert.deepEqual(work(new FaultInjector()), ["a", "b", "c"]);
});

test("arm() fails the chosen point and no other, and disarm() says whether it was reached", () => {
  const faults = new FaultInjector();
  const expected = [["!a"], ["a", "!b"], ["a", "b", "!c"], ["a", "b", "c"]];
  for (const [index, passed] of expected.entries()) {
    faults.arm(index, failure);
    assert.deepEqual(work(faults), passed);
    assert.equal(faults.disarm(), index < 3, `armed at ${index}`);
    assert.deepEqual(work(faults), ["a", "b", "c"], "disarmed");
  }
});

test("arm() counts from the moment it is called, and a point fails once", () => {
  const faults = new FaultInjector();
  faults.arm(5, failure);
  work(faults);
  faults.arm(1, failure);
  assert.deepEqual(work(faults), ["a", "!b"]);
  assert.deepEqual(work(faults), ["a", "b", "c"]);
  assert.equal(faults.disarm(), true);
});

test("disarm() says that nothing was reached when nothing was armed", () => {
  const faults = new FaultInjector();
  work(faults);
  assert.equal(faults.disarm(), false);
});

test("record() lists the points in order, and stops listing when its action throws", () => {
  const faults = new FaultInjector();
  assert.deepEqual(
    faults.record(() => {
      work(faults);
      faults.point("d");
    }),
    ["a", "b", "c", "d"],
  );
  assert.throws(
    () =>
      faults.record(() => {
        throw new RangeError("not ours");
      }),
    RangeError,
  );
  assert.deepEqual(
    faults.record(() => {}),
    [],
  );
});
