/** What memfs costs: by extents and files, not by pages. Bytes are asserted; times are told, and bounded loosely. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { O_CREAT, O_RDWR } from "../../abi/uapi/fs.ts";
import { GIB, KIB, MIB, TIB } from "../../base/units.ts";
import { Box, PAGE } from "./test-rig.ts";

test("a file of 1 TiB in 1 GiB extents is made, handed over, mapped and freed at the cost of its extents", (t) => {
  const box = new Box([{ start: 0, lengthBytes: TIB + 4 * GIB, node: 0 }]);
  let kernel = box.boot(null);
  const fs = kernel.memfs.mount("guest0", "");
  const start = performance.now();
  const file = fs.open("/ram", O_RDWR | O_CREAT);
  // Half a gibibyte first, so that memory for the rest does not lie in one piece.
  file.fallocate(0, 0, GIB / 2);
  file.fallocate(0, GIB, TIB);
  const allocated = performance.now();
  const { decoded } = box.look(kernel);
  const extents = decoded?.stores[0].inodes.get(file.stat().inode)?.extents ?? [];
  assert.equal(file.stat().allocatedBytes, TIB + GIB / 2);
  assert.equal(
    extents.filter((e) => e.order === 18).reduce((n, e) => n + e.count, 0),
    1024,
  );
  const { metadataBytes } = kernel.kho.sizes();
  const overhead = metadataBytes + kernel.memfs.metadataBytes;
  assert.ok(overhead <= 128 * KIB + 64 * (extents.length + 1), `${overhead} bytes handed over`);
  const beforeJump = performance.now();
  kernel = box.jump(kernel);
  const adopted = performance.now();
  const again = kernel.memfs.mount("guest0", "").open("/ram", O_RDWR);
  const pin = again.pin(GIB, TIB);
  assert.equal(
    pin.extents.reduce((sum, e) => sum + e.lengthBytes, 0),
    TIB,
  );
  pin.unpin();
  const unlinked = performance.now();
  kernel.memfs.mount("guest0", "").unlink("/ram");
  again.put();
  const end = performance.now();
  t.diagnostic(
    `allocate ${(allocated - start).toFixed(1)} ms, decode and adopt ${(adopted - beforeJump).toFixed(1)} ms, ` +
      `unlink ${(end - unlinked).toFixed(1)} ms, ${extents.length} extents, ${overhead} bytes of metadata`,
  );
  assert.ok(adopted - beforeJump < 2000, "adoption does not cost by pages: there are 268 million");
});

test("5000 files cost at most 64 bytes each and for each extent, beside a few pages", (t) => {
  const box = new Box([{ start: 0, lengthBytes: 256 * MIB, node: 0 }]);
  let kernel = box.boot(null);
  const fs = kernel.memfs.mount("guest0", "");
  const before = kernel.memfs.metadataBytes;
  fs.mkdir("/d");
  for (let i = 0; i < 5000; i++) {
    const file = fs.open(`/d/file ${i}`, O_RDWR | O_CREAT);
    file.fallocate(0, 0, PAGE);
    file.put();
  }
  const cost = kernel.memfs.metadataBytes - before;
  assert.ok(cost <= 5000 * (64 + 64) + 4 * PAGE, `${cost} bytes`);
  const beforeJump = performance.now();
  kernel = box.jump(kernel);
  t.diagnostic(`${cost} bytes; decode and adopt ${(performance.now() - beforeJump).toFixed(1)} ms`);
  const again = kernel.memfs.mount("guest0", "");
  assert.equal(again.readdir("/d").length, 5000);
  for (let i = 0; i < 5000; i += 2) again.unlink(`/d/file ${i}`);
  for (let i = 1; i < 5000; i += 2) again.unlink(`/d/file ${i}`);
  again.rmdir("/d");
  assert.equal(kernel.memfs.metadataBytes, before);
});
