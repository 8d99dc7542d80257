/**
 * What goes wrong around updates of a real Linux: agents and VMMs that are killed at every phase, kernels that are refused, a
 * device that is missing or taken, a disk that is full, a next kernel without live update.
 *
 * One machine, one test after the other, and each leaves the host as it found it: two VMs that run and know every byte of
 * their memory. Processes die at points of their own code (guest/killed-at.ts), not at times.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { StatusResult } from "../../src/agent/control/protocol.ts";
import {
  AGENT,
  holdfastIn,
  killedAt,
  listening,
  Operator,
  SOCKET,
  testVm,
  vmEvent,
} from "./agent-host.ts";
import type { Program } from "./guest/orders.ts";
import type { GuestProcess } from "./guest-process.ts";
import { LinuxMachine, programAt, skipReason } from "./rig.ts";

const VMS = ["vm0", "vm1"];
const MEMORY = "16M";
const TIMEOUT_SECONDS = 60;
const TIMEOUT_MS = 60_000;
const STATUS_POLL_MS = 250;

describe("around an update of Linux", { skip: skipReason() }, () => {
  let machine: LinuxMachine;
  let operator: Operator;
  let agent: GuestProcess;
  const vms = new Map<string, GuestProcess>();

  before(async () => {
    machine = await LinuxMachine.start();
    operator = await Operator.start(machine);
  });
  after(() => machine?.close());

  async function startAgent(program: Program = AGENT): Promise<void> {
    agent = await machine.spawn(program.argv, program);
    await listening(agent);
  }

  async function startVm(name: string, program: Program = testVm(name, MEMORY)): Promise<void> {
    vms.set(name, await machine.spawn(program.argv, program));
  }

  function vm(name: string): GuestProcess {
    const process = vms.get(name);
    assert(process !== undefined);
    return process;
  }

  /** Waits until the agent's status is as it should be. */
  async function status(
    what: string,
    holds: (status: StatusResult) => boolean,
  ): Promise<StatusResult> {
    for (const end = Date.now() + TIMEOUT_MS; ; await sleep(STATUS_POLL_MS)) {
      const found = await operator.status();
      if (holds(found)) return found;
      if (Date.now() > end) machine.fail(`not ${what}: ${JSON.stringify(found)}`);
    }
  }

  /** Waits until both VMs run, and the agent has nothing left to do. */
  const allRun = () =>
    status(
      "both VMs run",
      ({ activity, vms }) =>
        activity === "idle" &&
        vms.map(({ name, state }) => `${name} ${state}`).join() === "vm0 running,vm1 running",
    );

  /** Every byte of each VM is what it should be, at this moment, and its guest writes. */
  async function allIntact(): Promise<void> {
    for (const name of VMS) {
      await vm(name).signal("SIGUSR2");
      const { damagedPages, writes } = await vmEvent(vm(name), "verified");
      assert.equal(damagedPages, 0, name);
      await vm(name).signal("SIGUSR2");
      assert((await vmEvent(vm(name), "verified")).writes > writes, `${name} writes`);
    }
  }

  /** An update that must fail. @returns why */
  async function refused(fields: Readonly<Record<string, unknown>> = {}) {
    const outcome = await operator.call("update", { timeoutSeconds: TIMEOUT_SECONDS, ...fields });
    assert(outcome.error !== null, `it was not refused: ${JSON.stringify(outcome)}`);
    return outcome.error;
  }

  /** What a `holdfast agent` says that cannot start. */
  async function agentFails(...options: readonly string[]): Promise<string> {
    const outcome = await machine.run(holdfastIn("agent", ...options));
    assert.equal(outcome.status, 1, outcome.stdout);
    return outcome.stderr;
  }

  /** Jumps, whatever becomes of the agent's connection. */
  async function jump(): Promise<void> {
    const ended = operator.call("update", { timeoutSeconds: TIMEOUT_SECONDS }).then(
      ({ error }) => machine.fail(`the update failed: ${JSON.stringify(error)}`),
      () => undefined,
    );
    await Promise.race([machine.booted(TIMEOUT_MS), ended.then(() => machine.booted(TIMEOUT_MS))]);
    vms.clear();
    operator = await Operator.start(machine);
  }

  describe("an agent does not start", () => {
    test("without its device, and says what the kernel lacks", async () => {
      await machine.order("rename", "/dev/liveupdate", "/dev/elsewhere");
      assert.match(await agentFails(), /there is no \/dev\/liveupdate: /);
      await machine.order("rename", "/dev/elsewhere", "/dev/liveupdate");
    });

    test("beside another one, and names it", async () => {
      await startAgent();
      const holder = new RegExp(`/dev/liveupdate has one opener .*pid ${agent.pid} `);
      assert.match(await agentFails("--socket", "/run/other.sock"), holder);
      assert.match(await agentFails(), /EADDRINUSE/);
      assert.equal(agent.end, null);
    });
  });

  describe("an update that is refused changes nothing:", () => {
    before(async () => {
      for (const name of VMS) await startVm(name);
      await allRun();
    });

    test("the image is none", async () => {
      await machine.writeFile("/tmp/garbage", "MZ no kernel\n");
      const { code, message } = await refused({ target: { kernel: "/tmp/garbage", initrd: null } });
      assert.equal(code, "EINVAL");
      assert.match(message, /\/tmp\/garbage is neither .* nor a Linux bzImage/);
    });

    test("the image is one that kexec_file_load(2) refuses", async () => {
      const path = `/boot/vmlinuz-${machine.boot.release}`;
      await machine.run(["node", "-e", REFUSED_IMAGE, path, "/tmp/vmlinuz-refused"]);
      const { code, message } = await refused({
        target: { kernel: "/tmp/vmlinuz-refused", initrd: null },
      });
      assert.match(code, /^(ENOEXEC|EOPNOTSUPP|EINVAL)$/, message);
      assert.match(message, /vmlinuz-refused|kexec_file_load/);
    });

    test("the next kernel would have no live update", async () => {
      const commandLine = machine.boot.commandLine.replace("liveupdate=on", "");
      const { code, message } = await refused({ target: { commandLine } });
      assert.equal(code, "EOPNOTSUPP");
      assert.match(message, /liveupdate=on/);
    });

    test("the agent's state cannot be written", async () => {
      await agent.kill();
      await machine.order("mkdir", "/run/full");
      await machine.order("mount", "tmpfs", "/run/full", "tmpfs", "size=16k");
      await startAgent({ argv: holdfastIn("agent", "--json", "--state", "/run/full/state.json") });
      await allRun();
      await machine.run(["node", "-e", FILL_DISK, "/run/full/filler"]);
      const { code, message } = await refused();
      assert.equal(code, "ENOSPC", message);
      await machine.order("remove", "/run/full/filler");
    });

    after(async () => {
      await allRun();
      await allIntact();
      await agent.kill();
      await machine.order("umount", "/run/full");
    });
  });

  /** Where it dies, and what its VMs do about it. */
  const BEFORE_THE_JUMP: readonly (readonly [when: string, point: string, undone: string[]])[] = [
    ["before anything is done", "src/agent/agent#Agent.preflight:before", []],
    ["when the kernel is loaded", "src/linux/linux-host#LinuxHost.kexecFileLoad:after", []],
    [
      "when one VM was asked to preserve",
      "src/agent/control/remote-vm#RemoteVm.preserve:after",
      ["unpreserved"],
    ],
    [
      "when all VMs are preserved",
      "src/agent/control/remote-vm#RemoteVm.pause:before",
      ["unpreserved"],
    ],
    [
      "when all VMs are paused",
      "src/linux/linux-host#LinuxHost.reboot:before",
      ["resumed", "unpreserved"],
    ],
  ];

  describe("an agent that is killed", () => {
    for (const [i, [when, point, undone]] of BEFORE_THE_JUMP.entries())
      test(`${when} leaves VMs that run and nothing that is in the way`, async () => {
        // It is the recovery of the one before, too.
        await startAgent(killedAt(AGENT, point));
        const { notes } = await allRun();
        if (i > 0) assert.match(notes.join(), /ended in an update: it did not happen/);
        await allIntact();
        const { result, error } = await operator.call("update", {
          timeoutSeconds: TIMEOUT_SECONDS,
        });
        assert.deepEqual({ result, error }, { result: null, error: null });
        assert.equal((await agent.ended()).signal, "SIGKILL");
        assert.match(agent.stderr, new RegExp(`killed at ${point}`));
        for (const event of undone) await vmEvent(vm("vm0"), event as "resumed" | "unpreserved");
      });

    test("has left no session", async () => {
      const probe = programAt("tests/linux/guest/session-names.ts", "holdfast-agent", ...VMS);
      const { stdout, stderr } = await machine.run(probe);
      assert.equal(stderr, "");
      assert.deepEqual(JSON.parse(stdout), {
        create: [null, null, null],
        retrieve: ["ENOENT", "ENOENT", "ENOENT"],
      });
    });
  });

  describe("a VMM that is killed", () => {
    before(() => startAgent());

    for (const [when, point] of [
      ["while it preserves", "src/vmm/memory-vm#MemoryVm.preserve:after"],
      ["while it pauses", "src/vmm/memory-vm#MemoryVm.pause:before"],
      ["when it has paused", "src/vmm/memory-vm#MemoryVm.pause:after"],
    ] as const)
      test(`${when} ends the update, which names it; the other VM runs on`, async () => {
        await vm("vm1").kill();
        await startVm("vm1", killedAt(testVm("vm1", MEMORY), point));
        await allRun();
        const { code, message } = await refused();
        assert.equal(code, "ECONNRESET");
        assert.match(message, /the VMM of vm1 .* is gone/);
        assert.equal((await vm("vm1").ended()).signal, "SIGKILL");
        await startVm("vm1");
        await allRun();
        await allIntact();
      });
  });

  describe("after the jump", () => {
    before(async () => {
      await jump();
    });

    test("an agent that is killed before it has written the journal down loses no VM", async () => {
      const point = "src/agent/control/state-file#StateFile.write:before";
      const { argv, env = {} } = killedAt(AGENT, point);
      const first = await machine.run(argv, { env });
      assert.equal(first.signal, "SIGKILL");
      await startAgent(killedAt(AGENT, "src/agent/restoration#Restoration.running:before"));
    });

    test("one that is killed when a VM runs again is followed by one that goes on", async () => {
      for (const name of VMS) await startVm(name);
      assert.equal((await agent.ended()).signal, "SIGKILL");
      await startAgent(killedAt(AGENT, "src/agent/restoration#Restoration.finish:before"));
      assert.equal((await agent.ended()).signal, "SIGKILL");
      await startAgent(killedAt(AGENT, "src/agent/restoration#Restoration.finish:after"));
      assert.equal((await agent.ended()).signal, "SIGKILL");
      await startAgent();
      for (const name of VMS)
        assert.equal((await vmEvent(vm(name), "verified")).damagedPages, 0, name);
      await allRun();
      await allIntact();
    });
  });

  describe("a service manager that has the socket and keeps descriptors", () => {
    let manager: GuestProcess;

    before(async () => {
      await jump();
      const [, main, ...args] = AGENT.argv;
      await machine.order("mkdir", "/run/holdfast");
      manager = await machine.spawn(
        programAt("tests/linux/guest/service-manager.ts", SOCKET, main, ...args),
      );
      await manager.line(/"manages"/);
      manager.write("start\n");
      await manager.line(/READY=1/);
    });

    test("keeps a VM's session while neither its VMM nor the agent lives", async () => {
      const point = "src/vmm/memory-vm#MemoryVm.restore:before";
      await startVm("vm0", killedAt(testVm("vm0", MEMORY), point));
      await manager.line(/"notified":\["FDSTORE=1","FDNAME=session-vm0"\],"descriptors":1/);
      assert.equal((await vm("vm0").ended()).signal, "SIGKILL");
      await status("vm0 waits again", ({ vms }) => vms[0]?.state === "incoming");
      manager.write("kill\n");
      await manager.line(/"exit":"SIGKILL","stored":\["session-vm0"\]/);
      manager.write("start\n");
      await manager.line(/READY=1/);
      for (const name of VMS) await startVm(name);
      for (const name of VMS)
        assert.equal((await vmEvent(vm(name), "verified")).damagedPages, 0, name);
      await manager.line(/FDSTOREREMOVE=1/);
      await allRun();
    });

    test("lets clients connect while no agent runs", async () => {
      manager.write("kill\n");
      await manager.line(/"exit":"SIGKILL","stored":\[\]/);
      const call = operator.call("status");
      await sleep(STATUS_POLL_MS);
      manager.write("start\n");
      assert.notEqual((await call).result, null);
      await allRun();
      await allIntact();
    });

    after(() => {
      manager.write("kill\n");
    });
  });

  describe("a next kernel that was booted without live update", () => {
    test("has the memory and cannot reach it: the agent says why and what to do", async () => {
      const [, preload] = programAt("tests/linux/guest/without-liveupdate.ts");
      const [node, ...args] = AGENT.argv;
      await machine.order("remove", SOCKET);
      await startAgent({ argv: [node, "--import", preload, ...args] });
      await allRun();
      await jump();
      assert.equal(await machine.order("stat", "/dev/liveupdate"), null);
      const message = await agentFails();
      assert.match(message, /there is no \/dev\/liveupdate: .*liveupdate/);
      await startVm("vm0");
      await vmEvent(vm("vm0"), "problem");
    });
  });
});

/** A copy of a kernel without xloadflags: no 64-bit kernel to kexec_file_load(2). */
const REFUSED_IMAGE = `
const { readFileSync, writeFileSync } = require("node:fs");
const image = readFileSync(process.argv[1]);
image[0x236] = 0;
writeFileSync(process.argv[2], image);
`;

const FILL_DISK = `
const { openSync, writeSync } = require("node:fs");
const fd = openSync(process.argv[1], "w");
try { for (;;) writeSync(fd, Buffer.alloc(1024)); } catch (error) { if (error.code !== "ENOSPC") throw error; }
`;
