/**
 * Boot parameters, and hardware that is not as it was handed over: everything is refused by name, before anything is
 * written.
 * @module
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import {
  PCI_BASE_ADDRESS_0,
  PCI_CAP_ID_MSI,
  PCI_CAPABILITY_LIST,
  PCI_COMMAND,
  PCI_MEMORY_BASE,
  PCI_SECONDARY_BUS,
  PCI_SUBORDINATE_BUS,
} from "../../src/abi/pci.ts";
import { GCMD_REG, GCMD_SRTP, GCMD_TE, RTADDR_REG } from "../../src/abi/vtd/registers.ts";
import { Agent } from "../../src/agent/agent.ts";
import type { BootParameters, KhoBootParameters, Mmio } from "../../src/machine/machine.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";
import { type Booted, FailureRig, IMAGE, TARGET } from "../support/failure-rig.ts";
import { HandoverProbe } from "../support/handover-probe.ts";

const NIC = 0x100;
const BRIDGE = 4 << 3;

/** Updates a host with one VM, and shows handovers of it to kernels in its jump; afterwards the VM must be unharmed. */
function inJump(
  seed: number,
  show: (probe: HandoverProbe, parameters: BootParameters, rig: FailureRig, ram: Ram) => void,
): void {
  const rig = new FailureRig({ seed, vms: 1, userspace });
  rig.machine.onJump((ram, { parameters }) => {
    const probe = new HandoverProbe(rig.machine, parameters, IMAGE);
    assert.equal(probe.show(parameters).kind, "accepted", "as it is, it is good");
    show(probe, parameters, rig, ram);
    assert.equal(probe.show(parameters).kind, "accepted", "and is so again");
    return parameters;
  });
  rig.run();
  assert.equal(rig.machine.jumps.length, 1);

  function userspace(booted: Booted): never {
    const { host } = booted;
    if (booted.boot === 0) {
      const agent = Agent.start(host, () => {});
      rig.mount(host);
      return agent.update([rig.createVm(host, 0)], TARGET);
    }
    return rig.takeOverAndEnd(booted, true);
  }
}

/** What `action` changes for a moment. */
function expectRefused(
  probe: HandoverProbe,
  parameters: BootParameters,
  what: string,
  field: RegExp,
): void {
  const result = probe.show(parameters);
  assert.equal(result.kind, "refused", `${what}: ${JSON.stringify(result)}`);
  if (result.kind === "refused") assert.match(result.message, field, what);
}

describe("boot parameters", () => {
  it("are refused by the name of the field that is wrong", () => {
    const wrong: Record<keyof KhoBootParameters, readonly [RegExp, readonly number[]]> = {
      fdtAddress: [
        /^(kho_data\.fdt_addr|fdt_header)/,
        [0, 1, -4096, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 4096, 2 ** 40, 2 ** 64],
      ],
      fdtSizeBytes: [
        /^(kho_data\.fdt_size|fdt_header)/,
        [0, 1, 39, 100, 4097, -1, 0.5, Number.NaN, 2 ** 32, 2 ** 64],
      ],
      scratchAddress: [
        /^(kho_data\.scratch_addr|kho_scratch)/,
        [0, 1, 4, -8, 0.5, Number.NaN, 4096, 2 ** 40, 2 ** 64],
      ],
      scratchSizeBytes: [
        /^(kho_data\.scratch_size|kho_scratch)/,
        [0, 1, 8, 17, -16, 0.5, Number.NaN, 2 ** 20, 2 ** 64],
      ],
    };
    let tried = 0;
    inJump(41, (probe, parameters) => {
      const { kho } = parameters;
      assert.ok(kho !== null);
      const one = <K extends keyof KhoBootParameters>(key: K, value: number, field: RegExp) => {
        tried++;
        const changed = { ...parameters, kho: { ...kho, [key]: value } };
        expectRefused(probe, changed, `${key} ${value}`, field);
      };
      for (const key of Object.keys(wrong) as (keyof KhoBootParameters)[]) {
        const [field, values] = wrong[key];
        for (const value of values) one(key, value, field);
      }
      for (const offset of [-4096, -8, 8, 4096]) {
        one("fdtAddress", kho.fdtAddress + offset, wrong.fdtAddress[0]);
        one("scratchAddress", kho.scratchAddress + offset, wrong.scratchAddress[0]);
      }
      one("fdtAddress", kho.scratchAddress, wrong.fdtAddress[0]);
      one("scratchAddress", kho.fdtAddress, wrong.scratchAddress[0]);
    });
    assert.ok(tried > 40);
  });
});

