/**
 * The kernel at hand: its configuration, and what it asks of an image that it is to load.
 *
 * Source: Linux 7.3 kernel/kexec_file.c kimage_validate_signature, security/lockdown/lockdown.c,
 *   security/integrity/ima/ima_efi.c, Documentation/admin-guide/sysctl/kernel.rst (kexec_load_disabled)
 * Not modelled: an IMA policy that takes images by signatures of its own. The kernel itself has the last word when it
 *   loads the image, which is before anything is preserved.
 * @module
 */
import type { Host } from "../../host/host.ts";
import { installedConfig, KernelConfig, unpackConfig } from "./kernel-config.ts";
import { readIfThere } from "./optional-file.ts";

const CONFIG = "/proc/config.gz";
const LOCKDOWN = "/sys/kernel/security/lockdown";
/** The variable SecureBoot of the EFI global namespace: four bytes of attributes, then 0 or 1. */
const SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
const LOAD_DISABLED = "/proc/sys/kernel/kexec_load_disabled";
/** Bytes of one of these files at most. */
const FILE_BYTES_MAX = 4096;
const CONFIG_BYTES_MAX = 1024 * 1024;

/** Configuration of the kernel at hand; null when it cannot be found. @throws {KernelError} what read(2) throws */
export function runningConfig(host: Host): KernelConfig | null {
  const packed = readIfThere(host, CONFIG, CONFIG_BYTES_MAX);
  const text = packed === null ? null : unpackConfig(packed);
  return text === null ? installedConfig(host, host.release) : new KernelConfig(text, CONFIG);
}

/**
 * Why the kernel at hand loads signed images only; null when it loads others, too.
 * @throws {KernelError} what read(2) throws
 */
export function signatureDemand(host: Host): string | null {
  const lockdown = /\[(integrity|confidentiality)\]/.exec(text(host, LOCKDOWN))?.[1];
  if (lockdown !== undefined) return `it is locked down (${lockdown})`;
  const config = runningConfig(host);
  if (config?.isSet("KEXEC_SIG_FORCE") === true) return "it is built with CONFIG_KEXEC_SIG_FORCE";
  const isSecure = readIfThere(host, SECURE_BOOT, FILE_BYTES_MAX)?.[4] === 1;
  // Secure boot by itself asks for nothing; the architecture's IMA policy does.
  const hasPolicy = config?.isSet("IMA_SECURE_AND_OR_TRUSTED_BOOT") !== false;
  return isSecure && hasPolicy ? "it was booted with secure boot" : null;
}

/** Whether kexec_file_load(2) is switched off until the next boot. @throws {KernelError} what read(2) throws */
export function isLoadDisabled(host: Host): boolean {
  return text(host, LOAD_DISABLED).trim() === "1";
}

/** Empty when there is no such file. */
function text(host: Host, path: string): string {
  return new TextDecoder().decode(readIfThere(host, path, FILE_BYTES_MAX) ?? new Uint8Array(0));
}
