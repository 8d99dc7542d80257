/**
 * Before anything moves: what an update would carry, what blocks it, what the target cannot restore.
 * @module
 */
import { KernelError } from "../base/errno.ts";
import type { Host } from "../host/host.ts";
import { readTextFile } from "../host/read-file.ts";
import type { ManagedVm, Resource } from "../vmm/managed-vm.ts";

/** What a kernel image says of itself. */
export interface ImageManifest {
  readonly name: string;
  readonly release: string;
  /** `compatible` strings of everything that it can restore. */
  readonly restores: readonly string[];
}

/** The report of a preflight; nothing was changed to make it. */
export interface Preflight {
  readonly image: ImageManifest;
  readonly vms: readonly { readonly name: string; readonly resources: readonly Resource[] }[];
  /** Bytes of guest memory, which stay where they are. */
  readonly guestBytes: number;
  /** Why the update cannot be done as things are; empty when it can. */
  readonly blockers: readonly string[];
}

/** Formats that every handover of ours is made of, whatever is in its sessions. */
const ALWAYS_NEEDED = ["kho-v4", "luo-v5"];

/**
 * Looks at the VMs and at the target image.
 *
 * @param image - path of a kernel image, "/boot/NAME"
 * @throws {KernelError} ENOENT when there is no such image; EINVAL when its manifest cannot be read
 */
export function preflight(host: Host, vms: readonly ManagedVm[], image: string): Preflight {
  const manifest = readManifest(host, image);
  const blockers: string[] = [];
  const needed = new Map<string, string>(
    ALWAYS_NEEDED.map((compatible) => [compatible, "the handover"]),
  );
  const report = vms.map((vm) => ({ name: vm.name, resources: vm.resources() }));
  let guestBytes = 0;
  for (const vm of report) {
    for (const resource of vm.resources) {
      if (resource.kind === "memory") guestBytes += resource.bytes;
      if (resource.blocker !== null)
        blockers.push(`${vm.name}: ${resource.kind} ${resource.label}: ${resource.blocker}`);
      if (!needed.has(resource.compatible))
        needed.set(resource.compatible, `${vm.name}: ${resource.kind} ${resource.label}`);
    }
  }
  for (const [compatible, user] of needed) {
    if (!manifest.restores.includes(compatible))
      blockers.push(`${manifest.release} cannot restore "${compatible}", needed by ${user}`);
  }
  return { image: manifest, vms: report, guestBytes, blockers };
}

function readManifest(host: Host, image: string): ImageManifest {
  const text = readTextFile(host, image);
  try {
    const value = JSON.parse(text) as ImageManifest;
    if (typeof value.release === "string" && Array.isArray(value.restores)) return value;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  throw new KernelError("EINVAL", "preflight", `${image} is not a kernel image with a manifest`);
}
