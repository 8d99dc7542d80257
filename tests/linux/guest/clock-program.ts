/**
 * Tells, for every line that it is given, what the clock of this boot reads, what carries it through a kexec, and by what the
 * kernel keeps time.
 * @module
 */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { LinuxHost } from "../../../src/linux/linux-host.ts";

const CLOCKSOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

const host = new LinuxHost();
console.log("ready");
createInterface({ input: process.stdin }).on("line", () => {
  const { bootedAtNs, clockSource, commandLine } = host;
  const kernelSource = readFileSync(CLOCKSOURCE, "utf8").trim();
  const reading = { nowNs: host.clockNs(), bootedAtNs, clockSource, kernelSource, commandLine };
  console.log(JSON.stringify(reading));
});
