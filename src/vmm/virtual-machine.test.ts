import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { O_CREAT, O_RDWR } from "../abi/uapi/fs.ts";
import { Agent } from "../agent/agent.ts";
import { isKernelError } from "../base/errno.ts";
import { MIB, PAGE_SIZE } from "../base/units.ts";
import { fiemap } from "../host/fiemap.ts";
import type { Host } from "../host/host.ts";
import { listVfioDevices } from "../host/vfio-devices.ts";
import { boot } from "../kernel/boot.ts";
import { RESTORES } from "../kernel/restores.ts";
import { standardConfig } from "../machine/embedded/config.ts";
import { InProcessMachine } from "../machine/embedded/in-process.ts";
import type { KernelImage, KernelModule } from "../machine/machine.ts";
import type { Guest } from "./guest.ts";
import { VirtualMachine } from "./virtual-machine.ts";

const IMAGE: KernelImage = { name: "next", entry: "next", release: "2", restores: RESTORES };
const MOUNT_POINT = "/mnt/guests";

/** Runs userspace on each kernel of a host. @returns the status that it powered off with */
function runHost(userspace: (host: Host) => never): number | null {
  const kernel: KernelModule = {
    start(machine, parameters) {
      const host = boot(machine, parameters, { release: "1" }).spawn();
      host.mkdir(MOUNT_POINT);
      host.mount("guests", MOUNT_POINT, "memfs", "");
      return userspace(host);
    },
  };
  const config = standardConfig({
    memoryBytes: 96 * MIB,
    nics: 1,
    framesPerSecond: 0,
    installed: [IMAGE],
  });
  const machine = new InProcessMachine(config, { modules: () => kernel });
  return machine.run(kernel, { commandLine: "liveupdate=on", kho: null });
}

/** Leaves nothing free but single pages that are not neighbours, and a little more for the kernel. */
function fragment(host: Host): void {
  const reserve = host.open(`${MOUNT_POINT}/reserve`, O_RDWR | O_CREAT);
  host.ftruncate(reserve, 8 * MIB);
  host.fallocate(reserve, 0, 0, 8 * MIB);
  const files = ["kept", "given"].map((name) =>
    host.open(`${MOUNT_POINT}/${name}`, O_RDWR | O_CREAT),
  );
  try {
    for (let at = 0; ; at += PAGE_SIZE)
      for (const file of files) {
        host.ftruncate(file, at + PAGE_SIZE);
        host.fallocate(file, 0, at, PAGE_SIZE);
      }
  } catch (error) {
    if (!isKernelError(error, "ENOMEM")) throw error;
  }
  for (const file of [...files, reserve]) host.close(file);
  host.unlink(`${MOUNT_POINT}/given`);
}

function idleGuest(): Guest {
  return {
    step: () => false,
    save: () => new Uint8Array(8),
    audit: () => [],
    shutDown: () => {},
    isAtRest: true,
    counters: { received: 0, lost: 0, corrupt: 0, transmitted: 0, dirtied: 0 },
    nicId: 0,
  };
}

describe("VirtualMachine", () => {
  it("goes through an update in place when its memory is in a thousand pieces", () => {
    const seen = { pieces: 0, moved: -1 };
    const status = runHost((host) => {
      const taken = Agent.takeOver(host, () => {});
      if (taken === null) {
        fragment(host);
        const nic = listVfioDevices(host).find((device) => device.deviceId === 0x10d3);
        assert.ok(nic);
        const memoryPath = `${MOUNT_POINT}/vm`;
        const spec = {
          name: "vm",
          memoryPath,
          memoryBytes: 8 * MIB,
          devicePath: nic.path,
          noiommu: false,
        };
        const vm = VirtualMachine.create(host, spec, idleGuest);
        host.unlink(`${MOUNT_POINT}/reserve`);
        const fd = host.open(memoryPath, O_RDWR);
        seen.pieces = fiemap(host, fd).length;
        host.close(fd);
        return Agent.start(host, () => {}).update([vm], `/boot/${IMAGE.name}`, "liveupdate=on");
      }
      const { vms, failures } = taken.agent.restore(taken.journal, {
        open: (session) => VirtualMachine.restore(host, session, idleGuest),
        running: (vm) => {
          seen.moved = vm.guestBytesMoved;
        },
        runOthers: () => {},
      });
      assert.deepEqual(failures, []);
      for (const vm of vms) vm.destroy();
      return host.reboot(0x4321fedc);
    });
    assert.equal(status, 0);
    assert.ok(seen.pieces > 1000, `${seen.pieces} pieces`);
    assert.equal(seen.moved, 0);
  });
});
