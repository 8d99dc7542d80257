/**
 * What the demo's userspace tells over the serial line, one JSON object a line, and what it is told on the kernel's
 * command line.
 * @module
 */
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";

export type DemoEvent =
  | {
      readonly event: "boot";
      readonly release: string;
      readonly update: number;
      readonly atNs: number;
    }
  | {
      readonly event: "phase";
      readonly update: number;
      readonly name: string;
      readonly startNs: number;
      readonly endNs: number;
    }
  | {
      readonly event: "restored";
      readonly update: number;
      readonly vm: string;
      readonly blackoutNs: number;
      readonly guestBytesCopied: number;
    }
  | {
      readonly event: "failure";
      readonly update: number;
      readonly vm: string;
      readonly phase: string;
      readonly message: string;
    }
  | {
      readonly event: "handover";
      readonly update: number;
      readonly bytes: number;
      readonly guestBytes: number;
    }
  | {
      /** The remapping units have blocked DMA; told only if they have. Counts are those since this kernel's boot. */
      readonly event: "faults";
      readonly update: number;
      readonly functions: readonly FunctionFaults[];
      /** How often faults were lost for want of records. */
      readonly overflows: number;
    }
  | {
      /** The guests have run for a while, all of them together. */
      readonly event: "ran";
      readonly startNs: number;
      readonly endNs: number;
      readonly received: number;
      readonly transmitted: number;
    }
  | { readonly event: "vm"; readonly vm: VmReport }
  | { readonly event: "leaks"; readonly leaks: Leaks };

export interface VmReport {
  readonly name: string;
  /** Which NIC of the machine is assigned to it. */
  readonly nic: number;
  readonly memoryBytes: number;
  readonly received: number;
  readonly lost: number;
  readonly corrupt: number;
  /** Handed to the NIC to send. */
  readonly transmitted: number;
  readonly dirtied: number;
  /** What the guest's own audit found wrong. */
  readonly problems: readonly string[];
}

/** Blocked DMA of a function, as in /sys/kernel/debug/holdfast/faults. */
export interface FunctionFaults {
  readonly function: string;
  readonly reads: number;
  readonly writes: number;
}

export interface Leaks {
  readonly pages: number;
  readonly pins: number;
  readonly domains: number;
}

/** What the demo's userspace is to do. */
export interface DemoPlan {
  readonly vms: number;
  readonly memoryBytes: number;
  readonly updates: number;
  /** How long the VMs run before the first update and after each, in nanoseconds of the machine's clock. */
  readonly runNs: number;
  /** Paths of the images to jump to, one after the other: of the same form, numbered without gaps. */
  readonly images: readonly string[];
}

/** The plan as kernel command line words; the kernel ignores what it does not know. */
export function planToCommandLine(plan: DemoPlan): string {
  return [
    `demo.vms=${plan.vms}`,
    `demo.memory=${plan.memoryBytes}`,
    `demo.updates=${plan.updates}`,
    `demo.run=${plan.runNs}`,
    `demo.images=${imagesToWord(plan.images)}`,
  ].join(" ");
}

/** A command line has 2 KiB: "/boot/vmlinuz-7", "/boot/vmlinuz-8", ... become "/boot/vmlinuz-,7,2". */
function imagesToWord(images: readonly string[]): string {
  const match = /^(.*?)(\d+)$/.exec(images[0] ?? "");
  assert(match !== null, "images are numbered");
  const [, prefix, first] = match;
  assert(
    images.every((image, i) => image === `${prefix}${Number(first) + i}`),
    "images are numbered without gaps",
  );
  return `${prefix},${first},${images.length}`;
}

function imagesFromWord(word: string): string[] {
  const [, prefix, first, length] = /^(.+),(\d{1,6}),(\d{1,6})$/.exec(word) ?? [];
  if (length === undefined)
    throw new KernelError("EINVAL", "demo", `demo.images=${word} is not a list of images`);
  return Array.from({ length: Number(length) }, (_, i) => `${prefix}${Number(first) + i}`);
}

/** @throws {KernelError} EINVAL when a word is missing or malformed */
export function planFromCommandLine(commandLine: string): DemoPlan {
  const words = new Map(
    commandLine.split(" ").map((word) => {
      const at = word.indexOf("=");
      return at < 0 ? ([word, ""] as const) : ([word.slice(0, at), word.slice(at + 1)] as const);
    }),
  );
  const text = (name: string) => {
    const value = words.get(`demo.${name}`);
    if (value === undefined)
      throw new KernelError("EINVAL", "demo", `no demo.${name} on the command line`);
    return value;
  };
  const count = (name: string) => {
    const value = Number(text(name));
    if (!/^\d+$/.test(text(name)) || !Number.isSafeInteger(value))
      throw new KernelError("EINVAL", "demo", `demo.${name}=${text(name)} is not a count`);
    return value;
  };
  return {
    vms: count("vms"),
    memoryBytes: count("memory"),
    updates: count("updates"),
    runNs: count("run"),
    images: imagesFromWord(text("images")),
  };
}
