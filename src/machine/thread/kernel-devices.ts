/**
 * A kernel's registers and interrupts, by what leads to them: the embedded machine's mailbox, or QEMU's qtest socket.
 *
 * Why: a kernel's thread is given plain data, and all that differs between the machines is here.
 * @module
 */
import { InterruptController } from "../embedded/interrupts.ts";
import type { Interrupts, Machine } from "../machine.ts";
import type { Ram } from "../physical-memory.ts";
import { CpuInterrupts } from "../qemu/cpu-interrupts.ts";
import { QtestClient } from "../qemu/qtest.ts";
import { MailboxClient } from "./mailbox.ts";

/** What a kernel's thread needs to reach its devices. */
export type KernelDevices =
  | {
      readonly kind: "mailbox";
      readonly mailbox: SharedArrayBuffer;
      /** @see createInterruptState */
      readonly interrupts: SharedArrayBuffer;
    }
  | {
      readonly kind: "qtest";
      /** A socket that is connected to QEMU, for this kernel alone. */
      readonly socket: number;
    };

/** The devices, in a kernel's thread. */
export function reachDevices(
  devices: KernelDevices,
  ram: Ram,
): { mmio: Machine["mmio"]; interrupts: Interrupts } {
  switch (devices.kind) {
    case "mailbox":
      return {
        mmio: new MailboxClient(devices.mailbox),
        interrupts: new InterruptController(devices.interrupts),
      };
    case "qtest":
      return { mmio: new QtestClient(devices.socket), interrupts: new CpuInterrupts(ram) };
  }
}
