/**
 * Real updates: Linux replaced by Linux, by `holdfast update`, five times in a row, under VMs that write all the time.
 *
 * Each VM is a process that knows every byte of its memory; after each jump it is started anew and proves all of it, in 4 KiB
 * pages and in huge ones. Times are the machine's own, of an emulated processor.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import type { StatusResult } from "../../src/agent/control/protocol.ts";
import { GIB, MIB } from "../../src/base/units.ts";
import { decodeStatus } from "../../src/cli/control/agent-results.ts";
import type { TestVmEvent } from "../../src/cli/testvm/test-vm.ts";
import { AGENT, holdfastIn, listening, testVm, vmEvent } from "./agent-host.ts";
import type { GuestProcess } from "./guest-process.ts";
import { jumpTimes, PHASE_NAMES, renderTimes, timesOf, type UpdateTimes } from "./phase-table.ts";
import { LinuxMachine, skipReason } from "./rig.ts";

const UPDATES = 5;
const VMS = [
  { name: "vm0", memoryBytes: 384 * MIB, options: [] },
  { name: "vm1", memoryBytes: 384 * MIB, options: [] },
  { name: "vm2", memoryBytes: 256 * MIB, options: ["--huge"] },
] as const;
const HUGE_BYTES = 256 * MIB;
/** Guest memory, twice what the kernel keeps free for the next one's boot, and the processes. */
const RAM_BYTES = 3 * GIB;
/** On two busy cores a boot takes half a minute, and 1 GiB is compared in as much. */
const TIMEOUT_MS = 240_000;

type Verified = Extract<TestVmEvent, { event: "verified" }>;

/** What was seen of one update. */
interface Seen {
  readonly verified: readonly Verified[];
  readonly retrieved: readonly Extract<TestVmEvent, { event: "retrieved" }>[];
  readonly status: StatusResult;
  readonly hugeBytes: number;
  readonly command: GuestProcess;
}

