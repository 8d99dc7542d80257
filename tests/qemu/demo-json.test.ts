/** `holdfast demo --machine qemu --json` as a program calls it. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { skipReason } from "./rig.ts";

const MAIN = fileURLToPath(
  new URL(`../../src/cli/main.${import.meta.url.endsWith(".ts") ? "ts" : "js"}`, import.meta.url),
);

test("holdfast demo --machine qemu --json prints one object and nothing else: the result, of that place", {
  skip: skipReason(),
}, () => {
  const args = ["demo", "--machine", "qemu", "--json", "--updates", "1", "--memory", "16M"];
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [...process.execArgv, MAIN, ...args, "--rate", "500"],
    { encoding: "utf8" },
  );
  assert.equal(status, 0, stderr);
  const lines = stdout.trimEnd().split("\n");
  assert.equal(lines.length, 1, stdout);
  const result = JSON.parse(lines[0]);
  assert.equal(result.place, "qemu");
  assert.equal(result.updates, 1);
  assert.deepEqual(result.leaks, { pages: 0, pins: 0, domains: 0 });
  assert.equal(result.vms.length, 2);
  for (const vm of result.vms) {
    assert.equal(vm.frames.lost + vm.frames.corrupt, 0);
    assert.equal(vm.guestBytesCopied, 0);
  }
});
