import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { failingHost } from "../../tests/support/failing-host.ts";
import { O_CREAT, O_RDWR } from "../abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_POWER_OFF } from "../abi/uapi/reboot.ts";
import { Agent } from "../agent/agent.ts";
import { isKernelError } from "../base/errno.ts";
import { GIB, MIB, PAGE_SIZE } from "../base/units.ts";
import { fiemap } from "../host/fiemap.ts";
import type { Host } from "../host/host.ts";
import { finish, retrieveSession } from "../host/liveupdate.ts";
import { readTextFile } from "../host/read-file.ts";
import { listVfioDevices } from "../host/vfio-devices.ts";
import { boot } from "../kernel/boot.ts";
import { RESTORES } from "../kernel/restores.ts";
import type { Process } from "../kernel/vfs/process.ts";
import { standardConfig } from "../machine/embedded/config.ts";
import { InProcessMachine } from "../machine/embedded/in-process.ts";
import type { KernelImage, KernelModule } from "../machine/machine.ts";
import type { Guest, GuestFactory } from "./guest.ts";
import { bootNicGuest } from "./nic-guest.ts";
import { VirtualMachine, type VmSpec } from "./virtual-machine.ts";

const IMAGE: KernelImage = { name: "next", entry: "next", release: "2", restores: RESTORES };
const TARGET = { kernel: `/boot/${IMAGE.name}`, initrd: null, commandLine: "liveupdate=on" };
const MOUNT_POINT = "/mnt/guests";

