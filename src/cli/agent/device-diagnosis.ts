/**
 * Why /dev/liveupdate cannot be opened, and what to do.
 *
 * Source: Linux 7.3 kernel/liveupdate/luo_core.c, Kconfig (LIVEUPDATE needs KEXEC_HANDOVER); systemd 261 src/core/luo.c,
 *   which has the device open for a moment when it boots and when it shuts down
 * @module
 */

import { liveUpdateProblems } from "../../agent/target/live-update-parameters.ts";
import { runningConfig } from "../../agent/target/running-kernel.ts";
import { KernelError } from "../../base/errno.ts";
import type { Host } from "../../host/host.ts";
import { type Holder, holdersOf } from "../../linux/open-files.ts";

const DEVICE = "/dev/liveupdate";

/**
 * The same error with its reason and the way out, where one is known.
 * @param openers - who has a file open
 */
export function explainDeviceError(
  host: Host,
  error: KernelError,
  openers: (path: string) => readonly Holder[] = holdersOf,
): KernelError {
  const reason = reasonOf(host, error, openers);
  return reason === null ? error : new KernelError(error.code, "open", reason, { cause: error });
}

function reasonOf(
  host: Host,
  { code, message }: KernelError,
  openers: (path: string) => readonly Holder[],
): string | null {
  // What else an agent meets when it starts has these codes, too.
  if (!message.includes(DEVICE)) return null;
  switch (code) {
    case "EBUSY":
      return `${DEVICE} has one opener at a time, and ${openedBy(openers(DEVICE))}`;
    case "EACCES":
    case "EPERM":
      return `${DEVICE} is root's: start the agent as root`;
    case "ENOENT":
    case "ENODEV":
    case "ENXIO":
      return `there is no ${DEVICE}: ${absence(host)}`;
    default:
      return null;
  }
}

function openedBy(found: readonly Holder[]): string {
  if (found.length === 0)
    return "somebody has it open whom this user cannot see: fuser as root tells who";
  const names = found.map(({ pid, name }) => `pid ${pid} (${name})`).join(", ");
  return `${names} has it open: it must end, or close it, first`;
}

function absence(host: Host): string {
  const { release } = host;
  const config = runningConfig(host);
  for (const option of ["KEXEC_HANDOVER", "LIVEUPDATE"])
    if (config?.isSet(option) === false)
      return `Linux ${release} is built without CONFIG_${option} (${config.source}); boot one of 6.19 or newer with it`;
  const khoByDefault = config?.isSet("KEXEC_HANDOVER_ENABLE_DEFAULT") ?? null;
  const problems = liveUpdateProblems(host.commandLine, { khoByDefault });
  if (problems.length > 0) return `of Linux ${release}, ${problems.join("; ")}`;
  return config === null
    ? `Linux ${release} does not tell its configuration; it must be 6.19 or newer with CONFIG_LIVEUPDATE`
    : `Linux ${release} should have it; its log ("dmesg | grep -i -e luo -e kho") says what went wrong, and a missing devtmpfs hides it`;
}
