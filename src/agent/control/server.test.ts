import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { VMS_MAX } from "./agent-state.ts";
import { VISITORS_MAX } from "./client-hub.ts";
import { OUTSTANDING_CALLS_MAX, type VmStatus } from "./protocol.ts";
import {
  IMAGE,
  MemoryStore,
  type Operator,
  type ToyVmm,
  World,
  type WorldOptions,
} from "./test-rig.ts";

const TARGET = { kernel: IMAGE, initrd: null, commandLine: "liveupdate=on" };

/** A host whose agent runs and knows these VMs. */
function worldWithVms(names: readonly string[], options: WorldOptions = {}): World {
  const world = new World(options);
  world.startAgent();
  for (const name of names) world.startVm(name);
  world.settle();
  for (const vm of world.vms) assert.equal(vm.client.problem, null);
  return world;
}

/** The agent's word on its VMs, by name. */
function status(world: World): Map<string, VmStatus> {
  const operator = world.operator();
  const vms: VmStatus[] = [];
  for (let from: number | null = 0; from !== null; ) {
    const id = operator.call("status", { from });
    world.settle(2);
    const [{ result }] = operator.answers(id);
    assert.ok(result !== undefined);
    vms.push(...(result.vms as VmStatus[]));
    from = result.next as number | null;
  }
  operator.close();
  world.operators.splice(world.operators.indexOf(operator), 1);
  world.settle(2);
  return new Map(vms.map((vm) => [vm.name, vm]));
}

function states(world: World): Record<string, string> {
  return Object.fromEntries([...status(world)].map(([name, { state }]) => [name, state]));
}

/** Begins an update and lets everything happen. @returns the error that it was answered with; null: it jumped */
function update(world: World, fields: object = {}): { code: string; message: string } | null {
  const operator = world.operator();
  const id = operator.call("update", { target: TARGET, ...fields });
  if (world.settle()) return null;
  const answers = operator.answers(id);
  assert.equal(answers.length, 1, "the update is answered once");
  assert.ok(answers[0].error !== undefined);
  operator.close();
  world.operators = [];
  world.settle(2);
  return answers[0].error;
}

/** A host that has jumped with these VMs; nobody but the agent is there yet. */
function jumped(names: readonly string[], options: WorldOptions = {}): World {
  const world = worldWithVms(names, options);
  assert.equal(update(world), null);
  world.startAgent();
  return world;
}

/** All that an ordinary VM needs is there, and nothing else. */
function assertOrdinary(world: World, vms: readonly ToyVmm[]): void {
  assert.equal(world.fake.openSessions, 0, "no session is open");
  assert.equal(world.fake.outgoing.size, 0);
  for (const vm of vms) {
    assert.ok(vm.runs, `${vm.name} runs`);
    assert.equal(vm.client.state, "running", vm.name);
    assert.equal(vm.process.fds.size, 1, `${vm.name} has its memory and nothing else`);
  }
}

