import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { readScratch } from "../../abi/kho.ts";
import { isKernelError } from "../../base/errno.ts";
import { GIB, MIB } from "../../base/units.ts";
import { createSharedRam, Ram } from "../../machine/physical-memory.ts";
import { Scratch } from "./scratch.ts";

const FIRMWARE = {
  memory: [
    { start: 0, lengthBytes: 64 * MIB, node: 0 },
    { start: 4 * GIB, lengthBytes: 64 * MIB, node: 1 },
  ],
  nodeCount: 2,
};
const SIZES = { lowmemBytes: 4 * MIB, globalBytes: 5 * MIB, perNodeBytes: 4 * MIB };

describe("Scratch.reserve()", () => {
  it("reserves lowmem, global and one area per node, aligned to 4 MiB, off address 0 and carve-outs", () => {
    const { areas } = Scratch.reserve(FIRMWARE, [{ start: 4 * MIB, lengthBytes: 4 * MIB }], SIZES);
    assert.deepEqual(areas, [
      { addr: 8 * MIB, size: 4 * MIB },
      // 5 MiB round up to 8, which node 0 has left of its quarter of 16 MiB.
      { addr: 12 * MIB, size: 8 * MIB },
      { addr: 20 * MIB, size: 4 * MIB },
      { addr: 4 * GIB, size: 4 * MIB },
    ]);
  });

  it("gives size 0 to what would take more than a quarter of a node", () => {
    const firmware = { memory: [{ start: 0, lengthBytes: 24 * MIB, node: 0 }], nodeCount: 1 };
    assert.deepEqual(
      Scratch.reserve(firmware).areas.map((area) => area.size),
      [4 * MIB, 0, 0],
    );
  });

  it("takes the first area below 4 GiB, whatever it costs", () => {
    const firmware = { memory: [{ start: 0, lengthBytes: 8 * MIB, node: 0 }], nodeCount: 1 };
    assert.deepEqual(Scratch.reserve(firmware).areas[0], { addr: 4 * MIB, size: 4 * MIB });
  });

  it("fails with ENOMEM when not even one area fits, with EINVAL when none is wanted or one is no size", () => {
    const small = { memory: [{ start: 0, lengthBytes: 7 * MIB, node: 0 }], nodeCount: 1 };
    const high = { memory: [{ start: 4 * GIB, lengthBytes: 64 * MIB, node: 0 }], nodeCount: 1 };
    for (const firmware of [small, high])
      assert.throws(
        () => Scratch.reserve(firmware),
        (error) => isKernelError(error, "ENOMEM"),
      );
    for (const bytes of [0, -1, Number.NaN, 0.5])
      assert.throws(
        () =>
          Scratch.reserve(FIRMWARE, [], {
            lowmemBytes: bytes,
            globalBytes: 0,
            perNodeBytes: 0,
          }),
        (error) => isKernelError(error, "EINVAL"),
        String(bytes),
      );
  });
});

describe("Scratch.write()", () => {
  it("writes the array that readScratch() reads, into scratch itself", () => {
    const ram = new Ram(createSharedRam(FIRMWARE.memory));
    const scratch = Scratch.reserve(FIRMWARE, [], SIZES);
    scratch.write(ram);
    assert.deepEqual(readScratch(ram, scratch.arrayPa, scratch.arraySizeBytes), scratch.areas);
    assert.ok(scratch.overlaps(scratch.arrayPa, scratch.arraySizeBytes));
  });
});

describe("Scratch.overlaps()", () => {
  it("tells bytes in an area from those beside it", () => {
    const scratch = Scratch.reserve(FIRMWARE, [], SIZES);
    assert.ok(scratch.overlaps(4 * GIB, 1) && scratch.overlaps(4 * GIB - 1, 2));
    assert.ok(!scratch.overlaps(4 * GIB - 1, 1) && !scratch.overlaps(4 * GIB + 4 * MIB, GIB));
  });
});
