/** Options of `holdfast agent --machine`. @module */
import { parseMachine, parseMemory } from "../demo/machine-values.ts";
import type { MachineAgentOptions } from "../machine-agent/machine-agent.ts";
import { UsageError } from "../usage-error.ts";
import { parseCount } from "../values.ts";

/** For parseArgs. */
export const MACHINE_OPTIONS = {
  machine: { type: "string" },
  vms: { type: "string" },
  memory: { type: "string" },
  rate: { type: "string" },
} as const;

export type MachineValues = { readonly [name in keyof typeof MACHINE_OPTIONS]?: string };

const DEFAULTS = { vms: 2, memory: "256M", rate: 1000 };
/** Kernels on the boot disk: the one that runs first, and those to update to. */
const IMAGES = 4;

export const MACHINE_OPTIONS_HELP = `  --machine NAME   No Linux: a machine of ours in this process, embedded or qemu, with VMs of its own; for
                   trying the commands. Its kernels are /boot/vmlinuz-VERSION-1 to -${IMAGES}
  --vms N          Virtual machines of it, each with a NIC, 1 to 16 (default ${DEFAULTS.vms})
  --memory SIZE    Memory of each: 8M to 1T, a multiple of 4K (default ${DEFAULTS.memory})
  --rate N         Frames per second sent to each NIC, 1 to 100000 (default ${DEFAULTS.rate})`;

/** @returns null when it is to be the agent of this host */
export function machineOptions(values: MachineValues, socket: string): MachineAgentOptions | null {
  const { machine: name, vms, memory, rate } = values;
  if (name === undefined) {
    for (const [option, value] of Object.entries({ vms, memory, rate }))
      if (value !== undefined) throw new UsageError(`--${option} ${value}: goes with --machine`);
    return null;
  }
  return {
    machine: parseMachine(name),
    memoryBytes: parseMemory(memory ?? DEFAULTS.memory),
    vms: parseCount("--vms", vms ?? String(DEFAULTS.vms), 1, 16),
    framesPerSecond: parseCount("--rate", rate ?? String(DEFAULTS.rate), 1, 100_000),
    socket,
    images: IMAGES,
  };
}
