import assert from "node:assert/strict";
import { test } from "node:test";
import { type ErrnoCode, isKernelError, KernelError } from "../base/errno.ts";
import type { Host } from "../host/host.ts";
import { preserveFd } from "../host/liveupdate.ts";
import { MemfdRecord } from "../host/memfd-record.ts";
import type { Pending, Resource, ResourceKind, RestoredVm } from "../vmm/managed-vm.ts";
import { Agent } from "./agent.ts";
import { AGENT_SESSION, JOURNAL_TOKEN, type PhaseRecord } from "./journal.ts";
import { FakeHost, Jumped } from "./test-rig.ts";

const IMAGE = "/boot/next";
const TARGET = { kernel: IMAGE, initrd: null, commandLine: "quiet liveupdate=on" };
const RESTORES = ["kho-v4", "luo-v5", "memfd-v2", "toy-v1"];

/** A VM of one memfd, and of an iommufd that it only says it has. */
class ToyVm implements RestoredVm {
  readonly name: string;
  ownerUid: number | null = null;
  readonly fake: FakeHost;
  readonly #host: Host;
  readonly fd: number;
  running = true;
  hasIommufd = true;
  blocker: string | null = null;
  /** What of undoing fails. */
  stuck: "unpreserve" | "resume" | null = null;
  /** What was begun with it. */
  readonly story: string[] = [];

  constructor(fake: FakeHost, name: string) {
    this.name = name;
    this.fake = fake;
    this.#host = fake.host;
    this.fd = this.#host.memfdCreate(name, 0);
  }

