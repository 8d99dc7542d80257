import assert from "node:assert/strict";
import { test } from "node:test";
import { COMMAND_LINE_SIZE } from "../../abi/uapi/fs.ts";
import { isKernelError } from "../../base/errno.ts";
import { TIB } from "../../base/units.ts";
import { type DemoPlan, planFromCommandLine, planToCommandLine } from "./events.ts";

const PLAN: DemoPlan = {
  vms: 2,
  memoryBytes: TIB,
  updates: 3,
  runNs: 400_000_000,
  images: ["/boot/vmlinuz-0.1.0-1", "/boot/vmlinuz-0.1.0-2", "/boot/vmlinuz-0.1.0-3"],
};

test("a plan goes through a command line, among other words", () => {
  assert.deepEqual(planFromCommandLine(`liveupdate=on ${planToCommandLine(PLAN)} quiet`), PLAN);
});

test("a plan of a thousand updates fits on a command line", () => {
  const images = Array.from({ length: 1001 }, (_, i) => `/boot/vmlinuz-0.1.0-${i + 1}`);
  const line = planToCommandLine({ ...PLAN, images });
  assert.ok(line.length < COMMAND_LINE_SIZE / 2, `${line.length} characters`);
  assert.deepEqual(planFromCommandLine(line).images, images);
});

test("planFromCommandLine() fails with EINVAL naming the word that is missing or malformed", () => {
  const line = planToCommandLine(PLAN);
  for (const name of ["vms", "memory", "updates", "run", "images"]) {
    const word = new RegExp(`demo\\.${name}=\\S+`);
    for (const bad of ["", `demo.${name}`, `demo.${name}=x`, `demo.${name}=-1`, `demo.${name}=1.5`])
      assert.throws(
        () => planFromCommandLine(line.replace(word, bad)),
        (error) => isKernelError(error, "EINVAL") && error.message.includes(`demo.${name}`),
        bad,
      );
  }
});

test("images that are not numbered without gaps are a bug", () => {
  for (const images of [
    [],
    ["/boot/vmlinuz"],
    ["/boot/a-1", "/boot/a-3"],
    ["/boot/a-1", "/boot/b-2"],
  ])
    assert.throws(() => planToCommandLine({ ...PLAN, images }), { name: "BugError" });
});
