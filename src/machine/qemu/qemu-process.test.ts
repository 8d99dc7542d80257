import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isKernelError } from "../../base/errno.ts";
import { findQemu } from "./qemu-process.ts";

test("findQemu() takes QEMU, then PATH, and says how to install what is missing", () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-find-"));
  try {
    const program = join(folder, "qemu-system-x86_64");
    writeFileSync(program, "");
    const missing = (environment: NodeJS.ProcessEnv, message: RegExp) =>
      assert.throws(
        () => findQemu(environment),
        (error) => isKernelError(error, "ENOENT") && message.test(error.message),
      );
    // There, but no program.
    missing({ PATH: folder }, /apt-get install .*qemu-system-x86/);
    chmodSync(program, 0o755);
    assert.equal(findQemu({ PATH: `/nowhere:${folder}` }), program);
    assert.equal(findQemu({ PATH: folder, QEMU: "/bin/sh" }), "/bin/sh");
    missing({ PATH: folder, QEMU: "/no/such/qemu" }, /QEMU=\/no\/such\/qemu/);
    missing({ PATH: "/nowhere" }, /apt-get install .*qemu-system-x86/);
    missing({}, /apt-get install/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
