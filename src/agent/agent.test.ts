import assert from "node:assert/strict";
import { test } from "node:test";
import { type ErrnoCode, isKernelError, KernelError } from "../base/errno.ts";
import type { Host } from "../host/host.ts";
import { preserveFd } from "../host/liveupdate.ts";
import { MemfdRecord } from "../host/memfd-record.ts";
import { DONE, type Pending, type RestoredVm } from "../vmm/managed-vm.ts";
import { Agent } from "./agent.ts";
import { AGENT_SESSION, JOURNAL_TOKEN, type Journal, type PhaseRecord } from "./journal.ts";
import { FakeHost, Jumped } from "./test-rig.ts";

const IMAGE = "/boot/next";
const RESTORES = ["kho-v4", "luo-v5", "memfd-v2", "toy-v1"];

/** A VM of one memfd. */
class ToyVm implements RestoredVm {
  readonly name: string;
  readonly ownerUid = null;
  readonly fake: FakeHost;
  readonly #host: Host;
  readonly fd: number;
  running = true;
  blocker: string | null = null;
  /** What was done to it, by whom. */
  readonly story: string[] = [];

  constructor(fake: FakeHost, name: string) {
    this.name = name;
    this.fake = fake;
    this.#host = fake.host;
    this.fd = this.#host.memfdCreate(name, 0);
  }

