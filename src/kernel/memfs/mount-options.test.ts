import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError } from "../../base/errno.ts";
import { GIB, KIB, MIB, TIB } from "../../base/units.ts";
import { carveOutBlocks, parseCarveOuts } from "./carve-out.ts";
import { parseMountOptions, parseSize } from "./mount-options.ts";

const invalid = (error: unknown) => isKernelError(error, "EINVAL");

test("parseSize() reads what memparse() reads", () => {
  assert.equal(parseSize("4096"), 4096);
  assert.equal(parseSize("0x1000"), 4096);
  assert.deepEqual(["3k", "3M", "3G", "3t"].map(parseSize), [3 * KIB, 3 * MIB, 3 * GIB, 3 * TIB]);
  for (const text of ["", "k", "-1", "1.5G", "1E", "4097T", "1 G", "9".repeat(16)])
    assert.equal(parseSize(text), null, text);
});

test("parseMountOptions() fails with EINVAL on what it does not know", () => {
  assert.deepEqual(parseMountOptions("", 1), {});
  assert.deepEqual(parseMountOptions("node=1,size=5000", 2), { node: 1, limitBytes: 8192 });
  for (const text of ["node=2", "node=-1", "node=x", "node", "size=", "size=x", "huge=always", "="])
    assert.throws(() => parseMountOptions(text, 2), invalid, text);
});

test("parseCarveOuts() reads the boot option of the seed, names, and several", () => {
  assert.deepEqual(parseCarveOuts("quiet pkernfs=1G!1G"), [
    { name: "pkernfs", start: GIB, lengthBytes: GIB },
  ]);
  assert.deepEqual(parseCarveOuts("pkernfs=vms:2M!4M,1G!2G pkernfs=2M!0x600000"), [
    { name: "vms", start: 4 * MIB, lengthBytes: 2 * MIB },
    { name: "pkernfs1", start: 2 * GIB, lengthBytes: GIB },
    { name: "pkernfs2", start: 6 * MIB, lengthBytes: 2 * MIB },
  ]);
  assert.deepEqual(parseCarveOuts("quiet nopkernfs=1"), []);
});

test("parseCarveOuts() fails with EINVAL on an option that is wrong in any way", () => {
  for (const value of [
    "",
    "1G",
    "1G!",
    "!1G",
    "x!1G",
    "1G!1G,",
    "0!1G",
    "1M!2M",
    "2M!1M",
    "1G%1G",
    "2G!1G,1G!2G",
    "a:2M!2M,a:2M!4M",
    "4096T!2M",
  ])
    assert.throws(() => parseCarveOuts(`pkernfs=${value}`), invalid, value);
});

test("carveOutBlocks() covers a range with blocks of 1 GiB and 2 MiB", () => {
  const blocks = carveOutBlocks({ start: GIB - 2 * MIB, lengthBytes: GIB + 4 * MIB });
  assert.deepEqual(blocks, [
    { pa: GIB - 2 * MIB, order: 9 },
    { pa: GIB, order: 18 },
    { pa: 2 * GIB, order: 9 },
  ]);
});
