import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { isKernelError } from "../../base/errno.ts";
import { GIB, MIB } from "../../base/units.ts";
import {
  type MachineConfig,
  type SegmentConfig,
  type SlotConfig,
  standardConfig,
  validateConfig,
} from "./config.ts";

const edu = { model: "edu", device: 1, function: 0, rmrrBytes: 0 } as const;
const nic = {
  model: "e1000e",
  device: 2,
  function: 0,
  rmrrBytes: 0,
  name: "nic0",
  framesPerSecond: 10,
} as const;

function machine(changes: Partial<MachineConfig>): MachineConfig {
  return {
    nodeBytes: [64 * MIB, 64 * MIB],
    segments: [{ drhd: null, slots: [edu, nic] }],
    installed: [],
    ...changes,
  };
}

function withSlots(...slots: SlotConfig[]): MachineConfig {
  return machine({ segments: [{ drhd: null, slots }] });
}

describe("validateConfig()", () => {
  it("accepts what standardConfig makes, and plain data only", () => {
    const config = standardConfig({
      memoryBytes: 5 * GIB,
      nics: 28,
      framesPerSecond: 1000,
      installed: [],
    });
    validateConfig(config);
    assert.deepEqual(JSON.parse(JSON.stringify(config)), config);
  });

  const segment: SegmentConfig = { drhd: null, slots: [] };
  const image = { name: "vmlinuz", entry: "file:///k.js", release: "1", restores: [] };
  const bad: [field: string, config: MachineConfig][] = [
    ["nodeBytes", machine({ nodeBytes: [] })],
    ["nodeBytes\\[1\\]", machine({ nodeBytes: [64 * MIB, 0] })],
    ["nodeBytes\\[0\\]", machine({ nodeBytes: [64 * MIB + 4096] })],
    ["nodeBytes\\[0\\]", machine({ nodeBytes: [Number.NaN] })],
    ["nodeBytes\\[0\\]", machine({ nodeBytes: [8 * MIB] })],
    ["nodeBytes", machine({ nodeBytes: new Array(64).fill(2 ** 41) })],
    ["segments", machine({ segments: [] })],
    ["segments", machine({ segments: [segment, segment, segment, segment, segment] })],
    [
      "drhd.addressBits",
      machine({
        segments: [{ drhd: { addressBits: 57 as 48, superpages: true }, slots: [] }],
      }),
    ],
    ["slots\\[0\\].device", withSlots({ ...edu, device: 32 })],
    ["slots\\[0\\].function", withSlots({ ...edu, function: -1 })],
    ["slots\\[1\\]: 1.0 is taken", withSlots(edu, { ...nic, device: 1 })],
    ["no function 0", withSlots({ ...edu, function: 1 })],
    ["rmrrBytes", withSlots({ ...edu, rmrrBytes: 100 })],
    ["rmrrBytes", withSlots({ ...edu, rmrrBytes: MIB })],
    ["name", withSlots(nic, { ...nic, device: 3 })],
    ["framesPerSecond", withSlots({ ...nic, framesPerSecond: -1 })],
    ["framesPerSecond", withSlots({ ...nic, framesPerSecond: Number.NaN })],
    ["transmitFramesPerSecond", withSlots({ ...nic, transmitFramesPerSecond: 0 })],
    ["transmitFramesPerSecond", withSlots({ ...nic, transmitFramesPerSecond: Number.NaN })],
    [
      "only a function on bus 0",
      withSlots({
        model: "root-port",
        device: 4,
        function: 0,
        children: [{ ...edu, device: 0, rmrrBytes: 4096 }],
      }),
    ],
    [
      "below a root port there is device 0 alone",
      withSlots({ model: "root-port", device: 4, function: 0, children: [{ ...edu, device: 1 }] }),
    ],
    [
      "a root port is only on bus 0",
      withSlots({
        model: "root-port",
        device: 4,
        function: 0,
        children: [{ model: "root-port", device: 0, function: 0, children: [] }],
      }),
    ],
    ["installed\\[1\\].name", machine({ installed: [image, image] })],
    ["installed\\[0\\].name", machine({ installed: [{ ...image, name: "a/b" }] })],
  ];
  for (const [i, [field, config]] of bad.entries()) {
    it(`fails with EINVAL naming ${field} (${i})`, () => {
      assert.throws(
        () => validateConfig(config),
        (error: Error) => isKernelError(error, "EINVAL") && new RegExp(field).test(error.message),
      );
    });
  }

  it("refuses more NICs than root ports fit on a bus", () => {
    assert.throws(
      () => standardConfig({ memoryBytes: GIB, nics: 29, framesPerSecond: 1, installed: [] }),
      (error) => isKernelError(error, "EINVAL"),
    );
  });
});
