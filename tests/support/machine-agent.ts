/**
 * A machine of ours with an agent, worked by the commands' own connection: the same steps on every hardware.
 * @module
 */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createConnection } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { isKernelError } from "../../src/base/errno.ts";
import { MIB } from "../../src/base/units.ts";
import { AgentConnection, ConnectionLost } from "../../src/cli/control/agent-connection.ts";
import { decodePlan, decodeProgress, decodeStatus } from "../../src/cli/control/agent-results.ts";
import type { MachineKind } from "../../src/cli/demo/machine-kinds.ts";
import { runMachineAgent } from "../../src/cli/machine-agent/machine-agent.ts";

const VERSION = "test";
const VMS = ["vm0", "vm1"];
const NEXT = { target: { kernel: `/boot/vmlinuz-${VERSION}-2` } };

/**
 * Powers a machine on, looks, is refused an update, does two, and stops it.
 * @throws {assert.AssertionError} when anything is not as on a real host
 */
export async function workMachineAgent(machine: MachineKind): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "holdfast-agent-"));
  const socket = join(folder, "agent.sock");
  const stop = new AbortController();
  const log: string[] = [];
  // What a dead process has left.
  writeFileSync(socket, "");
  const run = runMachineAgent(
    {
      machine,
      vms: VMS.length,
      memoryBytes: 16 * MIB,
      framesPerSecond: 500,
      socket,
      images: 2,
    },
    VERSION,
    { listening: () => undefined, log: (line) => log.push(line) },
    stop.signal,
  );
  try {
    await Promise.race([run, workAgent(socket, () => log.join("\n"))]);
  } finally {
    stop.abort();
    await run;
    assert.equal(existsSync(socket), false, "the socket is gone with the machine");
    rmSync(folder, { recursive: true });
  }
}

async function workAgent(path: string, log: () => string): Promise<void> {
  const first = await connectWhenReady(path);
  const before = decodeStatus(await first.call("status"));
  assert.deepEqual([before.release, before.updates, before.activity], [`${VERSION}-1`, 0, "idle"]);
  assert.deepEqual(
    before.vms.map(({ name, state }) => [name, state]),
    VMS.map((name) => [name, "running"]),
  );

  const plan = decodePlan(await first.call("plan", NEXT));
  assert.deepEqual([plan.blocked, plan.vms, plan.guestBytes], [0, 2, 32 * MIB], log());
  assert.equal(plan.target.release, `${VERSION}-2`);
  await assert.rejects(
    first.call("update", { target: { kernel: "/boot/vmlinuz-other" } }),
    (error) => isKernelError(error, "ENOENT"),
  );
  await assert.rejects(first.call("update", { target: { initrd: "/boot/initrd" } }), isKernelError);
  assert.equal(decodeStatus(await first.call("status")).updates, 0);
  await refuseGarbage(path);

  for (let update = 1; update <= 2; update++) {
    const agent = update === 1 ? first : await connectWhenReady(path);
    const events: string[] = [];
    await assert.rejects(
      agent.call("update", update === 1 ? NEXT : {}, (value) => {
        const event = decodeProgress(value);
        if (event?.kind === "phase" && event.endNs !== null) events.push(event.name);
        if (event?.kind === "jump") events.push("jump");
      }),
      (error) => error instanceof ConnectionLost,
      "the connection ends with its kernel",
    );
    assert.deepEqual(events, ["preflight", "load", "preserve", "pause", "jump"], log());
    const next = await connectWhenReady(path);
    const status = decodeStatus(await next.call("status"));
    assert.deepEqual([status.release, status.updates], [`${VERSION}-2`, update], log());
    assert.deepEqual(
      status.vms.map(({ name, state }) => [name, state]),
      VMS.map((name) => [name, "running"]),
    );
    const blackouts = status.vms.map(({ blackoutNs }) => blackoutNs);
    assert.ok(
      blackouts.every((ns) => ns !== null && ns > 0),
      `${blackouts}`,
    );
    assert.ok(
      status.phases.some(({ name }) => name === "swap"),
      JSON.stringify(status.phases),
    );
    next.close();
  }
}

/** A client that is not one harms nobody but itself. */
async function refuseGarbage(path: string): Promise<void> {
  const socket = createConnection(path);
  const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()));
  socket.on("error", () => undefined);
  socket.resume();
  socket.write("this is no message\n");
  await closed;
}

/** The kernel that is to answer may still be booting. */
async function connectWhenReady(path: string): Promise<AgentConnection> {
  for (let left = 200; ; left--) {
    try {
      const agent = await AgentConnection.open(path);
      try {
        await agent.call("status");
        return agent;
      } catch (error) {
        // A jump came between.
        if (!(error instanceof ConnectionLost) || left === 0) throw error;
      }
    } catch (error) {
      if (left === 0) throw error;
    }
    await sleep(50);
  }
}
