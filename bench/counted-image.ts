/**
 * The demo's kernel on a machine that counts register accesses by kind, each of which is a message to QEMU.
 *
 * Says in its log, at each of the demo's events and before the jump, how many there were since its entry.
 * @module
 */
import type { DemoEvent } from "../src/cli/demo/events.ts";
import { demoKernel } from "../src/cli/demo/kernel-module.ts";
import type { Firmware, KernelModule, Machine } from "../src/machine/machine.ts";
import { ACCESSES, type AccessCounts, JUMP } from "./register-accesses.ts";

const BUS_BYTES = 2 ** 20;
const DRHD_BYTES = 4096;
const release = new URL(import.meta.url).searchParams.get("release") ?? "";

export const start: KernelModule["start"] = (machine, parameters) =>
  demoKernel(release).start(countAccesses(machine), parameters);

function countAccesses(machine: Machine): Machine {
  const { memory, interrupts, firmware, clock, serial, kexec } = machine;
  const counts = { ecam: 0, drhd: 0, bar: 0 };
  const tell = (event: string) =>
    serial.writeLine(`${ACCESSES}${JSON.stringify({ event, counts })}`);
  return {
    memory,
    mmio: {
      read(pa, size) {
        counts[kindOf(firmware, pa)]++;
        return machine.mmio.read(pa, size);
      },
      write(pa, size, value) {
        counts[kindOf(firmware, pa)]++;
        machine.mmio.write(pa, size, value);
      },
    },
    interrupts,
    firmware,
    clock,
    serial: {
      writeLine(line) {
        serial.writeLine(line);
        if (line.startsWith("{")) tell((JSON.parse(line) as DemoEvent).event);
      },
      readLine: () => serial.readLine(),
    },
    kexec: {
      installed: kexec.installed,
      load: (image) => kexec.load(image),
      execute(parameters) {
        tell(JUMP);
        return kexec.execute(parameters);
      },
    },
    powerOff: (status) => machine.powerOff(status),
  };
}

function kindOf({ ecams, drhds }: Firmware, pa: number): keyof AccessCounts {
  for (const { base, startBus, lastBus } of ecams)
    if (pa >= base && pa < base + (lastBus - startBus + 1) * BUS_BYTES) return "ecam";
  for (const { registerBase } of drhds)
    if (pa >= registerBase && pa < registerBase + DRHD_BYTES) return "drhd";
  return "bar";
}
