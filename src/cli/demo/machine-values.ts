/** What a machine of ours with VMs is made of, as the command line says it. @module */
import { TIB } from "../../base/units.ts";
import { NIC_GUEST_MIN_BYTES } from "../../vmm/nic-guest.ts";
import { UsageError } from "../usage-error.ts";
import { parseSize } from "../values.ts";
import { MACHINE_KINDS, type MachineKind } from "./machine-kinds.ts";

/** The value of --machine. */
export function parseMachine(name: string): MachineKind {
  const machine = MACHINE_KINDS.find((known) => known === name);
  if (machine === undefined)
    throw new UsageError(`--machine ${name}: must be ${MACHINE_KINDS.join(" or ")}`);
  return machine;
}

/** The value of --memory: bytes of each VM. */
export function parseMemory(text: string): number {
  const memoryBytes = parseSize("--memory", text, NIC_GUEST_MIN_BYTES, TIB);
  if (memoryBytes % 4096 !== 0) throw new UsageError(`--memory ${text}: must be a multiple of 4K`);
  return memoryBytes;
}
