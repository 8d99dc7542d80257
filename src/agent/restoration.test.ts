import assert from "node:assert/strict";
import { test } from "node:test";
import { type ErrnoCode, isKernelError } from "../base/errno.ts";
import { createSession, preserveFd, retrieveFd } from "../host/liveupdate.ts";
import type { RestoredVm } from "../vmm/managed-vm.ts";
import { LiveUpdateDevice } from "./live-update-device.ts";
import { Restoration } from "./restoration.ts";
import { FakeHost } from "./test-rig.ts";

const NAMES = ["vm0", "vm1", "vm2"];
const TOKEN = 7n;
const PAUSED_AT_NS = 500;

/** A kernel to which three VMs came, each with a memfd. */
function arrived() {
  const before = new FakeHost();
  const liveUpdate = before.host.open("/dev/liveupdate", 0);
  for (const name of NAMES) {
    const session = createSession(before.host, liveUpdate, name);
    preserveFd(before.host, session, before.host.memfdCreate(name, 0), TOKEN);
  }
  before.host.clockNs();
  const fake = before.afterJump();
  const device = LiveUpdateDevice.open(fake.host);
  const records = NAMES.map((name) => ({ name, ownerUid: 1000, pausedAtNs: PAUSED_AT_NS }));
  const restoration = new Restoration(fake.host, device, records);
  /** Does what a VMM does with its session. */
  const takeOut = (session: number) => retrieveFd(fake.host, session, TOKEN);
  const now = () => fake.host.clockNs();
  return { fake, device, records, restoration, takeOut, now };
}

function fails(code: ErrnoCode, action: () => unknown, message = /./): void {
  assert.throws(action, (error) => isKernelError(error, code) && message.test(error.message));
}

const states = (restoration: Restoration) => restoration.vms.map(({ state }) => state);

test("VMs come back in any order, each by its own steps, and what is left is told", () => {
  const { fake, restoration, takeOut, now } = arrived();
  assert.equal(fake.openSessions, 0, "nothing is retrieved before its VM asks");
  const session = restoration.retrieve("vm2");
  takeOut(session);
  assert.deepEqual(states(restoration), ["waiting", "waiting", "retrieved"]);
  const atNs = now();
  assert.equal(restoration.running("vm2", atNs), atNs - PAUSED_AT_NS);
  restoration.finish("vm2");
  assert.deepEqual(states(restoration), ["waiting", "waiting", "finished"]);
  assert.deepEqual(
    restoration.left.map(({ name }) => name),
    ["vm0", "vm1"],
  );
  const vm2 = restoration.vm("vm2");
  assert.ok(vm2 !== null && vm2.runningAtNs === atNs && vm2.ownerUid === 1000);
  assert.equal(vm2.blackoutNs, atNs - PAUSED_AT_NS);
  assert.ok(vm2.retrievedAtNs !== null && vm2.finishedAtNs !== null);
  assert.ok(vm2.retrievedAtNs < atNs && atNs < vm2.finishedAtNs);
  assert.deepEqual([fake.finished, fake.discarded, fake.openSessions], [["vm2"], [], 0]);
});

test("retrieve() asks the kernel once, and gives a VM that starts over the same session", () => {
  const { fake, restoration, now } = arrived();
  const session = restoration.retrieve("vm0");
  assert.equal(restoration.retrieve("vm0"), session);
  const first = now();
  restoration.running("vm0", first);
  assert.equal(restoration.retrieve("vm0"), session);
  assert.equal(fake.calls.filter((call) => call === "retrieveSession").length, 1);
  // Its second start is no part of the update's blackout.
  assert.equal(restoration.running("vm0", now()), first - PAUSED_AT_NS);
});

test("retrieve() tries again, and fails with ENOENT, EBUSY and EINVAL as documented", () => {
  const { fake, device, restoration } = arrived();
  let left = 2;
  fake.fails = (call) => (call === "retrieveSession" && left-- > 0 ? "ENOMEM" : null);
  restoration.retrieve("vm0");
  fails("ENOENT", () => restoration.retrieve("vm9"), /did not carry a VM "vm9"/);
  fake.incoming.delete("vm1");
  fails("ENOENT", () => restoration.retrieve("vm1"));
  device.retrieve("vm2");
  fails("EBUSY", () => restoration.retrieve("vm2"), /must hand it in/);
  restoration.abandon("vm0");
  fails("EINVAL", () => restoration.retrieve("vm0"), /abandoned already/);
});

