/**
 * What the threads of the live machine say to each other.
 * @module
 */
import type { MessagePort } from "node:worker_threads";
import type { MachineConfig } from "../embedded/config.ts";
import type { SharedStatistics } from "../embedded/hardware-statistics.ts";
import type { BootParameters, Firmware, KernelImage } from "../machine.ts";
import type { SharedRam } from "../physical-memory.ts";
import type { KernelDevices } from "./kernel-devices.ts";

/** The shared memory of an embedded machine that is powered on, besides RAM. */
export interface SharedState {
  /** @see createMailbox */
  readonly mailbox: SharedArrayBuffer;
  /** @see createInterruptState */
  readonly interrupts: SharedArrayBuffer;
  /** Int32: 1 while a kernel exists. */
  readonly kernelPresent: SharedArrayBuffer;
  readonly statistics: SharedStatistics;
}

/** The hardware's thread is started with it. */
export interface HardwareThreadData {
  readonly config: MachineConfig;
  readonly ram: SharedRam;
  readonly state: SharedState;
}

/** A kernel's thread is started with it: code, and a line to the supervisor; no memory yet. */
export interface KernelThreadData {
  readonly entry: string;
  /** Answers of the supervisor come here ... */
  readonly port: MessagePort;
  /** ... and are counted here. @see createAnswers */
  readonly answers: SharedArrayBuffer;
}

/** From a kernel's thread to the supervisor. */
export type KernelMessage =
  /** The code is loaded. Answer, at the jump: {@link KernelEntry}. */
  | { readonly kind: "ready" }
  /** Answer, before the kernel may be loaded: none, the supervisor gives up on the thread. */
  | { readonly kind: "not-a-kernel"; readonly problem: string }
  /** The kernel's start() is called now. */
  | { readonly kind: "entered"; readonly atNs: number }
  | { readonly kind: "serial"; readonly line: string }
  /** Answer: the next line that has come, or null. */
  | { readonly kind: "serial-read" }
  /** Answer: {@link LoadAnswer}. */
  | { readonly kind: "load"; readonly image: KernelImage | null }
  /** Answer: never. */
  | { readonly kind: "execute"; readonly parameters: BootParameters; readonly atNs: number }
  /** Answer: never. */
  | { readonly kind: "power-off"; readonly status: number }
  | { readonly kind: "panic"; readonly message: string; readonly stack: string };

/** All that a kernel is given. */
export interface KernelEntry {
  readonly ram: SharedRam;
  readonly firmware: Firmware;
  /** Images on the boot disk. */
  readonly installed: readonly KernelImage[];
  /** Int32: 1 while a kernel exists. */
  readonly kernelPresent: SharedArrayBuffer;
  readonly devices: KernelDevices;
  readonly parameters: BootParameters;
}

/** Whether an image was loaded. */
export type LoadAnswer =
  | { readonly ok: true }
  | { readonly ok: false; readonly code: "ENOENT" | "EINVAL"; readonly problem: string };
