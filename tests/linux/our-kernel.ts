/**
 * The scenario of this folder on our kernel in the deterministic machine; and our kernel booted into memory that a real
 * Linux has left.
 * @module
 */
import assert from "node:assert/strict";
import { readScratch } from "../../src/abi/kho.ts";
import { LINUX_REBOOT_CMD_KEXEC, LINUX_REBOOT_CMD_POWER_OFF } from "../../src/abi/uapi/reboot.ts";
import { MIB, PAGE_SIZE } from "../../src/base/units.ts";
import { openImage } from "../../src/inspect/image/open-image.ts";
import { saveImage } from "../../src/inspect/image/save-image.ts";
import { boot } from "../../src/kernel/boot.ts";
import type { Kernel } from "../../src/kernel/kernel.ts";
import { RESTORES } from "../../src/kernel/restores.ts";
import type { MachineConfig } from "../../src/machine/embedded/config.ts";
import { DeterministicMachine } from "../../src/machine/embedded/deterministic.ts";
import { keptRanges } from "../../src/machine/embedded/kexec-kept.ts";
import type {
  BootParameters,
  KernelImage,
  KernelModule,
  KhoBootParameters,
} from "../../src/machine/machine.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";
import type { KhoData } from "./gate.ts";
import { RAM_BYTES } from "./rig.ts";
import { finishAll, type ObservedFile, preserveAll, retrieveAll } from "./scenario.ts";

const IMAGE: KernelImage = {
  name: "vmlinuz",
  entry: "test:vmlinuz",
  release: "test-1",
  restores: RESTORES,
};
const COMMAND_LINE = "liveupdate=on";
const SEED = 1;
const PIECE_BYTES = 2 * MIB;

/** What a run has shown. */
export interface OurRun {
  /** What userspace got back after the jump. */
  readonly files: readonly ObservedFile[];
  readonly leaks: ReturnType<Kernel["leaks"]>;
  /** Of the serial line. */
  readonly lines: readonly string[];
}

/**
 * Hands everything of the scenario over from one of our kernels to the next, which gives it all back.
 *
 * @param image - where to write the memory between the two
 */
export function handOverOnOurKernel(image: string): OurRun {
  const { machine, run } = powerOn((kernel) => {
    const host = kernel.spawn();
    preserveAll(host);
    host.kexecFileLoad(`/boot/${IMAGE.name}`, null, COMMAND_LINE);
    return host.reboot(LINUX_REBOOT_CMD_KEXEC);
  });
  machine.onJump((ram, { parameters, problem }) => {
    assert.equal(problem, null);
    assert(parameters.kho !== null);
    saveImage(image, ram, { update: 1, kho: parameters.kho, firmware: machine.firmware });
    return parameters;
  });
  return run({ commandLine: COMMAND_LINE, kho: null });
}

/**
 * Boots our kernel into the memory that a Linux has left, and takes its sessions over.
 *
 * @param image - of the machine that Linux ran on
 * @param kho - what Linux told its successor
 */
export function takeOverFromLinux(image: string, kho: KhoBootParameters): OurRun {
  const { machine, run } = powerOn(null);
  copyRam(image, machine.ram);
  return run({ commandLine: COMMAND_LINE, kho });
}

/** What one of our kernels hands over, in pieces of memory outside of scratch. */
export interface OurHandover {
  readonly kho: KhoBootParameters;
  readonly pieces: readonly { readonly pa: number; readonly bytes: Uint8Array }[];
}

/**
 * Boots our kernel into the memory that a Linux has left; it takes the sessions over, ends them, makes them all anew and
 * jumps.
 *
 * @returns what it hands over; scratch areas are those of Linux
 */
