import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { isKernelError } from "../../base/errno.ts";
import { MIB, PAGE_SIZE, TIB } from "../../base/units.ts";
import type { MachineConfig, NicConfig } from "../embedded/config.ts";
import type { KernelImage } from "../machine.ts";
import { LiveMachine } from "./live-machine.ts";
import { MARKER } from "./marker-kernel.ts";
import { KernelPanic } from "./supervisor.ts";

/** A module beside this test, which may be compiled. */
function beside(path: string): string {
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  return new URL(`${path}.${extension}`, import.meta.url).href;
}

const IMAGE: KernelImage = {
  name: "marker",
  entry: beside("./marker-kernel"),
  release: "0.0-marker",
  restores: [],
};

const NIC: NicConfig = {
  model: "e1000e",
  device: 3,
  function: 0,
  rmrrBytes: 0,
  name: "nic0",
  framesPerSecond: 1_000,
};

function config(changes: Partial<MachineConfig> = {}): MachineConfig {
  return {
    nodeBytes: [64 * MIB, 64 * MIB],
    segments: [{ drhd: { addressBits: 48, superpages: true }, slots: [NIC] }],
    installed: [IMAGE],
    ...changes,
  };
}

function watched(changes: Partial<MachineConfig> = {}) {
  const lines: string[] = [];
  const machine = new LiveMachine(config(changes), { onSerialLine: (line) => lines.push(line) });
  return { machine, lines };
}

describe("LiveMachine", () => {
  it("keeps lines that come over the serial line until a kernel reads them: this one or the next", async () => {
    const { machine, lines } = watched();
    machine.writeSerialLine("one");
    machine.writeSerialLine("zwölf");
    const run = machine.run(IMAGE, "updates=2 then=listen");
    const timer = setInterval(() => {
      if (!lines.includes("heard zwölf")) return;
      clearInterval(timer);
      machine.writeSerialLine("three");
    }, 1);
    assert.deepEqual(await run, { kind: "powered-off", status: 0 }, lines.join("; "));
    assert.deepEqual(
      lines.filter((line) => line.startsWith("heard")),
      ["heard one", "heard zwölf", "heard three"],
    );
  });

  it("kexecs three times: memory as handed over, and the NIC goes on while no kernel exists", async (t) => {
    const { machine, lines } = watched();
    const end = await machine.run(IMAGE, "updates=3 nic=3");
    assert.deepEqual(end, { kind: "powered-off", status: 0 }, lines.join("; "));
    assert.deepEqual(lines.slice(0, 3), [
      "boot 1: as handed over",
      "boot 2: as handed over",
      "boot 3: as handed over",
    ]);
    assert.equal(machine.jumps.length, 3);
    for (const jump of machine.jumps) {
      assert.equal(jump.problem, null);
      assert.equal(jump.keptBytes, MARKER.keptBytes);
      assert.ok(jump.overwrittenBytes >= PAGE_SIZE);
      const { stopRequestedNs, endedNs, scribbledNs, enteredNs } = jump;
      assert.ok(stopRequestedNs < endedNs && endedNs < scribbledNs && scribbledNs < enteredNs);
      t.diagnostic(
        `ended ${us(endedNs - stopRequestedNs)}, scribbled ${us(scribbledNs - endedNs)}, entered ${us(enteredNs - scribbledNs)}`,
      );
    }
    const [counts] = machine.statistics.nics();
    t.diagnostic(JSON.stringify(counts));
    assert.ok(counts.withoutKernel > 0);
    assert.equal(counts.missed + counts.dmaFailed, 0);
    assert.ok(Number.parseInt(lines.at(-1) ?? "", 10) > 0);
  });

  it("a kernel prepares itself before its start(), until it is wanted", async () => {
    const { machine, lines } = watched();
    const image = { ...IMAGE, name: "preparing", entry: beside("./preparing-kernel") };
    assert.deepEqual(await machine.run(image, ""), { kind: "powered-off", status: 0 });
    assert.deepEqual(lines, ["prepared"]);
  });

  it("run() rejects with the kernel's stack when it panics, and ends all threads", async () => {
    const { machine } = watched();
    await assert.rejects(machine.run(IMAGE, "then=panic"), (error) => {
      assert.ok(error instanceof KernelPanic);
      assert.match(error.message, /0\.0-marker panicked: marker kernel panics as told/);
      assert.match(error.stack ?? "", /marker-kernel/);
      return true;
    });
  });

  it("run() rejects when start() returns", async () => {
    const { machine } = watched();
    await assert.rejects(machine.run(IMAGE, "then=return"), /returned/);
  });

  it("run() rejects with ENOENT for an image without code, EINVAL for one that is no kernel", async () => {
    const missing = { ...IMAGE, entry: "file:///no/such/kernel.js" };
    await assert.rejects(watched().machine.run(missing, ""), (error) =>
      isKernelError(error, "ENOENT"),
    );
    const notKernel = { ...IMAGE, entry: beside("../machine") };
    await assert.rejects(watched().machine.run(notKernel, ""), (error) =>
      isKernelError(error, "EINVAL"),
    );
  });

  it("kexec.load() fails with ENOENT in the kernel that calls it, which goes on", async () => {
    const { machine, lines } = watched();
    const end = await machine.run(IMAGE, "updates=1 then=load-missing");
    assert.equal(end.kind, "powered-off");
    assert.match(lines[0], /ENOENT: kexec load: image "missing"/);
    assert.equal(machine.jumps.length, 1);
  });

  it("close() ends a machine whose kernel halts for ever, twice if asked, and before run()", async () => {
    const { machine } = watched();
    const end = machine.run(IMAGE, "then=hang");
    await new Promise((resolve) => setTimeout(resolve, 200));
    await machine.close();
    await machine.close();
    assert.deepEqual(await end, { kind: "closed" });
    await new LiveMachine(config()).close();
  });

  it("a process that runs a machine ends by SIGINT", async () => {
    const script = fileURLToPath(beside("./hanging-machine"));
    const child = spawn(process.execPath, [...process.execArgv, script, JSON.stringify(config())], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const exit = new Promise((resolve) => child.once("exit", (_code, signal) => resolve(signal)));
    await new Promise((resolve) => child.stdout.once("data", resolve));
    child.kill("SIGINT");
    assert.equal(await exit, "SIGINT");
  });

  // Last: Linux does not let a process fork that has so much memory mapped.
  it("starts with 1 TiB of memory and jumps at the cost of what is touched", async (t) => {
    const before = process.memoryUsage().rss;
    const start = process.hrtime.bigint();
    const { machine } = watched({ nodeBytes: [TIB / 2, TIB / 2] });
    t.diagnostic(`power on ${us(Number(process.hrtime.bigint() - start))}`);
    const end = await machine.run(IMAGE, "updates=2");
    assert.deepEqual(end, { kind: "powered-off", status: 0 });
    for (const jump of machine.jumps)
      t.diagnostic(
        `ended ${us(jump.endedNs - jump.stopRequestedNs)}, scribbled ${us(jump.scribbledNs - jump.endedNs)}, entered ${us(jump.enteredNs - jump.scribbledNs)}`,
      );
    const grown = process.memoryUsage().rss - before;
    t.diagnostic(`${Math.round(grown / MIB)} MiB`);
    assert.ok(grown < 512 * MIB, `${grown} bytes resident`);
  });
});

function us(ns: number): string {
  return `${Math.round(ns / 1e3)} us`;
}
