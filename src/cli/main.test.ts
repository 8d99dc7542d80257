/** The command as a user starts it: what it prints where, and its exit status. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import type { DemoResult } from "./demo/result.ts";

const MAIN = fileURLToPath(
  new URL(import.meta.url.endsWith(".ts") ? "./main.ts" : "./main.js", import.meta.url),
);
/** Small and quick: one thread, virtual time. */
const QUICK = ["demo", "--seed", "1", "--updates", "1", "--vms", "1", "--memory", "8M"];

/** Starts the command the way these tests were started. */
function start(args: readonly string[], env: NodeJS.ProcessEnv = {}): ChildProcess {
  return spawn(process.execPath, [...process.execArgv, MAIN, ...args], {
    env: { ...process.env, HOLDFAST_DEBUG: "", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
}

interface Outcome {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

async function outcome(child: ChildProcess): Promise<Outcome> {
  const text = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const)
    child[name]?.setEncoding("utf8").on("data", (piece: string) => {
      text[name] += piece;
    });
  const [status, signal] = await once(child, "close");
  return { status, signal, ...text };
}

const run = (...args: string[]) => outcome(start(args));

/** Lines on standard error that this program has written, not Node. */
const said = ({ stderr }: Outcome) => stderr.split("\n").filter((line) => line !== "");

test("--version prints the package's version", async () => {
  const manifest = JSON.parse(readFileSync(new URL(packageUrl()), "utf8")) as { version: string };
  const { status, stdout, stderr } = await run("--version");
  assert.deepEqual(
    { status, stdout, stderr },
    { status: 0, stdout: `${manifest.version}\n`, stderr: "" },
  );
});

/** Of this package, whether compiled or not. */
function packageUrl(): string {
  const up = import.meta.url.endsWith(".ts") ? "../.." : "../../..";
  return new URL(`${up}/package.json`, import.meta.url).href;
}

test("help is there for the whole and for every command, on standard output, in both ways of asking", async () => {
  const whole = await run("--help");
  assert.equal(whole.status, 0);
  assert.equal(whole.stderr, "");
  const commands = [...whole.stdout.matchAll(/^ {2}([a-z]+) {2,}\S/gm)].map((match) => match[1]);
  assert.ok(commands.includes("demo") && commands.includes("help"), commands.join());
  assert.equal((await run("help")).stdout, whole.stdout);
  for (const command of commands.filter((name) => name !== "help")) {
    const [help, option] = await Promise.all([run("help", command), run(command, "--help")]);
    assert.equal(help.status, 0, command);
    assert.deepEqual(option, help, command);
    assert.match(help.stdout, new RegExp(`^Usage: holdfast ${command}\\b`, "m"), command);
    assert.match(help.stdout, /^Exit status: /m, command);
    for (const line of help.stdout.split("\n"))
      assert.ok(line.length <= 110, `${command}: ${line}`);
  }
});

test("without a command it shows the help on standard error and exits with 2", async () => {
  const { status, stdout, stderr } = await run();
  assert.equal(status, 2);
  assert.equal(stdout, "");
  assert.match(stderr, /^Usage: holdfast COMMAND/m);
});

test("a command line that is wrong gets a line that says what, a way out, and exit status 2", async () => {
  const cases: [args: string[], message: RegExp][] = [
    [["dmo"], /unknown command "dmo".*demo/],
    [["help", "dmo"], /unknown command "dmo"/],
    [["--frobnicate"], /unknown command/],
    [["demo", "--frobnicate"], /--frobnicate/],
    [["demo", "extra"], /extra/],
    [["demo", "--updates"], /--updates/],
    [["demo", "--updates", "-1"], /--updates -1: must be a whole number from 0 to 1000/],
    [["demo", "--seed", "7", "--rate", "-5"], /--rate -5: must be a whole number from 1 to 100000/],
    [["demo", "--json", "-1"], /--json/],
    [["demo", "--updates", "many"], /--updates many: must be a whole number from 0 to 1000/],
    [["demo", "--vms", "0"], /--vms 0: .* 1 to 16/],
    [["demo", "--memory", "1M"], /--memory 1M: must be from 8 MiB to 1 TiB/],
    [["demo", "--memory", "8388609"], /--memory 8388609: must be a multiple of 4K/],
    [["demo", "--rate", "0"], /--rate 0: /],
    [["demo", "--seed", "-1"], /--seed/],
    [["demo", "--json=yes"], /--json/],
  ];
  const outcomes = await Promise.all(cases.map(([args]) => run(...args)));
  for (const [i, [args, message]] of cases.entries()) {
    const lines = said(outcomes[i]);
    assert.equal(outcomes[i].status, 2, args.join(" "));
    assert.equal(outcomes[i].stdout, "", args.join(" "));
    assert.match(lines[0], /^holdfast: /, args.join(" "));
    assert.match(lines[0], message);
    assert.match(lines[1], /^Try: holdfast (demo )?--help$/);
    assert.equal(lines.length, 2, outcomes[i].stderr);
  }
});

test("--json prints one object of the documented form and nothing else", async () => {
  const { status, stdout, stderr } = await run(...QUICK, "--json");
  assert.deepEqual([status, stderr], [0, ""]);
  assert.equal(stdout.trimEnd().split("\n").length, 1);
  const result = JSON.parse(stdout) as DemoResult;
  const shape = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.slice(0, 1).map(shape);
    if (typeof value !== "object" || value === null) return typeof value;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, shape(inner)]));
  };
  assert.deepEqual(shape(result), {
    place: "string",
    updates: "number",
    vms: [
      {
        name: "string",
        memoryBytes: "number",
        blackoutMs: ["number"],
        frames: {
          sent: "number",
          received: "number",
          lost: "number",
          corrupt: "number",
          duringJump: "number",
        },
        dmaFaults: "number",
        guestBytesCopied: "number",
      },
    ],
    handover: { bytes: "number", guestBytes: "number" },
    leaks: { pages: "number", pins: "number", domains: "number" },
    phases: [{ update: "number", name: "string", ms: "number" }],
  });
  assert.equal(result.vms[0].frames.received, result.vms[0].frames.sent);
});

