import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError } from "../../base/errno.ts";
import type { Channel } from "../../host/channel.ts";
import { Client } from "./client.ts";
import { type Outcome, RemoteVm, type Waiter } from "./remote-vm.ts";
import { VmEntry } from "./vm-entry.ts";

function remoteVm() {
  const sent: Record<string, unknown>[] = [];
  const channel: Channel = {
    peer: null,
    send: (line) => {
      sent.push(JSON.parse(line) as Record<string, unknown>);
      return true;
    },
    close: () => undefined,
  };
  let nowNs = 0;
  const waiter: Waiter = {
    timeoutNs: () => 5,
    nowNs: () => nowNs,
    waitUntil: (isDone, deadlineNs) => {
      if (!isDone()) nowNs = deadlineNs;
    },
    changed: () => undefined,
    drop: () => assert.fail("it takes messages"),
  };
  const vm = new RemoteVm(waiter, new Client(channel), new VmEntry("vm0", 0, "running"));
  return { vm, sent };
}

test("an ask ends once: with its answer, or with its VMM", () => {
  const { vm, sent } = remoteVm();
  const outcomes: Outcome[] = [];
  vm.ask({ do: "swap" }, (outcome) => outcomes.push(outcome));
  vm.ask({ do: "rebuild" }, (outcome) => outcomes.push(outcome));
  assert.deepEqual(sent, [
    { ask: 1, do: "swap" },
    { ask: 2, do: "rebuild" },
  ]);
  assert.equal(vm.answered(1, null), true);
  assert.equal(vm.answered(1, null), false, "it is answered");
  assert.equal(vm.answered(9, null), false, "it was never asked");
  vm.gone("it was killed");
  vm.ask({ do: "pause" }, (outcome) => outcomes.push(outcome));
  assert.equal(sent.length, 2);
  assert.equal(vm.answered(2, null), false);
  assert.equal(outcomes.length, 3);
  assert.equal(outcomes[0], "done");
  for (const outcome of outcomes.slice(1)) assert.ok(isKernelError(outcome, "ECONNRESET"));
});

test("what a VMM has not answered in time is overdue, and an answer that comes later still counts", () => {
  const { vm } = remoteVm();
  const wait = vm.pause();
  assert.equal(vm.overdue(), null);
  assert.throws(
    wait,
    (error) => isKernelError(error, "ETIMEDOUT") && /vm0.*"pause"/.test(error.message),
  );
  assert.equal(vm.overdue(), "pause");
  assert.equal(vm.entry.state, "pausing");
  vm.answered(1, null);
  assert.deepEqual([vm.overdue(), vm.entry.state], [null, "paused"]);
  wait();
});
