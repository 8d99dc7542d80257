import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError } from "../base/errno.ts";
import { MIB } from "../base/units.ts";
import { parseCommandLine } from "./command-line.ts";

test("parseCommandLine() of nothing gives Linux's defaults", () => {
  assert.deepEqual(parseCommandLine(""), {
    liveUpdate: false,
    noiommu: false,
    superpages: true,
    carveOuts: [],
  });
});

test("parseCommandLine() reads every option among words of userspace", () => {
  const options = parseCommandLine(
    "quiet liveupdate=on intel_iommu=on,sp_off vfio.enable_unsafe_noiommu_mode=1 pkernfs=vms:16M!32M demo.x=1",
  );
  assert.deepEqual(options, {
    liveUpdate: true,
    noiommu: true,
    superpages: false,
    carveOuts: [{ name: "vms", lengthBytes: 16 * MIB, start: 32 * MIB }],
  });
});

test("parseCommandLine() lets the last word count, but adds intel_iommu= up", () => {
  assert.equal(parseCommandLine("liveupdate=on liveupdate=off").liveUpdate, false);
  assert.equal(parseCommandLine("intel_iommu=sp_off intel_iommu=on").superpages, false);
  assert.equal(parseCommandLine("intel_iommu=on").superpages, true);
});

for (const word of [
  "liveupdate=maybe",
  "intel_iommu=off",
  "intel_iommu=sp_on",
  "intel_iommu=",
  "intel_iommu=on,,sp_off",
  "vfio.enable_unsafe_noiommu_mode=2",
  "pkernfs=1G",
])
  test(`parseCommandLine() fails with EINVAL for ${word}`, () => {
    assert.throws(
      () => parseCommandLine(`liveupdate=on ${word}`),
      (error: unknown) => isKernelError(error, "EINVAL"),
    );
  });
