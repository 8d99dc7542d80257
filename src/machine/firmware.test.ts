import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { GIB, MIB } from "../base/units.ts";
import type { MachineConfig } from "./embedded/config.ts";
import { buildAddressMap } from "./firmware.ts";
import type { MemoryRange } from "./machine.ts";

function machine(nodeBytes: number[], segments = 1): MachineConfig {
  return {
    nodeBytes,
    segments: Array.from({ length: segments }, (_, i) => ({
      drhd: i % 2 === 0 ? { addressBits: 48, superpages: true } : null,
      slots: [{ model: "edu", device: 3, function: 0, rmrrBytes: 8192 }],
    })),
    installed: [],
  };
}

describe("buildAddressMap()", () => {
  it("makes one range of RAM up to 3 GiB, and two around the hole beyond", () => {
    assert.deepEqual(buildAddressMap(machine([GIB, 2 * GIB])).ram, [
      { start: 0, lengthBytes: 3 * GIB },
    ]);
    assert.deepEqual(buildAddressMap(machine([2 * GIB, 2 * GIB])).ram, [
      { start: 0, lengthBytes: 3 * GIB },
      { start: 4 * GIB, lengthBytes: GIB },
    ]);
  });

  it("splits the node that the hole falls into, and keeps the first MiB for firmware", () => {
    assert.deepEqual(buildAddressMap(machine([2 * GIB, 2 * GIB])).firmware.memory, [
      { node: 0, start: MIB, lengthBytes: 2 * GIB - MIB },
      { node: 1, start: 2 * GIB, lengthBytes: GIB },
      { node: 1, start: 4 * GIB, lengthBytes: GIB },
    ]);
  });

  it("gives each segment an ECAM, a BAR window, and a remapping unit only where one is configured", () => {
    const { firmware } = buildAddressMap(machine([64 * MIB], 4));
    assert.deepEqual(
      firmware.drhds.map((d) => d.segment),
      [0, 2],
    );
    assert.equal(firmware.ecams.length, 4);
    assert.equal(firmware.mmioWindows.length, 4);
  });

  it("puts RMRRs into firmware's memory, in RAM, one behind the other", () => {
    const { firmware, ram } = buildAddressMap(machine([64 * MIB], 2));
    assert.deepEqual(firmware.rmrrs, [
      { segment: 0, bdf: 0x18, start: 0x10000, lengthBytes: 8192 },
      { segment: 1, bdf: 0x18, start: 0x12000, lengthBytes: 8192 },
    ]);
    assert.equal(ram[0].start, 0);
    assert.equal(firmware.memory[0].start, MIB);
  });

  it("loses no byte and lets nothing overlap, for any machine", () => {
    const bytes = fc.integer({ min: 8, max: 4096 }).map((n) => n * 2 * MIB);
    fc.assert(
      fc.property(fc.array(bytes, { minLength: 1, maxLength: 6 }), (nodeBytes) => {
        const { ram, firmware } = buildAddressMap(machine(nodeBytes, 4));
        const total = nodeBytes.reduce((a, b) => a + b);
        assert.equal(sum(ram), total);
        assert.equal(sum(firmware.memory), total - MIB);
        nodeBytes.forEach((expected, node) => {
          const has = sum(firmware.memory.filter((m) => m.node === node));
          assert.equal(has, node === 0 ? expected - MIB : expected);
        });
        const registers = firmware.drhds.map((d) => ({
          start: d.registerBase,
          lengthBytes: 4096,
        }));
        const ecams = firmware.ecams.map((e) => ({
          start: e.base,
          lengthBytes: (e.lastBus - e.startBus + 1) * MIB,
        }));
        assertDisjoint([...ram, ...registers, ...ecams, ...firmware.mmioWindows]);
        assertDisjoint(firmware.memory);
      }),
    );
  });
});

function sum(ranges: readonly MemoryRange[]): number {
  return ranges.reduce((total, range) => total + range.lengthBytes, 0);
}

function assertDisjoint(ranges: readonly MemoryRange[]): void {
  const sorted = [...ranges].sort((a, b) => a.start - b.start);
  for (let i = 1; i < sorted.length; i++)
    assert.ok(sorted[i].start >= sorted[i - 1].start + sorted[i - 1].lengthBytes);
}
