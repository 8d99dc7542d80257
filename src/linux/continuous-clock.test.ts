import assert from "node:assert/strict";
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import type { BootCounter } from "./boot-counter.ts";
import { type ClockOptions, ContinuousClock, hideClock } from "./continuous-clock.ts";

const HZ = 2_400_000_000;

let folder = "";
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "holdfast-clock-"));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** A machine whose time passes when it is told to; its kernel's clock begins with each boot. */
class FakeMachine {
  nowNs = 5e12;
  bootNs = 0;
  /** When the TSC was 0. */
  resetNs = 0;
  boot = 0;
  readonly counters: readonly [BootCounter, ...BootCounter[]] = [
    { name: "tsc", read: () => Math.round(((this.nowNs - this.resetNs) * HZ) / 1e9) },
    { name: "realtime", read: () => 1.7e18 + this.nowNs },
  ];

  pass(ns: number): void {
    this.nowNs += ns;
  }

  /** The next kernel boots; what the last one left in memory's file systems is gone. */
  kexec(): void {
    this.boot++;
    this.bootNs = this.nowNs;
    rmSync(join(folder, "clock"), { force: true });
  }

  clock(options: Partial<ClockOptions> = {}): ContinuousClock {
    return new ContinuousClock({
      counters: this.counters,
      monotonicNs: () => this.nowNs - this.bootNs,
      sleep: (ns) => this.pass(ns),
      folder,
      commandLine: "",
      bootId: `boot${this.boot}`,
      ...options,
    });
  }
}

test("a first boot's clock is CLOCK_MONOTONIC", () => {
  const machine = new FakeMachine();
  const clock = machine.clock({ commandLine: "quiet" });
  machine.pass(123);
  assert.equal(clock.nowNs(), 5e12 + 123);
  assert.equal(clock.bootedAtNs, 0);
  assert.equal(clock.source, "tsc");
});

for (const name of ["tsc", "realtime"] as const)
  test(`the clock goes on through five kexecs by ${name}`, () => {
    const machine = new FakeMachine();
    const counters = machine.counters.filter((counter) => counter.name === name);
    const options = { counters: counters as [BootCounter] };
    let clock = machine.clock(options);
    let commandLine = "";
    for (let i = 0; i < 5; i++) {
      machine.pass(3e9);
      commandLine = `quiet ${clock.parameter()} panic=1`;
      machine.pass(20e9);
      machine.kexec();
      machine.pass(4e9);
      clock = machine.clock({ ...options, commandLine });
      assert.equal(clock.source, name);
      const errorNs = clock.nowNs() - machine.nowNs;
      assert.ok(Math.abs(errorNs) < 2000, `${errorNs} ns off after ${i + 1} kexecs`);
      assert.ok(Math.abs(clock.bootedAtNs - machine.bootNs) < 2000);
    }
  });

test("the frequency is measured over at least 200 ms", () => {
  const machine = new FakeMachine();
  const clock = machine.clock();
  machine.pass(1e6);
  const startNs = machine.nowNs;
  assert.equal(clock.parameter().split(":")[3], `${HZ}`);
  assert.equal(machine.nowNs - startNs, 199e6);
  clock.parameter();
  assert.equal(machine.nowNs - startNs, 199e6, "and then at once");
});

test("all processes of a boot have the clock of the first", () => {
  const machine = new FakeMachine();
  const parameter = machine.clock().parameter();
  machine.pass(1e9);
  machine.kexec();
  machine.pass(1e9);
  const first = machine.clock({ commandLine: parameter });
  machine.pass(50e9);
  // Its own sum would differ: the TSC seems to have drifted.
  machine.resetNs += 1e6;
  const second = machine.clock({ commandLine: parameter });
  assert.equal(second.bootedAtNs, first.bootedAtNs);
  assert.deepEqual(readdirSync(folder), ["clock"]);
  // The file of another boot does not count, and is replaced.
  machine.boot++;
  const third = machine.clock({ commandLine: parameter });
  assert.notEqual(third.bootedAtNs, first.bootedAtNs);
  assert.equal(machine.clock().bootedAtNs, third.bootedAtNs);
});

test("a folder that cannot be written leaves each process its own clock", () => {
  const machine = new FakeMachine();
  const parameter = machine.clock().parameter();
  machine.pass(1e9);
  machine.kexec();
  const blocked = join(folder, "file");
  writeFileSync(blocked, "");
  // ENOTDIR is no lack of privileges: it is told.
  assert.throws(() => machine.clock({ folder: blocked, commandLine: parameter }));
  const own = machine.clock({ folder: "/proc/holdfast", commandLine: parameter });
  assert.ok(Math.abs(own.bootedAtNs - machine.bootNs) < 2000);
});