  resources() {
    const { blocker } = this;
    const resource = {
      kind: "state",
      label: "toy",
      bytes: 0,
      compatibles: ["toy-v1"],
      blocker,
      essential: true,
    } as const;
    return [resource];
  }
  preserve(session: number): Pending {
    preserveFd(this.#host, session, this.fd, 7n);
    return DONE;
  }
  unpreserve(): void {
    this.story.push("unpreserve");
  }
  pause(): Pending {
    this.fake.vmCall(`pause ${this.name}`);
    this.running = false;
    return DONE;
  }
  resume(): void {
    this.running = true;
  }
  step(): boolean {
    this.fake.vmCall(`step ${this.name}`);
    return this.running;
  }
  rebuild(): void {
    this.fake.vmCall(`rebuild ${this.name}`);
  }
  swap(): void {
    this.fake.vmCall(`swap ${this.name}`);
  }
}

/** A host with an agent and VMs, about to be updated. */
function hostWithVms(...names: string[]) {
  const fake = new FakeHost();
  fake.images.set(
    IMAGE,
    JSON.stringify({ format: 1, name: "next", release: "next-1", restores: RESTORES }),
  );
  const phases: PhaseRecord[] = [];
  const agent = Agent.start(fake.host, (phase) => phases.push(phase));
  const vms = names.map((name) => new ToyVm(fake, name));
  const update = () => agent.update(vms, IMAGE, "quiet", { mine: 1 });
  return { fake, agent, vms, phases, update };
}

/** The next kernel, and what its agent has to go by. */
function jump(names: readonly string[] = ["vm0", "vm1", "vm2"]) {
  const before = hostWithVms(...names);
  assert.throws(before.update, Jumped);
  return { before, fake: before.fake.afterJump() };
}

const fails =
  (code: ErrnoCode, message = /./) =>
  (error: unknown) =>
    isKernelError(error, code) && message.test(error.message);

test("update() preserves the journal and all VMs, pauses them, and jumps", () => {
  const { fake, agent, phases, update } = hostWithVms("vm0", "vm1");
  assert.throws(update, Jumped);
  assert.equal(fake.loaded, IMAGE);
  assert.deepEqual([...fake.outgoing.keys()], [AGENT_SESSION, "vm0", "vm1"]);
  assert.deepEqual(
    fake.calls.filter((call) => call.startsWith("pause")),
    ["pause vm0", "pause vm1"],
  );
  assert.deepEqual(
    phases.map((phase) => phase.name),
    ["preflight", "load", "preserve", "pause"],
  );
  assert.ok(phases.every((phase) => phase.update === 1 && phase.endNs >= phase.startNs));
  assert.equal(agent.updates, 1);
  // The journal is complete before the jump, and after the last pause.
  const order = fake.calls;
  assert.ok(order.lastIndexOf("pwrite") > order.lastIndexOf("pause vm1"));
  assert.equal(order.at(-1), "reboot");
});

test("update() that fails at any call leaves the host as it was, and the VMs run on", () => {
  const fresh = hostWithVms("vm0", "vm1");
  const start = fresh.fake.calls.length;
  assert.throws(fresh.update, Jumped);
  const calls = fresh.fake.calls.slice(start);
  for (const name of [
    `open ${IMAGE}`,
    "kexecFileLoad",
    "createSession",
    "memfdCreate",
    "ftruncate",
    "pwrite",
  ])
    assert.ok(calls.includes(name), `${name} is among the calls`);
  for (const [i, call] of calls.entries()) {
    const { fake, agent, vms, update } = hostWithVms("vm0", "vm1");
    const { openFiles } = fake;
    fake.fails = (_call, index) => (index === start + i ? "EIO" : null);
    const when = `call ${i}, ${call}`;
    assert.throws(update, fails("EIO", /injected/), when);
    fake.fails = () => null;
    assert.equal(fake.outgoing.size, 0, when);
    assert.equal(fake.loaded, null, when);
    assert.equal(fake.openFiles, openFiles, when);
    assert.ok(
      vms.every((vm) => vm.running),
      when,
    );
    assert.deepEqual([agent.updates, agent.phases], [0, []], when);
    assert.throws(update, Jumped, `the next attempt after ${when}`);
    assert.equal(agent.updates, 1, when);
  }
});

test("update() is refused with what preflight finds, before anything is loaded", () => {
  const { fake, vms, update } = hostWithVms("vm0", "vm1");
  vms[1].blocker = "busy with something";
  assert.throws(update, fails("EOPNOTSUPP", /vm1: state toy: busy with something/));
  assert.ok(!fake.calls.includes("kexecFileLoad"));
  assert.ok(!fake.calls.some((call) => call.startsWith("pause")));
  vms[1].blocker = null;
  assert.throws(update, Jumped);
});

test("takeOver() finds the journal of the agent before it, and restore() brings all VMs back", () => {
  const { before, fake } = jump();
  const taken = Agent.takeOver(fake.host, () => {});
  assert.ok(taken !== null);
  const { agent, journal } = taken;
  assert.equal(agent.updates, 1);
  assert.deepEqual(
    [journal.fromRelease, journal.toRelease, journal.userData],
    ["fake-1", "next-1", { mine: 1 }],
  );
  assert.deepEqual(
    journal.vms.map((vm) => vm.name),
    ["vm0", "vm1", "vm2"],
  );
  assert.deepEqual(journal.phases, before.phases);
  assert.deepEqual(fake.finished, [AGENT_SESSION]);
  const seen: string[] = [];
  const { vms, failures } = agent.restore(journal, {
    open: (_session, name) => {
      const vm = new ToyVm(fake, name);
      vm.running = false;
      return vm;
    },
    running: (vm, blackoutNs) => {
      assert.ok(vm.running && blackoutNs > 0);
      seen.push(vm.name);
    },
    runOthers: (running) => {
      for (const vm of running) vm.step();
    },
  });
  assert.deepEqual(failures, []);
  assert.deepEqual(seen, ["vm0", "vm1", "vm2"]);
  assert.equal(vms.length, 3);
  assert.equal(fake.incoming.size, 0);
  // /dev/liveupdate and the VMs' memfds; no session.
  assert.equal(fake.openFiles, 4);
  // All run before any is rebuilt.
  const work = fake.calls.filter((call) => /^(rebuild|swap)/.test(call) || call === "finish");
  assert.deepEqual(work, [
    "finish",
    ...["rebuild vm0", "rebuild vm1", "rebuild vm2", "swap vm0", "swap vm1", "swap vm2"],
    ...["finish", "finish", "finish"],
  ]);
  assert.ok(fake.calls.indexOf("step vm2") < fake.calls.indexOf("rebuild vm0"));
  assert.deepEqual(agent.finishLeft(), []);
});

/** Restores with these calls failing; each as often as it is tried. */
function restoreWith(fails: (call: string) => ErrnoCode | null) {
  const { fake } = jump();
  const taken = Agent.takeOver(fake.host, () => {});
  assert.ok(taken !== null);
  fake.fails = fails;
  const result = taken.agent.restore<ToyVm>(taken.journal, {
    open: (_session, name) => {
      fake.vmCall(`open ${name}`);
      return new ToyVm(fake, name);
    },
    running: () => {},
    runOthers: () => {},
  });
  fake.fails = () => null;
  return { fake, agent: taken.agent, ...result };
}

test("restore() with one VM that fails leaves the others", () => {
  for (const [failing, phase, attempts] of [
    ["open vm1", "restore", 1],
    ["step vm1", "restore", 1],
    ["rebuild vm1", "rebuild", 3],
    ["swap vm1", "swap", 3],
  ] as const) {
    const { fake, vms, failures } = restoreWith((call) => (call === failing ? "EIO" : null));
    assert.deepEqual(
      failures.map(({ vm, phase: where, error }) => [vm, where, error.code]),
      [["vm1", phase, "EIO"]],
      failing,
    );
    assert.equal(fake.calls.filter((call) => call === failing).length, attempts, failing);
    for (const name of ["vm0", "vm2"]) {
      assert.ok(fake.calls.includes(`swap ${name}`), `${failing}: ${name} is swapped`);
      assert.ok(fake.finished.includes(name), `${failing}: ${name} is finished`);
    }
    const runs = vms.map((vm) => vm.name);
    assert.deepEqual(runs, phase === "restore" ? ["vm0", "vm2"] : ["vm0", "vm1", "vm2"], failing);
    if (phase === "rebuild") assert.ok(!fake.calls.includes("swap vm1"));
  }
});

test("restore() of a VM whose session is not there fails for that VM alone", () => {
  const { fake } = jump();
  fake.incoming.delete("vm0");
  const taken = Agent.takeOver(fake.host, () => {});
  assert.ok(taken !== null);
  const { vms, failures } = taken.agent.restore<ToyVm>(taken.journal, {
    open: (_session, name) => new ToyVm(fake, name),
    running: () => {},
    runOthers: () => {},
  });
  assert.deepEqual([failures.length, failures[0].vm, failures[0].error.code], [1, "vm0", "ENOENT"]);
  assert.deepEqual(
    vms.map((vm) => vm.name),
    ["vm1", "vm2"],
  );
});

test("restore() tries again what may be tried again", () => {
  for (const call of ["rebuild vm2", "swap vm0", "finish", "retrieveSession"]) {
    let left = 2;
    const { vms, failures } = restoreWith((name) =>
      name === call && left-- > 0 ? "ENOMEM" : null,
    );
    assert.deepEqual([failures, vms.length], [[], 3], call);
  }
});

test("a session that cannot be finished is kept, and finishLeft() finishes it later", () => {
  const { fake, agent, failures } = restoreWith((call) => (call === "finish" ? "EBUSY" : null));
  assert.deepEqual(
    failures.map(({ vm, phase }) => [vm, phase]),
    ["vm0", "vm1", "vm2"].map((vm) => [vm, "finish"]),
  );
  const { openFiles } = fake;
  fake.fails = (call) => (call === "finish" ? "EBUSY" : null);
  assert.deepEqual(agent.finishLeft(), ["vm0", "vm1", "vm2"]);
  fake.fails = () => null;
  assert.deepEqual(agent.finishLeft(), []);
  assert.deepEqual(fake.finished, [AGENT_SESSION, "vm0", "vm1", "vm2"]);
  assert.equal(fake.openFiles, openFiles - 3);
});

test("a bug in a VM is not taken for a failure of the host", () => {
  assert.throws(
    () => {
      const { fake } = jump();
      const taken = Agent.takeOver(fake.host, () => {});
      taken?.agent.restore<ToyVm>(taken.journal, {
        open: () => {
          throw new TypeError("a bug");
        },
        running: () => {},
        runOthers: () => {},
      });
    },
    (error) => error instanceof TypeError,
  );
});

test("takeOver() tries again to finish the journal's session", () => {
  const { fake } = jump();
  let left = 2;
  fake.fails = (call) => (call === "finish" && left-- > 0 ? "ENOMEM" : null);
  assert.equal(Agent.takeOver(fake.host, () => {})?.journal.vms.length, 3);
  assert.deepEqual(fake.finished, [AGENT_SESSION]);
});

test("takeOver() returns null, and holds nothing, when no agent left a journal", () => {
  const fake = new FakeHost();
  assert.equal(
    Agent.takeOver(fake.host, () => {}),
    null,
  );
  assert.equal(fake.openFiles, 0);
  Agent.start(fake.host, () => {});
});

test("takeOver() fails when there is no /dev/liveupdate or when it is taken", () => {
  for (const code of ["ENOENT", "EBUSY"] as const) {
    const fake = new FakeHost();
    fake.fails = () => code;
    for (const begin of [Agent.start, Agent.takeOver])
      assert.throws(() => begin(fake.host, () => {}), fails(code));
  }
});

/** The next kernel, with a journal that somebody has changed. */
function jumpWithJournal(change: (bytes: Uint8Array) => void): FakeHost {
  const { fake } = jump(["vm0"]);
  const file = fake.incoming.get(AGENT_SESSION)?.get(JOURNAL_TOKEN);
  assert.ok(file);
  change(file.bytes);
  return fake;
}

test("takeOver() fails with EIO when the journal is damaged, and leaves nothing open", () => {
  for (const change of [
    (bytes: Uint8Array) => bytes.fill(0),
    (bytes: Uint8Array) => bytes.fill(0xff),
    // Both slots: one byte of the text each.
    (bytes: Uint8Array) => {
      bytes[40] ^= 1;
      bytes[bytes.length / 2 + 40] ^= 1;
    },
  ]) {
    const fake = jumpWithJournal(change);
    assert.throws(() => Agent.takeOver(fake.host, () => {}), fails("EIO"));
    assert.equal(fake.openFiles, 0);
    assert.deepEqual(fake.finished, [], "what it could not read it did not discard");
  }
});

test("takeOver() refuses a journal of a format that it does not know, by name", () => {
  const { fake } = jump(["vm0"]);
  const file = fake.incoming.get(AGENT_SESSION)?.get(JOURNAL_TOKEN);
  assert.ok(file);
  const other = new FakeHost();
  const fd = other.host.memfdCreate("journal", 0);
  for (const [journal, message] of [
    [{ format: "holdfast-journal-v9" }, /journal\.format is "holdfast-journal-v9"/],
    [null, /journal is null/],
    [[], /journal is \[\]/],
  ] as const) {
    MemfdRecord.create<unknown>(other.host, fd, 4096, journal);
    file.bytes = new Uint8Array(8192);
    other.host.pread(fd, file.bytes, 0);
    assert.throws(() => Agent.takeOver(fake.host, () => {}), fails("EIO", message));
    assert.equal(fake.openFiles, 0);
  }
});

test("takeOver() that fails at any call leaves nothing open, and does not lose the journal before it is read", () => {
  const { fake: whole } = jump(["vm0"]);
  Agent.takeOver(whole.host, () => {});
  for (const [i, call] of whole.calls.entries()) {
    const { fake } = jump(["vm0"]);
    // Finishing is tried again; only if that fails each time it is given up.
    fake.fails = (name, index) =>
      index === i || (call === "finish" && name === call) ? "EIO" : null;
    assert.throws(() => Agent.takeOver(fake.host, () => {}), fails("EIO"), call);
    assert.equal(fake.openFiles, 0, call);
    fake.fails = () => null;
    const taken = Agent.takeOver(fake.host, () => {});
    assert.equal((taken?.journal satisfies Journal | undefined)?.update, 1, call);
  }
});

test("KernelError of a VM's step keeps its errno in the failure", () => {
  const { failures } = restoreWith((call) => (call === "step vm2" ? "EFAULT" : null));
  assert.ok(failures[0].error instanceof KernelError && failures[0].error.errno === -14);
});
