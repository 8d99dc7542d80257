/**
 * QEMU as hardware, without a kernel: what is shared, what interrupts do, and that nothing is left behind.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync } from "node:fs";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { EDU_IRQ_RAISE } from "../../src/abi/edu.ts";
import {
  ecamOffset,
  PCI_BASE_ADDRESS_0,
  PCI_CAP_ID_MSI,
  PCI_CAPABILITY_LIST,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_MSI_ADDRESS_HI,
  PCI_MSI_ADDRESS_LO,
  PCI_MSI_DATA_64,
  PCI_MSI_FLAGS,
  PCI_MSI_FLAGS_ENABLE,
} from "../../src/abi/pci.ts";
import { isKernelError } from "../../src/base/errno.ts";
import { GIB, MIB } from "../../src/base/units.ts";
import { type MachineConfig, standardConfig } from "../../src/machine/embedded/config.ts";
import { Ram } from "../../src/machine/physical-memory.ts";
import { CpuInterrupts } from "../../src/machine/qemu/cpu-interrupts.ts";
import { QemuHardware } from "../../src/machine/qemu/qemu-hardware.ts";
import { QemuMachine } from "../../src/machine/qemu/qemu-machine.ts";
import { QtestClient } from "../../src/machine/qemu/qtest.ts";
import { isAlive, skipReason } from "./rig.ts";

const IMAGE = {
  name: "marker",
  entry: beside("../../src/machine/thread/marker-kernel"),
  release: "0.0-marker",
  restores: [],
};

/** How long a QEMU is waited for that is stopped. */
const HANG_MS = 500;

/** A module beside this test, which may be compiled. */
function beside(path: string): string {
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  return new URL(`${path}.${extension}`, import.meta.url).href;
}

function config(memoryBytes = 64 * MIB): MachineConfig {
  return standardConfig({ memoryBytes, nics: 1, framesPerSecond: 0, installed: [IMAGE] });
}

async function withHardware(
  machine: MachineConfig,
  use: (qtest: QtestClient, ram: Ram, hardware: QemuHardware) => void,
): Promise<void> {
  const hardware = await QemuHardware.powerOn(machine, {});
  try {
    const devices = hardware.connect();
    assert(devices.kind === "qtest");
    use(new QtestClient(devices.socket), new Ram(hardware.ram), hardware);
  } finally {
    await hardware.powerOff();
  }
}

/** Waits for the watchdog, which is a process of its own. */
async function eventually(what: string, isTrue: () => boolean): Promise<void> {
  for (let i = 0; i < 500 && !isTrue(); i++) await sleep(10);
  assert.ok(isTrue(), what);
}

function openDescriptors(): string[] {
  return readdirSync("/proc/self/fd");
}

