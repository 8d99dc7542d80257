import assert from "node:assert/strict";
import { test } from "node:test";
import { withUndo } from "./undo.ts";

test("withUndo() returns the result and undoes nothing when its action succeeds", () => {
  const done: string[] = [];
  const result = withUndo((undo) => {
    undo(() => done.push("undone"));
    return 7;
  });
  assert.equal(result, 7);
  assert.deepEqual(done, []);
});

test("withUndo() undoes in reverse what was done before a failure, and throws that failure on", () => {
  const steps = ["a", "b", "c", "d"];
  for (let failing = 0; failing < steps.length; failing++) {
    const undone: string[] = [];
    const error = new Error(`at ${steps[failing]}`);
    assert.throws(
      () =>
        withUndo((undo) => {
          for (const [i, step] of steps.entries()) {
            if (i === failing) throw error;
            undo(() => undone.push(step));
          }
        }),
      (thrown) => thrown === error,
    );
    assert.deepEqual(undone, steps.slice(0, failing).reverse());
  }
});

test("withUndo() inside withUndo() undoes the inner steps first", () => {
  const undone: string[] = [];
  assert.throws(() =>
    withUndo((undo) => {
      undo(() => undone.push("outer"));
      withUndo((undoInner) => {
        undoInner(() => undone.push("inner"));
        throw new Error("inside");
      });
    }),
  );
  assert.deepEqual(undone, ["inner", "outer"]);
});
