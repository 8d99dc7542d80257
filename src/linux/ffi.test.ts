import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { skipUnless } from "../../tests/linux/rig.ts";
import { ERRNO } from "../base/errno.ts";
import { openCLibrary, unixAddress } from "../machine/qemu/c-library.ts";
import { linuxTests } from "./test-rig.ts";

const linux = process.platform === "linux" ? null : `needs Linux, not ${process.platform}`;
const linuxTest = linuxTests(skipUnless("calls of Linux", linux));

linuxTest("errnos have the names that the C library gives them", () => {
  const { func } = openCLibrary("a test");
  const name = func("const char *strerrorname_np(int errno)");
  const names: Record<string, number> = {};
  for (let number = 1; number <= 1000; number++) {
    const found: string | null = name(number);
    if (found !== null) names[found === "ENOTSUP" ? "EOPNOTSUPP" : found] = number;
  }
  const { ENOTSUPP, ...userspace } = ERRNO;
  assert.equal(ENOTSUPP, 524);
  assert.deepEqual(userspace, names);
});

linuxTest("groupId() finds a group, and says when there is none", ({ ffi }) => {
  assert.equal(ffi.groupId("root"), 0);
  assert.throws(() => ffi.groupId("no-such-group-here"), { code: "ENOENT" });
});

linuxTest("poll() ends with its time, and a signal does not end it", async ({ ffi }) => {
  let signals = 0;
  process.on("SIGUSR2", () => signals++);
  const killer = spawn("sh", ["-c", `sleep 0.1; kill -USR2 ${process.pid}`]);
  const ended = once(killer, "exit");
  const start = performance.now();
  ffi.poll(new Uint8Array(0), 600e6);
  assert.ok(performance.now() - start >= 599);
  await ended;
  // It had come meanwhile, and is handled now.
  for (let i = 0; i < 100 && signals === 0; i++) await sleep(10);
  process.removeAllListeners("SIGUSR2");
  assert.equal(signals, 1);
});

test("unixAddress() encodes paths and abstract names, and refuses what is too long", () => {
  assert.deepEqual([...unixAddress("/a")], [1, 0, 0x2f, 0x61, 0]);
  assert.deepEqual([...unixAddress("@a")], [1, 0, 0, 0x61]);
  assert.equal(unixAddress("x".repeat(107)).length, 110);
  assert.throws(() => unixAddress("x".repeat(108)), { code: "ENAMETOOLONG" });
  assert.throws(() => unixAddress(""), { code: "EINVAL" });
  assert.throws(() => unixAddress("a\0"), { code: "EINVAL" });
});
