import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BugError } from "../../base/assert.ts";
import { isKernelError } from "../../base/errno.ts";
import { MIB } from "../../base/units.ts";
import type { KernelImage, KernelModule, Machine } from "../machine.ts";
import { standardConfig } from "./config.ts";
import { InProcessMachine, type InProcessOptions } from "./in-process.ts";

const IMAGE: KernelImage = { name: "next", entry: "next", release: "2", restores: [] };
/** A page that no kernel hands over. */
const PAGE = 8 * MIB;
const COLD = { commandLine: "first", kho: null };

function machineWith(next: KernelModule | undefined, options: Partial<InProcessOptions> = {}) {
  const config = standardConfig({
    memoryBytes: 64 * MIB,
    nics: 1,
    framesPerSecond: 1000,
    installed: [IMAGE],
  });
  return new InProcessMachine(config, { modules: () => next, ...options });
}

function kernel(start: (machine: Machine, commandLine: string) => void): KernelModule {
  return {
    start(machine, { commandLine }): never {
      start(machine, commandLine);
      return undefined as never;
    },
  };
}

describe("InProcessMachine", () => {
  it("kexec() enters the loaded image with its parameters, and overwrites what is not handed over", () => {
    const kho = { fdtAddress: PAGE, fdtSizeBytes: 64, scratchAddress: 0, scratchSizeBytes: 0 };
    const seen: unknown[] = [];
    const moments: string[] = [];
    const next: KernelModule = {
      start(machine, parameters) {
        seen.push(parameters.commandLine, parameters.kho);
        seen.push(machine.memory.load32(PAGE));
        return machine.powerOff(7);
      },
    };
    const first = kernel((machine) => {
      machine.memory.store32(PAGE, 0x1234);
      machine.kexec.load(IMAGE);
      machine.kexec.execute({ commandLine: "second", kho });
    });
    const machine = machineWith(next, { onJump: (moment) => moments.push(moment) });
    assert.equal(machine.run(first, COLD), 7);
    // That FDT is none, so nothing can be told from it, and everything is kept.
    assert.deepEqual(seen, ["second", kho, 0x1234]);
    assert.deepEqual(moments, ["ended", "scribbled"]);

    seen.length = 0;
    const forgetful = kernel((m) => {
      m.memory.store32(PAGE, 0x1234);
      m.kexec.load(IMAGE);
      m.kexec.execute({ commandLine: "second", kho: null });
    });
    assert.equal(machine.run(forgetful, COLD), 7);
    assert.notEqual(seen[2], 0x1234);
  });

  it("a kernel that has ended changes nothing any more, whatever its unwinding tries", () => {
    const attempts: (() => void)[] = [];
    let refused = 0;
    const first = kernel((machine) => {
      machine.memory.store32(PAGE, 1);
      attempts.push(
        () => machine.memory.store32(PAGE, 2),
        () => machine.memory.fill(PAGE, 4096, 2),
        () => machine.memory.publish64(PAGE, 2, 2),
        () => machine.memory.publishRun64(PAGE, 2, 2, 2, 4096),
        () => machine.memory.load32(PAGE),
        () => machine.mmio.write(0xfed90018, 4, 0),
        () => machine.clock.nowNs(),
        () => machine.serial.writeLine("ghost"),
        () => machine.powerOff(1),
      );
      try {
        machine.powerOff(0);
      } finally {
        for (const attempt of attempts) {
          try {
            attempt();
          } catch {
            refused++;
          }
        }
      }
    });
    const lines: string[] = [];
    const machine = machineWith(undefined, { onSerialLine: (line) => lines.push(line) });
    assert.equal(machine.run(first, COLD), 0);
    assert.equal(refused, attempts.length);
    assert.deepEqual(lines, []);
    const reader = kernel((again) => again.powerOff(again.memory.load32(PAGE)));
    assert.equal(machine.run(reader, COLD), 1);
  });

  it("halting lets time pass and devices run until an interrupt or the time out", () => {
    const machine = machineWith(undefined);
    const status = machine.run(
      kernel((m) => {
        const startNs = m.clock.nowNs();
        m.interrupts.wait(5_000_000);
        const passedNs = m.clock.nowNs() - startNs;
        m.powerOff(passedNs >= 5_000_000 && passedNs < 5_100_000 ? 0 : 1);
      }),
      COLD,
    );
    assert.equal(status, 0);
    // The link of a NIC that no driver has set up is down: nothing is sent.
    assert.equal(machine.statistics.nics()[0].sent, 0);
  });

  it("isOver ends a kernel at its next event, and run() returns null", () => {
    let events = 0;
    const machine = machineWith(undefined, { isOver: () => ++events > 3 });
    const endless = kernel((m) => {
      for (;;) m.clock.nowNs();
    });
    assert.equal(machine.run(endless, COLD), null);
    assert.equal(events, 4);
  });

  it("run() throws what a kernel throws, and BugError when start() returns", () => {
    const machine = machineWith(undefined);
    const panics = kernel(() => {
      throw new RangeError("panic");
    });
    assert.throws(() => machine.run(panics, COLD), RangeError);
    assert.throws(
      () =>
        machine.run(
          kernel(() => {}),
          COLD,
        ),
      BugError,
    );
  });

  it("kexec.load() fails with ENOENT when there is no code behind the image", () => {
    const machine = machineWith(undefined);
    const status = machine.run(
      kernel((m) => {
        assert.throws(
          () => m.kexec.load(IMAGE),
          (error) => isKernelError(error, "ENOENT"),
        );
        m.powerOff(0);
      }),
      COLD,
    );
    assert.equal(status, 0);
  });
});