describe("hardware that is not as it was handed over", () => {
  /** A register that is another one for a moment. */
  interface Change {
    readonly what: string;
    readonly field: RegExp;
    /** Changes the hardware. @returns what undoes it */
    readonly make: (mmio: Mmio, rig: FailureRig, ram: Ram) => () => void;
  }

  const config = (
    what: string,
    field: RegExp,
    bdf: number,
    offset: number,
    size: 1 | 2 | 4,
    change: (value: number) => number,
  ): Change => ({
    what,
    field,
    make: (mmio, rig) => {
      const at = rig.machine.firmware.ecams[0].base + bdf * 4096 + offset;
      const old = mmio.read(at, size);
      mmio.write(at, size, change(old) >>> 0);
      assert.notEqual(mmio.read(at, size), old, `${what}: the register takes it`);
      return () => mmio.write(at, size, old);
    },
  });

  const CHANGES: readonly Change[] = [
    {
      what: "translation is off",
      field: /iommu_unit_ser\[0\].*translation is off/,
      make: (mmio, rig) => {
        const { registerBase } = rig.machine.firmware.drhds[0];
        mmio.write(registerBase + GCMD_REG, 4, 0);
        return () => mmio.write(registerBase + GCMD_REG, 4, GCMD_TE);
      },
    },
    {
      what: "another root table",
      field: /iommu_unit_ser\[0\]\.root_table/,
      make: (mmio, rig) => {
        const { registerBase } = rig.machine.firmware.drhds[0];
        const old = mmio.read(registerBase + RTADDR_REG, 4);
        const set = (address: number) => {
          mmio.write(registerBase + RTADDR_REG, 4, address);
          mmio.write(registerBase + GCMD_REG, 4, (GCMD_TE | GCMD_SRTP) >>> 0);
        };
        set(old + 4096);
        return () => set(old);
      },
    },
    config(
      "the bridge leads to another bus",
      /secondary_bus|bdf/,
      BRIDGE,
      PCI_SECONDARY_BUS,
      1,
      () => 7,
    ),
    config(
      "the bridge ends at another bus",
      /subordinate_bus/,
      BRIDGE,
      PCI_SUBORDINATE_BUS,
      1,
      () => 9,
    ),
    config(
      "the bridge's window moved",
      /memory_window/,
      BRIDGE,
      PCI_MEMORY_BASE,
      4,
      () => 0xd020d020,
    ),
    config("the bridge masters no more", /command/, BRIDGE, PCI_COMMAND, 2, (v) => v & ~4),
    config("a BAR moved", /bar0/, NIC, PCI_BASE_ADDRESS_0, 4, (v) => v + 0x100000),
    config("the device masters no more", /command/, NIC, PCI_COMMAND, 2, (v) => v & ~4),
    config("the device decodes no more", /command/, NIC, PCI_COMMAND, 2, (v) => v & ~2),
    {
      what: "the device raises another vector",
      field: /msi_vector/,
      make: (mmio, rig) => {
        const ecam = rig.machine.firmware.ecams[0].base + NIC * 4096;
        const msi = capability(mmio, ecam, PCI_CAP_ID_MSI);
        // Message control says whether addresses have 64 bits, which puts the data behind them.
        const data = ecam + msi + ((mmio.read(ecam + msi + 2, 2) & 0x80) !== 0 ? 12 : 8);
        const old = mmio.read(data, 2);
        mmio.write(data, 2, old + 1);
        return () => mmio.write(data, 2, old);
      },
    },
    {
      what: "the device raises no interrupts",
      field: /flags|msi_vector/,
      make: (mmio, rig) => {
        const ecam = rig.machine.firmware.ecams[0].base + NIC * 4096;
        const control = ecam + capability(mmio, ecam, PCI_CAP_ID_MSI) + 2;
        const old = mmio.read(control, 2);
        mmio.write(control, 2, old & ~1);
        return () => mmio.write(control, 2, old);
      },
    },
    {
      what: "a context entry too many",
      field: /context entry/,
      make: (mmio, rig, ram) => {
        const root = mmio.read(rig.machine.firmware.drhds[0].registerBase + RTADDR_REG, 4);
        const context = ram.load32(root + 16 * (NIC >> 8)) & ~0xfff;
        const [present, absent] = [context, context + 16 * 5];
        for (let at = 0; at < 16; at += 4) ram.store32(absent + at, ram.load32(present + at));
        return () => ram.fill(absent, 16, 0);
      },
    },
  ];

  it("is refused by name", () => {
    inJump(42, (probe, parameters, rig, ram) => {
      for (const { what, field, make } of CHANGES) {
        const undo = make(rig.machine.hardware.mmio, rig, ram);
        try {
          expectRefused(probe, parameters, what, field);
        } finally {
          undo();
        }
        assert.equal(probe.show(parameters).kind, "accepted", `after: ${what}`);
      }
    });
  });
});

function capability(mmio: Mmio, ecam: number, id: number): number {
  for (
    let at = mmio.read(ecam + PCI_CAPABILITY_LIST, 1);
    at !== 0;
    at = mmio.read(ecam + at + 1, 1)
  )
    if (mmio.read(ecam + at, 1) === id) return at;
  return assert.fail(`there is no capability ${id}`);
}
