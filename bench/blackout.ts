/**
 * (e) The blackout of the live machine, phase by phase: the demo, run as anyone runs it, in a process of its own.
 * @module
 */
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { assert } from "../src/base/assert.ts";
import type { DemoResult } from "../src/cli/demo/result.ts";
import { median } from "./measure.ts";
import type { Row } from "./report.ts";

const UPDATES = 9;
/** What lies between a guest's last step in one kernel and its first in the next. */
const PHASES = ["pause", "freeze", "stop", "scribble", "enter", "boot", "restore"];

export async function blackoutRows(): Promise<Row[]> {
  const result = await runDemo();
  const all = result.vms.flatMap((vm) => vm.blackoutMs);
  const row = (name: string, values: readonly number[]): Row => ({
    name,
    value: `${median(values).toFixed(1)} ms`,
    against: `${Math.min(...values).toFixed(1)} to ${Math.max(...values).toFixed(1)}`,
    ratio: median(values) / median(all),
    limit: "",
    holds: null,
  });
  return [
    ...PHASES.map((name) =>
      row(
        name,
        result.phases.filter((phase) => phase.name === name).map((phase) => phase.ms),
      ),
    ),
    row(`blackout of a VM (${all.length} in ${result.updates} updates)`, all),
  ];
}

async function runDemo(): Promise<DemoResult> {
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  const main = fileURLToPath(new URL(`../src/cli/main.${extension}`, import.meta.url));
  const args = [...process.execArgv, main, "demo", "--json", "--updates", String(UPDATES)];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (piece: string) => {
    text += piece;
  });
  const status = await new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  assert(status === 0, `the demo ended with ${status}`);
  return JSON.parse(text) as DemoResult;
}
