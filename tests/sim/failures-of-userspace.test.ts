/**
 * Userspace dies between the phases of an update: the kernel closes what it had, so that nothing of it is left, and
 * what it had not taken yet waits for the next process.
 * @module
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { E1000E_DEVICE_ID } from "../../src/abi/e1000e.ts";
import { Agent } from "../../src/agent/agent.ts";
import type { Host } from "../../src/host/host.ts";
import { finish, retrieveFd, retrieveSession } from "../../src/host/liveupdate.ts";
import { detach } from "../../src/host/vfio.ts";
import type { Process } from "../../src/kernel/vfs/process.ts";
import type { VirtualMachine } from "../../src/vmm/virtual-machine.ts";
import { type Booted, FailureRig, MOUNT_POINT, TARGET } from "../support/failure-rig.ts";

const NAMES = ["vm0", "vm1"];
/** Of a VM's device in its session, as src/vmm/virtual-machine.ts says. */
const DEVICE_TOKEN = 4n;
const HOST = { framesPerSecond: 50_000, vms: NAMES.length };

/** Thrown through a program whose process has ended. */
class Killed extends Error {}

/** Runs a program and ends its process where the program calls `die`. */
function runUntilDeath(process: Process, program: (die: () => never) => void): void {
  const die = () => {
    process.exit();
    throw new Killed();
  };
  let hasDied = false;
  try {
    program(() => {
      hasDied = true;
      return die();
    });
  } catch (error) {
    // Whatever the dead program's clean-up made of it: its calls reach nothing any more.
    if (!hasDied) throw error;
  }
  assert.ok(hasDied, "the program was to die");
  assert.deepEqual(process.openDescriptors, []);
  assert.equal(process.mappingCount, 0);
}

/** All VMs are gone with their process: devices are quiet, and their memory is free once its files are deleted. */
function expectNothingLeft(rig: FailureRig, booted: Booted, host: Host): void {
  for (const pci of booted.kernel.pci.functions) {
    if (pci.deviceId !== E1000E_DEVICE_ID) continue;
    assert.equal(booted.kernel.iommu.domainOf(pci)?.type, "blocking", "no device has a domain");
  }
  for (const name of NAMES) {
    rig.watch.forbid(name);
    host.unlink(`${MOUNT_POINT}/${name}`);
  }
  rig.machine.runDevices(2_000_000);
  rig.checkDma("after its process has ended");
  rig.checkNoLeaks(booted, "after its process has ended");
}

function makeVms(rig: FailureRig, host: Host): VirtualMachine[] {
  rig.mount(host);
  const vms = NAMES.map((_, index) => rig.createVm(host, index));
  rig.runVms(host, vms);
  return vms;
}

function restorer(rig: FailureRig, host: Host) {
  return {
    open: (session: number) => rig.restoreVm(host, session),
    running: () => {},
    runOthers: () => {},
  };
}

describe("userspace that dies before the jump", () => {
  for (const phase of ["preflight", "load", "preserve", "pause"])
    it(`leaves nothing behind when it dies after ${phase}`, () => {
      const rig = new FailureRig({ seed: 21, ...HOST, userspace });
      rig.run();
      assert.equal(rig.machine.jumps.length, 0);

      function userspace(booted: Booted): never {
        const { host, kernel } = booted;
        runUntilDeath(host, (die) => {
          const agent = Agent.start(host, ({ name }) => {
            if (name === phase) die();
          });
          agent.update(makeVms(rig, host), TARGET);
        });
        const next = kernel.spawn();
        expectNothingLeft(rig, booted, next);
        // The host is as good as new: other VMs can be made and updated.
        const agent = Agent.start(next, () => {});
        const vms = NAMES.map((_, index) => rig.createVm(next, index));
        assert.deepEqual(agent.preflight(vms, TARGET).blockers, []);
        for (const vm of vms) rig.destroyVm(next, vm);
        rig.checkNoLeaks(booted, "at the end");
        return rig.powerOff(booted);
      }
    });
});

