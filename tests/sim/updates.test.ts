import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { PCI_COMMAND, PCI_COMMAND_MASTER } from "../../src/abi/pci.ts";
import { isKernelError } from "../../src/base/errno.ts";
import { MIB } from "../../src/base/units.ts";
import { listVfioDevices } from "../../src/host/vfio-devices.ts";
import { configRead16, filesOf, readHostState } from "../support/invariants.ts";
import { extentRange, type TranslatedFunction } from "../support/physical-map.ts";
import {
  type Moment,
  nicSlot,
  segment,
  simulate,
  VM_BYTES,
  vmPlans,
} from "../support/simulated-host.ts";

/** What is translated at a moment in the life of a kernel, but for functions with RMRRs. */
function nicFunctions({ machine, kernel }: Moment): TranslatedFunction[] {
  assert(kernel !== null, "a kernel tells where its handover is");
  const { units } = readHostState(machine, kernel.kho.bootParameters());
  const rmrrs = new Set(machine.firmware.rmrrs.map((r) => `${r.segment}:${r.bdf}`));
  return units
    .flatMap((unit) => unit.functions)
    .filter(({ segment: s, bdf }) => !rmrrs.has(`${s}:${bdf}`));
}

describe("a host", () => {
  test("keeps two VMs through ten updates, and is the same after each", () => {
    const after: object[] = [];
    const { machine, leaks } = simulate({
      seed: 10,
      updates: 10,
      look: ({ point, kernel }) => {
        if (point !== "finished" || kernel === null) return;
        after.push({
          pages: kernel.mm.counts(),
          byNode: [kernel.mm.counts(0), kernel.mm.counts(1)],
          handover: kernel.handover(),
          unrestored: kernel.kho.unrestoredPages(),
          pins: kernel.memfs.pinCount,
          domains: kernel.iommu.domainCount,
          restored: kernel.iommu.restoredCount,
          attached: kernel.iommu.attachedCount,
          domainIds: kernel.iommu.domainIdCount,
          vectors: kernel.vfio.vectors.usedCount,
          liveUpdate: kernel.liveUpdate.counts(),
        });
      },
    });
    assert.equal(after.length, 10);
    for (const state of after) assert.deepEqual(state, after[0]);
    assert.deepEqual(leaks, { pages: 0, pins: 0, domains: 0 });
    for (const nic of machine.statistics.nics())
      assert.ok(nic.withoutKernel >= 10, `${nic.name}: ${nic.withoutKernel} frames in 10 jumps`);
  });

  test("keeps VMs behind two remapping units of different kinds", () => {
    const trees: { levels: number; superpages: boolean }[] = [];
    simulate({
      seed: 11,
      updates: 2,
      segments: [segment(0, 1), segment(1, 1, 50_000, { addressBits: 39, superpages: false })],
      look: (moment) => {
        if (moment.point !== "finished" || moment.update !== 2) return;
        for (const { tree } of nicFunctions(moment))
          trees.push({ levels: tree.levels, superpages: tree.bytesByLevel[1] > 0 });
      },
    });
    assert.deepEqual(trees, [
      { levels: 4, superpages: true },
      { levels: 3, superpages: false },
    ]);
  });

  test("keeps VMs in a carve-out and on two nodes, and finds the carve-out without being told again", () => {
    const carveOut = { start: 32 * MIB, lengthBytes: 16 * MIB };
    const nodeBytes = [64 * MIB, 48 * MIB];
    const allowed = [
      carveOut,
      { start: 0, lengthBytes: nodeBytes[0] },
      { start: nodeBytes[0], lengthBytes: nodeBytes[1] },
    ];
    const stores = ["carved", "near", "far"];
    let looks = 0;
    simulate({
      seed: 12,
      updates: 2,
      nodeBytes,
      stores: [
        { name: "carved" },
        { name: "near", options: "node=0" },
        { name: "far", options: "node=1" },
      ],
      vms: vmPlans(3).map((vm, i) => ({ ...vm, store: stores[i] })),
      commandLine: (update) => (update === 0 ? "pkernfs=carved:16M!32M" : ""),
      look: ({ point, machine, kernel }) => {
        if ((point !== "finished" && point !== "created") || kernel === null) return;
        looks++;
        for (const { label, extents } of filesOf(
          readHostState(machine, kernel.kho.bootParameters()),
        )) {
          const at = stores.indexOf(label.slice(0, label.indexOf(":")));
          const { start, lengthBytes } = allowed[at];
          for (const extent of extents) {
            const range = extentRange(extent);
            const isIn =
              range.start >= start && range.start + range.lengthBytes <= start + lengthBytes;
            assert.ok(isIn, `${label} at ${range.start}`);
            assert.equal(kernel.mm.isCarvedOut(range.start), at === 0, label);
          }
        }
      },
    });
    assert.equal(looks, 3);
  });

  test("keeps a VM on a unit with 39 bits and 4 KiB pages only", () => {
    let looks = 0;
    simulate({
      seed: 13,
      updates: 2,
      vms: vmPlans(1),
      segments: [segment(0, 1, 50_000, { addressBits: 39, superpages: false })],
      look: (moment) => {
        if (moment.kernel === null || moment.vms.length === 0) return;
        const [{ tree }] = nicFunctions(moment);
        assert.equal(tree.levels, 3);
        assert.deepEqual(tree.bytesByLevel, [VM_BYTES, 0, 0]);
        looks++;
      },
    });
    assert.equal(looks, 2 + 2 * 4);
  });
});

