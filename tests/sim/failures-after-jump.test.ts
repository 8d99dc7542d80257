/**
 * Every step after the jump fails once: at boot the kernel starts over and nothing is lost; later the VM concerned
 * recovers or is reported as failed, and all others run on.
 *
 * One host goes through one update after the other, each with the next step failed, until an update has no such step
 * any more. A VM that was lost is made anew.
 * @module
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { E1000E_DEVICE_ID } from "../../src/abi/e1000e.ts";
import { PCI_COMMAND, PCI_COMMAND_MASTER } from "../../src/abi/pci.ts";
import { Agent, type RestoreResult } from "../../src/agent/agent.ts";
import type { Journal } from "../../src/agent/journal.ts";
import { isKernelError } from "../../src/base/errno.ts";
import type { VirtualMachine } from "../../src/vmm/virtual-machine.ts";
import { type Booted, FailureRig, TARGET } from "../support/failure-rig.ts";
import { type Step, summary } from "../support/step-faults.ts";

const NAMES = ["vm0", "vm1"];
const NEXT: Readonly<Record<string, string>> = {
  restore: "rebuild",
  rebuild: "swap",
  swap: "finish",
};

/** What an agent does whose journal is lost: the names of the VMs are known otherwise. */
function journalByHand(): Pick<Journal, "vms"> {
  return { vms: NAMES.map((name) => ({ name, ownerUid: null, pausedAtNs: 0 })) };
}

function restoreAll(
  rig: FailureRig,
  host: Booted["host"],
  agent: Agent,
  journal: Pick<Journal, "vms">,
): RestoreResult<VirtualMachine> {
  return agent.restore(journal, {
    open: (session) => rig.restoreVm(host, session),
    running: () => {},
    runOthers: (vms) => {
      for (const vm of vms) vm.step();
    },
  });
}

/** The NIC of a VM that was lost can do nothing any more. */
function expectQuiet({ kernel }: Booted, index: number, when: string): void {
  const nics = kernel.pci.functions.filter(({ deviceId }) => deviceId === E1000E_DEVICE_ID);
  assert.equal(nics[index].configRead(PCI_COMMAND, 2) & PCI_COMMAND_MASTER, 0, when);
  assert.equal(kernel.iommu.domainOf(nics[index])?.type, "blocking", when);
}

describe("a boot whose steps fail one after the other", () => {
  it("starts over and loses nothing", (t) => {
    const tried: Step[] = [];
    const rig = new FailureRig({
      seed: 12,
      vms: 1,
      userspace,
      beforeBoot: (boot) => {
        if (boot > 0) rig.faults.start("boot", tried.length);
      },
    });
    rig.run();
    t.diagnostic(summary(tried));
    assert.ok(tried.some((step) => step.point === "mm:alloc"));
    assert.ok(tried.some((step) => step.point === "boot:done"));
    assert.equal(rig.machine.jumps.length, tried.length + 1);

    function userspace(booted: Booted): never {
      const { host, kernel } = booted;
      if (booted.boot === 0) {
        const agent = Agent.start(host, () => {});
        rig.mount(host);
        const vms = [rig.createVm(host, 0)];
        rig.runVms(host, vms);
        return agent.update(vms, TARGET);
      }
      const step = rig.faults.stop();
      if (step !== null) tried.push(step);
      const when = `boot step ${tried.length}, ${step?.point}`;
      const restarts = rig.lines.splice(0).filter((line) => line.includes("starting over"));
      assert.equal(restarts.length, step === null ? 0 : 1, when);
      rig.checkDma(when);
      const taken = Agent.takeOver(host, () => {});
      assert.ok(taken !== null, when);
      rig.mount(host);
      const { vms, failures } = restoreAll(rig, host, taken.agent, taken.journal);
      assert.deepEqual(failures, [], when);
      rig.runVms(host, vms, 1);
      for (const vm of vms) rig.checkVm(vm, when);
      assert.equal(kernel.kho.unrestoredPages(), 0, when);
      if (step !== null) return taken.agent.update(vms, TARGET);
      for (const vm of vms) rig.destroyVm(host, vm);
      rig.checkNoLeaks(booted, "at the end");
      return rig.powerOff(booted);
    }
  });
});

describe("a boot that fails twice", () => {
  it("is a panic, and devices go on in the memory that was handed over, and only there", () => {
    const rig = new FailureRig({
      seed: 14,
      vms: 1,
      userspace: ({ host }) => {
        const agent = Agent.start(host, () => {});
        rig.mount(host);
        const vms = [rig.createVm(host, 0)];
        rig.runVms(host, vms);
        return agent.update(vms, TARGET);
      },
      beforeBoot: (boot) => {
        if (boot > 0) rig.faults.startWhere("boot", ({ point }) => point === "boot:done");
      },
    });
    assert.throws(() => rig.run(), /injected: boot: boot:done/);
    const before = rig.watch.accesses;
    rig.machine.runDevices(5_000_000);
    assert.ok(rig.watch.accesses > before, "the NIC still receives");
    rig.checkDma("after the panic");
    assert.equal(rig.machine.statistics.dmaFaults(0), 0);
  });
});

