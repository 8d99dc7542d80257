/**
 * Preflight against the kernel's own demand: whatever reboot would refuse is found before anything is touched.
 *
 * Why: preflight names formats on its own, as it must on a Linux host; a format that it forgets is found by the kernel
 * only when the guests are paused.
 * @module
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { E1000E_VENDOR_ID } from "../../src/abi/e1000e.ts";
import { LINUX_REBOOT_CMD_POWER_OFF } from "../../src/abi/uapi/reboot.ts";
import { Agent } from "../../src/agent/agent.ts";
import type { KernelTarget } from "../../src/agent/target/kernel-target.ts";
import { isKernelError } from "../../src/base/errno.ts";
import { MIB } from "../../src/base/units.ts";
import type { Host } from "../../src/host/host.ts";
import { listVfioDevices } from "../../src/host/vfio-devices.ts";
import { boot } from "../../src/kernel/boot.ts";
import { RESTORES } from "../../src/kernel/restores.ts";
import { standardConfig } from "../../src/machine/embedded/config.ts";
import { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import type { KernelImage, KernelModule } from "../../src/machine/machine.ts";
import { bootNicGuest } from "../../src/vmm/nic-guest.ts";
import { VirtualMachine } from "../../src/vmm/virtual-machine.ts";

const SEED = 1;
const FULL = image("vmlinuz-full", RESTORES);
/** By the format that it lacks. */
const LACKING = new Map(
  RESTORES.map((format, i) => [
    format,
    image(
      `vmlinuz-${i}`,
      RESTORES.filter((one) => one !== format),
    ),
  ]),
);

function image(name: string, restores: readonly string[]): KernelImage {
  return { name, entry: `test:${name}`, release: `release-${name}`, restores };
}

function targetOf(name: string): KernelTarget {
  return { kernel: `/boot/${name}`, initrd: null, commandLine: "liveupdate=on" };
}

/** Boots a host with one VM and gives it to `userspace`; then powers off. */
function withHost(userspace: (host: Host, agent: Agent, vm: VirtualMachine) => void): void {
  const module: KernelModule = {
    start(machine, parameters) {
      const host = boot(machine, parameters, { release: "first" }).spawn();
      const agent = Agent.start(host, () => undefined);
      host.mkdir("/mnt/guests");
      host.mount("guests", "/mnt/guests", "memfs", "");
      const [nic] = listVfioDevices(host).filter(({ vendorId }) => vendorId === E1000E_VENDOR_ID);
      const vm = VirtualMachine.create(
        host,
        {
          name: "vm0",
          memoryPath: "/mnt/guests/vm0",
          memoryBytes: 8 * MIB,
          devicePath: nic.path,
          noiommu: false,
        },
        bootNicGuest,
      );
      userspace(host, agent, vm);
      return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
    },
  };
  const config = standardConfig({
    memoryBytes: 64 * MIB,
    nics: 1,
    framesPerSecond: 5000,
    installed: [FULL, ...LACKING.values()],
  });
  const machine = new DeterministicMachine(config, { seed: SEED, modules: () => module });
  const end = machine.run(module, { commandLine: "liveupdate=on", kho: null });
  assert.deepEqual(end, { kind: "powered-off", status: 0 }, `seed ${SEED}`);
}

test("update() to an image that lacks one format is refused by preflight, before the guest is paused", () => {
  let refused = 0;
  withHost((host, agent, vm) => {
    const pauses: string[] = [];
    const { pause } = vm;
    vm.pause = () => {
      pauses.push(vm.name);
      return pause.call(vm);
    };
    const preserved: string[] = [];
    const { preserve } = vm;
    vm.preserve = (...args) => {
      preserved.push(vm.name);
      return preserve.apply(vm, args);
    };
    for (const [format, { name }] of LACKING) {
      const target = targetOf(name);
      const { blockers } = agent.preflight([vm], target);
      assert.equal(blockers.length, 1, `${format}: ${blockers.join("; ")}`);
      assert.match(blockers[0], new RegExp(`cannot restore "${format}", needed by `));
      assert.throws(
        () => agent.update([vm], target),
        (error) => isKernelError(error, "EOPNOTSUPP") && error.message.includes(blockers[0]),
        format,
      );
      assert.deepEqual([pauses, preserved], [[], []], format);
      refused++;
    }
    assert.deepEqual(agent.preflight([vm], targetOf(FULL.name)).blockers, []);
    vm.guest.shutDown();
    for (let i = 0; i < 1000 && !vm.guest.isAtRest; i++) if (!vm.step()) host.sleep(200_000);
    vm.destroy();
  });
  assert.equal(refused, RESTORES.length);
});
