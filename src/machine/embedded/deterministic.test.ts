import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BugError } from "../../base/assert.ts";
import { isKernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { MIB, PAGE_SIZE, TIB } from "../../base/units.ts";
import type { KernelImage, KernelModule, Machine } from "../machine.ts";
import * as marker from "../thread/marker-kernel.ts";
import type { MachineConfig, NicConfig } from "./config.ts";
import { DeterministicMachine, type DeterministicOptions } from "./deterministic.ts";

const { MARKER } = marker;
const IMAGE: KernelImage = { name: "marker", entry: "test:marker", release: "1", restores: [] };

const NIC: NicConfig = {
  model: "e1000e",
  device: 3,
  function: 0,
  rmrrBytes: 0,
  name: "nic0",
  framesPerSecond: 50_000,
};

function config(changes: Partial<MachineConfig> = {}): MachineConfig {
  return {
    nodeBytes: [64 * MIB, 64 * MIB],
    segments: [{ drhd: { addressBits: 48, superpages: true }, slots: [NIC] }],
    installed: [IMAGE],
    ...changes,
  };
}

/** A machine whose image is `module`. */
function machineFor(module: KernelModule, options: Partial<DeterministicOptions> = {}) {
  return new DeterministicMachine(config(), {
    seed: 1,
    modules: (entry) => (entry === IMAGE.entry ? module : undefined),
    ...options,
  });
}

const COLD = { commandLine: "", kho: null };

function kernel(start: (machine: Machine) => void): KernelModule {
  return {
    start(machine) {
      start(machine);
      return machine.powerOff(0);
    },
  };
}

function runMarker(seed: number, commandLine: string) {
  const lines: string[] = [];
  const machine = machineFor(marker, { seed, onSerialLine: (line) => lines.push(line) });
  const end = machine.run(marker, { commandLine, kho: null });
  return { machine, end, lines };
}

describe("DeterministicMachine", () => {
  it("kexecs three times: what is handed over and scratch are kept, all else is overwritten", () => {
    const { machine, end, lines } = runMarker(5, "updates=3");
    assert.deepEqual(end, { kind: "powered-off", status: 0 });
    assert.deepEqual(lines, [
      "boot 1: as handed over",
      "boot 2: as handed over",
      "boot 3: as handed over",
      "0 frames",
    ]);
    assert.equal(machine.jumps.length, 3);
    for (const jump of machine.jumps) {
      assert.equal(jump.problem, null);
      assert.equal(jump.keptBytes, MARKER.keptBytes);
      assert.ok(jump.overwrittenBytes >= PAGE_SIZE);
    }
  });

  it("lets the NIC write into kept memory while no kernel exists, and loses no frame", () => {
    for (let seed = 0; seed < 10; seed++) {
      const { machine, end, lines } = runMarker(seed, "updates=3 nic=3");
      assert.deepEqual(
        end,
        { kind: "powered-off", status: 0 },
        `seed ${seed}: ${lines.join("; ")}`,
      );
      const [counts] = machine.statistics.nics();
      assert.ok(counts.withoutKernel > 0, `seed ${seed}`);
      assert.equal(counts.delivered, counts.sent, `seed ${seed}`);
      const seen = Number.parseInt(lines.at(-1) ?? "", 10);
      assert.ok(seen > 0 && seen <= counts.delivered, `seed ${seed}: ${seen} seen`);
    }
  });

  it("replays byte for byte from a seed, and differs for another", () => {
    const hashes = (seed: number) => {
      const { machine } = runMarker(seed, "updates=2 nic=3");
      return [machine.logHash(), machine.memoryHash(), machine.nowNs, machine.stores];
    };
    const first = hashes(7);
    assert.deepEqual(hashes(7), first);
    const second = hashes(8);
    assert.notEqual(second[0], first[0]);
    assert.notEqual(second[1], first[1]);
  });

  it("steps devices between any two stores: they see a half-published entry, never a torn one", () => {
    const module = kernel(({ memory }) => {
      for (let i = 0; i < 50; i++) {
        memory.publish64(MIB, 1, 1);
        memory.retract64(MIB);
      }
      for (let i = 0; i < 50; i++) memory.exchange64(MIB, i, i);
    });
    const machine = machineFor(module, { eventsPerStep: 1 });
    const { device } = machine.hardware.nics[0];
    const seen = new Set<string>();
    device.nextDueNs = () => 0;
    device.step = () => {
      const low = machine.ram.load32(MIB);
      const high = machine.ram.load32(MIB + 4);
      seen.add(low === high ? "whole" : `low ${low} high ${high}`);
      return false;
    };
    machine.run(module, COLD);
    assert.deepEqual(seen, new Set(["whole", "low 0 high 1"]));
  });

  it("stopAfterStores() prevents exactly that store and everything after it", () => {
    const module = kernel(({ memory }) => {
      for (let i = 0; i < 8; i++) memory.store32(MIB + 4 * i, i + 1);
    });
    for (let n = 1; n <= 8; n++) {
      const machine = machineFor(module);
      machine.stopAfterStores(n);
      assert.deepEqual(machine.run(module, COLD), { kind: "stopped", atStore: n });
      for (let i = 0; i < 8; i++)
        assert.equal(machine.ram.load32(MIB + 4 * i), i + 1 < n ? i + 1 : 0);
    }
    const machine = machineFor(module);
    machine.stopAfterStores(9);
    assert.deepEqual(machine.run(module, COLD), { kind: "powered-off", status: 0 });
  });

  it("stopAfterStores() counts on through a jump", () => {
    const { machine: whole } = runMarker(3, "updates=1");
    const machine = machineFor(marker, { seed: 3 });
    machine.stopAfterStores(whole.stores);
    const end = machine.run(marker, { commandLine: "updates=1", kho: null });
    assert.deepEqual(end, { kind: "stopped", atStore: whole.stores });
    assert.equal(machine.jumps.length, 1);
  });

  it("an ended kernel can store nothing, reach no device and make no call, in whatever unwinds it", () => {
    const attempts: [name: string, attempt: (machine: Machine) => void][] = [
      ["store8", ({ memory }) => memory.store8(MIB, 1)],
      ["store16", ({ memory }) => memory.store16(MIB, 1)],
      ["store32", ({ memory }) => memory.store32(MIB, 1)],
      ["store64", ({ memory }) => memory.store64(MIB, 1)],
      ["storeBig64", ({ memory }) => memory.storeBig64(MIB, 1n)],
      ["publish64", ({ memory }) => memory.publish64(MIB, 1, 1)],
      ["retract64", ({ memory }) => memory.retract64(MIB)],
      ["exchange64", ({ memory }) => memory.exchange64(MIB, 1, 1)],
      ["publishRun64", ({ memory }) => memory.publishRun64(MIB, 1, 1, 1, PAGE_SIZE)],
      ["retractRun64", ({ memory }) => memory.retractRun64(MIB, 1)],
      ["fill", ({ memory }) => memory.fill(MIB, 8, 1)],
      ["fill with 0", ({ memory }) => memory.fill(MIB, 8, 0)],
      ["write", ({ memory }) => memory.write(MIB, Uint8Array.of(1))],
      ["view", ({ memory }) => memory.view(MIB, 8)],
      ["mmio.read", ({ mmio }) => mmio.read(0xfed90000, 4)],
      ["mmio.write", ({ mmio }) => mmio.write(0xfed90000, 4, 0)],
      ["take", ({ interrupts }) => interrupts.take(1)],
      ["wait", ({ interrupts }) => interrupts.wait(1)],
      ["nowNs", ({ clock }) => clock.nowNs()],
      ["writeLine", ({ serial }) => serial.writeLine("still here")],
      ["load", ({ kexec }) => kexec.load(null)],
      ["execute", ({ kexec }) => kexec.execute({ commandLine: "again", kho: null })],
      ["powerOff", (machine) => machine.powerOff(9)],
    ];
    let refused = 0;
    const lines: string[] = [];
    let boots = 0;
    const module: KernelModule = {
      start(machine) {
        if (boots++ > 0) return machine.powerOff(0);
        machine.memory.store32(MIB, 0x55);
        machine.kexec.load(IMAGE);
        try {
          return withUndo((undo) => {
            undo(() => machine.memory.store32(MIB, 0xbad));
            return machine.kexec.execute(COLD);
          });
        } finally {
          machine.memory.load32(MIB);
          for (const [name, attempt] of attempts) {
            try {
              attempt(machine);
              lines.push(`${name} was possible`);
            } catch {
              refused++;
            }
          }
        }
      },
    };
    const machine = machineFor(module, { onSerialLine: (line) => lines.push(line) });
    machine.onJump((ram, { parameters }) => {
      lines.push(`jump ${ram.load32(MIB).toString(16)}`);
      return parameters;
    });
    assert.deepEqual(machine.run(module, COLD), { kind: "powered-off", status: 0 });
    // Without a handover the word was overwritten, and not by the kernel that is gone.
    assert.equal(lines.length, 1);
    assert.notEqual(lines[0], "jump 55");
    assert.notEqual(lines[0], "jump bad");
    assert.equal(refused, attempts.length);
  });

  it("ends as the kernel's call says, whatever its catch blocks make of it", () => {
    const module: KernelModule = {
      start(machine) {
        try {
          return machine.powerOff(3);
        } catch (error) {
          throw new TypeError("wrapped", { cause: error });
        }
      },
    };
    assert.deepEqual(machineFor(module).run(module, COLD), { kind: "powered-off", status: 3 });
  });

  it("run() throws what a kernel throws, and that kernel is dead too", () => {
    let escaped: Machine | null = null;
    const module: KernelModule = {
      start(machine) {
        escaped = machine;
        throw new RangeError("panic");
      },
    };
    assert.throws(() => machineFor(module).run(module, COLD), /RangeError: panic/);
    assert.throws(() => escaped?.memory.store32(0, 1));
    const returns: KernelModule = { start: () => undefined as never };
    assert.throws(() => machineFor(returns).run(returns, COLD), BugError);
  });

  it("kexec.load() fails with ENOENT when the image has no code; execute without load is a bug", () => {
    let code = "";
    const module = kernel(({ kexec }) => {
      try {
        kexec.load({ ...IMAGE, entry: "test:nothing" });
      } catch (error) {
        if (!isKernelError(error)) throw error;
        code = error.code;
      }
      kexec.load(IMAGE);
      kexec.load(null);
      kexec.execute(COLD);
    });
    assert.throws(() => machineFor(module).run(module, COLD), BugError);
    assert.equal(code, "ENOENT");
  });

  it("overwrites nothing when the handover is malformed, and says what is wrong", () => {
    const spoilers: [problem: RegExp, spoil: (machine: Machine) => void][] = [
      [/fdt/, ({ memory }) => memory.store32(MARKER.fdt, 0)],
      [/kho_radix|node/, ({ memory }) => memory.store64(MARKER.nodes + 8, 0x123)],
      [/kho_scratch/, ({ memory }) => memory.store64(MARKER.scratchArray, 2 ** 50)],
    ];
    for (const [problem, spoil] of spoilers) {
      const module: KernelModule = {
        start(machine, parameters) {
          // The second kernel is not started: the hook ends the run there.
          const spoiling: Machine = {
            ...bind(machine),
            kexec: {
              installed: machine.kexec.installed,
              load: (image) => machine.kexec.load(image),
              execute(handedOver) {
                spoil(machine);
                return machine.kexec.execute(handedOver);
              },
            },
          };
          return marker.start(spoiling, parameters);
        },
      };
      const machine = machineFor(module);
      machine.onJump(() => {
        throw new Error("seen enough");
      });
      assert.throws(
        () => machine.run(module, { commandLine: "updates=1", kho: null }),
        /seen enough/,
      );
      assert.match(machine.jumps[0].problem ?? "", problem);
      assert.equal(machine.jumps[0].overwrittenBytes, 0);
      assert.equal(machine.ram.load8(MARKER.lost), 0x77);
    }
  });

  it("onJump() sees memory as the next kernel will, and may change what it is started with", () => {
    const seen: string[] = [];
    const module: KernelModule = {
      start(machine, parameters) {
        seen.push(parameters.commandLine);
        if (seen.length === 2) return machine.powerOff(machine.memory.load8(MIB));
        machine.kexec.load(IMAGE);
        return machine.kexec.execute({ commandLine: "theirs", kho: null });
      },
    };
    const machine = machineFor(module);
    machine.onJump((ram, { parameters }) => {
      ram.store8(MIB, 77);
      return { ...parameters, commandLine: `${parameters.commandLine}, changed` };
    });
    assert.deepEqual(machine.run(module, COLD), { kind: "powered-off", status: 77 });
    assert.deepEqual(seen, ["", "theirs, changed"]);
  });

  it("hands over a copy of the boot parameters, no object of the old kernel", () => {
    const parameters = { commandLine: "x", kho: { ...handover(), secret: {} } };
    let got: unknown;
    let boots = 0;
    const module: KernelModule = {
      start(machine, given) {
        if (boots++ > 0) {
          got = given;
          return machine.powerOff(0);
        }
        machine.kexec.load(IMAGE);
        return machine.kexec.execute(parameters);
      },
    };
    machineFor(module).run(module, COLD);
    assert.deepEqual(got, { commandLine: "x", kho: handover() });
  });

  it("keeps pending interrupts and registers through a jump", () => {
    let boots = 0;
    const module: KernelModule = {
      start(machine) {
        const bar = machine.firmware.ecams[0].base + (3 << 15) + 0x10;
        if (boots++ > 0) {
          const kept = machine.mmio.read(bar, 4) === machine.firmware.mmioWindows[0].start;
          return machine.powerOff(machine.interrupts.take(200) && kept ? 0 : 1);
        }
        machine.mmio.write(bar, 4, machine.firmware.mmioWindows[0].start);
        machine.kexec.load(IMAGE);
        return machine.kexec.execute(COLD);
      },
    };
    const machine = machineFor(module);
    machine.onJump((_ram, { parameters }) => {
      machine.interrupts.raise(200);
      return parameters;
    });
    assert.deepEqual(machine.run(module, COLD), { kind: "powered-off", status: 0 });
  });

  it("wait() lets virtual time pass, and says when nothing can ever wake the kernel", () => {
    let passed = 0;
    const module = kernel(({ clock, interrupts }) => {
      const before = clock.nowNs();
      interrupts.wait(5e6);
      passed = clock.nowNs() - before;
    });
    machineFor(module).run(module, COLD);
    assert.ok(passed >= 5e6 && passed < 5.1e6, `${passed} ns`);
    const stuck = kernel(({ interrupts }) => interrupts.wait(Number.POSITIVE_INFINITY));
    assert.throws(() => machineFor(stuck).run(stuck, COLD), BugError);
  });

  it("starts a machine of 1 TiB and jumps in it at the cost of what is touched", (t) => {
    const before = process.memoryUsage().rss;
    const start = process.hrtime.bigint();
    const machine = new DeterministicMachine(config({ nodeBytes: [TIB / 2, TIB / 2] }), {
      seed: 1,
      modules: () => marker,
    });
    const poweredOn = process.hrtime.bigint();
    const end = machine.run(marker, { commandLine: "updates=2", kho: null });
    const ended = process.hrtime.bigint();
    const grown = process.memoryUsage().rss - before;
    t.diagnostic(
      `power on ${ms(poweredOn - start)}, two jumps ${ms(ended - poweredOn)}, ${Math.round(grown / MIB)} MiB`,
    );
    assert.deepEqual(end, { kind: "powered-off", status: 0 });
    assert.ok(grown < 256 * MIB, `${grown} bytes resident`);
  });
});

function ms(ns: bigint): string {
  return `${(Number(ns) / 1e6).toFixed(1)} ms`;
}

function handover() {
  return { fdtAddress: MIB, fdtSizeBytes: 1, scratchAddress: 0, scratchSizeBytes: 16 };
}

/** A machine as a plain object, to replace a part of it. */
function bind(machine: Machine): Machine {
  const { memory, mmio, interrupts, firmware, clock, serial, kexec } = machine;
  const powerOff = (status: number) => machine.powerOff(status);
  return { memory, mmio, interrupts, firmware, clock, serial, kexec, powerOff };
}
