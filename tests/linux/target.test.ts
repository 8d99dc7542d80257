/**
 * The kernel that the tests here boot, as the target of an update: what is read out of its image is what it says when it runs.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { findKernel } from "../../scripts/linux/kernel-cache.ts";
import { KHO_FDT_COMPATIBLE } from "../../src/abi/kho.ts";
import { LUO_ABI_COMPATIBLE } from "../../src/abi/luo.ts";
import { MEMFD_LUO_FH_COMPATIBLE } from "../../src/abi/memfd.ts";
import { describeTarget } from "../../src/agent/target/target-description.ts";
import { LinuxHost } from "../../src/linux/linux-host.ts";
import { releaseOf, skipReason } from "./rig.ts";

describe("describeTarget() of a real kernel's image", { skip: skipReason() }, () => {
  const kernel = findKernel()?.bzImage ?? "";
  const look = (commandLine: string) =>
    describeTarget(new LinuxHost(), { kernel, initrd: null, commandLine });

  test("finds its release, and the formats that it hands over and takes", () => {
    const found = look("console=ttyS0 liveupdate=on");
    assert.equal(found.kind, "linux");
    assert.equal(found.release, releaseOf(readFileSync(kernel)));
    assert.ok(found.restores !== null);
    for (const format of [KHO_FDT_COMPATIBLE, LUO_ABI_COMPATIBLE, MEMFD_LUO_FH_COMPATIBLE])
      assert.ok(found.restores.includes(format), `${format} is among ${found.restores.join(", ")}`);
    assert.ok(found.restores.length < 20, "and little else");
    assert.deepEqual([found.problems, found.unknowns], [[], []]);
  });

  test("refuses it without live update", () => {
    for (const commandLine of ["console=ttyS0", "liveupdate=on kho=off"])
      assert.equal(look(commandLine).problems.length, 1, commandLine);
  });
});
