/**
 * (e) The blackout of the live machine, phase by phase: the demo, run as anyone runs it, in a process of its own; on our
 * hardware, and on QEMU's.
 * @module
 */
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { assert } from "../src/base/assert.ts";
import type { DemoOptions } from "../src/cli/demo/machines.ts";
import type { DemoResult } from "../src/cli/demo/result.ts";
import { median } from "./measure.ts";
import type { Row } from "./report.ts";

const UPDATES = 9;
/** What lies between a guest's last step in one kernel and its first in the next. */
const PHASES = ["pause", "freeze", "stop", "scribble", "enter", "boot", "restore"];

/** @param withQemu - beside QEMU's hardware */
export async function blackoutRows(withQemu: boolean): Promise<Row[]> {
  const embedded = timesOf(await runDemo("embedded"));
  const qemu = withQemu ? timesOf(await runDemo("qemu")) : null;
  return [...embedded].map(([name, values]) => {
    const others = qemu?.get(name);
    return {
      name,
      value: spread(values),
      against: others === undefined ? "" : `QEMU ${spread(others)}`,
      ratio: others === undefined ? null : median(others) / median(values),
      limit: "",
      holds: null,
    };
  });
}

/** By phase, and in all. */
function timesOf(result: DemoResult): Map<string, readonly number[]> {
  const times = new Map<string, readonly number[]>();
  for (const name of PHASES)
    times.set(
      name,
      result.phases.filter((phase) => phase.name === name).map((phase) => phase.ms),
    );
  return times.set(
    `blackout of a VM (${result.vms.length} in ${result.updates} updates)`,
    result.vms.flatMap((vm) => vm.blackoutMs),
  );
}

function spread(values: readonly number[]): string {
  return `${median(values).toFixed(1)} ms (${Math.min(...values).toFixed(1)} to ${Math.max(...values).toFixed(1)})`;
}

async function runDemo(machine: NonNullable<DemoOptions["machine"]>): Promise<DemoResult> {
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  const main = fileURLToPath(new URL(`../src/cli/main.${extension}`, import.meta.url));
  const options = ["--json", "--machine", machine, "--updates", String(UPDATES)];
  const args = [...process.execArgv, main, "demo", ...options];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (piece: string) => {
    text += piece;
  });
  const status = await new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  assert(status === 0, `the demo on ${machine} ended with ${status}`);
  return JSON.parse(text) as DemoResult;
}