describe("QEMU's hardware", { skip: skipReason() }, () => {
  test("RAM is one memory, below 4 GiB and above, and untouched where nobody stored", async () => {
    await withHardware(config(3 * GIB), (qtest, ram, hardware) => {
      assert.deepEqual(
        ram.ranges.map((range) => range.start),
        [0, 4 * GIB],
      );
      for (const pa of [2 * MIB, GIB + 4096, 2 * GIB - 4, 4 * GIB, 5 * GIB - 8]) {
        ram.store32(pa, 0xfeed0000 + (pa % 251));
        assert.equal(qtest.read(pa, 4), 0xfeed0000 + (pa % 251), pa.toString(16));
        qtest.write(pa, 4, 0x12345678);
        assert.equal(ram.load32(pa), 0x12345678, pa.toString(16));
      }
      // QEMU alone has stored here.
      qtest.write(4 * GIB + 512 * MIB, 1, 7);
      const backed = hardware.kernelEnded();
      assert.equal(backed.isTouched(4 * GIB + 512 * MIB), true);
      assert.equal(backed.isTouched(GIB + 512 * MIB), false);
      assert.equal(backed.load8(4 * GIB + 512 * MIB), 7);
    });
  });

  test("an MSI is pending until it is taken, and ends a wait", async () => {
    await withHardware(config(), (qtest, ram, { firmware }) => {
      const interrupts = new CpuInterrupts(ram);
      const edu = firmware.ecams[0].base + ecamOffset(0, 1 << 3);
      const bar = firmware.mmioWindows[0].start;
      qtest.write(edu + PCI_BASE_ADDRESS_0, 4, bar);
      qtest.write(edu + PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
      let msi = qtest.read(edu + PCI_CAPABILITY_LIST, 1);
      while (qtest.read(edu + msi, 1) !== PCI_CAP_ID_MSI) msi = qtest.read(edu + msi + 1, 1);
      qtest.write(edu + msi + PCI_MSI_ADDRESS_LO, 4, 0xfee00000);
      qtest.write(edu + msi + PCI_MSI_ADDRESS_HI, 4, 0);
      qtest.write(edu + msi + PCI_MSI_FLAGS, 2, PCI_MSI_FLAGS_ENABLE);
      for (const vector of [32, 100, 254]) {
        qtest.write(edu + msi + PCI_MSI_DATA_64, 2, vector);
        assert.equal(interrupts.take(vector), false, `${vector} before`);
        qtest.write(bar + EDU_IRQ_RAISE, 4, 1);
        const before = process.hrtime.bigint();
        interrupts.wait(5e9);
        assert.ok(process.hrtime.bigint() - before < 4_000_000_000n, "the wait has ended");
        assert.equal(interrupts.take(vector), true, `${vector} raised`);
        assert.equal(interrupts.take(vector), false, `${vector} taken`);
      }
      const before = process.hrtime.bigint();
      interrupts.wait(20e6);
      assert.ok(process.hrtime.bigint() - before >= 20_000_000n, "nothing ends a wait for nothing");
    });
  });

  test("close() leaves no process, no file and no descriptor", async () => {
    const before = openDescriptors().length;
    const machine = await QemuMachine.start(config());
    assert(machine.pid !== undefined && isAlive(machine.pid));
    await machine.close();
    await machine.close();
    assert.equal(isAlive(machine.pid), false);
    assert.equal(openDescriptors().length, before);
  });

  for (const signal of ["SIGKILL", "SIGTERM", "SIGINT"] as const)
    test(`QEMU ends with its process by ${signal}, and its folder goes`, async () => {
      const script = fileURLToPath(beside("./hanging-machine"));
      const child = spawn(process.execPath, [...process.execArgv, script], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      const [said] = await once(child.stdout, "data");
      const [pid, folder] = String(said).trim().split(" ");
      assert.ok(isAlive(Number(pid)) && existsSync(folder));
      child.kill(signal);
      await eventually("QEMU has ended", () => !isAlive(Number(pid)));
      await eventually("the folder is gone", () => !existsSync(folder));
    });

  test("start() fails with QEMU's own words when it refuses its arguments, and leaves nothing", async () => {
    const before = openDescriptors().length;
    const started = QemuMachine.start(config(), { extraArguments: ["-device", "no-such-device"] });
    await assert.rejects(
      started,
      (error) => isKernelError(error, "EIO") && /no-such-device/.test(error.message),
    );
    assert.equal(openDescriptors().length, before);
  });

  test("start() fails with EINVAL for what q35 is not", async () => {
    const [segment] = config().segments;
    for (const segments of [[segment, segment], [{ ...segment, drhd: null }]])
      await assert.rejects(QemuMachine.start({ ...config(), segments }), (error) =>
        isKernelError(error, "EINVAL"),
      );
  });

  test("a register access of a QEMU that hangs fails in bounded time, and all of it goes", async () => {
    const before = openDescriptors().length;
    const hardware = await QemuHardware.powerOn(config(), { answerTimeoutMs: HANG_MS });
    const { pid } = hardware.process;
    assert(pid !== undefined);
    const devices = hardware.connect();
    assert(devices.kind === "qtest");
    const qtest = new QtestClient(devices.socket);
    process.kill(pid, "SIGSTOP");
    const startNs = process.hrtime.bigint();
    assert.throws(
      () => qtest.read(hardware.firmware.ecams[0].base, 4),
      /QEMU hangs: no answer to "readl 0x/,
    );
    const waitedMs = Number(process.hrtime.bigint() - startNs) / 1e6;
    assert.ok(waitedMs >= HANG_MS && waitedMs < 20 * HANG_MS, `${waitedMs} ms`);
    await assert.rejects(hardware.powerOff(), /QEMU hangs/);
    assert.equal(isAlive(pid), false);
    assert.equal(openDescriptors().length, before);
  });

  test("run() rejects when QEMU hangs at the end of a machine, and does not hang itself", async () => {
    const machine = await QemuMachine.start(config(), {
      answerTimeoutMs: HANG_MS,
      onSerialLine: () => machine.pid !== undefined && process.kill(machine.pid, "SIGSTOP"),
    });
    assert(machine.pid !== undefined);
    await assert.rejects(machine.run(IMAGE, "updates=1"), /QEMU hangs/);
    assert.equal(isAlive(machine.pid), false);
  });

  test("run() rejects when QEMU dies under a kernel", async () => {
    const machine = await QemuMachine.start(config());
    assert(machine.pid !== undefined);
    const run = machine.run(IMAGE, "then=hang");
    await sleep(300);
    process.kill(machine.pid, "SIGKILL");
    await assert.rejects(run, /QEMU has ended/);
    assert.equal(isAlive(machine.pid), false);
  });
});
