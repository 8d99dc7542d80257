import assert from "node:assert/strict";
import { test } from "node:test";
import type { KernelError } from "../../base/errno.ts";
import { World } from "./test-rig.ts";

/** A VMM whose agent is the test: what the agent would say is put into its inbox. */
function vmmWithTestAsAgent() {
  const world = new World();
  world.startAgent();
  const vm = world.startVm("vm0");
  world.settle();
  const [mine] = vm.process.channels;
  const agent = mine.other;
  assert.ok(agent !== null);
  const heard = agent.inbox;
  const say = (message: object | string, fd: number | null = null) => {
    const fds = fd === null ? [] : [fd];
    const line = typeof message === "string" ? message : JSON.stringify(message);
    mine.inbox.push({ line, fds: fds.map((one) => world.fake.host.dup(one)) });
    vm.turn();
  };
  const session = world.fake.host.memfdCreate("session", 0);
  return { world, vm, say, heard, session };
}

test("VmClient answers each ask once, with the errno of what failed", () => {
  const { vm, say, heard } = vmmWithTestAsAgent();
  for (const [name, why] of [
    ["pause", /vm0.* is running/],
    ["rebuild", /vm0.* is running/],
    ["finished", /vm0.* is running/],
    ["explode", /"explode", not one of/],
  ] as const) {
    say({ ask: 7, do: name });
    assert.equal(heard.length, 1, name);
    const answer = JSON.parse(heard.splice(0)[0].line) as { answer: number; error: KernelError };
    assert.deepEqual([answer.answer, answer.error.code], [7, "EINVAL"]);
    assert.match(answer.error.message, why);
  }
  say({ ask: 8, do: "unpreserve" });
  say({ ask: 9, do: "resume" });
  assert.deepEqual(
    heard.map(({ line }) => JSON.parse(line)),
    [
      { answer: 8, result: {} },
      { answer: 9, result: {} },
    ],
    "there is nothing to undo",
  );
  assert.deepEqual(vm.story, ["begin"]);
  assert.ok(vm.runs && vm.client.isRegistered);
});

test("VmClient closes what comes with a message that has no descriptor, and connects anew", () => {
  for (const message of [
    { ask: 1, do: "pause", fds: 1 },
    { ask: 1, do: "nonsense", fds: 1 },
    { id: 5, result: {}, fds: 1 },
    { id: 5, event: {}, fds: 1 },
    "{",
    "[]",
    { id: 5 },
  ]) {
    const { world, vm, say, session } = vmmWithTestAsAgent();
    const { openFiles } = world.fake;
    say(message, session);
    assert.equal(world.fake.openFiles, openFiles, JSON.stringify(message));
    assert.equal(vm.client.isRegistered, false);
    assert.match(vm.client.problem ?? "", /EPROTO/);
    world.settle(10);
    assert.ok(vm.client.isRegistered);
  }
});

test("VmClient gives up an agent that asks to preserve without a session, or asks without end", () => {
  const first = vmmWithTestAsAgent();
  first.say({ ask: 1, do: "preserve", without: [] });
  assert.match(first.vm.client.problem ?? "", /no session came/);
  const second = vmmWithTestAsAgent();
  second.vm.workTurns = 1000;
  second.say({ ask: 1, do: "preserve", fds: 1 }, second.session);
  for (let ask = 2; ask < 20; ask++) second.say({ ask, do: "pause" });
  assert.match(second.vm.client.problem ?? "", /8 asks are out/);
  assert.equal(second.vm.process.fds.size, 1, "the VM's memory; the session is closed");
  assert.deepEqual(second.vm.story, ["begin", "preserve", "unpreserve"]);
});

test("VmClient does long work in pieces, one in a turn, and what is asked after it in order", () => {
  const { vm, say, heard, session } = vmmWithTestAsAgent();
  vm.preserve = () => {
    vm.story.push("preserve");
    let left = 3;
    return () => --left === 0;
  };
  say({ ask: 1, do: "preserve", fds: 1 }, session);
  say({ ask: 2, do: "pause" });
  assert.deepEqual([heard.length, vm.story], [0, ["begin", "preserve"]]);
  vm.turn();
  assert.deepEqual(
    heard.map(({ line }) => JSON.parse(line)),
    [
      { answer: 1, result: {} },
      { answer: 2, result: {} },
    ],
  );
  assert.equal(vm.client.state, "paused");
  say({ ask: 3, do: "resume" });
  say({ ask: 4, do: "unpreserve" });
  assert.deepEqual(vm.story, ["begin", "preserve", "pause", "resume", "unpreserve"]);
  assert.equal(vm.process.fds.size, 1);
});

test("VmClient undoes an update by itself when the agent goes, whatever it was doing", () => {
  for (const asks of [["preserve"], ["preserve", "pause"]])
    for (const workTurns of [0, 5]) {
      const { world, vm, say, session } = vmmWithTestAsAgent();
      vm.preserve = () => null;
      vm.workTurns = workTurns;
      let ask = 1;
      for (const name of asks)
        say(
          name === "preserve" ? { ask: ask++, do: name, fds: 1 } : { ask: ask++, do: name },
          name === "preserve" ? session : null,
        );
      world.killAgent();
      vm.turn();
      assert.ok(vm.runs);
      assert.equal(vm.client.state, "running");
      assert.equal(vm.process.fds.size, 1);
      assert.equal(vm.story.at(-1), "unpreserve");
      assert.match(vm.client.problem ?? "", /agent closed the connection/);
    }
});

test("VmClient waits for an agent as long as there is none, and does not begin a VM anew meanwhile", () => {
  const world = new World();
  const vm = world.startVm("vm0");
  world.settle(20);
  assert.deepEqual([vm.story, vm.client.state], [[], "starting"]);
  assert.match(vm.client.problem ?? "", /ECONNREFUSED/);
  world.startAgent();
  world.settle();
  assert.deepEqual(vm.story, ["begin"]);
  assert.equal(vm.client.problem, null);
});

test("VmClient.close() lets go of the VM and of everything that it has", () => {
  const { world, vm } = vmmWithTestAsAgent();
  vm.client.close();
  assert.equal(vm.process.fds.size, 1, "the memory is the VM's own");
  world.server?.poll(0);
  world.server?.poll(0);
  assert.equal(world.server?.agent.updates, 0);
});
