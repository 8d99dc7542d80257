import assert from "node:assert/strict";
import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { holdersOf, isSessionFile } from "./open-files.ts";
import { linuxTests } from "./test-rig.ts";

const test = linuxTests(process.platform === "linux" ? false : "looks into /proc");

test("holdersOf() names the processes that have a file open, and none when it is closed", ({
  folder,
}) => {
  const path = join(folder, "file");
  const fds = [openSync(path, "w"), openSync(path, "r")];
  const holders = holdersOf(path);
  assert.deepEqual(
    holders.map(({ pid }) => pid),
    [process.pid],
  );
  assert.notEqual(holders[0].name, "");
  for (const fd of fds) closeSync(fd);
  assert.deepEqual(holdersOf(path), []);
});

test("isSessionFile() is false for a file, another anonymous file, and what is not open", ({
  ffi,
  folder,
}) => {
  const file = openSync(join(folder, "[luo_session]"), "w");
  const eventfd = ffi.eventfd(0, 0);
  for (const fd of [file, eventfd, 999_999, -1]) assert.equal(isSessionFile(fd), false, `${fd}`);
  closeSync(file);
  ffi.close(eventfd);
});