/** Runs userspace on each kernel of a host. @returns the status that it powered off with */
function runHost(userspace: (host: Process) => never, memoryBytes = 96 * MIB): number | null {
  const kernel: KernelModule = {
    start(machine, parameters) {
      const host = boot(machine, parameters, { release: "1" }).spawn();
      host.mkdir(MOUNT_POINT);
      host.mount("guests", MOUNT_POINT, "memfs", "");
      return userspace(host);
    },
  };
  const config = standardConfig({
    memoryBytes,
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

/** A VM with the machine's NIC. */
function vmSpec(host: Host, memoryBytes = 8 * MIB): VmSpec {
  const nic = listVfioDevices(host).find((device) => device.deviceId === 0x10d3);
  assert.ok(nic);
  const memoryPath = `${MOUNT_POINT}/vm`;
  return { name: "vm", memoryPath, memoryBytes, devicePath: nic.path, noiommu: false };
}

/** What must be the same again after something was undone. */
function accounts(host: Process): unknown {
  return {
    descriptors: host.openDescriptors,
    mappings: host.mappingCount,
    files: host.readdir(MOUNT_POINT),
    leaks: readTextFile(host, "/sys/kernel/debug/holdfast/leaks"),
  };
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
        const spec = vmSpec(host);
        const vm = VirtualMachine.create(host, spec, idleGuest);
        host.unlink(`${MOUNT_POINT}/reserve`);
        const fd = host.open(spec.memoryPath, O_RDWR);
        seen.pieces = fiemap(host, fd).length;
        host.close(fd);
        return Agent.start(host, () => {}).update([vm], TARGET);
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
      return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
    });
    assert.equal(status, 0);
    assert.ok(seen.pieces > 1000, `${seen.pieces} pieces`);
    assert.equal(seen.moved, 0);
  });

  it("leaves nothing behind when any call fails while it is created, and the next attempt succeeds", () => {
    const tried: string[] = [];
    const status = runHost((host) => {
      const spec = vmSpec(host);
      const before = accounts(host);
      for (;;) {
        const faulty = failingHost(host, tried.length);
        let vm: VirtualMachine;
        try {
          vm = VirtualMachine.create(faulty.host, spec, bootNicGuest);
        } catch (error) {
          if (!isKernelError(error, "EIO")) throw error;
          const call = faulty.stop();
          assert.ok(call !== null, error.message);
          tried.push(call);
          assert.deepEqual(accounts(host), before, `after call ${tried.length}, ${call}`);
          continue;
        }
        assert.equal(faulty.stop(), null);
        vm.destroy();
        assert.deepEqual(accounts(host), before);
        return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
      }
    });
    assert.equal(status, 0);
    const calls = [
      "open",
      "ftruncate",
      "fallocate",
      "mmap",
      "memfdCreate",
      "eventfd",
      "ioctl",
      "pread",
    ];
    for (const call of calls) assert.ok(tried.includes(call), `${call} is among ${tried}`);
  });

  it("leaves nothing open when any call fails while it is restored, and the next attempt succeeds", () => {
    const tried: string[] = [];
    let boots = 0;
    const status = runHost((host) => {
      if (boots++ === 0) {
        const vm = VirtualMachine.create(host, vmSpec(host), bootNicGuest);
        return Agent.start(host, () => {}).update([vm], TARGET);
      }
      const liveUpdate = host.open("/dev/liveupdate", 0);
      const session = retrieveSession(host, liveUpdate, "vm");
      const { descriptors, mappings } = accounts(host) as Record<string, unknown>;
      for (;;) {
        const faulty = failingHost(host, tried.length);
        let vm: VirtualMachine;
        try {
          vm = VirtualMachine.restore(faulty.host, session, bootNicGuest);
        } catch (error) {
          if (!isKernelError(error, "EIO")) throw error;
          const call = faulty.stop();
          assert.ok(call !== null, error.message);
          tried.push(call);
          const now = accounts(host) as Record<string, unknown>;
          const when = `after call ${tried.length}, ${call}`;
          assert.deepEqual([now.descriptors, now.mappings], [descriptors, mappings], when);
          continue;
        }
        assert.equal(faulty.stop(), null);
        vm.resume();
        vm.step();
        vm.rebuild();
        vm.swap();
        finish(host, session);
        assert.deepEqual(vm.guest.audit(), []);
        vm.destroy();
        return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
      }
    });
    assert.equal(status, 0);
    for (const call of ["ioctl", "pread", "mmap", "eventfd"])
      assert.ok(tried.includes(call), `${call} is among ${tried}`);
  });

  it("has a hole below 4 GiB, as a PC: memory goes on above it, and nothing is in it", () => {
    const memoryBytes = 3 * GIB + 64 * MIB;
    let asked = false;
    const status = runHost((host) => {
      const boots: GuestFactory = (machine) => {
        assert.equal(machine.memory.lengthBytes, memoryBytes);
        assert.equal(machine.dmaAddress(0, PAGE_SIZE), 0);
        assert.equal(machine.dmaAddress(3 * GIB - PAGE_SIZE, PAGE_SIZE), 3 * GIB - PAGE_SIZE);
        assert.equal(machine.dmaAddress(3 * GIB, PAGE_SIZE), 4 * GIB);
        assert.equal(machine.dmaAddress(memoryBytes - 1, 1), 4 * GIB + 64 * MIB - 1);
        assert.throws(
          () => machine.dmaAddress(3 * GIB - 8, 16),
          (error) => isKernelError(error, "EINVAL"),
        );
        asked = true;
        return idleGuest();
      };
      VirtualMachine.create(host, vmSpec(host, memoryBytes), boots).destroy();
      return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
    }, 8 * GIB);
    assert.equal(status, 0);
    assert.ok(asked);
  });

  it("refuses a device that somebody has, and a memory file that exists, and leaves both alone", () => {
    const status = runHost((host) => {
      const spec = vmSpec(host);
      const vm = VirtualMachine.create(host, spec, bootNicGuest);
      const before = accounts(host);
      assert.throws(
        () => VirtualMachine.create(host, spec, bootNicGuest),
        (error) => isKernelError(error, "EEXIST"),
      );
      const other = { ...spec, name: "other", memoryPath: `${MOUNT_POINT}/other` };
      assert.throws(
        () => VirtualMachine.create(host, other, bootNicGuest),
        (error) => isKernelError(error, "EINVAL"),
      );
      assert.deepEqual(accounts(host), before);
      assert.deepEqual(vm.guest.audit(), []);
      return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
    });
    assert.equal(status, 0);
  });
});
