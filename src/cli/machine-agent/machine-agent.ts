/**
 * A machine of ours with VMs and an agent: the commands for operators work on it as on a real host.
 * @module
 */
import { MIB } from "../../base/units.ts";
import { standardConfig } from "../../machine/embedded/config.ts";
import { kernelImages } from "../demo/kernel-images.ts";
import type { MachineKind } from "../demo/machine-kinds.ts";
import { powerOn } from "../demo/threaded-machine.ts";
import { ChannelRelay } from "./channel-relay.ts";
import { planToCommandLine } from "./plan.ts";

export interface MachineAgentOptions {
  readonly machine: MachineKind;
  readonly vms: number;
  /** Of each VM. */
  readonly memoryBytes: number;
  /** To each NIC. */
  readonly framesPerSecond: number;
  readonly socket: string;
  /** Builds of the kernel on the boot disk. */
  readonly images: number;
}

/** Told of what happens while it happens. */
export interface MachineAgentWatcher {
  /** Clients can connect; they are answered once the machine is up. */
  listening(): void;
  /** A line that the kernel or the machine has said. */
  log(line: string): void;
}

/** Kernel's own memory of each node. */
const HOST_BYTES = 192 * MIB;

/**
 * Runs the machine until it is told to stop.
 *
 * @param version - of this package: kernels are its builds 1, 2, ...
 * @throws {KernelError} as {@link ChannelRelay.listen} and {@link powerOn}
 * @throws {KernelPanic} when a kernel fails
 */
export async function runMachineAgent(
  options: MachineAgentOptions,
  version: string,
  watcher: MachineAgentWatcher,
  signal: AbortSignal,
): Promise<void> {
  const { vms, memoryBytes, framesPerSecond } = options;
  const installed = kernelImages(new URL("./image", import.meta.url).href, version, options.images);
  const config = standardConfig({
    // Two nodes; each must hold its share of the VMs.
    memoryBytes: 2 * (Math.ceil(vms / 2) * memoryBytes + HOST_BYTES),
    nics: vms,
    framesPerSecond,
    installed,
  });
  const relay = await ChannelRelay.listen(options.socket);
  watcher.listening();
  try {
    const machine = await powerOn(options.machine, config, {
      onSerialLine: (line) => {
        if (!relay.receive(line)) watcher.log(line);
      },
      onJump: ({ image }) => {
        relay.kernelEnded();
        watcher.log(`jumped to ${image.release}`);
      },
    });
    const close = () => void machine.close();
    signal.addEventListener("abort", close);
    try {
      relay.connect((line) => machine.writeSerialLine(line));
      const plan = planToCommandLine({ vms, memoryBytes });
      if (!signal.aborted) await machine.run(installed[0], `liveupdate=on ${plan}`);
    } finally {
      signal.removeEventListener("abort", close);
      await machine.close();
    }
  } finally {
    await relay.close();
  }
}
