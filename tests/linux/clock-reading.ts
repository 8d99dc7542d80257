/**
 * What the clock of a guest's boot reads, beside the test's own, which no kexec stops.
 * @module
 */
import { type LinuxMachine, programAt } from "./rig.ts";

const CLOCK = programAt("tests/linux/guest/clock-program.ts");
/** What an RTC that counts seconds may add in a boot. */
const REALTIME_SLACK_NS = 2e9;
/** A kernel measures its TSC against a timer when it boots, here an emulated one. */
const RATE_SLACK = 2e-3;

export interface ClockReading {
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
export async function readClock(machine: LinuxMachine): Promise<ClockReading> {
  const program = await machine.spawn(CLOCK);
  await program.line(/^ready$/);
  const from = performance.now() * 1e6;
  program.write("\n");
  const [line] = await program.line(/^{.*}$/);
  const to = performance.now() * 1e6;
  await program.kill();
  return { ...JSON.parse(line), from, to };
}

/** How far the guest's clock went off between two readings with a jump between them, in nanoseconds; and what of it is allowed. */
export function clockError(first: ClockReading, now: ClockReading) {
  const passedNs = now.nowNs - first.nowNs;
  const [leastNs, mostNs] = [now.from - first.to, now.to - first.from];
  return {
    passedNs,
    leastNs,
    mostNs,
    offNs: Math.max(leastNs - passedNs, passedNs - mostNs, 0),
    slackNs: mostNs * RATE_SLACK + (now.clockSource === "tsc" ? 0 : REALTIME_SLACK_NS),
  };
}
