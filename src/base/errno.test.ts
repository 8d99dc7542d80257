import assert from "node:assert/strict";
import { constants } from "node:os";
import { test } from "node:test";
import { BugError } from "./assert.ts";
import { ERRNO, type ErrnoCode, isKernelError, KernelError, systemCallError } from "./errno.ts";

test("ERRNO has the numbers of Linux on x86-64 and arm64", {
  skip: process.platform === "linux" ? false : "only Linux knows Linux's numbers",
}, () => {
  const linux = constants.errno as Readonly<Record<string, number>>;
  for (const [code, number] of Object.entries(ERRNO)) {
    if (code in linux) assert.equal(number, linux[code], code);
  }
});

test("systemCallError() names the errno, and keeps the number of one without a name", () => {
  for (const [code, number] of Object.entries(ERRNO)) {
    const error = systemCallError(number, "ioctl", "fd 3");
    assert.equal(error.code, code);
    assert.equal(error.message, `${code}: ioctl: fd 3`);
  }
  assert.equal(
    systemCallError(516, "ioctl", "fd 3").message,
    "EIO: ioctl: fd 3: errno 516, which has no name",
  );
});

test("no two errnos have the same number", () => {
  assert.equal(new Set(Object.values(ERRNO)).size, Object.keys(ERRNO).length);
});

test("KernelError looks like Node's SystemError", () => {
  const cause = new Error("what led to it");
  const error = new KernelError("EBUSY", "unlink", "pinned by 2 DMA mappings", { cause });
  assert.deepEqual(
    {
      name: error.name,
      code: error.code,
      errno: error.errno,
      op: error.op,
      message: error.message,
    },
    {
      name: "KernelError",
      code: "EBUSY",
      errno: -16,
      op: "unlink",
      message: "EBUSY: unlink: pinned by 2 DMA mappings",
    },
  );
  assert.equal(error.cause, cause);
  assert.ok(error instanceof Error);
});

test("isKernelError() tells operating errors from all else, and one code from another", () => {
  const error: unknown = new KernelError("ENOENT", "open", "no such file");
  assert.equal(isKernelError(error), true);
  assert.equal(isKernelError(error, "ENOENT"), true);
  assert.equal(isKernelError(error, "EIO"), false);
  const lookalike = Object.assign(new Error("ENOENT: open"), {
    code: "ENOENT" satisfies ErrnoCode,
  });
  for (const other of [lookalike, new BugError("a bug"), null, undefined, "ENOENT"])
    assert.equal(isKernelError(other), false);
});
