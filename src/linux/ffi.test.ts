import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { skipUnless } from "../../tests/support/skip.ts";
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

linuxTest("poll() ends with its time, and signals do not end it", async ({ ffi }) => {
  let signals = 0;
  process.on("SIGUSR2", () => signals++);
  const loop = `while kill -USR2 ${process.pid}; do sleep 0.02; done`;
  const killer = spawn("sh", ["-c", loop]);
  const ended = once(killer, "exit");
  // From here on one comes every 20 ms or so.
  while (signals === 0) await sleep(10);
  const start = performance.now();
  ffi.poll(new Uint8Array(0), 400e6);
  assert.ok(performance.now() - start >= 399);
  killer.kill("SIGKILL");
  await ended;
  process.removeAllListeners("SIGUSR2");
});

test("a machine without koffi or without glibc is told what it lacks", {
  skip: process.platform !== "linux",
}, () => {
  const missing = (name: string) => () => {
    throw new Error(`Cannot find ${name}`);
  };
  for (const [require, message] of [
    [missing("module koffi"), /^EOPNOTSUPP: a test: .*npm install koffi$/],
    [() => ({ load: missing("libc.so.6") }), /^EOPNOTSUPP: a test: .*libc.so.6/],
  ] as const)
    assert.throws(() => openCLibrary("a test", require), { name: "KernelError", message });
});

test("unixAddress() encodes paths and abstract names, and refuses what is too long", () => {
  assert.deepEqual([...unixAddress("/a")], [1, 0, 0x2f, 0x61, 0]);
  assert.deepEqual([...unixAddress("@a")], [1, 0, 0, 0x61]);
  assert.equal(unixAddress("x".repeat(107)).length, 110);
  assert.throws(() => unixAddress("x".repeat(108)), { code: "ENAMETOOLONG" });
  assert.throws(() => unixAddress(""), { code: "EINVAL" });
  assert.throws(() => unixAddress("a\0"), { code: "EINVAL" });
});
