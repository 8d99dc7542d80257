/**
 * The host's clock goes on through kexecs of a real kernel. The judge is the test's own clock, which no kexec stops.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { LinuxMachine, programAt, skipReason } from "./rig.ts";

const CLOCK = programAt("tests/linux/guest/clock-program.ts");
const JUMP = programAt("tests/linux/guest/jump-program.ts");
const JUMPS = 1;
/** What an RTC that counts seconds may add in each boot. */
const REALTIME_SLACK_NS = 2e9;
/** A kernel measures its TSC against a timer when it boots, here an emulated one. */
const RATE_SLACK = 2e-3;

interface Reading {
  readonly nowNs: number;
  readonly bootedAtNs: number;
  readonly clockSource: "tsc" | "realtime";
  readonly kernelSource: string;
  readonly commandLine: string;
  /** The test's clock before and after it. */
  readonly from: number;
  readonly to: number;
}

/** By a process of its own: the clock is the boot's, not the process's. */
async function read(machine: LinuxMachine): Promise<Reading> {
  const program = await machine.spawn(CLOCK);
  await program.line(/^ready$/);
  const from = performance.now() * 1e6;
  program.write("\n");
  const [line] = await program.line(/^{.*}$/);
  const to = performance.now() * 1e6;
  await program.kill();
  return { ...JSON.parse(line), from, to };
}

test("the clock of a host goes on through kexecs, and is one for all processes of a boot", {
  skip: skipReason(),
}, async (context) => {
  const machine = await LinuxMachine.start();
  try {
    const first = await read(machine);
    assert.equal(first.bootedAtNs, 0);
    for (let jump = 1; jump <= JUMPS; jump++) {
      machine.send("spawn", { argv: JUMP });
      const boot = await machine.booted();
      assert.match(boot.commandLine, /holdfast\.clock=(tsc|realtime):\d+:\d+:\d+$/);
      const [now, again] = [await read(machine), await read(machine)];
      assert.equal(now.commandLine, first.commandLine, "the parameter is not shown");
      assert.equal(again.bootedAtNs, now.bootedAtNs);
      const passedNs = now.nowNs - first.nowNs;
      const [least, most] = [now.from - first.to, now.to - first.from];
      const slackNs =
        most * RATE_SLACK + (now.clockSource === "tsc" ? 0 : jump * REALTIME_SLACK_NS);
      const offNs = Math.max(least - passedNs, passedNs - most, 0);
      context.diagnostic(
        `jump ${jump}: ${now.kernelSource}, ${now.clockSource}: ${(passedNs / 1e9).toFixed(3)} s passed, ` +
          `by the test's clock ${(least / 1e9).toFixed(3)} to ${(most / 1e9).toFixed(3)} s`,
      );
      assert.ok(offNs <= slackNs, `${offNs} ns off, ${slackNs} allowed`);
      assert.ok(now.bootedAtNs > first.nowNs && now.bootedAtNs < now.nowNs);
    }
  } finally {
    machine.close();
  }
});