describe("a host without an IOMMU", () => {
  const options = {
    updates: 3,
    vms: vmPlans(1, { noiommu: true }),
    segments: [{ drhd: null, slots: [nicSlot(4, "nic0", 50_000)] }],
  };

  test("keeps a VM through three updates when the administrator allows it", () => {
    const { machine } = simulate({
      ...options,
      seed: 14,
      commandLine: () => "vfio.enable_unsafe_noiommu_mode=1",
    });
    assert.ok(machine.statistics.nics()[0].withoutKernel > 0);
  });

  test("beside one with an IOMMU, each keeps its VM", () => {
    simulate({
      seed: 15,
      updates: 2,
      vms: vmPlans(2).map((vm, i) => ({ ...vm, noiommu: i === 1 })),
      segments: [segment(0, 1), { drhd: null, slots: [nicSlot(4, "nic1", 50_000)] }],
      commandLine: () => "vfio.enable_unsafe_noiommu_mode=1",
    });
  });

  test("has no device for userspace when nobody allows it", () => {
    let devices: readonly object[] = [{}];
    simulate({
      ...options,
      seed: 16,
      updates: 0,
      vms: [],
      look: ({ point, host }) => {
        if (point === "ended" && host !== null) devices = listVfioDevices(host);
      },
    });
    assert.deepEqual(devices, []);
  });

  test("refuses a preserved device with EPERM when the next kernel does not allow it, and stops it", () => {
    const masters: Record<string, boolean> = {};
    assert.throws(
      () =>
        simulate({
          ...options,
          seed: 17,
          commandLine: (update) => (update < 2 ? "vfio.enable_unsafe_noiommu_mode=1" : ""),
          look: ({ point, update, machine }) => {
            const command = configRead16(machine, 0, 0x100, PCI_COMMAND);
            masters[`${point} ${update}`] = (command & PCI_COMMAND_MASTER) !== 0;
          },
        }),
      (error: unknown) => isKernelError(error, "EPERM"),
    );
    assert.equal(masters["restored 1"], true);
    assert.equal(masters["restored 2"], true);
    // Its session keeps the device as it is until it is given up.
    assert.equal(masters["finished 2"], true);
    assert.equal(masters["abandoned 2"], false);
  });
});

describe("an update between kernels that map with other page sizes", () => {
  test("keeps every translation, six times in a row", () => {
    const isOff = (update: number) => update % 2 === 1;
    const seen: string[] = [];
    simulate({
      seed: 18,
      updates: 6,
      commandLine: (update) => (isOff(update) ? "intel_iommu=on,sp_off" : ""),
      look: (moment) => {
        const { point, update } = moment;
        if (point !== "restored" && point !== "finished") return;
        // Until the swap the device walks what the kernel before has built.
        const builtBy = point === "restored" ? update - 1 : update;
        const bytes = isOff(builtBy) ? [VM_BYTES, 0, 0] : [0, VM_BYTES, 0];
        const functions = nicFunctions(moment);
        assert.equal(functions.length, 2);
        for (const { tree } of functions) assert.deepEqual(tree.bytesByLevel, bytes);
        seen.push(`${point} ${update}`);
      },
    });
    assert.equal(seen.length, 12, seen.join(", "));
  });
});