  resources(): Resource[] {
    const { blocker } = this;
    const state = { label: "toy", bytes: 0, compatibles: ["toy-v1"], blocker, essential: true };
    const iommufd = { ...state, label: "chain", blocker: null, essential: false };
    return this.hasIommufd
      ? [
          { kind: "state", ...state },
          { kind: "iommufd", ...iommufd },
        ]
      : [{ kind: "state", ...state }];
  }
  preserve(session: number, without: readonly ResourceKind[]): Pending {
    this.story.push(["preserve", ...without].join(" without "));
    this.fake.vmCall(`preserve ${this.name}`);
    preserveFd(this.#host, session, this.fd, 7n);
    return () => this.fake.vmCall(`wait for preserve ${this.name}`);
  }
  unpreserve(): void {
    this.#undo("unpreserve");
  }
  pause(): Pending {
    this.story.push("pause");
    this.running = false;
    this.fake.vmCall(`pause ${this.name}`);
    return () => this.fake.vmCall(`wait for pause ${this.name}`);
  }
  resume(): void {
    this.#undo("resume");
    this.running = true;
  }
  #undo(what: string): void {
    this.fake.undone.push(`${what} ${this.name}`);
    if (this.stuck === what) throw new KernelError("ETIMEDOUT", what, `${this.name} hangs`);
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
  fake.hasIommu = true;
  fake.handlers.add("iommufd");
  fake.images.set(
    IMAGE,
    JSON.stringify({ format: 1, name: "next", release: "next-1", restores: RESTORES }),
  );
  const phases: PhaseRecord[] = [];
  const agent = Agent.start(fake.host, (phase) => phases.push(phase));
  const vms = names.map((name) => new ToyVm(fake, name));
  const update = () => agent.update(vms, TARGET, { userData: { mine: 1 } });
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
  assert.deepEqual(fake.loaded, TARGET);
  assert.deepEqual([...fake.outgoing.keys()], [AGENT_SESSION, "vm0", "vm1"]);
  assert.deepEqual(
    fake.calls.filter((call) => /pause vm/.test(call)),
    ["pause vm0", "pause vm1", "wait for pause vm0", "wait for pause vm1"],
    "all are told to stop before any is waited for",
  );
  assert.deepEqual(
    fake.calls.filter((call) => /preserve vm/.test(call)),
    ["preserve vm0", "preserve vm1", "wait for preserve vm0", "wait for preserve vm1"],
  );
  assert.deepEqual(
    phases.map((phase) => phase.name),
    ["preflight", "load", "preserve", "pause"],
  );
  assert.ok(phases.every((phase) => phase.update === 1 && phase.endNs >= phase.startNs));
  assert.equal(agent.updates, 1);
  // The journal is complete before the jump, and after the last pause.
  const order = fake.calls;
  assert.ok(order.lastIndexOf("pwrite") > order.lastIndexOf("wait for pause vm1"));
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
    // What the probe of the kernel meets is a reason why something cannot be preserved.
    const isProbe =
      call === "open /dev/iommu" || (call === "preserveFd" && i < calls.indexOf("kexecFileLoad"));
    assert.throws(update, fails(isProbe ? "EOPNOTSUPP" : "EIO", /injected/), when);
    fake.fails = () => null;
    assert.equal(fake.outgoing.size, 0, when);
    assert.equal(fake.loaded, null, when);
    assert.equal(fake.openFiles, openFiles, when);
    // Whatever began is undone, once and in reverse, also what was not waited for.
    const begun = vms.flatMap(({ name, story }) => story.map((what) => `${what} ${name}`));
    const undoing = ["resume vm1", "resume vm0", "unpreserve vm1", "unpreserve vm0"].filter(
      (what) => begun.includes(what.replace("resume", "pause").replace("unpreserve", "preserve")),
    );
    assert.deepEqual(fake.undone.splice(0), undoing, when);
    assert.ok(
      vms.every((vm) => vm.running),
      when,
    );
    for (const vm of vms) vm.story.length = 0;
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

test("update() fails with EAGAIN, and unloads, when the kernel or its initrd is replaced while it is looked at", () => {
  const initrd = "/boot/initrd.img";
  for (const path of [IMAGE, initrd])
    for (const replace of ["another inode", "another size"]) {
      const { fake, agent, vms } = hostWithVms("vm0");
      fake.images.set(initrd, "initrd");
      fake.fails = (call) => {
        if (call !== "kexecFileLoad") return null;
        if (replace === "another inode") fake.inodes.set(path, 2);
        else fake.images.set(path, `${fake.images.get(path)} `);
        return null;
      };
      const update = () => agent.update(vms, { ...TARGET, initrd });
      assert.throws(update, fails("EAGAIN", /was replaced/), `${path}: ${replace}`);
      assert.equal(fake.loaded, null);
      assert.ok(!fake.calls.some((call) => call.startsWith("preserve vm")));
      fake.fails = () => null;
      assert.throws(update, Jumped);
    }
});

test("update() that fails undoes all VMs, also when undoing one of them fails, and says so", () => {
  for (const stuck of ["unpreserve", "resume"] as const) {
    const { fake, agent, vms, update } = hostWithVms("vm0", "vm1", "vm2");
    const { openFiles } = fake;
    vms[1].stuck = stuck;
    fake.fails = (call) => (call === "reboot" ? "EIO" : null);
    assert.throws(
      update,
      fails("EIO", new RegExp(`injected; not undone: vm1: ${stuck}: .*vm1 hangs$`)),
    );
    assert.deepEqual(
      fake.undone,
      ["resume", "unpreserve"].flatMap((what) =>
        ["vm2", "vm1", "vm0"].map((vm) => `${what} ${vm}`),
      ),
    );
    assert.deepEqual([fake.loaded, fake.outgoing.size, fake.openFiles], [null, 0, openFiles]);
    assert.equal(agent.updates, 0);
  }
});

test("update() tells VMs what they are to do without", () => {
  const { fake, agent, vms } = hostWithVms("vm0", "vm1");
  fake.hasIommu = false;
  assert.throws(
    () => agent.update(vms, TARGET),
    fails("EOPNOTSUPP", /vm0: iommufd chain: it cannot be preserved: .*without "iommufd"/),
  );
  assert.deepEqual(vms[0].story, []);
  assert.throws(() => agent.update(vms, TARGET, { without: ["iommufd"] }), Jumped);
  for (const { story } of vms) assert.deepEqual(story, ["preserve without iommufd", "pause"]);
});

test("update() writes down who owns a VM, when it stopped, and when the kernel was left", () => {
  const { fake, vms, update } = hostWithVms("vm0", "vm1");
  vms[1].ownerUid = 1000;
  assert.throws(update, Jumped);
  const journal = Agent.takeOver(fake.afterJump().host, () => {})?.journal;
  assert.deepEqual(
    journal?.vms.map(({ name, ownerUid }) => [name, ownerUid]),
    [
      ["vm0", null],
      ["vm1", 1000],
    ],
  );
  const [first, second] = journal?.vms ?? [];
  const pause = journal?.phases.at(-1);
  assert.ok(pause && journal.rebootAtNs !== null);
  assert.ok(pause.startNs < first.pausedAtNs && first.pausedAtNs < second.pausedAtNs);
  assert.ok(second.pausedAtNs < pause.endNs && pause.endNs < journal.rebootAtNs);
});

test("an update of many VMs has room for them in the journal from the start", () => {
  const names = Array.from({ length: 2500 }, (_, i) => `${i}`.padStart(63, "n"));
  const { fake } = jump(names);
  const journal = Agent.takeOver(fake.host, () => {})?.journal;
  assert.deepEqual(
    journal?.vms.map(({ name }) => name),
    names,
  );
});

test("update() is refused while VMs of the last one have not come back", () => {
  const { fake } = jump(["vm0", "vm1"]);
  const taken = Agent.takeOver(fake.host, () => {});
  assert.ok(taken !== null);
  const { agent, journal } = taken;
  const restoration = agent.beginRestoration(journal);
  restoration.retrieve("vm0");
  restoration.running("vm0", fake.host.clockNs());
  const vms = [new ToyVm(fake, "vm0")];
  assert.deepEqual(agent.preflight(vms, TARGET).blockers, [
    "vm0: its session of the last update is not finished yet",
    "vm1: it has not come back from the last update, and the next one would lose it: let it come back, or abandon it",
  ]);
  restoration.finish("vm0");
  restoration.abandon("vm1");
  assert.deepEqual(agent.preflight(vms, TARGET).blockers, []);
  assert.throws(() => agent.update(vms, TARGET), Jumped);
  assert.equal(agent.updates, 2);
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
      assert.ok(vm.running && blackoutNs !== null && blackoutNs > 0);
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

test("takeOver() finishes the journal's session only once the journal is kept elsewhere", () => {
  const { fake } = jump(["vm0"]);
  let kept: unknown = null;
  const taken = Agent.takeOver(
    fake.host,
    () => {},
    (journal) => {
      kept = journal;
      throw new KernelError("ENOSPC", "write", "the disk is full");
    },
  );
  assert.ok(taken !== null);
  assert.equal(kept, taken.journal);
  assert.equal(taken.unkept?.code, "ENOSPC");
  assert.deepEqual([fake.finished, fake.openSessions], [[], 1]);
  taken.agent.keepJournal();
  assert.deepEqual([fake.finished, fake.discarded, fake.openSessions], [[AGENT_SESSION], [], 0]);
  taken.agent.keepJournal();
  assert.deepEqual(fake.finished, [AGENT_SESSION]);
});

test("takeOver() tells the jump as two phases where the kernel's clock has a beginning", () => {
  const { before, fake } = jump(["vm0"]);
  const jumpedAtNs = fake.host.clockNs();
  fake.bootedAtNs = jumpedAtNs + 500;
  const seen: PhaseRecord[] = [];
  const taken = Agent.takeOver(fake.host, (phase) => seen.push(phase));
  assert.deepEqual(
    seen.map(({ update, name }) => [update, name]),
    [
      [1, "reboot"],
      [1, "boot"],
    ],
  );
  const [reboot, boot] = seen;
  assert.ok(reboot.startNs === taken?.journal.rebootAtNs && reboot.startNs < jumpedAtNs);
  assert.deepEqual([reboot.endNs, boot.startNs], [fake.bootedAtNs, fake.bootedAtNs]);
  assert.ok(boot.endNs > boot.startNs);
  assert.deepEqual(taken?.agent.phases, [...before.phases, reboot, boot]);

  // A clock that began anew says nothing about the jump.
  const { fake: other } = jump(["vm0"]);
  other.bootedAtNs = 1;
  Agent.takeOver(other.host, () => assert.fail("no phase"));
});

test("start() goes on from the journal that an agent before it has kept", () => {
  const { fake } = jump(["vm0"]);
  const journal = Agent.takeOver(fake.host, () => {})?.journal;
  assert.ok(journal);
  const other = new FakeHost();
  const agent = Agent.start(other.host, () => {}, journal);
  assert.deepEqual([agent.updates, agent.phases], [1, journal.phases]);
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
  const file = fake.incoming.get(AGENT_SESSION)?.files.get(JOURNAL_TOKEN);
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
    assert.deepEqual([...fake.incoming.keys()], ["vm0"], "the VM is still there");
  }
});

test("takeOver() refuses a journal of a format that it does not know, by name", () => {
  for (const [journal, message] of [
    [{ format: "holdfast-journal-v9" }, /journal\.format is "holdfast-journal-v9"/],
    [null, /journal is null/],
    [[], /journal is a list of 0/],
  ] as const) {
    const other = new FakeHost();
    const fd = other.host.memfdCreate("journal", 0);
    MemfdRecord.create<unknown>(other.host, fd, 4096, journal);
    const { fake } = jump(["vm0"]);
    const file = fake.incoming.get(AGENT_SESSION)?.files.get(JOURNAL_TOKEN);
    assert.ok(file);
    file.bytes = new Uint8Array(8192);
    other.host.pread(fd, file.bytes, 0);
    assert.throws(() => Agent.takeOver(fake.host, () => {}), fails("EIO", message));
    assert.equal(fake.openFiles, 0);
  }
});

test("takeOver() that fails at any call leaves nothing open, and loses no VM", () => {
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
    assert.ok(fake.incoming.has("vm0"), call);
    // Closing a session that was retrieved ends it: there is no second look at what could not be read.
    const isRetrieved = call === "retrieveFd" || call === "finish";
    assert.equal(
      Agent.takeOver(fake.host, () => {})?.journal.update,
      isRetrieved ? undefined : 1,
      call,
    );
  }
});

test("KernelError of a VM's step keeps its errno in the failure", () => {
  const { failures } = restoreWith((call) => (call === "step vm2" ? "EFAULT" : null));
  assert.ok(failures[0].error instanceof KernelError && failures[0].error.errno === -14);
});
