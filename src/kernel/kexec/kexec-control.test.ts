import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { LINUX_REBOOT_CMD_KEXEC, LINUX_REBOOT_CMD_POWER_OFF } from "../../abi/uapi/reboot.ts";
import { type ErrnoCode, KernelError } from "../../base/errno.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import type { BootParameters, KernelImage } from "../../machine/machine.ts";
import type { HandoverRequirement } from "../liveupdate/file-handler.ts";
import { preserveFile, Rig, ToyFile, ToyFlb, ToyHandler } from "../liveupdate/test-rig.ts";
import { KexecControl, type KexecDependencies } from "./kexec-control.ts";

const KHO = { fdtAddress: 1, fdtSizeBytes: 2, scratchAddress: 3, scratchSizeBytes: 4 };
const RESTORES = ["kho-v4", "luo-v5", "memfd-v2"];

function image(name: string, restores: readonly string[] = RESTORES): KernelImage {
  return { name, entry: `file:///${name}.js`, release: `${name}-release`, restores };
}

/** The machine has stopped: nothing of the old kernel runs any more. */
class Stop extends Error {}

function fails(code: ErrnoCode, action: () => unknown, message = /^/): void {
  assert.throws(action, (error: unknown) => {
    assert.ok(error instanceof KernelError, String(error));
    assert.equal(error.code, code);
    assert.match(error.message, message);
    return true;
  });
}

function makeControl(overrides: Partial<KexecDependencies> = {}) {
  const calls: string[] = [];
  const jumps: BootParameters[] = [];
  const faults = new FaultInjector();
  let failLoad = false;
  const control = new KexecControl({
    machine: {
      kexec: {
        installed: [image("old"), image("new"), image("bare", ["kho-v4"])],
        load(loaded) {
          if (failLoad) throw new KernelError("ENOENT", "load", "no code");
          calls.push(`load ${loaded?.name ?? "nothing"}`);
        },
        execute(parameters): never {
          calls.push("execute");
          jumps.push(parameters);
          throw new Stop();
        },
      },
      powerOff(status): never {
        calls.push(`power off ${status}`);
        throw new Stop();
      },
    },
    kho: { bootParameters: () => KHO },
    liveUpdate: {
      freeze() {
        calls.push("freeze");
        return { unfreeze: () => calls.push("unfreeze") };
      },
    },
    requirements: () => [],
    pci: { shutdown: () => calls.push("pci") },
    iommu: { shutdown: () => calls.push("iommu") },
    faults,
    ...overrides,
  });
  return {
    control,
    calls,
    jumps,
    faults,
    failLoad: (fail: boolean) => {
      failLoad = fail;
    },
  };
}

describe("fileLoad()", () => {
  test("loads an image of /boot, another in its place, and unloads", () => {
    const { control, calls } = makeControl();
    control.fileLoad("/boot/old", "");
    control.fileLoad("/boot/new", "quiet");
    assert.equal(control.loadedName, "new");
    control.unload();
    assert.equal(control.loadedName, null);
    assert.deepEqual(calls, ["load old", "load new", "load nothing"]);
    fails("EINVAL", () => control.reboot(LINUX_REBOOT_CMD_KEXEC));
  });

  test("fails with ENOENT for what is not there, and keeps what was loaded", () => {
    const { control, faults, failLoad } = makeControl();
    control.fileLoad("/boot/old", "");
    for (const path of ["/boot/none", "old", "/boot/", "/mnt/old", ""])
      fails("ENOENT", () => control.fileLoad(path, ""));
    failLoad(true);
    fails("ENOENT", () => control.fileLoad("/boot/new", ""));
    failLoad(false);
    faults.arm(0, (point) => new KernelError("ENOMEM", "test", point));
    fails("ENOMEM", () => control.fileLoad("/boot/new", ""), /kexec:load/);
    faults.disarm();
    assert.equal(control.loadedName, "old");
  });

  test("fails with EINVAL for a command line that is too long or has a NUL", () => {
    const { control } = makeControl();
    fails("EINVAL", () => control.fileLoad("/boot/old", "x".repeat(2048)));
    fails("EINVAL", () => control.fileLoad("/boot/old", "a\0b"));
    control.fileLoad("/boot/old", "x".repeat(2047));
  });

  test("fails with EINVAL for an image whose manifest is not one", () => {
    const good = image("good");
    for (const bad of [
      { ...good, release: "" },
      { ...good, release: "r".repeat(65) },
      { ...good, release: 7 },
      { ...good, restores: "kho-v4" },
      { ...good, restores: [""] },
      { ...good, restores: [1] },
    ]) {
      const installed = [bad as unknown as KernelImage];
      const { control, calls } = makeControl({
        machine: {
          kexec: {
            installed,
            load: () => calls.push("load"),
            execute: () => assert.fail(),
          },
          powerOff: () => assert.fail(),
        },
      });
      fails("EINVAL", () => control.fileLoad("/boot/good", ""));
      assert.deepEqual(calls, []);
    }
  });
});

