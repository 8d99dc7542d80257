/**
 * kexec_file_load(2) and reboot(2): which kernel comes next, and the way there.
 *
 * The sequence of reboot(LINUX_REBOOT_CMD_KEXEC):
 *   1. an image is loaded, and its manifest restores every format that is preserved now (our addition: upstream
 *      finds out in the next kernel, too late); otherwise nothing is touched;
 *   2. sessions freeze, and on any failure unfreeze: the last step that can fail;
 *   3. PCI shutdown: what is not preserved loses bus mastering;
 *   4. IOMMU shutdown: what is not preserved goes behind the blocking domain, with a flush;
 *   5. the jump.
 * Step 3 comes before step 4 so that devices are silenced at the source: blocked while it still masters the bus, a
 * device would fill the fault records, and its failed reads may wedge it. Writes that were on their way when
 * mastering went are drained by the flush of step 4, and a device that ignores its command register is stopped
 * by the blocked entry all the same.
 * Source: Linux 7.3 kernel/kexec_core.c kernel_kexec, kernel/kexec_file.c, kernel/reboot.c
 * @module
 */
import { encodeUtf8 } from "../../abi/struct.ts";
import { COMMAND_LINE_SIZE } from "../../abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_KEXEC, LINUX_REBOOT_CMD_POWER_OFF } from "../../abi/uapi/reboot.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import type { KernelImage, Machine } from "../../machine/machine.ts";
import type { KexecHandover } from "../kho/handover.ts";
import type { HandoverRequirement } from "../liveupdate/file-handler.ts";
import type { FrozenUpdate } from "../liveupdate/live-update.ts";

/** Where {@link bootFilesystem} is mounted. */
export const BOOT_MOUNT = "/boot";
/** Bytes of a kernel's release at most, as in struct utsname without the NUL. */
const RELEASE_MAX_BYTES = 64;

export interface KexecDependencies {
  readonly machine: Pick<Machine, "kexec" | "powerOff">;
  readonly kho: Pick<KexecHandover, "bootParameters">;
  readonly liveUpdate: { freeze(): FrozenUpdate };
  /** Formats of all that is preserved now: of live update, and of filesystems in preserved memory. */
  readonly requirements: () => Iterable<HandoverRequirement>;
  readonly pci: { shutdown(): void };
  readonly iommu: { shutdown(): void };
  readonly faults: FaultInjector;
}

interface LoadedImage {
  readonly image: KernelImage;
  readonly commandLine: string;
}

export class KexecControl {
  readonly #deps: KexecDependencies;
  #loaded: LoadedImage | null = null;

  constructor(dependencies: KexecDependencies) {
    this.#deps = dependencies;
  }

  /**
   * Loads an image, in place of the one loaded before. Passes the fault point "kexec:load".
   *
   * @param path - "/boot/NAME"
   * @throws {KernelError} ENOENT no such image, or its code is missing; EINVAL its manifest is not one, or the
   *   command line has a NUL or more than 2047 bytes. What was loaded before stays loaded.
   */
  fileLoad(path: string, commandLine: string): void {
    const op = "kexec_file_load";
    const { machine, faults } = this.#deps;
    const image = machine.kexec.installed.find((one) => path === `${BOOT_MOUNT}/${one.name}`);
    if (image === undefined) throw new KernelError("ENOENT", op, `there is no image "${path}"`);
    checkImage(image, op);
    if (commandLine.includes("\0") || encodeUtf8(commandLine).length >= COMMAND_LINE_SIZE)
      throw new KernelError(
        "EINVAL",
        op,
        `a command line has at most ${COMMAND_LINE_SIZE - 1} bytes`,
      );
    faults.point("kexec:load");
    machine.kexec.load(image);
    this.#loaded = { image, commandLine };
  }

  /** Unloads the image; without one nothing happens. */
  unload(): void {
    this.#deps.machine.kexec.load(null);
    this.#loaded = null;
  }

  /** Name of the loaded image, or null. */
  get loadedName(): string | null {
    return this.#loaded?.image.name ?? null;
  }

  /**
   * Leaves this kernel. Returns only by throwing, with everything as it was.
   *
   * @param command - LINUX_REBOOT_CMD_KEXEC or LINUX_REBOOT_CMD_POWER_OFF
   * @throws {KernelError} EINVAL another command (there is no firmware to restart), or KEXEC without a loaded
   *   image; EOPNOTSUPP the image cannot restore something that is preserved, which the message names; what a
   *   handler's or an FLB's freeze throws
   */
  reboot(command: number): never {
    if (command === LINUX_REBOOT_CMD_POWER_OFF) this.#deps.machine.powerOff(0);
    if (command !== LINUX_REBOOT_CMD_KEXEC)
      throw new KernelError("EINVAL", "reboot", `this kernel has no command ${command}`);
    return this.#kexec();
  }

  #kexec(): never {
    const { machine, kho, liveUpdate, pci, iommu } = this.#deps;
    const loaded = this.#loaded;
    if (loaded === null) throw new KernelError("EINVAL", "reboot", "no kernel image is loaded");
    this.#checkRestores(loaded.image);
    liveUpdate.freeze();
    // From here on nothing fails: the handover is in memory, and what follows only takes rights away.
    pci.shutdown();
    iommu.shutdown();
    return machine.kexec.execute({ commandLine: loaded.commandLine, kho: kho.bootParameters() });
  }

  #checkRestores(image: KernelImage): void {
    const missing = new Map<string, string>();
    for (const { compatible, neededBy } of this.#deps.requirements())
      if (!image.restores.includes(compatible) && !missing.has(compatible))
        missing.set(compatible, neededBy);
    if (missing.size === 0) return;
    const list = [...missing].map(([compatible, neededBy]) => `"${compatible}" (${neededBy})`);
    throw new KernelError(
      "EOPNOTSUPP",
      "reboot",
      `kernel "${image.name}" (${image.release}) cannot restore ${list.join(", ")}`,
    );
  }
}

/** The boot disk is outside of this kernel: what it says is checked like any input. */
function checkImage(image: KernelImage, op: string): void {
  const { release, restores } = image;
  const isRelease =
    typeof release === "string" &&
    release !== "" &&
    encodeUtf8(release).length <= RELEASE_MAX_BYTES;
  if (!isRelease)
    throw new KernelError("EINVAL", op, `image "${image.name}" has no release of 1 to 64 bytes`);
  if (!Array.isArray(restores) || !restores.every((one) => typeof one === "string" && one !== ""))
    throw new KernelError("EINVAL", op, `image "${image.name}" does not say what it restores`);
}
