import assert from "node:assert/strict";
import { test } from "node:test";
import { FIEMAP, FIEMAP_EXTENT, FIEMAP_EXTENT_LAST, FS_IOC_FIEMAP } from "../abi/uapi/fiemap.ts";
import { ByteWords } from "../abi/words.ts";
import { isKernelError, KernelError } from "../base/errno.ts";
import { type FileRun, fiemap } from "./fiemap.ts";
import type { Host } from "./host.ts";

/** A host whose file has these extents; counts the calls. */
function host(extents: readonly FileRun[], marksLast = true) {
  const calls = { count: 0 };
  const fake = {
    ioctl(fd: number, request: number, { bytes }: { bytes: Uint8Array }) {
      assert.equal(request, FS_IOC_FIEMAP);
      if (fd !== 3) throw new KernelError("EOPNOTSUPP", "FS_IOC_FIEMAP", "no map");
      calls.count++;
      const words = new ByteWords(bytes);
      const query = FIEMAP.read(words, 0);
      const found = extents.filter((e) => e.offsetBytes + e.lengthBytes > query.fm_start);
      const fits = found.slice(0, query.fm_extent_count);
      for (const [i, extent] of fits.entries())
        FIEMAP_EXTENT.write(words, FIEMAP.sizeBytes + i * FIEMAP_EXTENT.sizeBytes, {
          ...FIEMAP_EXTENT.read(words, FIEMAP.sizeBytes + i * FIEMAP_EXTENT.sizeBytes),
          fe_logical: extent.offsetBytes,
          fe_physical: extent.physical,
          fe_length: extent.lengthBytes,
          fe_flags: marksLast && extent === extents.at(-1) ? FIEMAP_EXTENT_LAST : 0,
        });
      FIEMAP.write(words, 0, { ...query, fm_mapped_extents: fits.length });
      return 0;
    },
  } as unknown as Host;
  return { fake, calls };
}

test("fiemap() returns all extents of a file, batch by batch", () => {
  for (const count of [1, 63, 64, 65, 128, 200]) {
    // Every second page of the file, in descending physical order.
    const extents = Array.from({ length: count }, (_, i) => ({
      offsetBytes: i * 8192,
      physical: 2 ** 40 - i * 4096,
      lengthBytes: 4096,
    }));
    for (const marksLast of [true, false]) {
      const { fake, calls } = host(extents, marksLast);
      assert.deepEqual(fiemap(fake, 3), extents, `${count} extents`);
      const batches = Math.ceil(count / 64);
      assert.equal(calls.count, marksLast ? batches : batches + 1);
    }
  }
});

test("fiemap() merges what is contiguous in the file and in memory, also across batches", () => {
  const extents = Array.from({ length: 130 }, (_, i) => ({
    offsetBytes: i * 4096,
    // A jump in memory at 100; the file goes on.
    physical: (i < 100 ? 0x1000_0000 : 0x8000_0000) + i * 4096,
    lengthBytes: 4096,
  }));
  assert.deepEqual(fiemap(host(extents).fake, 3), [
    { offsetBytes: 0, physical: 0x1000_0000, lengthBytes: 100 * 4096 },
    { offsetBytes: 100 * 4096, physical: 0x8000_0000 + 100 * 4096, lengthBytes: 30 * 4096 },
  ]);
});

test("fiemap() does not merge over a hole in the file", () => {
  const extents = [
    { offsetBytes: 0, physical: 0x1000, lengthBytes: 4096 },
    { offsetBytes: 8192, physical: 0x2000, lengthBytes: 4096 },
  ];
  assert.deepEqual(fiemap(host(extents).fake, 3), extents);
});

test("fiemap() of an empty file is empty, and of a file without a map the errno", () => {
  assert.deepEqual(fiemap(host([]).fake, 3), []);
  assert.throws(
    () => fiemap(host([]).fake, 4),
    (error) => isKernelError(error, "EOPNOTSUPP"),
  );
});
