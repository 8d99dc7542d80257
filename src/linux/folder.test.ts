import assert from "node:assert/strict";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isKernelError } from "../base/errno.ts";
import { makeFolder } from "./folder.ts";

test("makeFolder() makes one level, leaves one that is there, and fails with ENOENT without its parent", () => {
  const parent = mkdtempSync(join(tmpdir(), "holdfast-"));
  try {
    const folder = join(parent, "one");
    makeFolder(folder);
    writeFileSync(join(folder, "file"), "");
    makeFolder(folder);
    assert.equal(statSync(join(folder, "file")).size, 0);
    assert.throws(
      () => makeFolder(join(parent, "two", "three")),
      (error) => isKernelError(error, "ENOENT"),
    );
  } finally {
    rmSync(parent, { recursive: true });
  }
});
