/** The VM process as a user starts it, on the Linux at hand, with an agent that a test plays. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import type { TestVmEvent } from "./test-vm.ts";

const MAIN = fileURLToPath(
  new URL(import.meta.url.endsWith(".ts") ? "../main.ts" : "../main.js", import.meta.url),
);
const skip = process.platform === "linux" ? false : "needs Linux";

interface Setting {
  /** Starts the VM. That it ends before `stop` fails the test. */
  start(...args: string[]): ChildProcess;
  /** @returns the exit status */
  stop(signal: NodeJS.Signals): Promise<number | null>;
  /** Listens; tells what the first one who connects says first. */
  agent(): Promise<{ readonly socket: Socket; readonly message: Record<string, unknown> }>;
}

/** Ends what the test has started, however it ends. */
async function withSetting(use: (setting: Setting) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-"));
  const socket = join(folder, "agent.sock");
  const server = createServer();
  const early = new AbortController();
  let child: ChildProcess | null = null;
  let isStopping = false;
  try {
    const used = use({
      start: (...args) => {
        child = spawn(
          process.execPath,
          [...process.execArgv, MAIN, "testvm", "--socket", socket, "--name", "vm0", ...args],
          { stdio: ["ignore", "pipe", "inherit"] },
        );
        child.on("exit", () => {
          if (!isStopping) early.abort();
        });
        return child;
      },
      stop: async (signal) => {
        isStopping = true;
        assert.ok(child);
        child.kill(signal);
        const [status] = (await once(child, "exit")) as [number | null];
        return status;
      },
      agent: async () => {
        server.listen(socket);
        const [connected] = (await once(server, "connection")) as [Socket];
        const [line] = (await once(createInterface({ input: connected }), "line")) as [string];
        return { socket: connected, message: JSON.parse(line) as Record<string, unknown> };
      },
    });
    const ended = once(early.signal, "abort").then(() => assert.fail("the VM has ended"));
    await Promise.race([used, ended]);
  } finally {
    (child as ChildProcess | null)?.kill("SIGKILL");
    server.close();
    rmSync(folder, { recursive: true });
  }
}

test("a VM registers, begins when there is no session, proves its memory on SIGUSR2, and ends on SIGTERM", {
  skip,
}, async () => {
  await withSetting(async ({ start, stop, agent }) => {
    const child = start("--memory", "4M", "--json");
    assert.ok(child.stdout);
    const events: TestVmEvent[] = [];
    const lines = createInterface({ input: child.stdout });
    lines.on("line", (line) => events.push(JSON.parse(line) as TestVmEvent));
    const happens = async (event: TestVmEvent["event"]) => {
      for (;;) {
        const found = events.find((one) => one.event === event);
        if (found !== undefined) return found;
        await once(lines, "line");
      }
    };
    const { socket, message } = await agent();
    const { id, call, vm, state, resources } = message;
    assert.deepEqual({ call, vm, state }, { call: "register", vm: "vm0", state: "starting" });
    assert.deepEqual(
      (resources as { kind: string; bytes: number }[]).map(({ kind, bytes }) => [kind, bytes]),
      [
        ["memory", 4 * 2 ** 20],
        ["state", 8192],
      ],
    );
    socket.write(`${JSON.stringify({ id, result: { session: null, update: 3 } })}\n`);
    await happens("started");
    await happens("registered");
    child.kill("SIGUSR2");
    const verified = await happens("verified");
    assert.ok(verified.event === "verified");
    assert.deepEqual([verified.bytes, verified.damagedPages], [4 * 2 ** 20, 0]);
    assert.equal(await stop("SIGTERM"), 0);
  });
});

test("a VM whose output nobody reads any more lives on", { skip }, async () => {
  await withSetting(async ({ start, stop, agent }) => {
    const child = start("--json");
    assert.ok(child.stdout);
    // It has said that there is no agent; the next thing that it says is that there is one.
    await once(child.stdout, "data");
    child.stdout.destroy();
    const { socket, message } = await agent();
    socket.write(
      `${JSON.stringify({ id: message["id"], error: { code: "EBUSY", message: "no" } })}\n`,
    );
    // Half a second later it registers again, unless saying so has ended it.
    const [again] = (await once(socket, "data")) as [Buffer];
    assert.match(again.toString(), /"call":"register"/);
    assert.equal(await stop("SIGINT"), 0);
  });
});

test("a VM ends in order when its terminal goes", { skip }, async () => {
  await withSetting(async ({ start, stop, agent }) => {
    start();
    await agent();
    assert.equal(await stop("SIGHUP"), 0);
  });
});