describe("five updates of Linux under three VMs with 1 GiB of memory", {
  skip: skipReason(),
}, () => {
  let machine: LinuxMachine;
  let hugeBytesAtFirst: number;
  const seen: Seen[] = [];
  const times: UpdateTimes[] = [];

  const vmOf = (name: string): GuestProcess => {
    const vm = machine.boot.services.get(name);
    assert(vm !== undefined);
    return vm;
  };
  const inAllVms = <T>(action: (vm: GuestProcess) => Promise<T>): Promise<T[]> =>
    Promise.all(VMS.map(({ name }) => action(vmOf(name))));

  before(async () => {
    machine = await LinuxMachine.start({
      ramBytes: RAM_BYTES,
      kernelParameters: "transparent_hugepage_shmem=advise",
      services: [
        AGENT,
        ...VMS.map(({ name, memoryBytes, options }) =>
          testVm(name, `${memoryBytes / MIB}M`, ...options),
        ),
      ],
    });
    await inAllVms((vm) => vmEvent(vm, "started", TIMEOUT_MS));
    hugeBytesAtFirst = await hugeBytes(machine);
    for (let update = 1; update <= UPDATES; update++) await updateOnce();
  });
  after(() => machine?.close());

  async function updateOnce(): Promise<void> {
    const oldBootAtNs =
      seen.at(-1)?.status.phases.find(({ name }) => name === "boot")?.startNs ?? 0;
    const command = await machine.spawn(holdfastIn("update", "--json"));
    await Promise.race([
      machine.booted(TIMEOUT_MS),
      command.ended(TIMEOUT_MS).then(({ withKernel, code }) => {
        if (!withKernel && code !== 0) machine.fail(`the update failed: ${command.describe()}`);
        return machine.booted(TIMEOUT_MS);
      }),
    ]);
    const agent = machine.boot.services.get("agent");
    assert(agent !== undefined);
    await listening(agent);
    const retrieved = await inAllVms((vm) => vmEvent(vm, "retrieved", TIMEOUT_MS));
    const running = await inAllVms((vm) => vmEvent(vm, "running", TIMEOUT_MS));
    const verified = await inAllVms((vm) => vmEvent(vm, "verified", TIMEOUT_MS));
    // An agent finishes a session as soon as its guest runs; the guest's memory is compared meanwhile.
    await inAllVms((vm) => vm.seen(/"event":"finished"/, TIMEOUT_MS));
    const status = decodeStatus(JSON.parse((await succeed("status", "--json")).stdout));
    seen.push({ verified, retrieved, status, hugeBytes: await hugeBytes(machine), command });
    times.push(
      timesOf({
        oldBootAtNs,
        startingNs: jumpTimes(machine.console()).at(-1) ?? Number.NaN,
        phases: status.phases,
        retrievedAtNs: retrieved.map(({ atNs }) => atNs),
        runningAtNs: running.map(({ atNs }) => atNs),
        blackoutNs: status.vms.map(({ blackoutNs }) => blackoutNs ?? Number.NaN),
      }),
    );
  }

  /** Runs a command that must end well. */
  async function succeed(...args: readonly string[]) {
    const outcome = await machine.run(holdfastIn(...args), {}, TIMEOUT_MS);
    assert.equal(outcome.status, 0, `holdfast ${args[0]}: ${outcome.stderr}${outcome.stdout}`);
    return outcome;
  }

  test("leave every byte of every VM as it was, each time", () => {
    assert.equal(seen.length, UPDATES);
    for (const [i, { verified }] of seen.entries())
      assert.deepEqual(
        verified.map(({ vm, bytes, damagedPages }) => ({ vm, bytes, damagedPages })),
        VMS.map(({ name, memoryBytes }) => ({ vm: name, bytes: memoryBytes, damagedPages: 0 })),
        `update ${i + 1}`,
      );
  });

  test("find the guests at the write at which they stood, and the guests write on", () => {
    let before = VMS.map(() => 0);
    for (const { retrieved, verified } of seen) {
      for (const [i, { writes }] of retrieved.entries()) {
        assert(writes >= before[i], `${VMS[i].name} goes on from ${writes}, not from ${before[i]}`);
        assert(verified[i].writes > writes, `${VMS[i].name} writes while it is verified`);
      }
      before = verified.map(({ writes }) => writes);
    }
  });

  test("keep huge pages huge", () => {
    assert(hugeBytesAtFirst >= HUGE_BYTES, `${hugeBytesAtFirst} bytes in huge pages at first`);
    for (const { hugeBytes } of seen) assert(hugeBytes >= HUGE_BYTES, `${hugeBytes}`);
  });

  test("are counted, and leave nothing to restore and nothing to note", () => {
    for (const [i, { status }] of seen.entries()) {
      assert.equal(status.updates, i + 1);
      assert.equal(status.activity, "idle");
      assert.deepEqual(status.notes, []);
      assert.deepEqual(
        status.vms.map(({ name, state, problem }) => ({ name, state, problem })),
        VMS.map(({ name }) => ({ name, state: "running", problem: null })),
      );
    }
  });

  test("tell the operator of each phase; the last of it may end with the kernel", () => {
    const phases = ["preflight", "load", "preserve", "pause", "reboot"];
    for (const { command } of seen) {
      const told = new Set(
        command.stdout.split("\n").flatMap((line) => /"name":"(\w+)"/.exec(line)?.[1] ?? []),
      );
      assert.deepEqual([...told], phases.slice(0, told.size));
      assert(told.size >= 3, command.describe());
    }
  });

  test("are told phase by phase on one clock, which goes on through them", (t) => {
    for (const line of ["milliseconds, on an emulated processor:", ...renderTimes(times)])
      t.diagnostic(line);
    for (const [i, update] of times.entries()) {
      for (const name of PHASE_NAMES)
        assert(update[name] >= 0, `${name} of ${i + 1}: ${update[name]}`);
      // All that lies between a guest's last write and its first is in these phases, and nothing else of length.
      const parts = ["pause", "freeze", "kexec", "boot", "retrieve", "first write"] as const;
      const sum = parts.reduce((total, name) => total + update[name], 0);
      assert(update.blackout <= sum + 1, `${update.blackout} ms in ${sum} ms`);
      assert(update.blackout >= sum - update.pause - 1, `${update.blackout} ms in ${sum} ms`);
    }
  });

  test("are over when `holdfast restore` says so", async () => {
    assert.match((await succeed("restore")).stdout, /3 VMs/);
  });

  test("end where kexec is disabled: the sixth is refused, says why, and the VMs run on", async () => {
    await machine.writeFile("/proc/sys/kernel/kexec_load_disabled", "1");
    const { status, stderr } = await machine.run(holdfastIn("update", "--json"));
    assert.equal(status, 1);
    assert.match(stderr, /kexec_load_disabled is 1/);
    for (const { name } of VMS) await vmOf(name).signal("SIGUSR2");
    const verified = await inAllVms((vm) => vmEvent(vm, "verified", TIMEOUT_MS));
    assert.deepEqual(
      verified.map(({ damagedPages }) => damagedPages),
      [0, 0, 0],
    );
  });

  test("leave Linux nothing to complain about", () => {
    const complaint = /\bWARNING:|\bBUG:|\bOops\b|\b(KHO|luo|memfd_luo):.*(fail|invalid)/i;
    const complaints = machine
      .console()
      .split("\n")
      .filter((line) => complaint.test(line));
    assert.deepEqual(complaints, []);
  });
});

/** In huge pages of shared memory. */
async function hugeBytes(machine: LinuxMachine): Promise<number> {
  const meminfo = await machine.readFile("/proc/meminfo");
  return Number(/^ShmemHugePages: *(\d+) kB$/m.exec(meminfo)?.[1]) * 1024;
}
