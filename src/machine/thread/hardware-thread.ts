/**
 * The hardware's thread: devices run here from power on to power off, whatever kernels do.
 *
 * It never waits for a kernel: it looks whether a register access waits, lets devices do what is due, and sleeps
 * only when there was nothing to do for a while. It ends with the machine, by being terminated.
 * @module
 */
import { workerData } from "node:worker_threads";
import { EmbeddedHardware } from "../embedded/embedded-machine.ts";
import { HardwareStatistics } from "../embedded/hardware-statistics.ts";
import { InterruptController } from "../embedded/interrupts.ts";
import { buildAddressMap } from "../firmware.ts";
import { Ram } from "../physical-memory.ts";
import { MailboxServer } from "./mailbox.ts";
import type { HardwareThreadData } from "./messages.ts";
import { monotonicNs } from "./monotonic-clock.ts";

/**
 * Looks on for so long after a register access, since a driver's come in bursts, and waking up takes ten times as long
 * as answering. Devices' own work is foreseen: after it, it sleeps at once.
 */
const SPIN_NS = 500_000;
/** A sleep takes longer than this anyway. */
const SLEEP_NS_MIN = 20_000;

const { config, ram, state } = workerData as HardwareThreadData;
const hardware = new EmbeddedHardware({
  config,
  firmware: buildAddressMap(config).firmware,
  memory: new Ram(ram),
  interrupts: new InterruptController(state.interrupts),
  kernelPresent: new Int32Array(state.kernelPresent),
  statistics: new HardwareStatistics(config, state.statistics),
});
const mailbox = new MailboxServer(state.mailbox, hardware.mmio);

let lastAccessNs = monotonicNs();
for (;;) {
  const nowNs = monotonicNs();
  if (mailbox.serve()) lastAccessNs = nowNs;
  if (hardware.step(nowNs) || nowNs - lastAccessNs < SPIN_NS) continue;
  const dueInNs = hardware.nextDueNs() - nowNs;
  if (dueInNs >= SLEEP_NS_MIN) mailbox.sleep(dueInNs / 1e6);
}