describe("reboot()", () => {
  test("fails with EINVAL for other commands and for KEXEC without an image; nothing is frozen", () => {
    const { control, calls } = makeControl();
    for (const command of [0, 0x01234567, 0xcdef0123, Number.NaN])
      fails("EINVAL", () => control.reboot(command));
    fails("EINVAL", () => control.reboot(LINUX_REBOOT_CMD_KEXEC));
    assert.deepEqual(calls, []);
  });

  test("POWER_OFF ends the machine", () => {
    const { control, calls } = makeControl();
    assert.throws(() => control.reboot(LINUX_REBOOT_CMD_POWER_OFF), Stop);
    assert.deepEqual(calls, ["power off 0"]);
  });

  test("KEXEC freezes, silences devices, blocks them, jumps; the next kernel gets parameters only", () => {
    const { control, calls, jumps } = makeControl();
    control.fileLoad("/boot/new", "console=ttyS0");
    calls.length = 0;
    assert.throws(() => control.reboot(LINUX_REBOOT_CMD_KEXEC), Stop);
    assert.deepEqual(calls, ["freeze", "pci", "iommu", "execute"]);
    assert.deepEqual(jumps, [{ commandLine: "console=ttyS0", kho: KHO }]);
  });

  test("a freeze that fails is the caller's error, and no device is touched", () => {
    const calls: string[] = [];
    const { control, jumps } = makeControl({
      liveUpdate: {
        freeze: () => {
          throw new KernelError("EINVAL", "freeze", "not now");
        },
      },
      pci: { shutdown: () => calls.push("pci") },
      iommu: { shutdown: () => calls.push("iommu") },
    });
    control.fileLoad("/boot/new", "");
    fails("EINVAL", () => control.reboot(LINUX_REBOOT_CMD_KEXEC), /not now/);
    assert.deepEqual([calls, jumps], [[], []]);
    assert.equal(control.loadedName, "new");
  });

  test("fails with EOPNOTSUPP, naming it, when the image cannot restore what is preserved", () => {
    let requirements: HandoverRequirement[] = [];
    const { control, calls } = makeControl({ requirements: () => requirements });
    control.fileLoad("/boot/bare", "");
    calls.length = 0;
    requirements = [
      { compatible: "kho-v4", neededBy: "a" },
      { compatible: "memfs-v1", neededBy: "store guest0" },
      { compatible: "memfs-v1", neededBy: "store guest1" },
      { compatible: "vfio-pci-v9", neededBy: 'session "vm0" token 0x3' },
    ];
    fails(
      "EOPNOTSUPP",
      () => control.reboot(LINUX_REBOOT_CMD_KEXEC),
      /"bare" \(bare-release\) cannot restore "memfs-v1" \(store guest0\), "vfio-pci-v9" \(session "vm0" token 0x3\)$/,
    );
    assert.deepEqual(calls, [], "nothing was frozen");
  });

  test("with real sessions: refused by formats in use only, possible again once they are gone", () => {
    const handlers = () => [new ToyHandler([], [new ToyFlb([])])];
    const rig = Rig.cold({ handlers });
    const { control, calls } = makeControl({
      liveUpdate: rig.luo,
      requirements: () => rig.luo.requirements(),
    });
    control.fileLoad("/boot/new", "");
    const session = rig.luo.createSession("vm0");
    preserveFile(rig, session, new ToyFile(1), 1n);
    const refusal = /"toy-v1" \(session "vm0" token 0x1\), "toy-flb-v1"/;
    fails("EOPNOTSUPP", () => control.reboot(LINUX_REBOOT_CMD_KEXEC), refusal);
    session.put();
    calls.length = 0;
    assert.throws(() => control.reboot(LINUX_REBOOT_CMD_KEXEC), Stop);
    assert.deepEqual(calls, ["pci", "iommu", "execute"]);
    fails("EBUSY", () => rig.luo.createSession("late"));
  });
});
