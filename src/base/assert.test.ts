import nodeAssert from "node:assert/strict";
import { test } from "node:test";
import { assert, BugError } from "./assert.ts";
import { isKernelError } from "./errno.ts";

test("assert() throws a BugError, which is no operating error, when its condition is false", () => {
  assert(true, "holds");
  nodeAssert.throws(
    () => assert(false, "pages are counted"),
    (error) =>
      error instanceof BugError &&
      error.message === "pages are counted" &&
      error.name === "BugError" &&
      !isKernelError(error),
  );
});
