import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isKernelError } from "../../base/errno.ts";
import { parsePath } from "./path.ts";
import { utf8Length } from "./user-value.ts";

const code = (expected: string) => (error: unknown) =>
  isKernelError(error) && error.code === expected;

test("parsePath() drops empty names and dots and tells the last name's kind", () => {
  assert.deepEqual(parsePath("//a/./b/", "open"), {
    names: ["a", "b"],
    last: "name",
    mustBeDirectory: true,
  });
  assert.equal(parsePath("/a/.", "open").last, "dot");
  assert.equal(parsePath("/a/..", "open").last, "dotdot");
  assert.equal(parsePath("///", "open").last, "root");
  assert.equal(parsePath("/a", "open").mustBeDirectory, false);
});

test("parsePath() fails with the errno of path look-up", () => {
  for (const [path, errno] of [
    ["", "ENOENT"],
    ["a/b", "EINVAL"],
    ["/a\0b", "EINVAL"],
    ["/\ud800", "EINVAL"],
    [`/${"n".repeat(256)}`, "ENAMETOOLONG"],
    [`/${"é".repeat(128)}`, "ENAMETOOLONG"],
    ["/a".repeat(2048), "ENAMETOOLONG"],
    [undefined, "EFAULT"],
    [Symbol("x"), "EFAULT"],
    [{ toString: () => "/a" }, "EFAULT"],
  ] as const)
    assert.throws(() => parsePath(path, "open"), code(errno), String(path).slice(0, 20));
  assert.equal(parsePath(`/${"n".repeat(255)}`, "open").names.length, 1);
  assert.equal(parsePath(`/a${"/a".repeat(2046)}`, "open").names.length, 2047);
});

test("utf8Length() agrees with TextEncoder", () => {
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (text) => {
      assert.equal(utf8Length(text), new TextEncoder().encode(text).length);
    }),
  );
});
