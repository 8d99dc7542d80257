/**
 * Whether a command line turns live update on.
 *
 * Source: Linux 7.3 kernel/liveupdate/luo_core.c (`liveupdate=`: off unless it says on), kexec_handover.c (`kho=`: by
 * CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT; without it there is no live update either)
 * @module
 */
import { booleanParameter } from "./kernel-parameters.ts";

/**
 * @param commandLine - all of it, also what the kernel has built in
 * @param defaults - `khoByDefault`: the kernel hands over without being told to; null: it is not known
 * @returns why nothing would be handed over; empty when all is well
 */
export function liveUpdateProblems(
  commandLine: string,
  defaults: { readonly khoByDefault: boolean | null },
): readonly string[] {
  const problems: string[] = [];
  if (booleanParameter(commandLine, "liveupdate") !== true)
    problems.push(
      "its command line does not turn live update on, so that everything preserved would be lost: add liveupdate=on",
    );
  const kho = booleanParameter(commandLine, "kho");
  if (kho === false)
    problems.push("its command line turns the handover off: take kho=off away, or add kho=on");
  else if (kho === null && defaults.khoByDefault === false)
    problems.push("it takes no handover unless it is told to: add kho=on to its command line");
  return problems;
}
