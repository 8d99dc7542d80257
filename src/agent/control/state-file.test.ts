import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { skipUnlessRoot } from "../../../tests/support/skip.ts";
import { isKernelError } from "../../base/errno.ts";
import { JOURNAL_FORMAT } from "../journal.ts";
import { type AgentState, decodeAgentState, STATE_FORMAT } from "./agent-state.ts";
import { StateFile } from "./state-file.ts";

const STATE: AgentState = {
  format: STATE_FORMAT,
  bootId: "6f1e-boot",
  isUpdating: true,
  isPastUnknown: false,
  journal: {
    format: JOURNAL_FORMAT,
    update: 3,
    fromRelease: "a",
    toRelease: "b",
    rebootAtNs: 17,
    vms: [{ name: "vm0", ownerUid: 1001, pausedAtNs: 5 }],
    phases: [],
    userData: null,
  },
  vms: [
    {
      name: "vm0",
      ownerUid: 1001,
      state: "restoring",
      holderPid: 77,
      blackoutNs: null,
      problem: "slow",
    },
    {
      name: "vm1",
      ownerUid: null,
      state: "registered",
      holderPid: null,
      blackoutNs: 1.5,
      problem: null,
    },
  ],
};

/** The state with one field, "vms.0.name", set. */
function withField(path: string, value: unknown): string {
  const state = JSON.parse(JSON.stringify(STATE)) as Record<string, unknown>;
  const keys = path.split(".");
  const last = keys.pop() ?? "";
  let at = state;
  for (const key of keys) at = at[key] as Record<string, unknown>;
  assert.ok(last in at, `${path} is a field`);
  at[last] = value;
  return JSON.stringify(state);
}

test("decodeAgentState() reads what was written, and fails with EIO naming a field that is wrong", () => {
  assert.deepEqual(decodeAgentState(JSON.stringify(STATE)), STATE);
  for (const [path, values] of [
    ["format", [null, "holdfast-agent-state-v0"]],
    ["bootId", [null, 7, "x".repeat(65)]],
    ["isUpdating", [null, 0]],
    ["isPastUnknown", [null, 0]],
    ["journal.format", [null, "v9"]],
    ["journal.vms", [null]],
    ["vms", [null, {}, Array(1025).fill(STATE.vms[0])]],
    ["vms.0.name", [null, "", "a/b", "vm1"]],
    ["vms.0.ownerUid", [-1, 2 ** 32 - 1, "0"]],
    ["vms.0.state", [null, "running"]],
    ["vms.0.holderPid", [-1, 1.5, "1"]],
    ["vms.0.blackoutNs", [-1, "1"]],
    ["vms.0.problem", [7]],
  ] as const)
    for (const value of values) {
      const field = new RegExp(path.split(".")[0]);
      assert.throws(
        () => decodeAgentState(withField(path, value)),
        (error) => isKernelError(error, "EIO") && field.test(error.message),
        `${path}: ${JSON.stringify(value)?.slice(0, 60)}`,
      );
    }
  for (const text of ["", "{", "null", "[]", "7"])
    assert.throws(
      () => decodeAgentState(text),
      (error) => isKernelError(error, "EIO"),
      text,
    );
});

describe("StateFile", () => {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-state-"));
  after(() => rmSync(folder, { recursive: true, force: true }));

  test("a state that was written is read, by root alone, and replaced as a whole", () => {
    const path = join(folder, "made", "state.json");
    const file = new StateFile(path);
    assert.equal(file.read(), null);
    file.write(STATE);
    assert.deepEqual(file.read(), STATE);
    assert.equal(statSync(path).mode & 0o777, 0o600);
    file.write({ ...STATE, isUpdating: false, vms: [] });
    assert.deepEqual(new StateFile(path).read()?.vms, []);
    assert.deepEqual(readdirSync(join(folder, "made")), ["state.json"]);
  });

  test("what an agent that was killed has left half written is not read, and not in the way", () => {
    const path = join(folder, "half.json");
    const file = new StateFile(path);
    file.write(STATE);
    writeFileSync(`${path}.new`, "x".repeat(100_000));
    assert.deepEqual(file.read(), STATE);
    file.write({ ...STATE, vms: [] });
    assert.deepEqual(file.read()?.vms, []);
    assert.ok(!existsSync(`${path}.new`));
  });

  test("a link in the place of the next state is not followed", () => {
    const path = join(folder, "link.json");
    const victim = join(folder, "victim");
    writeFileSync(victim, "precious");
    symlinkSync(victim, `${path}.new`);
    assert.throws(
      () => new StateFile(path).write(STATE),
      (error) => isKernelError(error, "ELOOP"),
    );
    assert.equal(readFileSync(victim, "utf8"), "precious");
  });

  test("a state that is damaged is EIO; one that cannot be read or written has the errno of that", () => {
    const path = join(folder, "damaged.json");
    writeFileSync(path, JSON.stringify(STATE).slice(0, -5));
    assert.throws(
      () => new StateFile(path).read(),
      (error) => isKernelError(error, "EIO"),
    );
    const directory = join(folder, "directory");
    mkdirSync(directory);
    const there = new StateFile(directory);
    assert.throws(
      () => there.read(),
      (error) => isKernelError(error, "EISDIR"),
    );
    assert.throws(
      () => there.write(STATE),
      (error) => isKernelError(error, "EISDIR"),
    );
    assert.ok(!existsSync(`${directory}.new`), "nothing is left of it");
    const below = new StateFile(join(path, "state.json"));
    assert.throws(
      () => below.write(STATE),
      (error) => isKernelError(error, "EEXIST"),
    );
  });

  test("a medium that is full or read-only: ENOSPC, EROFS, and the old state stays", {
    skip: skipUnlessRoot("a small file system"),
  }, (context) => {
    const mountpoint = join(folder, "small");
    mkdirSync(mountpoint);
    const mount = (options: string) =>
      spawnSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", mountpoint]);
    const mounted = mount("size=16k");
    if (mounted.status !== 0) {
      assert.ok(process.env.CI !== "true", `mount: ${mounted.stderr.toString()}`);
      context.skip(`mount is refused: ${mounted.stderr.toString()}`);
      return;
    }
    try {
      const path = join(mountpoint, "state.json");
      const file = new StateFile(path);
      file.write(STATE);
      const problem = "x".repeat(1000);
      const vms = [...Array(40)].map((_, i) => ({ ...STATE.vms[0], name: `vm${i}`, problem }));
      const isFull = (error: unknown) => isKernelError(error, "ENOSPC");
      assert.throws(() => file.write({ ...STATE, vms }), isFull);
      assert.deepEqual(file.read(), STATE);
      assert.deepEqual(readdirSync(mountpoint), ["state.json"]);
      assert.equal(mount("remount,ro").status, 0);
      assert.throws(
        () => file.write(STATE),
        (error) => isKernelError(error, "EROFS"),
      );
      assert.deepEqual(file.read(), STATE);
    } finally {
      spawnSync("umount", [mountpoint]);
    }
  });
});
