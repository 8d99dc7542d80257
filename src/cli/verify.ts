/** `holdfast verify`: every rule of a handover, each violation by address and field. @module */
import { formatBytes } from "../base/units.ts";
import { describe, type HandoverView } from "../inspect/describe.ts";
import { renderProblems } from "../inspect/render.ts";
import { counted } from "../inspect/text.ts";
import { parse, positionals } from "./arguments.ts";
import type { Command } from "./command.ts";
import {
  IMAGE_OPTIONS,
  IMAGE_OPTIONS_HELP,
  IMAGES_HELP,
  imageChoice,
  withImage,
} from "./image-options.ts";
import { styleOf } from "./terminal.ts";

const HELP = `Checks a handover by every rule that the kernel checks before it adopts one, by the kernel's own
decoders: every page that a table names is preserved, none is named twice or lies in scratch, counts
and chains hold, devices reach nothing but memory that files of their session keep. A kernel stops
at the first broken rule; this names all that it finds, each by the address of the field.

What needs the hardware is not checked: registers, config space. What is preserved and named by
nothing known is told, and is no violation. Firmware's tables (RMRRs, PCI windows) and scratch are
known of images of the embedded machine only.

${IMAGES_HELP}

Usage: holdfast verify IMAGE [OPTIONS]

Options:
${IMAGE_OPTIONS_HELP}

Exit status: 0 no rule is broken; 1 rules are broken, or the image cannot be read; 2 the options are
wrong.`;

export const verify: Command = {
  name: "verify",
  summary: "Check a handover by every rule that a kernel checks before it adopts one",
  help: HELP,
  async run(args) {
    const { values, positionals: given } = parse({
      args,
      options: IMAGE_OPTIONS,
      allowPositionals: true,
    });
    const [path] = positionals(given, ["IMAGE"]);
    return withImage(path, imageChoice(values), (handover) => {
      const view = describe(handover);
      const isGood = view.problems.length === 0;
      if (values.json) {
        const { problems, omittedProblems, notes } = view;
        const ok = isGood;
        console.log(JSON.stringify({ ok, problems, omittedProblems, notes, seen: seen(view) }));
      } else {
        const style = styleOf(process.stdout);
        for (const note of view.notes) console.log(`note: ${note}`);
        const unclaimed = view.preserved?.unclaimedBytes ?? 0;
        if (unclaimed > 0)
          console.log(`note: ${formatBytes(unclaimed)} preserved, and named by nothing known here`);
        if (isGood) console.log(`${style.good("whole")}: ${summary(view)}`);
        else console.log(renderProblems(view, { style }).join("\n"));
      }
      return isGood ? 0 : 1;
    });
  },
};

/** How much was checked: "whole" of nothing would say nothing. */
function seen(view: HandoverView) {
  const sessions = view.liveUpdate?.sessions ?? [];
  return {
    preservedBytes: view.preserved?.bytes ?? 0,
    sessions: sessions.length,
    files: sessions.reduce((sum, { files }) => sum + files.length, 0),
    memfsStores: view.memfs?.length ?? 0,
    domains: view.iommu?.domains.length ?? 0,
    functions: view.pci?.length ?? 0,
  };
}

function summary(view: HandoverView): string {
  const { preservedBytes, sessions, files, memfsStores, domains, functions } = seen(view);
  return [
    `${formatBytes(preservedBytes)} preserved`,
    `${counted(sessions, "session")} with ${counted(files, "file")}`,
    counted(memfsStores, "memfs store"),
    counted(domains, "domain"),
    counted(functions, "PCI function"),
  ].join(", ");
}
