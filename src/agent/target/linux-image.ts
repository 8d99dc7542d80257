/**
 * A Linux bzImage as the target of an update: what it can restore, and what speaks against it.
 *
 * Why: Linux has no manifest of formats. But a kernel compares the `compatible` strings of what is handed to it with its
 * own, so it has them in it, each ended by a NUL; and its configuration says what it was built with.
 * Source: Linux 7.3 include/linux/kho/abi/*.h, kernel/liveupdate/Kconfig
 * Not modelled: handlers in modules: what the kernel itself does not have counts as what it cannot restore.
 * @module
 */
import { encodeUtf8 } from "../../abi/struct.ts";
import type { Host } from "../../host/host.ts";
import type { BzImage } from "./bzimage.ts";
import { decompress } from "./decompress.ts";
import { embeddedConfig, installedConfig, type KernelConfig } from "./kernel-config.ts";
import { booleanParameter } from "./kernel-parameters.ts";
import type { KernelTarget, TargetDescription } from "./kernel-target.ts";
import { liveUpdateProblems } from "./live-update-parameters.ts";
import { isThere } from "./optional-file.ts";
import { isLoadDisabled, signatureDemand } from "./running-kernel.ts";

/** What live update takes, in the configuration. */
const NEEDED_OPTIONS = ["KEXEC_HANDOVER", "LIVEUPDATE", "LIVEUPDATE_MEMFD"] as const;
/** A `compatible` string as it lies in a kernel: "kho-v4". At most 48 bytes with its NUL. */
const COMPATIBLE = /(?<![a-z0-9-])[a-z][a-z0-9-]{0,43}-v[0-9]{1,3}(?=\0)/g;

/** @throws {KernelError} what reading a configuration throws */
export function describeLinux(host: Host, target: KernelTarget, image: BzImage): TargetDescription {
  const { release } = image;
  const unpacked = decompress(image.payload);
  const kernel = "bytes" in unpacked && isElf(unpacked.bytes) ? unpacked.bytes : null;
  const config = (kernel && embeddedConfig(kernel)) ?? installedConfig(host, release);
  const problems: string[] = [];
  const unknowns: string[] = [];

  if (kernel === null) {
    const why = "reason" in unpacked ? unpacked.reason : "its payload is no ELF file";
    unknowns.push(`what it can restore cannot be told: ${why}`);
  }
  if (config !== null)
    for (const option of NEEDED_OPTIONS)
      if (!config.isSet(option))
        problems.push(`it is built without CONFIG_${option}, says ${config.source}`);
  const commandLine = effectiveCommandLine(target.commandLine, config);
  const khoByDefault = config?.isSet("KEXEC_HANDOVER_ENABLE_DEFAULT") ?? null;
  problems.push(...liveUpdateProblems(commandLine, { khoByDefault }));
  if (khoByDefault === null && booleanParameter(commandLine, "kho") === null)
    unknowns.push(
      "whether it takes a handover without being told to, since its configuration is nowhere to be found: add kho=on to its command line",
    );

  const bytes = encodeUtf8(target.commandLine).length;
  if (bytes > image.commandLineBytesMax)
    problems.push(`its command line has ${bytes} bytes, over ${image.commandLineBytesMax}`);
  if (target.initrd !== null && !isThere(host, target.initrd))
    problems.push(`there is no initrd ${target.initrd}`);
  if (isLoadDisabled(host))
    problems.push("the running kernel loads no image any more: kernel.kexec_load_disabled is 1");
  const demand = image.isSigned ? null : signatureDemand(host);
  if (demand !== null)
    problems.push(
      `${target.kernel} is not signed, and the running kernel loads only what is: ${demand}`,
    );
  return {
    ...target,
    kind: "linux",
    release,
    restores: kernel === null ? null : compatibleStrings(kernel),
    problems,
    unknowns,
  };
}

/** With what the kernel has built in, which comes first, or instead. */
function effectiveCommandLine(given: string, config: KernelConfig | null): string {
  if (config === null || !config.isSet("CMDLINE_BOOL")) return given;
  const builtIn = config.value("CMDLINE");
  return config.isSet("CMDLINE_OVERRIDE") ? builtIn : `${builtIn} ${given}`;
}

function compatibleStrings(kernel: Uint8Array): readonly string[] {
  const text = Buffer.from(kernel.buffer, kernel.byteOffset, kernel.byteLength).toString("latin1");
  return [...new Set(Array.from(text.matchAll(COMPATIBLE), ([compatible]) => compatible))].sort();
}

function isElf(bytes: Uint8Array): boolean {
  return [0x7f, 0x45, 0x4c, 0x46].every((byte, i) => bytes[i] === byte);
}
