/**
 * What the kernel at hand can preserve, found out by trying.
 *
 * Why: Linux tells nobody which file handlers it has. PRESERVE_FD of a file without one is ENOENT, so a file of each kind
 * is put into a session that is closed at once. Devices are not tried: binding one resets it. A device is preserved with
 * its iommufd, so that a kernel that cannot do this cannot do that.
 * @module
 */
import { O_RDWR } from "../abi/uapi/fs.ts";
import { KernelError } from "../base/errno.ts";
import { PAGE_SIZE } from "../base/units.ts";
import type { Host } from "../host/host.ts";
import { preserveFd } from "../host/liveupdate.ts";
import type { ResourceKind } from "../vmm/managed-vm.ts";
import type { LiveUpdateDevice } from "./live-update-device.ts";

/** Whether something can be preserved: true, or why not. */
export type Capability = true | string;

export type Capabilities = Readonly<Record<ResourceKind, Capability>>;

/**
 * Tries it. Leaves nothing behind, and no empty block of sessions.
 * @throws {KernelError} what CREATE_SESSION and memfd_create throw
 */
export function probeCapabilities(host: Host, device: LiveUpdateDevice): Capabilities {
  return device.withThrowaway((session) => {
    const memfd = canPreserve(host, session, "memfds", openMemfd(host), 1n);
    const iommufd = probeIommufd(host, session);
    const needsIommufd = iommufd === true ? true : `it goes with its iommufd: ${iommufd}`;
    return { memory: memfd, state: memfd, iommufd, device: needsIommufd };
  });
}

function openMemfd(host: Host): number {
  const fd = host.memfdCreate("holdfast-probe", 0);
  try {
    host.ftruncate(fd, PAGE_SIZE);
  } catch (error) {
    host.close(fd);
    throw error;
  }
  return fd;
}

function probeIommufd(host: Host, session: number): Capability {
  let fd: number;
  try {
    fd = host.open("/dev/iommu", O_RDWR);
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    return `/dev/iommu cannot be opened: ${error.message}`;
  }
  return canPreserve(host, session, "iommufds", fd, 2n);
}

/** Puts a file into the session and closes the descriptor. */
function canPreserve(
  host: Host,
  session: number,
  files: string,
  fd: number,
  token: bigint,
): Capability {
  try {
    preserveFd(host, session, fd, token);
    return true;
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    if (error.code === "ENOENT") return `the kernel ${host.release} has no live update of ${files}`;
    return `it was tried, and failed: ${error.message}`;
  } finally {
    host.close(fd);
  }
}
