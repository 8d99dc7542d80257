/**
 * The demo's kernel runs on a small machine of its own before the jump, so that its code is compiled when it counts.
 *
 * Why: JavaScript is compiled when it runs, and a new thread has nothing compiled. A kernel that runs its first
 * instructions in the blackout spends most of it there. A native kernel has no such need; its rehearsal is its compiler.
 * Honesty: the machine is made here, in the kernel's own thread, and thrown away. Nothing of the real one is known or
 * reachable (see `KernelModule.prepare`), no module of a kernel has mutable state, so nothing but machine code stays.
 * @module
 */
import { MIB } from "../../base/units.ts";
import { RESTORES } from "../../kernel/restores.ts";
import { standardConfig } from "../../machine/embedded/config.ts";
import { InProcessMachine } from "../../machine/embedded/in-process.ts";
import type { KernelImage, KernelModule } from "../../machine/machine.ts";
import { planToCommandLine } from "./events.ts";

const VMS = 2;
const VM_BYTES = 8 * MIB;
const HOST_BYTES = 96 * MIB;
/** Updates of one round, each with all phases; the guests run this long in between. */
const UPDATES = 2;
const RUN_NS = 200_000;
const FRAMES_PER_SECOND = 20_000;
/** Rounds after which a further one makes the next update no faster. */
const ROUNDS = 3;

/**
 * Runs a kernel through whole updates, again and again.
 *
 * @param isWanted - whether the real machine waits: then the round under way ends at once
 */
export function rehearse(kernel: KernelModule, isWanted: () => boolean): void {
  const installed = Array.from({ length: UPDATES + 1 }, (_, i): KernelImage => {
    const release = `rehearsal-${i}`;
    return { name: release, entry: release, release, restores: RESTORES };
  });
  const config = standardConfig({
    memoryBytes: HOST_BYTES,
    nics: VMS,
    framesPerSecond: FRAMES_PER_SECOND,
    installed,
  });
  const plan = planToCommandLine({
    vms: VMS,
    memoryBytes: VM_BYTES,
    updates: UPDATES,
    runNs: RUN_NS,
    images: installed.map((image) => `/boot/${image.name}`),
  });
  const machine = new InProcessMachine(config, { modules: () => kernel, isOver: isWanted });
  for (let round = 0; round < ROUNDS && !isWanted(); round++)
    machine.run(kernel, { commandLine: `liveupdate=on ${plan}`, kho: null });
}
