import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { isKernelError } from "../../base/errno.ts";
import { GIB, MIB } from "../../base/units.ts";
import { type MachineConfig, standardConfig } from "../embedded/config.ts";
import { nicPlaces, q35AddressMap, q35Arguments } from "./q35.ts";

function config(memoryBytes: number, nics = 2): MachineConfig {
  return standardConfig({ memoryBytes, nics, framesPerSecond: 0, installed: [] });
}

describe("q35AddressMap()", () => {
  test("splits RAM where QEMU does: 2 GiB stay below 4 GiB once there are 2.75 GiB", () => {
    const below = 2816 * MIB - 4 * MIB;
    assert.deepEqual(q35AddressMap(config(below)).ram, [{ start: 0, lengthBytes: below }]);
    assert.deepEqual(q35AddressMap(config(2816 * MIB)).ram, [
      { start: 0, lengthBytes: 2 * GIB },
      { start: 4 * GIB, lengthBytes: 768 * MIB },
    ]);
  });

  test("no window lies on RAM or on another", () => {
    for (const bytes of [64 * MIB, 2812 * MIB, 8 * GIB]) {
      const { ram, firmware } = q35AddressMap(config(bytes));
      const ranges = [
        ...ram,
        ...firmware.ecams.map((e) => ({ start: e.base, lengthBytes: 64 * MIB })),
        ...firmware.mmioWindows,
        ...firmware.drhds.map((d) => ({ start: d.registerBase, lengthBytes: 4096 })),
      ].sort((a, b) => a.start - b.start);
      for (let i = 1; i < ranges.length; i++)
        assert.ok(ranges[i - 1].start + ranges[i - 1].lengthBytes <= ranges[i].start);
    }
  });

  test("refuses with EINVAL what q35 is not", () => {
    const good = config(64 * MIB);
    const [segment] = good.segments;
    const [, port] = segment.slots;
    assert(port.model === "root-port" && port.children[0].model === "e1000e");
    const slow = { ...port, children: [{ ...port.children[0], transmitFramesPerSecond: 5 }] };
    for (const segments of [
      [segment, segment],
      [{ ...segment, drhd: null }],
      [{ ...segment, drhd: { addressBits: 48 as const, superpages: false } }],
      [{ ...segment, slots: [slow] }],
    ])
      assert.throws(
        () => q35AddressMap({ ...good, segments }),
        (error) => isKernelError(error, "EINVAL"),
      );
  });
});

describe("q35Arguments()", () => {
  test("plugs each NIC in behind its port, on its own wire, with its number in its address", () => {
    const machine = config(64 * MIB);
    const args = q35Arguments(machine, {
      ramFd: 4,
      ramBytes: 64 * MIB,
      biosPath: "/bios",
      qtestPath: "/qtest",
      wireFds: [5, 6],
    });
    const devices = args.filter((_, i) => args[i - 1] === "-device");
    assert.deepEqual(devices, [
      "intel-iommu,aw-bits=48",
      "edu,bus=pcie.0,addr=1.0",
      "pcie-root-port,id=port-4-0,bus=pcie.0,addr=4.0,chassis=4,slot=0,multifunction=on",
      "pcie-root-port,id=port-5-0,bus=pcie.0,addr=5.0,chassis=5,slot=0,multifunction=on",
      "e1000e,netdev=wire0,mac=52:54:00:48:46:00,bus=port-4-0,addr=0.0",
      "e1000e,netdev=wire1,mac=52:54:00:48:46:01,bus=port-5-0,addr=0.0",
    ]);
    assert.deepEqual(
      args.filter((_, i) => args[i - 1] === "-netdev"),
      ["dgram,id=wire0,local.type=fd,local.str=5", "dgram,id=wire1,local.type=fd,local.str=6"],
    );
    assert.deepEqual(
      nicPlaces(machine).map(({ port }) => port?.device),
      [4, 5],
    );
  });
});