test("admit() takes in a VM that no journal names, whose blackout is not known", () => {
  const { fake, device, restoration, takeOut, now } = arrived();
  fails("EEXIST", () => restoration.admit({ name: "vm0", ownerUid: null, pausedAtNs: 0 }));
  const lost = new Restoration(fake.host, device, []);
  fails("ENOENT", () => lost.retrieve("vm1"));
  lost.admit({ name: "vm1", ownerUid: 1000, pausedAtNs: 0 });
  takeOut(lost.retrieve("vm1"));
  assert.equal(lost.running("vm1", now()), null);
  lost.finish("vm1");
  assert.deepEqual([fake.finished, fake.discarded], [["vm1"], []]);
});

test("isGone() tells a session that ended from one that is there or that another process holds", () => {
  const { fake, device, restoration } = arrived();
  assert.equal(restoration.isGone("vm0"), false);
  assert.deepEqual([restoration.vm("vm0")?.state, fake.openSessions], ["retrieved", 1]);
  const held = device.retrieve("vm1");
  assert.equal(restoration.isGone("vm1"), false);
  assert.equal(restoration.vm("vm1")?.state, "waiting");
  fake.host.close(held);
  assert.equal(restoration.isGone("vm1"), true);
  assert.equal(restoration.vm("vm1")?.state, "finished");
  fake.fails = (call) => (call === "retrieveSession" ? "EMFILE" : null);
  fails("EMFILE", () => restoration.isGone("vm2"));
  assert.equal(restoration.vm("vm2")?.state, "waiting");
  fails("ENOENT", () => restoration.isGone("vm9"));
});

test("adopt() takes a session that is handed in, and finish() ends it", () => {
  const { fake, device, records, takeOut, now } = arrived();
  // The agent before this one retrieved it; the VM holds a copy.
  const copy = device.retrieve("vm1");
  takeOut(copy);
  const restoration = new Restoration(fake.host, device, records, ["vm0"]);
  assert.deepEqual(states(restoration), ["finished", "waiting", "waiting"]);
  restoration.adopt("vm1", copy);
  assert.equal(restoration.retrieve("vm1"), copy);
  restoration.running("vm1", now());
  restoration.finish("vm1");
  assert.deepEqual([fake.finished, fake.discarded, fake.openSessions], [["vm1"], [], 0]);
});

test("adopt() refuses what is not the retrieved session of that VM, and does not close it", () => {
  const { fake, device, restoration } = arrived();
  const [memfd, other] = [fake.host.memfdCreate("x", 0), device.retrieve("vm2")];
  const outgoing = device.create("vm0");
  const session = device.retrieve("vm1");
  const { openFiles } = fake;
  fails("ENOTTY", () => restoration.adopt("vm0", memfd));
  fails("EBADF", () => restoration.adopt("vm0", 99));
  fails("EINVAL", () => restoration.adopt("vm0", other), /it is session "vm2"/);
  fails("EINVAL", () => restoration.adopt("vm0", outgoing), /goes to the next kernel/);
  fails("ENOENT", () => restoration.adopt("vm9", session));
  restoration.adopt("vm1", session);
  fails("EEXIST", () => restoration.adopt("vm1", fake.host.dup(session)), /is here already/);
  assert.equal(fake.openFiles, openFiles + 1);
  assert.deepEqual(states(restoration), ["waiting", "retrieved", "waiting"]);
});

test("running() fails with EINVAL without a session, and at a time when the VM cannot have run", () => {
  const { restoration, now } = arrived();
  fails("EINVAL", () => restoration.running("vm0", now()), /nobody has retrieved/);
  restoration.retrieve("vm0");
  for (const atNs of [PAUSED_AT_NS - 1, now() + 1e9, Number.NaN, Number.POSITIVE_INFINITY, -1])
    fails("EINVAL", () => restoration.running("vm0", atNs), /cannot have run at/);
  assert.equal(restoration.vm("vm0")?.state, "retrieved");
  assert.equal(restoration.running("vm0", PAUSED_AT_NS), 0);
});