describe("a restoration whose steps fail one after the other", () => {
  it("brings a VM back or reports it, and leaves the others alone", (t) => {
    const tried: Step[] = [];
    /** What became of the VM concerned, by phase. */
    const outcomes = new Map<string, number>();
    const rig = new FailureRig({
      seed: 13,
      vms: 2,
      userspace,
      beforeBoot: () => rig.faults.stop(),
    });
    rig.run();
    t.diagnostic(summary(tried));
    t.diagnostic([...outcomes].map(([what, count]) => `${what}: ${count}`).join(", "));
    for (const phase of ["take over", "restore", "rebuild", "swap", "finish"])
      assert.ok(
        tried.some((step) => step.phase === phase),
        `no step of ${phase} failed`,
      );

    function userspace(booted: Booted): never {
      const { host } = booted;
      if (booted.boot === 0) {
        const agent = Agent.start(host, () => {});
        rig.mount(host);
        const vms = NAMES.map((_, index) => rig.createVm(host, index));
        rig.runVms(host, vms);
        return agent.update(vms, TARGET);
      }
      rig.faults.start("take over", tried.length);
      const { agent, journal } = takeOver(host);
      rig.faults.phase = "restore";
      rig.mount(host);
      const result = restoreAll(rig, host, agent, journal);
      const step = rig.faults.stop();
      if (step !== null) tried.push(step);
      const when = `step ${tried.length}, ${step?.phase}: ${step?.point}`;

      const lost = NAMES.filter((name) => !result.vms.some((vm) => vm.name === name));
      assert.deepEqual(
        result.failures.map(({ vm }) => vm),
        lost,
        `what is lost is reported, ${when}`,
      );
      const outcome = `${step?.phase ?? "no failure"} → ${lost.length === 0 ? "all back" : "VM lost"}`;
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
      assert.equal(lost.length, step?.phase === "restore" ? 1 : 0, when);
      for (const name of lost) {
        // Until it is given up its session keeps what it has. Then the memory may be given to others, so no device may have it.
        assert.deepEqual(
          agent.restoration?.left.map((vm) => vm.name),
          [name],
          when,
        );
        agent.restoration?.abandon(name);
        rig.watch.forbid(name);
        expectQuiet(booted, NAMES.indexOf(name), when);
        host.unlink(`/mnt/guests/${name}`);
      }
      const vms = [...result.vms];
      rig.runVms(host, vms, 1);
      rig.checkDma(when);
      for (const vm of vms) rig.checkVm(vm, when);
      for (const name of lost) vms.push(rig.createVm(host, NAMES.indexOf(name)));
      rig.runVms(host, vms, 1);
      if (step !== null) return agent.update(vms, TARGET);
      for (const vm of vms) rig.destroyVm(host, vm);
      rig.checkNoLeaks(booted, "at the end");
      return rig.powerOff(booted);
    }

    function takeOver(host: Booted["host"]): { agent: Agent; journal: Pick<Journal, "vms"> } {
      const observe = ({ name }: { name: string }) => {
        rig.faults.phase = NEXT[name] ?? rig.faults.phase;
      };
      try {
        const taken = Agent.takeOver(host, observe);
        assert.ok(taken !== null);
        return taken;
      } catch (error) {
        if (!isKernelError(error)) throw error;
        assert.match(error.message, /injected/);
        // A journal whose retrieval failed is lost for good, as any file is; the VMs are not. Nothing else loses it.
        assert.equal(rig.faults.stop()?.point, "luo.retrieve:handler");
        return { agent: Agent.start(host, observe), journal: journalByHand() };
      }
    }
  });
});

describe("a VM that cannot be rebuilt, swapped or finished at all", () => {
  for (const phase of ["rebuild", "swap", "finish"])
    it(`runs on by the old translations when ${phase} fails, and recovers when it works again`, () => {
      const rig = new FailureRig({
        seed: 15,
        vms: 2,
        userspace,
        beforeBoot: () => rig.faults.stop(),
      });
      rig.run();

      function userspace(booted: Booted): never {
        const { host, kernel } = booted;
        if (booted.boot === 0) {
          const agent = Agent.start(host, () => {});
          rig.mount(host);
          const vms = NAMES.map((_, index) => rig.createVm(host, index));
          rig.runVms(host, vms);
          return agent.update(vms, TARGET);
        }
        let running = "";
        const taken = Agent.takeOver(host, ({ name }) => {
          running = NEXT[name] ?? running;
          if (name === "restore") turn = 0;
        });
        assert.ok(taken !== null);
        const { agent, journal } = taken;
        rig.mount(host);
        // Which VM it is whose step comes: the agent lets the others run before each.
        let turn = 0;
        rig.faults.startWhere("", () => running === phase && turn % 2 === 1);
        const { vms, failures } = agent.restore(journal, {
          open: (session) => rig.restoreVm(host, session),
          running: () => {},
          runOthers: (all) => {
            turn++;
            for (const vm of all) vm.step();
          },
        });
        rig.faults.stop();
        // A VM that was not swapped cannot be finished either.
        const expected = phase === "finish" ? [phase] : [phase, "finish"];
        assert.deepEqual(
          failures.map(({ vm, phase }) => ({ vm, phase })),
          expected.map((phase) => ({ vm: "vm0", phase })),
        );
        assert.deepEqual(
          vms.map(({ name }) => name),
          NAMES,
        );
        rig.runVms(host, vms, 2);
        for (const vm of vms) rig.checkVm(vm, `after ${phase} has failed`);
        assert.equal(kernel.iommu.restoredCount, 1);
        if (phase !== "finish") {
          assert.deepEqual(agent.finishLeft(), ["vm0"]);
          assert.ok(vms[0].resources().some(({ blocker }) => blocker !== null));
          vms[0].rebuild();
          vms[0].swap();
        }
        assert.deepEqual(agent.finishLeft(), []);
        assert.equal(kernel.iommu.restoredCount, 0);
        rig.runVms(host, vms, 2);
        for (const vm of vms) rig.destroyVm(host, vm);
        rig.checkNoLeaks(booted, "at the end");
        return rig.powerOff(booted);
      }
    });
});
