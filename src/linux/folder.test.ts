import assert from "node:assert/strict";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isKernelError } from "../base/errno.ts";
import { makeFolder } from "./folder.ts";

test("makeFolder() makes one level, leaves one that is there, and fails with ENOENT without its parent", () => {
  const parent = mkdtempSync(join(tmpdir(), "holdfast-"));
  const umask = process.umask(0o077);
  try {
    const folder = join(parent, "one");
    makeFolder(folder);
    assert.equal(statSync(folder).mode & 0o777, 0o755, "open to others, whatever the umask is");
    writeFileSync(join(folder, "file"), "");
    makeFolder(folder);
    assert.equal(statSync(join(folder, "file")).size, 0);
    assert.throws(
      () => makeFolder(join(parent, "two", "three")),
      (error) => isKernelError(error, "ENOENT"),
    );
  } finally {
    process.umask(umask);
    rmSync(parent, { recursive: true });
  }
});