test("running() does without a blackout when the clock began anew and has passed the old one's time", () => {
  const { fake, device, now } = arrived();
  fake.bootedAtNs = 0;
  const restoration = new Restoration(fake.host, device, [
    { name: "vm0", ownerUid: null, pausedAtNs: 1 },
  ]);
  restoration.retrieve("vm0");
  assert.equal(restoration.running("vm0", now()), null);
});

test("running() does without a blackout when the clock did not go on through the jump", () => {
  const { fake, device, now } = arrived();
  const records = [{ name: "vm0", ownerUid: null, pausedAtNs: 1e12 }];
  const restoration = new Restoration(fake.host, device, records);
  restoration.retrieve("vm0");
  fails("EINVAL", () => restoration.running("vm0", now() + 1e9));
  assert.equal(restoration.running("vm0", now()), null);
  restoration.finish("vm0");
});

test("finish() fails with EBUSY for a VM that has not said that it runs, and loses nothing", () => {
  const { fake, restoration, takeOut, now } = arrived();
  fails("EBUSY", () => restoration.finish("vm0"), /is waiting/);
  takeOut(restoration.retrieve("vm0"));
  fails("EBUSY", () => restoration.finish("vm0"), /is retrieved/);
  restoration.running("vm0", now());
  let attempts = 0;
  fake.fails = (call) => (call === "finish" && ++attempts > 0 ? "EBUSY" : null);
  fails("EBUSY", () => restoration.finish("vm0"), /injected/);
  assert.deepEqual([attempts, restoration.vm("vm0")?.state, fake.openSessions], [3, "running", 1]);
  fake.fails = () => null;
  restoration.finish("vm0");
  fails("EINVAL", () => restoration.finish("vm0"), /finished already/);
  assert.deepEqual([fake.discarded, fake.openSessions], [[], 0]);
});

test("abandon() frees what a VM left, retrieved or not, but not one that runs", () => {
  const { fake, restoration, now } = arrived();
  restoration.abandon("vm0");
  restoration.retrieve("vm1");
  restoration.abandon("vm1");
  restoration.retrieve("vm2");
  restoration.running("vm2", now());
  fails("EBUSY", () => restoration.abandon("vm2"), /"vm2" runs: /);
  assert.deepEqual(states(restoration), ["abandoned", "abandoned", "running"]);
  assert.deepEqual([fake.discarded, fake.openSessions], [["vm0", "vm1"], 1]);
});

test("abandon() that fails keeps the session for another attempt", () => {
  const { fake, restoration } = arrived();
  for (const failing of ["retrieveSession", "finish"]) {
    fake.fails = (call) => (call === failing ? "ENOMEM" : null);
    fails("ENOMEM", () => restoration.abandon("vm0"));
    assert.ok(fake.incoming.has("vm0"));
  }
  fake.fails = () => null;
  restoration.abandon("vm0");
  assert.deepEqual(fake.discarded, ["vm0"]);
  assert.equal(fake.calls.filter((call) => call === "retrieveSession").length, 4);
});

test("rebuild() and swap() are for VMs with an iommufd, and are tried again", () => {
  const { fake, restoration } = arrived();
  const vm = (...kinds: string[]) =>
    ({
      resources: () => kinds.map((kind) => ({ kind })),
      rebuild: () => fake.vmCall("rebuild"),
      swap: () => fake.vmCall("swap"),
    }) as unknown as RestoredVm;
  const start = fake.calls.length;
  restoration.rebuild(vm("memory", "state"));
  restoration.swap(vm("memory", "state"));
  assert.equal(fake.calls.length, start);
  let left = 2;
  fake.fails = () => (left-- > 0 ? "ENOMEM" : null);
  restoration.rebuild(vm("memory", "iommufd"));
  restoration.swap(vm("memory", "iommufd"));
  assert.deepEqual(fake.calls.slice(start), ["rebuild", "rebuild", "rebuild", "swap"]);
});
