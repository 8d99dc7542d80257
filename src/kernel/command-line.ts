/**
 * What the kernel takes from its command line. Words that it does not know are for userspace.
 *
 * Source: Linux 7.3 Documentation/admin-guide/kernel-parameters.txt (liveupdate=, intel_iommu=,
 * vfio.enable_unsafe_noiommu_mode=)
 * @module
 */
import { KernelError } from "../base/errno.ts";
import { type CarveOut, parseCarveOuts } from "./memfs/carve-out.ts";

export interface KernelOptions {
  /** `liveupdate=on`: without it there is no /dev/liveupdate, as on Linux. */
  readonly liveUpdate: boolean;
  /** Not `intel_iommu=sp_off`: new domains use pages of 2 MiB and 1 GiB where the hardware walks them. */
  readonly superpages: boolean;
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
    superpages: !intelIommuWords(commandLine).includes("sp_off"),
    noiommu: flag("vfio.enable_unsafe_noiommu_mode", ["1", "y", "Y"], ["0", "n", "N"]),
    carveOuts: parseCarveOuts(commandLine),
  };
}

/** All words of all `intel_iommu=` lists: on Linux they add up. */
function intelIommuWords(commandLine: string): readonly string[] {
  const words = commandLine
    .split(/\s+/)
    .filter((option) => option.startsWith("intel_iommu="))
    .flatMap((option) => option.slice("intel_iommu=".length).split(","));
  for (const word of words)
    if (word !== "on" && word !== "sp_off")
      throw new KernelError("EINVAL", "boot", `intel_iommu=${word}: must be on or sp_off`);
  return words;
}
