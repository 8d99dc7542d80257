/**
 * What the kernel takes from its command line. Words that it does not know are for userspace.
 *
 * Source: Linux 7.3 Documentation/admin-guide/kernel-parameters.txt (liveupdate=, vfio.enable_unsafe_noiommu_mode=)
 * @module
 */
import { KernelError } from "../base/errno.ts";
import { type CarveOut, parseCarveOuts } from "./memfs/carve-out.ts";

export interface KernelOptions {
  /** `liveupdate=on`: without it there is no /dev/liveupdate, as on Linux. */
  readonly liveUpdate: boolean;
  /** `vfio.enable_unsafe_noiommu_mode=1` */
  readonly noiommu: boolean;
  /** `pkernfs=[NAME:]SIZE!START,...` */
  readonly carveOuts: readonly CarveOut[];
}

/** @throws {KernelError} EINVAL when a word that is the kernel's has a value that it does not know */
export function parseCommandLine(commandLine: string): KernelOptions {
  const flag = (name: string, on: readonly string[], off: readonly string[]): boolean => {
    // The last one counts, as on Linux.
    const word = commandLine.split(/\s+/).findLast((w) => w.startsWith(`${name}=`));
    const value = word?.slice(name.length + 1);
    if (value === undefined || off.includes(value)) return false;
    if (on.includes(value)) return true;
    throw new KernelError("EINVAL", "boot", `${word}: must be ${[...on, ...off].join(", ")}`);
  };
  return {
    liveUpdate: flag("liveupdate", ["on", "1", "y"], ["off", "0", "n"]),
    noiommu: flag("vfio.enable_unsafe_noiommu_mode", ["1", "y", "Y"], ["0", "n", "N"]),
    carveOuts: parseCarveOuts(commandLine),
  };
}