describe("AgentServer", () => {
  test("a VM that registers is known, with its process and owner", () => {
    const world = worldWithVms(["vm0"]);
    const vm = world.startVm("vm1", 1001);
    world.settle();
    const known = status(world).get("vm1");
    assert.deepEqual(
      [known?.state, known?.uid, known?.pid, known?.resources.length],
      ["running", 1001, vm.process.peer.pid, 1],
    );
    assert.deepEqual(states(world), { vm0: "running", vm1: "running" });
    assertOrdinary(world, world.vms);
  });

  test("a registration is answered once, and written down before that", () => {
    const world = jumped(["vm0"]);
    const operator = world.operator();
    const { other } = operator.channel;
    assert.ok(other !== null);
    const send = other.send.bind(other);
    let written = "";
    other.send = (line, fds) => {
      written = world.store.text ?? "";
      return send(line, fds);
    };
    const id = operator.call("register", { vm: "vm0", state: "starting", resources: [] });
    world.settle(5);
    assert.deepEqual(
      operator.answers(id).map(({ result }) => result),
      [{ session: { fds: 1 }, update: 1 }],
    );
    assert.match(written, new RegExp(`"holderPid":${operator.process.peer.pid}`));
    const again = operator.call("register", { vm: "vm1", state: "starting", resources: [] });
    world.settle(3);
    assert.equal(operator.answers(again)[0].error?.code, "EINVAL", "it has a VM");
  });

  test("an update preserves and pauses all VMs, tells its phases, and jumps", () => {
    const world = worldWithVms(["vm0", "vm1", "vm2"]);
    const { vms, fake } = world;
    const operator = world.operator();
    const id = operator.call("update", { target: TARGET });
    const heard: string[] = [];
    world.onIdle = () => {
      world.turnAll();
    };
    assert.equal(world.settle(), true);
    operator.turn();
    for (const event of operator.events(id)) {
      const { kind, name, endNs, vm, state } = event as Record<string, string | null>;
      if (kind === "phase") heard.push(`${name} ${endNs === null ? "begins" : "ends"}`);
      else if (kind === "vm") heard.push(`${vm} ${state}`);
      else heard.push(String(kind));
    }
    const names = ["vm0", "vm1", "vm2"];
    assert.deepEqual(heard, [
      ...["preflight begins", "preflight ends", "load begins", "load ends", "preserve begins"],
      ...names.map((name) => `${name} preserving`),
      ...names.map((name) => `${name} preserved`),
      ...["preserve ends", "pause begins"],
      ...names.map((name) => `${name} pausing`),
      ...names.map((name) => `${name} paused`),
      ...["pause ends", "reboot begins", "jump"],
    ]);
    for (const vm of vms) assert.deepEqual(vm.story, ["begin", "preserve", "pause"]);
    assert.deepEqual([...fake.outgoing.keys()], ["holdfast-agent", ...names]);
    assert.deepEqual(operator.answers(id), [], "the kernel is gone");
  });

  test("VMs come back after the jump, each for itself, with their sessions finished and their blackout told", () => {
    const world = jumped(["vm0", "vm1"]);
    assert.deepEqual(states(world), { vm0: "incoming", vm1: "incoming" });
    const operator = world.operator();
    const id = operator.call("restore");
    world.startVm("vm1");
    world.settle();
    assert.deepEqual(operator.answers(id), [], "it waits for the other");
    assert.deepEqual(states(world), { vm0: "incoming", vm1: "running" });
    world.startVm("vm0");
    world.settle();
    assert.deepEqual(operator.answers(id)[0].result, {
      restored: 2,
      left: 0,
      waiting: [],
      abandoned: [],
    });
    for (const vm of world.vms) assert.deepEqual(vm.story, ["restore", "finished"]);
    for (const [, { blackoutNs }] of status(world))
      assert.ok(blackoutNs !== null && blackoutNs > 0);
    assertOrdinary(world, world.vms);
    assert.deepEqual(world.fake.discarded, []);
    assert.equal(world.vm("vm0").client.update, 1);
  });

  test("update after update, with VMs that come and go", () => {
    const world = worldWithVms(["vm0", "vm1"]);
    for (let round = 1; round <= 5; round++) {
      assert.equal(update(world), null, `round ${round}`);
      world.startAgent();
      for (const name of ["vm0", "vm1"]) world.startVm(name);
      world.settle();
      assertOrdinary(world, world.vms);
      assert.deepEqual(world.fake.discarded, []);
      world.startVm("visitor");
      world.settle();
      world.vm("visitor").client.close();
      world.vm("visitor").kill();
      world.vms = world.vms.filter(({ isAlive }) => isAlive);
      world.settle();
      assert.deepEqual(Object.keys(states(world)), ["vm0", "vm1"]);
    }
    assert.equal(world.server?.agent.updates, 5);
  });

  test("a VMM whose clock is a little off brings its VM back all the same; a time that cannot be is EINVAL", () => {
    for (const [offNs, works] of [
      [0.9e9, true],
      [2e9, false],
      [-1e15, false],
    ] as const) {
      const world = jumped(["vm0"]);
      const vm = world.startVm("vm0");
      vm.saysRunning = false;
      world.settle(5);
      vm.client.running(Math.max(0, vm.process.host.clockNs() + offNs));
      world.server?.poll(0);
      world.settle(3);
      if (works) assertOrdinary(world, world.vms);
      else assert.match(vm.client.problem ?? "", /EINVAL.*cannot have run at/);
    }
  });

  test("a VM with an iommufd is asked to rebuild and swap before its session is finished, again when that fails", () => {
    const world = jumped(["vm0"]);
    const vm = world.startVm("vm0");
    vm.hasIommufd = true;
    let left = 2;
    vm.before = (task) => {
      if (task === "swap" && left-- > 0) throw new KernelError("ENOMEM", "swap", "no memory");
    };
    world.settle();
    assert.deepEqual(vm.story, ["restore", "rebuild", "swap", "swap", "swap", "finished"]);
    assertOrdinary(world, world.vms);
  });

  test("a step of a restoration that fails for good is told, and restore tries it again", () => {
    const world = jumped(["vm0"]);
    const vm = world.startVm("vm0");
    vm.hasIommufd = true;
    vm.before = (task) => {
      if (task === "rebuild") throw new KernelError("EBUSY", "rebuild", "device is busy");
    };
    world.settle();
    const { state, problem } = status(world).get("vm0") ?? {};
    assert.equal(state, "restored");
    assert.match(problem ?? "", /vm0.*device is busy/);
    assert.equal(world.fake.openSessions, 2, "the agent and the VMM have the session");
    const refused = update(world);
    assert.match(refused?.message ?? "", /vm0/);
    vm.before = () => undefined;
    const operator = world.operator();
    const id = operator.call("restore", { timeoutSeconds: 5 });
    world.settle();
    assert.equal(operator.answers(id)[0].result?.left, 0);
    assertOrdinary(world, world.vms);
  });

  describe("a VMM that fails", () => {
    /** Everything is as before the update; the VMs that live go on, and can be updated. */
    function assertRolledBack(world: World, names: readonly string[]): void {
      world.settle();
      world.vms = world.vms.filter(({ isAlive }) => isAlive);
      assert.deepEqual(Object.keys(states(world)), names);
      assertOrdinary(world, world.vms);
      assert.equal(world.fake.loaded, null);
      assert.equal(update(world), null, "the next update jumps");
    }

    for (const task of ["preserve", "pause"])
      test(`dies at ${task}: the update fails by its name, the others run on`, () => {
        const world = worldWithVms(["vm0", "vm1", "vm2"]);
        const victim = world.vm("vm1");
        victim.before = (what) => {
          if (what === task) victim.kill();
        };
        const error = update(world);
        assert.equal(error?.code, "ECONNRESET");
        assert.match(error?.message ?? "", /vm1/);
        assertRolledBack(world, ["vm0", "vm2"]);
      });

    test("dies after it has answered, before the jump: the update fails by its name", () => {
      for (const task of ["preserve", "pause"]) {
        const world = worldWithVms(["vm0", "vm1", "vm2"]);
        // vm2 is asked last, and vm0 has answered by then.
        const victim = world.vm("vm0");
        world.vm("vm2").workTurns = 4;
        world.vm("vm2").before = (what) => {
          if (what === task) victim.kill();
        };
        const error = update(world);
        assert.equal(error?.code, "ECONNRESET", task);
        assert.match(error?.message ?? "", /vm0/);
        assertRolledBack(world, ["vm1", "vm2"]);
      }
    });

    test("dies when all are paused: the update fails by its name", () => {
      const world = worldWithVms(["vm0", "vm1"]);
      const victim = world.vm("vm0");
      world.fake.fails = (call) => {
        // The journal is written last.
        if (call === "pwrite" && !victim.runs) victim.kill();
        return null;
      };
      assert.match(update(world)?.message ?? "", /vm0/);
      world.fake.fails = () => null;
      assertRolledBack(world, ["vm1"]);
    });

    test("cannot: when the operator hears of it, the others run again", () => {
      const world = worldWithVms(["vm0", "vm1", "vm2"]);
      world.vm("vm1").before = (what) => {
        if (what === "pause") throw new KernelError("ENOMEM", "pause", "no memory is left");
      };
      const operator = world.operator();
      const id = operator.call("update", { target: TARGET });
      world.server?.poll(0);
      world.server?.poll(0);
      operator.turn();
      assert.equal(operator.answers(id).length, 1);
      assertOrdinary(world, world.vms);
    });

    test("cannot: the update fails with its errno and message", () => {
      for (const task of ["preserve", "pause"]) {
        const world = worldWithVms(["vm0", "vm1"]);
        world.vm("vm1").before = (what) => {
          if (what === task) throw new KernelError("ENOMEM", "PRESERVE_FD", "no memory is left");
        };
        const error = update(world);
        assert.equal(error?.code, "ENOMEM");
        assert.match(error?.message ?? "", /vm1.*no memory is left/);
        world.vm("vm1").before = () => undefined;
        assertRolledBack(world, ["vm0", "vm1"]);
      }
    });

    test("does not answer: the update fails in time; it is in the way of the next until it has undone its part", () => {
      for (const task of ["preserve", "pause"]) {
        const world = worldWithVms(["vm0", "vm1"]);
        const { waitedNs } = world;
        const vm = world.vm("vm1");
        vm.before = (what) => {
          if (what === task) vm.hangs = true;
        };
        vm.workTurns = 2;
        const error = update(world, { timeoutSeconds: 7 });
        assert.equal(error?.code, "ETIMEDOUT");
        assert.match(error?.message ?? "", new RegExp(`vm1.*"${task}" within 7 s`));
        assert.ok(world.waitedNs - waitedNs < 30e9);
        assert.ok(world.vm("vm0").runs, "the other VM runs");
        assert.equal(states(world).vm1, "undoing");
        const second = update(world);
        assert.equal(second?.code, "EBUSY");
        assert.match(second?.message ?? "", /vm1: its VMM has not undone the last update/);
        vm.hangs = false;
        vm.before = () => undefined;
        assertRolledBack(world, ["vm0", "vm1"]);
      }
    });

    test("is slow: the update waits, and other clients are heard, but begin nothing", () => {
      const world = worldWithVms(["vm0", "vm1"]);
      const slow = world.vm("vm1");
      slow.workTurns = 20;
      const other = world.operator(1000);
      const asked: [call: string, id: number][] = [];
      slow.before = (task) => {
        if (task !== "preserve") return;
        for (const [call, fields] of [
          ["status", {}],
          ["plan", { target: TARGET }],
          ["update", { target: TARGET }],
          ["restore", {}],
          ["register", { vm: "late", resources: [], state: "starting" }],
        ] as const)
          asked.push([call, other.call(call, fields)]);
      };
      assert.equal(update(world), null);
      other.turn();
      const [[, statusId], ...rest] = asked;
      assert.equal(other.answers(statusId)[0].result?.activity, "updating");
      for (const [call, id] of rest) assert.equal(other.answers(id)[0].error?.code, "EBUSY", call);
    });
  });

  test("a call of the kernel that fails in an update: everything is rolled back, and the update is answered once", () => {
    const whole = worldWithVms(["vm0", "vm1"]);
    const start = whole.fake.calls.length;
    const { fake } = whole;
    assert.equal(update(whole), null);
    const calls = fake.calls.slice(start);
    assert.ok(calls.includes("createSession") && calls.includes("preserveFd"));
    for (const [i, call] of calls.entries()) {
      const world = worldWithVms(["vm0", "vm1"]);
      world.fake.fails = (_call, index) => (index === start + i ? "EIO" : null);
      const error = update(world);
      const when = `call ${i}, ${call}`;
      // What nobody needs may be missing.
      if (call === "open /dev/iommu") {
        assert.equal(error, null);
        continue;
      }
      assert.ok(error !== null, when);
      world.fake.fails = () => null;
      world.settle();
      assertOrdinary(world, world.vms);
      assert.equal(world.fake.loaded, null, when);
      assert.equal(update(world), null, `the next update after ${when}`);
    }
  });

  test("a state that cannot be written: the update is refused before anything moves", () => {
    for (const code of ["ENOSPC", "EROFS"] as const) {
      const world = worldWithVms(["vm0"]);
      world.store.fails = code;
      const { calls } = world.fake;
      const before = calls.length;
      assert.equal(update(world)?.code, code);
      assert.deepEqual(calls.slice(before), []);
      assert.deepEqual(world.vm("vm0").story, ["begin"]);
      assert.match(world.server?.notes.join() ?? "", /state cannot be written/);
      world.store.fails = null;
      world.settle(60);
      assert.deepEqual(world.server?.notes, []);
      assert.equal(update(world), null);
    }
  });

  test("a journal that cannot be written down stays in its session until it can", () => {
    const world = worldWithVms(["vm0"]);
    assert.equal(update(world), null);
    world.store.fails = "ENOSPC";
    const server = world.startAgent();
    assert.match(server.notes.join(), /journal of the update stays where it is/);
    assert.equal(world.fake.openSessions, 1);
    world.startVm("vm0");
    world.settle();
    assert.ok(world.vm("vm0").runs, "the VM does not wait for it");
    assert.equal(world.fake.openSessions, 1, "the journal's");
    world.store.fails = null;
    world.settle(60);
    assertOrdinary(world, world.vms);
  });

  test("a VMM whose session could not be sent for want of descriptors is shown out, comes back, and gets it", () => {
    const world = worldWithVms(["vm0"]);
    assert.equal(update(world), null);
    world.startAgent();
    let left = 1;
    world.fake.fails = (call) => (call === "dup" && left-- > 0 ? "EMFILE" : null);
    world.startVm("vm0");
    world.settle(60);
    assert.ok(left < 1, "it was to fail");
    assertOrdinary(world, world.vms);
  });

  describe("an agent that is killed", () => {
    for (const task of ["preserve", "pause"])
      test(`at ${task}: the VMs undo it themselves, and are updated by the next agent`, () => {
        for (const victim of ["vm0", "vm1"]) {
          const world = worldWithVms(["vm0", "vm1"]);
          world.vm(victim).before = (what) => {
            if (what === task) throw new AgentKilled();
          };
          const operator = world.operator();
          operator.call("update", { target: TARGET });
          assert.throws(() => world.settle(), AgentKilled);
          world.killAgent();
          world.vm(victim).before = () => undefined;
          world.settle();
          assert.ok(operator.isClosed);
          // Here a killed agent undoes what it can; on Linux what it has loaded outlives it.
          world.fake.loaded = TARGET;
          const server = world.startAgent();
          assert.match(server.notes.join(), /ended in an update/);
          assert.equal(world.fake.loaded, null);
          world.settle();
          assertOrdinary(world, world.vms);
          assert.deepEqual(states(world), { vm0: "running", vm1: "running" });
          assert.equal(update(world), null);
        }
      });

    test("before its VMs have come back to the next one: an update waits for them, or their VMMs' end", () => {
      const world = worldWithVms(["vm0", "vm1"]);
      world.killAgent();
      world.vm("vm1").hangs = true;
      world.startAgent();
      world.settle();
      assert.deepEqual(states(world), { vm0: "running", vm1: "absent" });
      const error = update(world);
      assert.equal(error?.code, "EBUSY");
      assert.match(
        error?.message ?? "",
        /vm1: its VMM \(pid 10\d\) is not connected.*comes back, or ends/,
      );
      const operator = world.operator();
      const id = operator.call("restore", { abandon: ["vm1"] });
      world.settle();
      assert.equal(operator.answers(id)[0].error?.code, "EBUSY", "its VMM lives");
      world.vm("vm1").kill();
      world.settle();
      assert.deepEqual(states(world), { vm0: "running" });
    });

    for (const hasCustody of [false, true])
      for (const task of ["restore", "rebuild", "swap", "finished"])
        test(`at ${task}, ${hasCustody ? "sessions in custody" : "without custody"}: the VM keeps its session and ends its way with the next agent`, () => {
          const world = jumped(["vm0", "vm1"], { hasCustody });
          const vm = world.startVm("vm0");
          vm.hasIommufd = true;
          let isKilled = false;
          vm.before = (what) => {
            if (what !== task || isKilled) return;
            isKilled = true;
            world.killAgent();
          };
          world.settle(10);
          assert.ok(isKilled);
          assert.equal(world.server, null);
          assert.ok(vm.runs, "the guest runs without an agent");
          world.startAgent();
          world.settle();
          assert.deepEqual(states(world), { vm0: "running", vm1: "incoming" });
          assert.deepEqual([vm.client.state, vm.client.problem], ["running", null]);
          assert.deepEqual(vm.story, ["restore", "rebuild", "swap", "finished"], "each once");
          world.startVm("vm1");
          world.settle();
          assertOrdinary(
            world,
            world.vms.filter(({ name }) => name !== "vm0"),
          );
          assert.deepEqual(world.fake.discarded, []);
          // This kernel cannot preserve an iommufd.
          assert.match(update(world)?.message ?? "", /vm0: iommufd/);
          vm.hasIommufd = false;
          vm.client.resourcesChanged();
          world.settle();
          assert.equal(update(world), null);
        });

    test("with a VMM that dies too: its session lives on in custody, and the next VMM gets it", () => {
      const world = jumped(["vm0"], { hasCustody: true });
      const vm = world.startVm("vm0");
      vm.before = () => {
        world.killAgent();
        vm.kill();
      };
      world.settle(10);
      world.vms = [];
      world.startAgent();
      assert.deepEqual(states(world), { vm0: "restoring" });
      world.startVm("vm0");
      world.settle();
      assertOrdinary(world, world.vms);
      assert.deepEqual(world.fake.discarded, []);
    });

    test("after it retrieved a session in vain, to give a VM up: nothing of the VM is lost", () => {
      const world = jumped(["vm0"], { hasCustody: true });
      world.fake.fails = (call) => (call === "finish" ? "EBUSY" : null);
      const operator = world.operator();
      const id = operator.call("restore", { abandon: ["vm0"] });
      world.settle(3);
      assert.equal(operator.answers(id)[0].error?.code, "EBUSY");
      world.fake.fails = () => null;
      world.killAgent();
      assert.deepEqual(world.fake.discarded, []);
      world.startAgent();
      world.startVm("vm0");
      world.settle();
      assert.deepEqual(world.vm("vm0").story, ["restore", "finished"]);
    });

    test("with a VMM that dies too, and no custody: its session is gone, and that is told", () => {
      const world = jumped(["vm0"]);
      const vm = world.startVm("vm0");
      vm.before = () => {
        world.killAgent();
        vm.kill();
      };
      world.settle(10);
      world.vms = [];
      world.startAgent();
      const next = world.startVm("vm0");
      world.settle();
      assert.match(next.client.problem ?? "", /ENOENT.*vm0/);
      assert.deepEqual(next.story, [], "it does not begin anew by itself");
      const operator = world.operator();
      operator.call("restore", { abandon: ["vm0"] });
      world.settle();
      assert.deepEqual(next.story, ["begin"]);
      assertOrdinary(world, world.vms);
    });
  });

  describe("who may have a VM", () => {
    test("one VMM at a time", () => {
      const world = worldWithVms(["vm0"]);
      const second = world.startVm("vm0");
      world.settle();
      assert.match(second.client.problem ?? "", /EEXIST.*vm0 is registered already, by pid 10/);
      assert.deepEqual(second.story, []);
      world.vms[0].kill();
      world.settle();
      assert.deepEqual(second.story, ["begin"], "once the first has ended, the second has it");
    });

    test("a VMM that ends before its guest runs: the next one gets the session", () => {
      const world = jumped(["vm0"]);
      const first = world.startVm("vm0");
      first.before = () => first.kill();
      world.settle(5);
      const { state, problem } = status(world).get("vm0") ?? {};
      assert.equal(state, "incoming");
      assert.match(problem ?? "", /left before its guest ran/);
      world.vms = [];
      world.startVm("vm0");
      world.settle();
      assertOrdinary(world, world.vms);
      assert.deepEqual(world.fake.discarded, []);
    });

    test("a VMM that cannot restore its VM says why; the session stays for another attempt", () => {
      const world = jumped(["vm0"]);
      const first = world.startVm("vm0");
      first.before = () => {
        throw new KernelError("EIO", "restore", "the registers are damaged");
      };
      world.settle();
      const { state, problem } = status(world).get("vm0") ?? {};
      assert.equal(state, "restoring");
      assert.match(problem ?? "", /EIO.*the registers are damaged/);
      first.kill();
      world.vms = [];
      world.settle(3);
      assert.match(status(world).get("vm0")?.problem ?? "", /the registers are damaged/);
      world.startVm("vm0");
      world.settle();
      assertOrdinary(world, world.vms);
    });

    test("a VMM that ends after its guest ran, and before its session is finished: nobody gets it, until it is given up", () => {
      const world = jumped(["vm0"]);
      const first = world.startVm("vm0");
      first.hasIommufd = true;
      first.before = (task) => {
        if (task === "rebuild") first.kill();
      };
      world.settle(5);
      const { state, problem } = status(world).get("vm0") ?? {};
      assert.equal(state, "lost");
      assert.match(
        problem ?? "",
        /left after its guest had run and before its session was finished/,
      );
      world.vms = [];
      const next = world.startVm("vm0");
      world.settle();
      assert.match(next.client.problem ?? "", /EBUSY.*abandoned/);
      assert.deepEqual(next.story, []);
      assert.match(update(world)?.message ?? "", /vm0/);
      const operator = world.operator();
      operator.call("restore", { abandon: ["vm0"] });
      world.settle();
      assert.deepEqual(next.story, ["begin"]);
      assertOrdinary(world, world.vms);
    });

    test("not while the VMM that had it before may live, be it without a connection", () => {
      for (const hasCustody of [false, true]) {
        const world = jumped(["vm0"], { hasCustody });
        const first = world.startVm("vm0");
        first.before = () => {
          world.killAgent();
        };
        world.settle(3);
        first.hangs = true;
        world.startAgent();
        const second = world.startVm("vm0");
        world.settle(10);
        assert.match(second.client.problem ?? "", /EEXIST.*pid 10\d was the VMM of vm0, and lives/);
        assert.deepEqual(second.story, []);
        second.kill();
        first.before = () => undefined;
        first.hangs = false;
        world.settle();
        assertOrdinary(world, [first]);
      }
    });

    test("a session goes to its owner's user alone", () => {
      const world = worldWithVms([]);
      world.startVm("vm0", 1001);
      world.settle();
      assert.equal(update(world), null);
      world.startAgent();
      for (const uid of [1002, 0]) {
        const other = world.startVm("vm0", uid);
        world.settle();
        assert.match(other.client.problem ?? "", /EACCES.*vm0 belongs to uid 1001/);
        assert.deepEqual(other.story, []);
        other.kill();
      }
      world.vms = [];
      world.startVm("vm0", 1001);
      world.settle();
      assertOrdinary(world, world.vms);
      assert.equal(status(world).get("vm0")?.uid, 1001);
    });

    test("an owner is remembered by an agent that is started anew, and so is a VM that is ordinary", () => {
      const world = worldWithVms([]);
      const vm = world.startVm("vm0", 1001);
      world.settle();
      world.killAgent();
      vm.hangs = true;
      world.startAgent();
      const other = world.startVm("vm0", 1002);
      world.settle();
      assert.match(other.client.problem ?? "", /EACCES/);
      vm.kill();
      world.settle();
      assert.deepEqual(other.story, ["begin"], "the VM has ended with its VMM");
    });

    test("what is handed in must be the VM's own session, and what is not is closed", () => {
      const world = jumped(["vm0", "vm1"]);
      const operator = world.operator();
      const { process } = operator;
      const own = process.fds.size;
      const memfd = process.host.memfdCreate("x", 0);
      const fake = world.fake;
      for (const [state, vm] of [
        ["restored", "vm0"],
        ["restoring", "vm0"],
        ["preserved", "other"],
        ["paused", "other"],
      ]) {
        const id = operator.call("register", { vm, state, resources: [] }, [memfd]);
        const { openFiles } = fake;
        world.settle(3);
        assert.ok(operator.answers(id)[0].error !== undefined, state);
        assert.equal(fake.openFiles, openFiles - 1, "the copy in flight is closed");
      }
      // A session, but another VM's.
      const thief = world.startVm("vm1");
      thief.workTurns = 100;
      world.settle(3);
      const session = [...thief.process.fds].at(-1) ?? -1;
      const stolen = process.host.dup(session);
      const id = operator.call("register", { vm: "vm0", state: "restoring", resources: [] }, [
        stolen,
      ]);
      world.settle(3);
      assert.match(operator.answers(id)[0].error?.message ?? "", /is the session "vm1"/);
      process.close(stolen);
      process.close(memfd);
      assert.equal(process.fds.size, own);
      assert.deepEqual(states(world), { vm0: "incoming", vm1: "restoring" });
    });

    test("what is not known to be a session is not even asked for its name", () => {
      const world = jumped(["vm0"]);
      world.killAgent();
      world.startAgent({ isSession: () => false });
      const operator = world.operator();
      const memfd = operator.process.host.memfdCreate("x", 0);
      const fields = { vm: "vm0", state: "restoring", resources: [] };
      const id = operator.call("register", fields, [memfd]);
      world.settle(3);
      assert.match(operator.answers(id)[0].error?.message ?? "", /is no session/);
    });
  });

  describe("who may do what", () => {
    test("plan, update and abandon are root's; status and restore also the group's; others are shown out", () => {
      const world = worldWithVms(["vm0"]);
      const member = world.operator(1000);
      const target = { target: TARGET };
      const ids = {
        update: member.call("update", target),
        dryRun: member.call("update", { ...target, dryRun: true }),
        abandon: member.call("restore", { abandon: ["vm0"] }),
        plan: member.call("plan", target),
        status: member.call("status"),
        restore: member.call("restore"),
      };
      world.settle(10);
      for (const call of ["plan", "update", "dryRun", "abandon"] as const)
        assert.equal(member.answers(ids[call])[0].error?.code, "EPERM", call);
      for (const call of ["status", "restore"] as const)
        assert.ok(member.answers(ids[call])[0].result !== undefined, call);
      world.killAgent();
      world.startAgent({ group: null });
      const other = world.operator(1000);
      other.call("status");
      world.settle(3);
      assert.deepEqual(
        other.heard.map(({ id, error }) => [id, (error as { code: string }).code]),
        [[0, "EACCES"]],
      );
      assert.ok(other.isClosed);
    });

    test("a plan says what would be done and what stands in the way, and changes nothing", () => {
      const world = worldWithVms(["vm0", "vm1"]);
      world.vm("vm1").hasIommufd = true;
      world.vm("vm1").client.resourcesChanged();
      world.settle();
      const operator = world.operator();
      const id = operator.call("plan", { target: TARGET });
      const without = operator.call("update", {
        target: TARGET,
        without: ["iommufd"],
        dryRun: true,
      });
      world.settle(5);
      const plan = operator.answers(id)[0].result;
      assert.deepEqual([plan?.vms, plan?.guestBytes, plan?.blocked], [2, 8192, 1]);
      assert.match(String(plan?.blockers), /vm1: iommufd.*without "iommufd"/);
      const second = operator.answers(without)[0].result;
      assert.deepEqual([second?.blocked, second?.leftBehind], [0, ["vm1: iommufd /dev/iommu"]]);
      assert.equal(world.server?.agent.updates, 0);
      assert.deepEqual(world.vm("vm1").story, ["begin"]);
    });
  });

  describe("a client that does not keep to the protocol", () => {
    /** It loses its connection; VMs and another client do not notice. */
    function assertHarmless(world: World, act: (operator: Operator) => void, reason: RegExp): void {
      const other = world.operator();
      const operator = world.operator(1000);
      const { openFiles } = world.fake;
      act(operator);
      world.settle(10);
      const last = operator.heard.at(-1);
      assert.equal(last?.id, 0);
      assert.match(JSON.stringify(last), reason);
      assert.ok(operator.isClosed);
      const id = other.call("status");
      world.settle(3);
      assert.equal(other.answers(id)[0].result?.total, 1);
      assert.equal(world.fake.openFiles, openFiles, "no descriptor of its messages is left");
      operator.close();
      other.close();
      world.operators = [];
    }

    test("garbage is no message", () => {
      const world = worldWithVms(["vm0"]);
      for (const line of [
        "",
        "{",
        "null",
        "7",
        "[]",
        "{}",
        '{"id": -1, "call": "status"}',
        '{"id": 0, "call": "status"}',
        '{"id": 1.5, "call": "status"}',
        '{"id": "1", "call": "status"}',
        '{"answer": 1}',
        '{"answer": 1, "result": {}}',
        '{"answer": "x"}',
        '{"id": 1, "call": "status", "fds": -1}',
      ])
        assertHarmless(world, (operator) => operator.channel.send(line), /EPROTO/);
    });

    test("descriptors that a message does not have are closed", () => {
      const world = worldWithVms(["vm0"]);
      for (const fields of [
        { call: "status" },
        { call: "update", fds: 1 },
        { call: "nonsense", fds: 1 },
        { call: "register", vm: "x", state: "starting", resources: [] },
        { answer: 1, result: {} },
        {},
      ]) {
        const { openFiles } = world.fake;
        const operator = world.operator();
        const memfd = operator.process.host.memfdCreate("x", 0);
        operator.channel.send(JSON.stringify({ id: 1, ...fields }), [memfd]);
        world.settle(5);
        operator.close();
        world.operators = [];
        world.settle(2);
        assert.equal(world.fake.openFiles, openFiles, JSON.stringify(fields));
      }
    });

    test("what it has said after what it is shown out for is not done, and its descriptors are closed", () => {
      const world = worldWithVms(["vm0"]);
      const { openFiles } = world.fake;
      const operator = world.operator();
      const memfd = operator.process.host.memfdCreate("x", 0);
      operator.channel.send("garbage");
      operator.call("register", { vm: "x", state: "restored", resources: [] }, [memfd]);
      operator.call("register", { vm: "y", state: "running", resources: [] });
      world.settle(5);
      operator.close();
      world.operators = [];
      assert.equal(world.fake.openFiles, openFiles);
      assert.deepEqual(states(world), { vm0: "running" });
    });

    test("a VM that is unregistered in the middle of its restoration waits for another VMM", () => {
      const world = jumped(["vm0"]);
      const vm = world.startVm("vm0");
      vm.hasIommufd = true;
      vm.workTurns = 3;
      world.settle(3);
      assert.equal(vm.client.state, "restoring");
      vm.client.close();
      vm.kill();
      world.vms = [];
      world.settle(3);
      assert.equal(states(world).vm0, "incoming");
      world.startVm("vm0");
      world.settle();
      assertOrdinary(world, world.vms);
    });

    test("an id that is out is not used again, and only so many calls are", () => {
      const world = jumped(["vm0"]);
      world.startVm("other");
      world.settle();
      const operator = world.operator();
      const ids = [...Array(OUTSTANDING_CALLS_MAX + 1)].map(() => operator.call("restore"));
      world.settle(5);
      assert.deepEqual(
        ids.map((id) => operator.answers(id).length),
        [...Array(OUTSTANDING_CALLS_MAX).fill(0), 1],
      );
      assert.equal(operator.answers(ids[OUTSTANDING_CALLS_MAX])[0].error?.code, "EMFILE");
      operator.channel.send(JSON.stringify({ id: ids[0], call: "status" }));
      world.settle(5);
      assert.ok(operator.isClosed);
      assert.match(JSON.stringify(operator.heard.at(-1)), /EPROTO.*id 1 /);
    });

    test("one that does not read what it is sent is shown out", () => {
      const world = worldWithVms(["vm0"]);
      const deaf = world.operator();
      for (let i = 0; i < 50; i++) {
        for (let k = 0; k < OUTSTANDING_CALLS_MAX; k++) deaf.call("status");
        world.server?.poll(0);
        world.server?.poll(0);
      }
      world.operators = [];
      world.settle(2);
      assert.ok(deaf.channel.isEnded);
      assert.ok(deaf.heard.length === 0);
      assert.equal(update(world), null, "the host is updated");
    });

    test("one that floods with connections fills its own user's share", () => {
      const world = worldWithVms(["vm0"]);
      const flood = [...Array(VISITORS_MAX + 5)].map(() => world.operator(1000));
      world.settle(5);
      assert.equal(flood.filter(({ isClosed }) => isClosed).length, 5);
      assert.match(JSON.stringify(flood.at(-1)?.heard), /EMFILE.*uid 1000/);
      const other = world.operator(1001);
      const id = other.call("status");
      world.settle(3);
      assert.ok(other.answers(id)[0].result !== undefined);
    });

    test("many users who flood with connections do not keep root out", () => {
      const world = worldWithVms(["vm0"]);
      const users = Math.ceil(VMS_MAX / VISITORS_MAX) + 2;
      const flood = Array.from({ length: users * VISITORS_MAX }, (_, i) =>
        world.operator(1000 + (i % users)),
      );
      world.settle(5);
      assert.match(JSON.stringify(flood.at(-1)?.heard), /EMFILE.*no more are taken/);
      const root = world.operator();
      const id = root.call("status");
      world.settle(3);
      assert.ok(root.answers(id)[0]?.result !== undefined);
    });

    test("a VMM that breaks the protocol: its VM is in the way of an update until it is back", () => {
      const world = worldWithVms(["vm0", "vm1"]);
      const vm = world.vm("vm0");
      vm.hangs = true;
      vm.process.channels[0].send("garbage");
      world.settle(3);
      const { state, problem } = status(world).get("vm0") ?? {};
      assert.equal(state, "absent");
      assert.match(problem ?? "", /not JSON/);
      assert.match(update(world)?.message ?? "", /vm0: its VMM .* is not connected/);
      vm.hangs = false;
      world.settle();
      assert.equal(states(world).vm0, "running");
      assert.equal(update(world), null);
    });

    test("a VMM whose connection breaks the protocol in an update ends the update", () => {
      const world = worldWithVms(["vm0", "vm1"]);
      const vm = world.vm("vm0");
      vm.before = (task) => {
        if (task === "pause") vm.process.channels[0].send('{"answer": 99, "result": {}}');
      };
      const error = update(world);
      assert.match(error?.message ?? "", /vm0.*nothing was asked with the number 99/);
      vm.before = () => undefined;
      world.settle();
      assertOrdinary(world, world.vms);
      assert.equal(update(world), null);
    });
  });

  describe("what an agent finds when it starts", () => {
    test("a state of another boot says which VMs did not come through", () => {
      const world = worldWithVms(["vm0", "vm1"]);
      world.killAgent();
      for (const vm of world.vms) vm.kill();
      world.boot = 7;
      world.vms = [];
      const server = world.startAgent();
      assert.match(server.notes.join(), /another boot \(boot-1\).*vm0, vm1/);
      assert.deepEqual(states(world), {});
    });

    test("the same after an update that the next kernel did not take over", () => {
      const world = worldWithVms(["vm0"]);
      assert.equal(update(world), null);
      world.fake.incoming.clear();
      const server = world.startAgent();
      assert.match(server.notes.join(), /did not take the handover over/);
    });

    test("a state that is damaged is told, and VMs that may have a session are root's alone to take", () => {
      const world = jumped(["vm0"]);
      world.killAgent();
      world.store.text = "{";
      const server = world.startAgent();
      assert.match(server.notes.join(), /is lost: EIO.*not JSON/);
      const stranger = world.startVm("vm0", 1001);
      world.settle(5);
      assert.match(stranger.client.problem ?? "", /EACCES/);
      stranger.kill();
      world.vms = [];
      const own = world.startVm("vm0", 0);
      const fresh = world.startVm("fresh", 0);
      world.settle();
      assert.deepEqual(own.story, ["restore", "finished"]);
      assert.deepEqual(fresh.story, ["begin"]);
      assertOrdinary(world, world.vms);
      assert.deepEqual(world.fake.discarded, []);
    });

    test("an agent that ended with the journal in its hands: the next knows that VMs may have sessions", () => {
      const world = worldWithVms(["vm0"]);
      assert.equal(update(world), null);
      world.store.write = (state) => {
        if (state.journal !== null) throw new Error("killed");
        MemoryStore.prototype.write.call(world.store, state);
      };
      assert.throws(() => world.startAgent(), /killed/);
      world.killAgent();
      world.store.write = MemoryStore.prototype.write;
      const server = world.startAgent();
      assert.match(server.notes.join(), /its journal is lost/);
      const stranger = world.startVm("vm0", 1001);
      world.settle(5);
      assert.match(stranger.client.problem ?? "", /EACCES/);
      stranger.kill();
      world.vms = [];
      world.startVm("vm0", 0);
      world.settle();
      assert.deepEqual(world.vm("vm0").story, ["restore", "finished"]);
      assertOrdinary(world, world.vms);
    });

    test("a VM that began anew while the past is unknown does so again with its next VMM", () => {
      const world = new World();
      world.store.text = "{";
      world.startAgent();
      const first = world.startVm("vm0", 0);
      world.settle();
      first.kill();
      world.settle();
      world.vms = [];
      world.startVm("vm0", 0);
      world.settle();
      assert.deepEqual(world.vm("vm0").story, ["begin"]);
      assertOrdinary(world, world.vms);
    });

    test("an agent that finds no device leaves no word of a journal", () => {
      const world = new World();
      world.fake.fails = (call) => (call === "open /dev/liveupdate" ? "ENOENT" : null);
      assert.throws(() => world.startAgent(), /ENOENT/);
      assert.equal(world.store.text, null);
    });

    test("an agent that ended before it had retrieved the journal: the next has it, and knows all", () => {
      const world = worldWithVms(["vm0"]);
      assert.equal(update(world), null);
      world.fake.fails = (call) => (call === "retrieveSession" ? "EMFILE" : null);
      world.startAgent();
      world.killAgent();
      world.fake.fails = () => null;
      const server = world.startAgent();
      assert.deepEqual(server.notes, []);
      world.startVm("vm0");
      world.settle();
      assertOrdinary(world, world.vms);
    });

    test("a VMM that has a session which no agent knows any more ends its way", () => {
      const world = jumped(["vm0"]);
      const vm = world.startVm("vm0");
      vm.before = () => {
        world.killAgent();
        world.store.text = null;
        vm.before = () => undefined;
      };
      world.settle(5);
      world.startAgent();
      world.settle();
      assert.deepEqual(vm.story, ["restore", "finished"]);
      assert.equal(status(world).get("vm0")?.blackoutNs, null);
      assertOrdinary(world, world.vms);
    });

    test("/dev/liveupdate that is not there or taken: it does not start", () => {
      for (const code of ["ENOENT", "EBUSY"] as const) {
        const world = new World();
        world.fake.fails = (call) => (call === "open /dev/liveupdate" ? code : null);
        assert.throws(
          () => world.startAgent(),
          (error) => isKernelError(error, code),
        );
      }
    });
  });

  describe("restore", () => {
    test("answers in time with what is left", () => {
      const world = jumped(["vm0", "vm1"]);
      world.startVm("vm1");
      const operator = world.operator();
      const id = operator.call("restore", { timeoutSeconds: 2 });
      world.settle(60);
      const result = operator.answers(id)[0].result;
      assert.deepEqual([result?.restored, result?.left], [1, 1]);
      assert.deepEqual(result?.waiting, [{ vm: "vm0", state: "incoming", problem: null }]);
      const kinds = operator.events(id).map(({ vm, state }) => `${vm} ${state}`);
      assert.deepEqual(kinds, ["vm1 restoring", "vm1 restored", "vm1 running"]);
    });

    test("gives up what is told by name, and says what was done when a name is wrong", () => {
      const world = jumped(["vm0", "vm1", "vm2"]);
      world.startVm("vm2");
      const operator = world.operator();
      const wrong = operator.call("restore", { abandon: ["vm0", "vm7", "vm1"] });
      world.settle();
      const error = operator.answers(wrong)[0].error;
      assert.equal(error?.code, "ENOENT");
      assert.match(error?.message ?? "", /vm7.*abandoned before: vm0/);
      const busy = operator.call("restore", { abandon: ["vm2"] });
      world.settle();
      assert.equal(operator.answers(busy)[0].error?.code, "EBUSY");
      const right = operator.call("restore", { abandon: ["vm1"] });
      world.settle();
      assert.deepEqual(operator.answers(right)[0].result?.abandoned, ["vm1"]);
      assert.deepEqual(world.fake.discarded, ["vm0", "vm1"]);
      assertOrdinary(world, world.vms);
    });
  });

  test("status comes in pages when there are many VMs", () => {
    const world = new World();
    world.startAgent();
    const names = [...Array(500)].map((_, i) => `vm${String(i).padStart(3, "0")}`);
    for (const name of names) world.startVm(name, Number(name.slice(2)));
    world.settle(6);
    assert.deepEqual([...status(world).keys()], names);
  });
});

/** Unwinds the agent's turn, as SIGKILL ends it. */
class AgentKilled extends Error {}