test("a folder that another process has just made is no error", () => {
  const machine = new FakeMachine();
  // Not there to whoever looks, and there to whoever makes it.
  const link = join(folder, "link");
  symlinkSync(join(folder, "nowhere"), link);
  assert.equal(machine.clock({ folder: link }).bootedAtNs, 0);
});

test("what a process with the same number has left is in nobody's way", () => {
  const machine = new FakeMachine();
  const left = join(folder, `clock.${process.pid}`);
  writeFileSync(left, "");
  assert.equal(machine.clock().bootedAtNs, 0);
  assert.deepEqual(readdirSync(folder), [`clock.${process.pid}`]);
});

test("garbage on the command line or in the file gives a fresh clock", () => {
  const machine = new FakeMachine();
  machine.clock();
  machine.kexec();
  machine.pass(10e9);
  const countNow = machine.counters[0].read();
  const good = [`tsc`, `${countNow - 60 * HZ}`, "100000000000", `${HZ}`];
  const bad = [
    "",
    "tsc",
    "1:2:3",
    ["hpet", ...good.slice(1)].join(":"),
    [good[0], "-5", ...good.slice(2)].join(":"),
    [good[0], `${countNow + HZ}`, ...good.slice(2)].join(":"),
    // Less has passed since then than since the boot.
    [good[0], `${countNow - HZ}`, ...good.slice(2)].join(":"),
    [good[0], good[1], "9999999999999999", good[3]].join(":"),
    [good[0], good[1], "1e5", good[3]].join(":"),
    [...good.slice(0, 3), "0"].join(":"),
    [...good.slice(0, 3), "999999"].join(":"),
    [...good.slice(0, 3), "999999999999"].join(":"),
    [...good, "1"].join(":"),
    good.join(","),
    "x".repeat(2000),
  ];
  const bootedAt = (value: string) => {
    rmSync(join(folder, "clock"), { force: true });
    return machine.clock({ commandLine: `a holdfast.clock=${value} b` }).bootedAtNs;
  };
  assert.equal(Math.round(bootedAt(good.join(":")) / 1e9), 150);
  for (const value of bad) assert.equal(bootedAt(value), 0, `"${value}"`);
  // The last one counts, as for the kernel.
  assert.equal(bootedAt(`x holdfast.clock=${good.join(":")}`) > 0, true);
  assert.equal(bootedAt(`${good.join(":")} holdfast.clock=x`), 0);

  for (const text of ["", "{", "null", "[]", "7", '{"bootId":"boot1"}', "\0".repeat(100)]) {
    writeFileSync(join(folder, "clock"), text);
    assert.equal(machine.clock().bootedAtNs, 0, text);
    assert.equal(JSON.parse(readFileSync(join(folder, "clock"), "utf8")).bootId, "boot1");
  }
  for (const bootedAtNs of [-1, 0.5, "7", 1e300, null]) {
    writeFileSync(join(folder, "clock"), JSON.stringify({ bootId: "boot1", bootedAtNs }));
    assert.equal(machine.clock().bootedAtNs, 0, String(bootedAtNs));
  }
});

test("two processes that are the first at the same time agree", () => {
  const machine = new FakeMachine();
  const path = join(folder, "clock");
  let reads = 0;
  // While this one finds its own, another one writes its file.
  const counter: BootCounter = {
    name: "tsc",
    read() {
      if (++reads === 40) writeFileSync(path, JSON.stringify({ bootId: "boot0", bootedAtNs: 77 }));
      return machine.counters[0].read();
    },
  };
  const commandLine = `holdfast.clock=tsc:0:1000:${HZ}`;
  assert.equal(machine.clock({ counters: [counter], commandLine }).bootedAtNs, 77);
  assert.ok(reads >= 40);
  assert.deepEqual(readdirSync(folder), ["clock"]);
});

test("the folder is made when it is missing", () => {
  const machine = new FakeMachine();
  const inner = join(folder, "holdfast");
  machine.clock({ folder: inner });
  assert.deepEqual(readdirSync(inner), ["clock"]);
});

test("hideClock() takes the parameter out of a command line, and nothing else", () => {
  assert.equal(hideClock("quiet holdfast.clock=tsc:1:2:3 panic=1"), "quiet panic=1");
  assert.equal(hideClock("holdfast.clock=tsc:1:2:3 quiet"), "quiet");
  assert.equal(hideClock("quiet holdfast.clock="), "quiet");
  assert.equal(hideClock("a holdfast.clock=1 b holdfast.clock=2"), "a b");
  const others = "xholdfast.clock=1 holdfast.clocks=1 holdfast.clock  x";
  assert.equal(hideClock(others), others);
});
