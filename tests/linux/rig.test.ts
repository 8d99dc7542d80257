/**
 * The rig itself: what the other tests rely on when they say that something did not happen.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { type ClockReading, clockError, readClock } from "./clock-reading.ts";
import { LinuxMachine, OrderError, programAt, skipReason } from "./rig.ts";

const SLEEPER = ["node", "-e", "setInterval(() => {}, 1000)"];

describe("a Linux that takes orders", { skip: skipReason() }, () => {
  let machine: LinuxMachine;
  let clockAtFirst: ClockReading;

  before(async () => {
    machine = await LinuxMachine.start({ services: [{ name: "sleeper", argv: SLEEPER }] });
    clockAtFirst = await readClock(machine);
  });
  after(() => machine?.close());

  test("runs programs, as a user, with input and environment, and tells all that they print", async () => {
    const script = [
      "console.log(process.getuid(), process.getgid(), process.getgroups().join(), process.env.WORD);",
      "console.error('told');",
      "process.stdin.once('data', (text) => { console.log(String(text).trim()); process.exit(3); });",
    ].join("\n");
    const options = { uid: 12, gid: 34, env: { WORD: "größer" } };
    const program = await machine.spawn(["node", "-e", script], options);
    await program.line(/^12 34 34 größer$/);
    const [own] = (await machine.order("processes")).filter(({ pid }) => pid === program.pid);
    assert.equal(own.uid, 12);
    program.write("heard\n");
    await program.line(/^heard$/);
    assert.deepEqual(await program.ended(), { code: 3, signal: null, withKernel: false });
    assert.equal(program.stderr, "told\n");
  });

  test("sends signals, and says what a program that was killed died of", async () => {
    const program = await machine.spawn(SLEEPER);
    assert.equal((await program.kill()).signal, "SIGKILL");
    const left = await machine.order("processes");
    assert.equal(
      left.find(({ pid }) => pid === program.pid),
      undefined,
    );
  });

  test("reads, writes, moves and removes files; an order that fails has its errno", async () => {
    await machine.writeFile("/tmp/one", "content");
    await machine.order("rename", "/tmp/one", "/tmp/two");
    assert.equal(await machine.readFile("/tmp/two"), "content");
    assert.equal((await machine.order("stat", "/tmp/two"))?.sizeBytes, 7);
    await machine.order("remove", "/tmp/two");
    assert.equal(await machine.order("stat", "/tmp/two"), null);
    await assert.rejects(
      machine.readFile("/tmp/two"),
      (error) => error instanceof OrderError && error.code === "ENOENT",
    );
    assert.equal((await machine.order("stat", "/dev/liveupdate"))?.kind, "device");
  });

  test("says what was waited for in vain, with the end of the console", async () => {
    const sleeper = machine.boot.services.get("sleeper");
    assert(sleeper !== undefined);
    await assert.rejects(
      sleeper.line(/never/, "stdout", 50),
      /no line \/never\/ of sleeper.*console/s,
    );
    const program = await machine.spawn(["node", "-e", "console.log('something else')"]);
    await assert.rejects(
      program.line(/never/),
      /ended without printing \/never\/.*something else/s,
    );
  });

  test("boots again when it jumps: every process has ended, the services are started anew", async () => {
    const sleeper = machine.boot.services.get("sleeper");
    machine.send("spawn", { argv: programAt("tests/linux/guest/jump-program.ts", "word=2") });
    const boot = await machine.booted();
    assert.equal(boot.number, 2);
    assert.match(boot.commandLine, /word=2/);
    assert.deepEqual(sleeper?.end, { code: null, signal: null, withKernel: true });
    assert.equal(boot.services.get("sleeper")?.end, null);
    assert.match(machine.console(), /KHO: found kexec handover data/);
  });

  test("has a clock that goes on through the kexec, and is one for all processes of a boot", async (context) => {
    assert.equal(clockAtFirst.bootedAtNs, 0);
    assert.match(machine.boot.commandLine, /holdfast\.clock=(tsc|realtime):\d+:\d+:\d+$/);
    const [now, again] = [await readClock(machine), await readClock(machine)];
    assert.equal(again.bootedAtNs, now.bootedAtNs);
    assert.equal(now.commandLine, `${clockAtFirst.commandLine} word=2`, "without the parameter");
    const { passedNs, leastNs, mostNs, offNs, slackNs } = clockError(clockAtFirst, now);
    const seconds = (ns: number) => (ns / 1e9).toFixed(3);
    context.diagnostic(
      `${now.kernelSource}, ${now.clockSource}: ${seconds(passedNs)} s passed, by the test's clock ${seconds(leastNs)} to ${seconds(mostNs)} s`,
    );
    assert.ok(offNs <= slackNs, `${offNs} ns off, ${slackNs} allowed`);
    assert.ok(now.bootedAtNs > clockAtFirst.nowNs && now.bootedAtNs < now.nowNs);
  });

  test("is known to have ended when its kernel has", async () => {
    machine.send("reset");
    await machine.ended();
    await assert.rejects(machine.order("processes"), /the machine ended/);
  });
});
