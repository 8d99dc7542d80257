import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { UsageError } from "../usage-error.ts";
import { groupId, localGroup } from "./user-group.ts";

test("groupId() takes names of group(5) and numbers, and refuses what is neither", () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-"));
  try {
    const file = join(folder, "group");
    writeFileSync(file, "root:x:0:\nholdfast:x:977:a,b\nhold:x:5:\nbroken:x::\nnothing\n");
    assert.equal(groupId("holdfast", file), 977);
    assert.equal(groupId("root", file), 0);
    assert.equal(groupId("1234", file), 1234);
    assert.equal(localGroup("fast", file), null);
    for (const name of ["fast", "broken", "nothing", "", "-1", "4294967295", "99999999999"])
      assert.throws(() => groupId(name, file), UsageError, name);
    assert.throws(() => groupId("fast", file), /--group fast: .*groupadd --system fast/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