describe("userspace that dies after the jump", () => {
  function update(rig: FailureRig, host: Process): never {
    const agent = Agent.start(host, () => {});
    return agent.update(makeVms(rig, host), TARGET);
  }

  it("loses nothing when it dies before it has taken over", () => {
    const rig = new FailureRig({ seed: 22, ...HOST, userspace });
    rig.run();

    function userspace(booted: Booted): never {
      const { host, kernel } = booted;
      if (booted.boot === 0) return update(rig, host);
      runUntilDeath(host, (die) => {
        host.open("/dev/liveupdate", 0);
        die();
      });
      const next = kernel.spawn();
      const taken = Agent.takeOver(next, () => {});
      assert.ok(taken !== null);
      rig.mount(next);
      const { vms, failures } = taken.agent.restore(taken.journal, restorer(rig, next));
      assert.deepEqual(failures, []);
      rig.runVms(next, vms);
      for (const vm of vms) rig.destroyVm(next, vm);
      rig.checkNoLeaks(booted, "at the end");
      return rig.powerOff(booted);
    }
  });

  it("loses nothing but its journal when it dies after it has taken over", () => {
    const rig = new FailureRig({ seed: 23, ...HOST, userspace });
    rig.run();

    function userspace(booted: Booted): never {
      const { host, kernel } = booted;
      if (booted.boot === 0) return update(rig, host);
      let names: readonly string[] = [];
      runUntilDeath(host, (die) => {
        names = Agent.takeOver(host, () => {})?.journal.vms.map(({ name }) => name) ?? [];
        die();
      });
      assert.deepEqual(names, NAMES);
      const next = kernel.spawn();
      assert.equal(
        Agent.takeOver(next, () => {}),
        null,
      );
      rig.mount(next);
      const agent = Agent.start(next, () => {});
      const byHand = {
        vms: names.map((name) => ({ name, ownerUid: null, pausedAtNs: 0 })),
      };
      const { vms, failures } = agent.restore(byHand, restorer(rig, next));
      assert.deepEqual(failures, []);
      rig.runVms(next, vms);
      for (const vm of vms) rig.destroyVm(next, vm);
      rig.checkNoLeaks(booted, "at the end");
      return rig.powerOff(booted);
    }
  });

  // Up to the swap a device is on the previous kernel's tables, so that its session cannot be finished by itself:
  // it waits with all that it has, the device too, for a process that retrieves it again.
  for (const { phase, waits } of [
    { phase: "restore", waits: true },
    { phase: "rebuild", waits: true },
    { phase: "swap", waits: false },
    { phase: "finish", waits: false },
  ])
    it(`leaves ${waits ? "sessions that can be taken apart" : "nothing behind"} when it dies after ${phase}`, () => {
      const rig = new FailureRig({ seed: 24, ...HOST, userspace });
      rig.run();

      function userspace(booted: Booted): never {
        const { host, kernel } = booted;
        if (booted.boot === 0) return update(rig, host);
        runUntilDeath(host, (die) => {
          const taken = Agent.takeOver(host, ({ name }) => {
            if (name === phase) die();
          });
          assert.ok(taken !== null);
          rig.mount(host);
          taken.agent.restore(taken.journal, restorer(rig, host));
        });
        const next = kernel.spawn();
        const liveUpdate = next.open("/dev/liveupdate", 0);
        for (const name of NAMES) {
          if (!waits) {
            assert.throws(() => retrieveSession(next, liveUpdate, name), { code: "ENOENT" });
            continue;
          }
          rig.machine.runDevices(500_000);
          rig.checkDma("while the session waits");
          const session = retrieveSession(next, liveUpdate, name);
          const device = retrieveFd(next, session, DEVICE_TOKEN);
          assert.throws(() => finish(next, session), { code: "EBUSY" });
          detach(next, device);
          finish(next, session);
          next.close(session);
          next.close(device);
        }
        next.close(liveUpdate);
        expectNothingLeft(rig, booted, next);
        return rig.powerOff(booted);
      }
    });
});
