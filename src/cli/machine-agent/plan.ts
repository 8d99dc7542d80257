/** What the userspace of {@link agentInit} is told on the kernel's command line. @module */
import { KernelError } from "../../base/errno.ts";

export interface GuestPlan {
  readonly vms: number;
  /** Of each VM. */
  readonly memoryBytes: number;
}

/** The plan as words; the kernel ignores what it does not know. */
export function planToCommandLine({ vms, memoryBytes }: GuestPlan): string {
  return `guests.vms=${vms} guests.memory=${memoryBytes}`;
}

/** @throws {KernelError} EINVAL when a word is missing or malformed */
export function planFromCommandLine(commandLine: string): GuestPlan {
  const count = (name: string) => {
    const word = commandLine.split(" ").find((one) => one.startsWith(`guests.${name}=`));
    const value = Number(word?.slice(word.indexOf("=") + 1));
    if (!Number.isSafeInteger(value) || value < 0)
      throw new KernelError(
        "EINVAL",
        "guests",
        `${word ?? `no guests.${name}`} on the command line`,
      );
    return value;
  };
  return { vms: count("vms"), memoryBytes: count("memory") };
}
