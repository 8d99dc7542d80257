/** The daemon as a user starts it, where it cannot run: what needs a kernel with live update is in tests/linux. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const MAIN = fileURLToPath(
  new URL(import.meta.url.endsWith(".ts") ? "../main.ts" : "../main.js", import.meta.url),
);
const elsewhere = process.platform === "linux" ? false : "needs Linux";

function run(args: readonly string[]) {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [...process.execArgv, MAIN, ...args],
    { encoding: "utf8", env: { ...process.env, HOLDFAST_DEBUG: "" } },
  );
  return { status, stdout, stderr };
}

test("on a kernel without live update the agent says what is missing, exits with 1 and leaves no socket", {
  skip: elsewhere || (existsSync("/dev/liveupdate") && "this kernel has live update"),
}, () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-"));
  try {
    const socket = join(folder, "agent.sock");
    const { status, stdout, stderr } = run(["agent", "--socket", socket, "--group", "0"]);
    assert.deepEqual([status, stdout], [1, ""]);
    assert.match(stderr, /^holdfast: ENOENT: open: there is no \/dev\/liveupdate: .*\n$/);
    assert.match(stderr, /CONFIG_|command line|log/);
    assert.equal(readdirSync(folder).includes("agent.sock"), false);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("options that cannot be are refused before anything is done, exit status 2", () => {
  const cases: [args: string[], message: RegExp][] = [
    [["agent", "--group", "no such group"], /--group no such group/],
    [["agent", "--timeout", "0"], /--timeout 0/],
    [["agent", "extra"], /extra/],
    [["testvm"], /--name NAME/],
    [["testvm", "--name", "a/b"], /--name a\/b: must be/],
    [["testvm", "--name", "a", "--memory", "5000"], /multiple of 4K/],
    [["testvm", "--name", "a", "--memory", "2T"], /--memory 2T/],
    [["testvm", "--name", "a", "--seed", "-1"], /--seed -1/],
  ];
  for (const [args, message] of cases) {
    const { status, stdout, stderr } = run(args);
    assert.deepEqual([status, stdout], [2, ""], args.join(" "));
    assert.match(stderr, message);
  }
});
