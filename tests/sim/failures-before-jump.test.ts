/**
 * Every step of an update before the jump fails once: the update is rolled back, the VMs run on, and the next attempt
 * finds everything as the first one did.
 *
 * All attempts are made on one host, one after the other: what one of them leaves behind, the accounts or the last
 * attempt, which nothing stops any more, would show.
 * @module
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Agent } from "../../src/agent/agent.ts";
import { KernelError } from "../../src/base/errno.ts";
import type { VirtualMachine } from "../../src/vmm/virtual-machine.ts";
import { accounts, type Booted, FailureRig, TARGET } from "../support/failure-rig.ts";
import { type Step, summary } from "../support/step-faults.ts";

/** What follows an update that has ended: its phase by the name that the agent gives it. */
const NEXT: Readonly<Record<string, string>> = {
  preflight: "load",
  load: "preserve",
  preserve: "pause",
  pause: "freeze",
};

describe("an update whose steps fail one after the other before the jump", () => {
  it("is rolled back each time, loses nothing, and succeeds when nothing fails", (t) => {
    const rig = new FailureRig({
      seed: 11,
      vms: 2,
      userspace,
      beforeBoot: () => rig.faults.stop(),
    });
    const tried: Step[] = [];
    rig.run();
    assert.equal(rig.machine.jumps.length, 1);
    t.diagnostic(summary(tried));
    for (const phase of ["load", "preserve", "freeze"])
      assert.ok(
        tried.some((step) => step.phase === phase),
        `no step of ${phase} failed`,
      );

    function userspace(booted: Booted): never {
      const { kernel, host } = booted;
      if (booted.boot === 1) {
        const taken = Agent.takeOver(host, () => {});
        assert.ok(taken !== null);
        rig.mount(host);
        const { vms, failures } = taken.agent.restore(taken.journal, restorer(host));
        assert.deepEqual(failures, []);
        rig.runVms(host, vms);
        for (const vm of vms) rig.destroyVm(host, vm);
        rig.checkNoLeaks(booted, "at the end");
        return rig.powerOff(booted);
      }
      const agent = Agent.start(host, ({ name }) => {
        rig.faults.phase = NEXT[name] ?? name;
      });
      rig.mount(host);
      const vms = [rig.createVm(host, 0), rig.createVm(host, 1)];
      rig.runVms(host, vms);
      const before = accounts(kernel);
      for (;;) {
        rig.faults.start("preflight", tried.length);
        try {
          // When no step is left to fail, this is the jump.
          agent.update(vms, TARGET);
        } catch (error) {
          if (!(error instanceof KernelError)) throw error;
          const step = rig.faults.stop();
          assert.ok(step !== null, `nothing was failed, but: ${error.message}`);
          const when = `after step ${tried.length}, ${step.phase}: ${step.point}`;
          assert.match(error.message, /injected/, when);
          tried.push(step);
          assert.deepEqual(accounts(kernel), before, when);
          assert.equal(agent.updates, 0, when);
          rig.runVms(host, vms, 1);
          for (const vm of vms) {
            const { lost, corrupt } = vm.guest.counters;
            assert.deepEqual({ lost, corrupt }, { lost: 0, corrupt: 0 }, when);
          }
          rig.checkDma(when);
        }
      }
    }

    function restorer(host: Booted["host"]) {
      return {
        open: (session: number) => rig.restoreVm(host, session),
        running: () => {},
        runOthers: (vms: readonly VirtualMachine[]) => {
          for (const vm of vms) vm.step();
        },
      };
    }
  });
});