export function passThroughOurKernel(image: string, kho: KhoBootParameters): OurHandover {
  let handover: OurHandover | null = null;
  const { machine, run } = powerOn((kernel) => {
    const host = kernel.spawn();
    finishAll(host, retrieveAll(host));
    preserveAll(host);
    host.kexecFileLoad(`/boot/${IMAGE.name}`, null, COMMAND_LINE);
    return host.reboot(LINUX_REBOOT_CMD_KEXEC);
  });
  copyRam(image, machine.ram);
  machine.onJump((ram, { parameters, problem }) => {
    assert.equal(problem, null);
    assert(parameters.kho !== null);
    handover = { kho: parameters.kho, pieces: piecesOf(ram, parameters.kho) };
    return parameters;
  });
  run({ commandLine: COMMAND_LINE, kho });
  assert(handover !== null);
  return handover;
}

/** Everything that survives a jump but scratch. */
function piecesOf(ram: Ram, kho: KhoBootParameters): OurHandover["pieces"] {
  const scratch = readScratch(ram, kho.scratchAddress, kho.scratchSizeBytes);
  const isScratch = (pa: number) =>
    scratch.some(({ addr, size }) => pa >= addr && pa < addr + size);
  const pieces = [];
  for (const { start, lengthBytes } of keptRanges(ram, kho).ranges)
    for (let pa = start; pa < start + lengthBytes; pa += PAGE_SIZE) {
      if (isScratch(pa)) continue;
      const bytes = new Uint8Array(PAGE_SIZE);
      ram.read(pa, bytes);
      pieces.push({ pa, bytes });
    }
  return pieces;
}

/** What Linux told its successor, in our words. */
export function khoParameters(kho: KhoData): KhoBootParameters {
  return {
    fdtAddress: kho.fdtAddr,
    fdtSizeBytes: kho.fdtSize,
    scratchAddress: kho.scratchAddr,
    scratchSizeBytes: kho.scratchSize,
  };
}

/**
 * A machine as large as the one that Linux runs on.
 *
 * @param first - userspace of the first kernel; null: as of the last, which takes everything over and ends
 */
function powerOn(first: ((kernel: Kernel) => never) | null): {
  readonly machine: DeterministicMachine;
  readonly run: (parameters: BootParameters) => OurRun;
} {
  const config: MachineConfig = {
    nodeBytes: [RAM_BYTES],
    segments: [{ drhd: { addressBits: 48, superpages: true }, slots: [] }],
    installed: [IMAGE],
  };
  const lines: string[] = [];
  let files: readonly ObservedFile[] = [];
  let leaks: OurRun["leaks"] | null = null;
  let boots = 0;
  const module: KernelModule = {
    start(kernelMachine, parameters) {
      const kernel = boot(kernelMachine, parameters, { release: IMAGE.release });
      if (boots++ === 0 && first !== null) return first(kernel);
      const host = kernel.spawn();
      const retrieved = retrieveAll(host);
      files = retrieved.files;
      finishAll(host, retrieved);
      host.exit();
      leaks = kernel.leaks();
      return kernel.spawn().reboot(LINUX_REBOOT_CMD_POWER_OFF);
    },
  };
  const machine = new DeterministicMachine(config, {
    seed: SEED,
    modules: () => module,
    onSerialLine: (line) => lines.push(line),
    eventsPerStep: 256,
  });
  const run = (parameters: BootParameters): OurRun => {
    const end = machine.run(module, parameters);
    assert.deepEqual(end, { kind: "powered-off", status: 0 }, lines.join("\n"));
    assert(leaks !== null, "a second kernel has run");
    return { files, leaks, lines };
  };
  return { machine, run };
}

/** Copies what is not zero. */
function copyRam(path: string, ram: Ram): void {
  const image = openImage(path);
  const piece = Buffer.alloc(PIECE_BYTES);
  const zeros = Buffer.alloc(PIECE_BYTES);
  for (const { start, lengthBytes } of image.backed)
    for (let done = 0; done < lengthBytes; done += PIECE_BYTES) {
      const bytes = piece.subarray(0, Math.min(PIECE_BYTES, lengthBytes - done));
      image.read(start + done, bytes);
      if (!bytes.equals(zeros.subarray(0, bytes.length))) ram.write(start + done, bytes);
    }
  image.close();
}