test("the same seed prints the same, another seed does not; no update at all is a run too", async () => {
  const [one, again, other, none] = await Promise.all([
    run(...QUICK),
    run(...QUICK),
    run(...QUICK, "--seed", "2"),
    run(...QUICK, "--updates", "0"),
  ]);
  assert.equal(one.status, 0, one.stderr);
  assert.match(one.stdout, /^update 1$/m);
  assert.match(one.stdout, /^replay: events [0-9a-f]{16}, memory [0-9a-f]{16}$/m);
  assert.equal(again.stdout, one.stdout);
  assert.notEqual(other.stdout, one.stdout);
  assert.equal(none.status, 0, none.stderr);
  assert.doesNotMatch(none.stdout, /^update \d/m);
});

test("frames that come faster than the guest takes them are told as lost, with the reason, and exit status 1", async () => {
  // A ring of 1024 descriptors, in a machine whose blackout is real: longer than 10 ms.
  const options = ["--memory", "8M", "--vms", "1", "--updates", "1", "--rate", "100000"];
  const { status, stdout, stderr } = await run("demo", ...options, "--json");
  assert.equal(status, 1);
  const { frames } = (JSON.parse(stdout) as DemoResult).vms[0];
  assert.ok(frames.lost > 0);
  assert.match(
    stderr,
    /^holdfast: vm0: \d+ frames lost; the NIC had no free descriptor for \d+: the rate is too high/,
  );
});

test("a machine that cannot be made is one line and exit status 1; HOLDFAST_DEBUG=1 says where", {
  skip: process.platform === "linux" ? false : "needs a limit on address space",
}, async () => {
  // A shell's limit, because Node has none of its own for shared memory.
  const limited = (env: NodeJS.ProcessEnv) =>
    outcome(
      spawn(
        "/bin/sh",
        [
          "-c",
          'ulimit -v 100000000 && exec "$@"',
          "sh",
          process.execPath,
          ...process.execArgv,
          MAIN,
          "demo",
          "--memory",
          "1T",
          "--vms",
          "1",
        ],
        { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] },
      ),
    );
  const [plain, debug] = await Promise.all([
    limited({ HOLDFAST_DEBUG: "" }),
    limited({ HOLDFAST_DEBUG: "1" }),
  ]);
  for (const { status } of [plain, debug]) assert.equal(status, 1);
  assert.match(
    said(plain)[0],
    /^holdfast: ENOMEM: power on: this process cannot reserve .* TiB of address space/,
  );
  assert.doesNotMatch(plain.stderr, /^\s+at /m);
  assert.match(debug.stderr, /^\s+at .*physical-memory/m);
});

test("a reader that has seen enough ends the demo without an error", async () => {
  const child = start([...QUICK, "--updates", "60"]);
  const stderr = outcome(child);
  await once(child.stdout as NodeJS.ReadableStream, "data");
  child.stdout?.destroy();
  const { status, signal } = await stderr;
  assert.deepEqual([status, signal], [0, null]);
  assert.equal((await stderr).stderr, "");
});

/** Threads and processes that a process has, by /proc. */
function isAlive(pid: number): boolean {
  try {
    return readdirSync(`/proc/${pid}/task`).length > 0;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return false;
  }
}

test("SIGINT and SIGTERM end a live machine at once, with 130 and 143, and leave no process", {
  skip: process.platform === "linux" ? false : "looks into /proc",
}, async () => {
  for (const [signal, expected] of [
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const) {
    const child = start(["demo", "--updates", "50", "--memory", "8M"]);
    const ended = outcome(child);
    let seen = "";
    // The kernel runs.
    while (!seen.includes("cold"))
      seen += String((await once(child.stdout as NodeJS.ReadableStream, "data"))[0]);
    const sentAt = performance.now();
    child.kill(signal);
    const { status, stderr } = await ended;
    assert.equal(status, expected, signal);
    assert.match(stderr, /^holdfast: interrupted\n$/);
    assert.ok(performance.now() - sentAt < 3000, `${performance.now() - sentAt} ms`);
    assert.equal(isAlive(child.pid as number), false);
  }
});

test("SIGINT ends a run of one thread, too", async () => {
  const child = start([...QUICK, "--updates", "1000"]);
  const ended = outcome(child);
  await once(child.stdout as NodeJS.ReadableStream, "data");
  child.kill("SIGINT");
  assert.equal((await ended).signal, "SIGINT");
});
