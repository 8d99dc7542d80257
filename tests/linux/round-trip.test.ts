/**
 * Linux hands over to our kernel, and our kernel to Linux: what we write is judged by the kernel whose formats they are.
 *
 * A Linux jumps; while its successor waits at the gate, our kernel boots into a copy of the memory, takes everything over,
 * makes the sessions anew and jumps in turn. What it hands over goes into the machine's memory, the successor is told of our
 * FDT, and passes the gate.
 */
import assert from "node:assert/strict";
import { closeSync, openSync, writeSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { MIB } from "../../src/base/units.ts";
import { writeFdtAddress } from "./gate.ts";
import type { RetrievedReport } from "./guest/reports.ts";
import { type HandoverView, viewHandover } from "./handover-view.ts";
import { khoParameters, type OurHandover, passThroughOurKernel } from "./our-kernel.ts";
import { RAM_BYTES, skipReason } from "./rig.ts";
import { expectedFiles } from "./scenario.ts";
import { ScenarioMachine } from "./scenario-machine.ts";

/** Below and above lie firmware's tables, which our machine has elsewhere. */
const LOW_MEMORY_BYTES = MIB;
const HIGH_MEMORY_BYTES = 2 * MIB;

/**
 * The kernel at the gate runs on page tables of its predecessor, which lie anywhere in memory that is free for ours. If ours
 * puts something there, it dies before its first line; where they lie changes from boot to boot.
 */
const ATTEMPTS = 10;

function isEarlyDeath(error: unknown): boolean {
  return (
    error instanceof Error && error.message.startsWith("the machine ended: no hello of boot 2")
  );
}

describe("our kernel between two Linuxes", { skip: skipReason() }, () => {
  let machine: ScenarioMachine;
  let ours: OurHandover;
  let view: HandoverView;
  let retrieved: RetrievedReport;

  before(async () => {
    for (let attempt = 1; ; attempt++) {
      try {
        await passThrough();
        return;
      } catch (error) {
        machine.close();
        if (attempt === ATTEMPTS || !isEarlyDeath(error)) throw error;
        console.error(`attempt ${attempt}: the waiting kernel died of what was written; again`);
      }
    }
  });
  after(() => machine?.close());

  async function passThrough(): Promise<void> {
    machine = await ScenarioMachine.start("handover");
    const { ram } = machine;
    await machine.next("preserved");
    machine.goOn();
    const kho = await machine.jumped();
    ours = passThroughOurKernel(ram, khoParameters(kho));
    for (const { pa } of ours.pieces)
      assert(pa >= LOW_MEMORY_BYTES && pa < RAM_BYTES - HIGH_MEMORY_BYTES, `${pa} is free`);
    const fd = openSync(ram, "r+");
    // The old FDT must not be found by a search any more.
    writeSync(fd, new Uint8Array(kho.fdtSize), 0, kho.fdtSize, kho.fdtAddr);
    for (const { pa, bytes } of ours.pieces) writeSync(fd, bytes, 0, bytes.length, pa);
    closeSync(fd);
    writeFdtAddress(ram, kho, ours.kho.fdtAddress, ours.kho.fdtSizeBytes);
    view = viewHandover(ram);
    machine.goOn();
    await machine.next("jumped");
    machine.goOn();
    retrieved = await machine.next("retrieved");
    machine.goOn();
    await machine.next("finished");
    machine.goOn();
    await machine.ended();
  }

  test("hands over the second update, whole", () => {
    assert.deepEqual(view.problems, []);
    assert.equal(view.fdtPa, ours.kho.fdtAddress);
    assert.equal(view.comparable?.liveupdateNumber, 2);
    assert.deepEqual(view.comparable?.files, expectedFiles());
  });

  test("is taken for a predecessor by Linux, which names it", () => {
    assert.match(machine.console(), /KHO: exec from: test-1 \(count 2\)/);
    assert.match(machine.console(), /luo: .*liveupdate number: 2/);
  });

  test("has handed every file to Linux: size, seals, position and bytes", () => {
    assert.deepEqual(retrieved.files, expectedFiles());
  });

  test("leaves Linux nothing to complain about", () => {
    const booted = machine.console().split("KHO: found kexec handover data").at(-1) ?? "";
    const complaint = /\bWARNING:|\bBUG:|\b(KHO|luo|memfd_luo):.*(fail|invalid)/i;
    const complaints = booted.split("\n").filter((line) => complaint.test(line));
    assert.notEqual(booted, "");
    assert.deepEqual(complaints, []);
  });
});
