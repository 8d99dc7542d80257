/**
 * One jump of a deterministic machine, with a userspace that a test gives: for images of what it preserves.
 * @module
 */
import assert from "node:assert/strict";
import { LINUX_REBOOT_CMD_KEXEC, LINUX_REBOOT_CMD_POWER_OFF } from "../../src/abi/uapi/reboot.ts";
import type { Host } from "../../src/host/host.ts";
import { boot } from "../../src/kernel/boot.ts";
import { DeterministicMachine, type JumpRecord } from "../../src/machine/embedded/deterministic.ts";
import type { KernelModule } from "../../src/machine/machine.ts";
import { COMMAND_LINE, IMAGE, IMAGE_PATH } from "./failure-rig.ts";

/**
 * Boots a kernel, runs `userspace` on it, jumps, and powers off.
 *
 * @param look - called in the jump
 */
export function jumpOnce(
  ramBytes: number,
  userspace: (host: Host) => void,
  look: (machine: DeterministicMachine, jump: JumpRecord) => void,
): void {
  const module: KernelModule = {
    start(machine, parameters) {
      const host = boot(machine, parameters, { release: IMAGE.release }).spawn();
      if (parameters.kho !== null) return host.reboot(LINUX_REBOOT_CMD_POWER_OFF);
      userspace(host);
      host.kexecFileLoad(IMAGE_PATH, null, COMMAND_LINE);
      return host.reboot(LINUX_REBOOT_CMD_KEXEC);
    },
  };
  const config = {
    nodeBytes: [ramBytes],
    segments: [{ drhd: { addressBits: 48 as const, superpages: true }, slots: [] }],
    installed: [IMAGE],
  };
  const machine = new DeterministicMachine(config, {
    seed: 1,
    modules: () => module,
    eventsPerStep: 1024,
  });
  machine.onJump((_ram, jump) => {
    look(machine, jump);
    return jump.parameters;
  });
  const end = machine.run(module, { commandLine: COMMAND_LINE, kho: null });
  assert.deepEqual(end, { kind: "powered-off", status: 0 });
}
