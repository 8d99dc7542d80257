import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { processHasEnded } from "./process-state.ts";

const skip = process.platform === "linux" ? false : "only Linux has /proc";

test("processHasEnded() tells processes that live from those that have ended", {
  skip,
}, async () => {
  assert.equal(processHasEnded(process.pid), false);
  assert.equal(processHasEnded(1), false);
  assert.equal(processHasEnded(0), false, "of another namespace");
  assert.equal(processHasEnded(2 ** 22 + 1), true, "beyond the largest pid");
  const child = spawn("sleep", ["60"]);
  assert.ok(child.pid !== undefined);
  assert.equal(processHasEnded(child.pid), false);
  child.kill("SIGKILL");
  await once(child, "exit");
  assert.equal(processHasEnded(child.pid), true);
});

test("processHasEnded() takes a zombie for one that has ended", { skip }, async () => {
  // A shell that has replaced itself by a program that does not wait for its children.
  const parent = spawn("sh", ["-c", "sleep 0.05 & echo $!; exec sleep 60"]);
  try {
    const [text] = (await once(parent.stdout, "data")) as [Buffer];
    const pid = Number(text.toString());
    assert.equal(processHasEnded(pid), false);
    for (let i = 0; i < 100 && !processHasEnded(pid); i++) await sleep(20);
    assert.match(readFileSync(`/proc/${pid}/stat`, "latin1"), /\) Z /);
    assert.equal(processHasEnded(pid), true);
  } finally {
    parent.kill("SIGKILL");
  }
});
