import assert from "node:assert/strict";
import { test } from "node:test";
import type { UserArgument } from "../abi/uapi/ioctl.ts";
import { iommu_ioas_iova_ranges, iommu_iova_range } from "../abi/uapi/iommufd.ts";
import { ByteWords } from "../abi/words.ts";
import { KernelError } from "../base/errno.ts";
import { iovaRanges } from "./iommufd.ts";

test("iovaRanges() asks again with room for all ranges, and throws what is no lack of room", () => {
  const ranges = Array.from({ length: 20 }, (_, i) => ({ start: 2 * i, last: 2 * i }));
  const rooms: number[] = [];
  const ioctl = (_fd: number, _request: number, { bytes, buffers }: UserArgument): number => {
    const words = new ByteWords(bytes);
    const command = iommu_ioas_iova_ranges.read(words, 0);
    if (command.ioas_id !== 3) throw new KernelError("ENOENT", "ranges", "no such IOAS");
    rooms.push(command.num_iovas);
    const out = new ByteWords(buffers?.[0].bytes ?? new Uint8Array(0));
    ranges.slice(0, command.num_iovas).forEach((range, i) => {
      iommu_iova_range.write(out, i * iommu_iova_range.sizeBytes, range);
    });
    iommu_ioas_iova_ranges.write(words, 0, {
      ...command,
      num_iovas: ranges.length,
      out_iova_alignment: 4096,
    });
    if (command.num_iovas < ranges.length) throw new KernelError("EMSGSIZE", "ranges", "no room");
    return 0;
  };
  assert.deepEqual(iovaRanges({ ioctl }, 5, 3), { ranges, alignment: 4096 });
  assert.deepEqual(rooms, [8, 20]);
  assert.throws(() => iovaRanges({ ioctl }, 5, 4), { code: "ENOENT" });
});
