/**
 * Before anything moves: what an update would carry, what blocks it, what the target cannot restore.
 * @module
 */
import { type ImageManifest, MANIFEST_FORMAT } from "../abi/image-manifest.ts";
import { KHO_FDT_COMPATIBLE } from "../abi/kho.ts";
import { LUO_ABI_COMPATIBLE } from "../abi/luo.ts";
import { MEMFD_LUO_FH_COMPATIBLE } from "../abi/memfd.ts";
import { encodeUtf8 } from "../abi/struct.ts";
import { LIVEUPDATE_SESSION_NAME_LENGTH } from "../abi/uapi/liveupdate.ts";
import { KernelError } from "../base/errno.ts";
import type { Host } from "../host/host.ts";
import { readTextFile } from "../host/read-file.ts";
import type { ManagedVm, Resource } from "../vmm/managed-vm.ts";
import { AGENT_SESSION } from "./journal.ts";

/** The report of a preflight; nothing was changed to make it. */
export interface Preflight {
  readonly image: ImageManifest;
  readonly vms: readonly { readonly name: string; readonly resources: readonly Resource[] }[];
  /** Bytes of guest memory, which stay where they are. */
  readonly guestBytes: number;
  /** Why the update cannot be done as things are; empty when it can. */
  readonly blockers: readonly string[];
}

/** Formats of every handover of ours, whatever VMs are in it: the agent's own session and journal are. */
const ALWAYS_NEEDED: readonly (readonly [compatible: string, user: string])[] = [
  [KHO_FDT_COMPATIBLE, "the handover"],
  [LUO_ABI_COMPATIBLE, "the handover"],
  [MEMFD_LUO_FH_COMPATIBLE, "the agent's journal"],
];

/**
 * Looks at the VMs and at the target image.
 *
 * @param image - path of a kernel image, "/boot/NAME"
 * @throws {KernelError} ENOENT when there is no such image; EINVAL when its manifest cannot be read
 */
export function preflight(host: Host, vms: readonly ManagedVm[], image: string): Preflight {
  const manifest = readManifest(host, image);
  const blockers: string[] = [];
  const needed = new Map(ALWAYS_NEEDED);
  const report = vms.map((vm) => ({ name: vm.name, resources: vm.resources() }));
  blockers.push(...nameBlockers(vms.map((vm) => vm.name)));
  let guestBytes = 0;
  for (const vm of report) {
    for (const resource of vm.resources) {
      if (resource.kind === "memory") guestBytes += resource.bytes;
      if (resource.blocker !== null)
        blockers.push(`${vm.name}: ${resource.kind} ${resource.label}: ${resource.blocker}`);
      for (const compatible of resource.compatibles)
        if (!needed.has(compatible))
          needed.set(compatible, `${vm.name}: ${resource.kind} ${resource.label}`);
    }
  }
  for (const [compatible, user] of needed) {
    if (!manifest.restores.includes(compatible))
      blockers.push(`${manifest.release} cannot restore "${compatible}", needed by ${user}`);
  }
  return { image: manifest, vms: report, guestBytes, blockers };
}

/** A name becomes that of a session. */
function nameBlockers(names: readonly string[]): string[] {
  const blockers: string[] = [];
  for (const [i, name] of names.entries()) {
    if (name === AGENT_SESSION) blockers.push(`${name}: the agent's own session has this name`);
    else if (names.indexOf(name) !== i) blockers.push(`${name}: two VMs have this name`);
    else if (name === "" || encodeUtf8(name).length >= LIVEUPDATE_SESSION_NAME_LENGTH)
      blockers.push(
        `${name}: a name has 1 to ${LIVEUPDATE_SESSION_NAME_LENGTH - 1} bytes, since its session has it too`,
      );
  }
  return blockers;
}

function readManifest(host: Host, image: string): ImageManifest {
  const text = readTextFile(host, image);
  try {
    const value = JSON.parse(text) as Partial<ImageManifest> | null;
    const restores: unknown = value?.restores;
    if (
      value?.format === MANIFEST_FORMAT &&
      typeof value.name === "string" &&
      typeof value.release === "string" &&
      Array.isArray(restores) &&
      restores.every((compatible) => typeof compatible === "string")
    )
      return { format: MANIFEST_FORMAT, name: value.name, release: value.release, restores };
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  throw new KernelError(
    "EINVAL",
    "preflight",
    `${image} is not a kernel image with a manifest of format ${MANIFEST_FORMAT}`,
  );
}
