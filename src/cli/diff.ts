/** `holdfast diff`: what differs between two handovers. @module */
import { describe } from "../inspect/describe.ts";
import { diffHandovers } from "../inspect/diff.ts";
import { counted, type Line, quoteText, renderLines } from "../inspect/text.ts";
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
import { UsageError } from "./usage-error.ts";

const HELP = `Shows what differs between two handovers, as before one jump and before the next: sessions, files,
their pages, memfs files, devices and what they reach that appeared, vanished or changed.
Things are matched by the names that userspace gave them; domain ids and addresses of metadata are
each kernel's own and are not compared.

${IMAGES_HELP}

Usage: holdfast diff A B [OPTIONS]

Options:
${IMAGE_OPTIONS_HELP.replace("  --fdt ADDR       ", "  --fdt ADDR[,ADDR]\n                   ")}

Exit status: 0 nothing differs; 1 something does, or an image cannot be read; 2 the options are wrong.`;

export const diff: Command = {
  name: "diff",
  summary: "Show what differs between two handovers",
  help: HELP,
  async run(args) {
    const { values, positionals: given } = parse({
      args,
      options: IMAGE_OPTIONS,
      allowPositionals: true,
    });
    const [pathA, pathB] = positionals(given, ["A", "B"]);
    const [choiceA, choiceB] = choices(values);
    return withImage(pathA, choiceA, (a) =>
      withImage(pathB, choiceB, (b) => {
        const differences = diffHandovers(a, b);
        const damaged = [a, b].filter(({ problems }) => problems.list.length > 0);
        for (const one of damaged)
          console.error(
            `holdfast: ${one.info.path}: ${counted(one.problems.list.length, "problem")}, so not all of it is compared (holdfast verify)`,
          );
        if (values.json) {
          const problems = { a: describe(a).problems, b: describe(b).problems };
          console.log(JSON.stringify({ differences, problems }));
        } else {
          const style = styleOf(process.stdout);
          const lines = differences.map(
            ({ kind, name, change, details }): Line => ({
              text: `${kind} ${style.strong(quoteText(name).slice(1, -1).replaceAll('\\"', '"'))} ${change}`,
              children: details.map((text) => ({ text: quoteText(text).slice(1, -1) })),
            }),
          );
          console.log(lines.length === 0 ? "nothing differs" : renderLines(lines).join("\n"));
        }
        return differences.length === 0 ? 0 : 1;
      }),
    );
  },
};

/** One FDT address for both, or one for each. */
function choices(values: {
  readonly fdt?: string | undefined;
  readonly "below-4g"?: string | undefined;
}) {
  const addresses = values.fdt?.split(",") ?? [];
  if (addresses.length > 2) throw new UsageError(`--fdt ${values.fdt}: at most two addresses`);
  const choice = (fdt: string | undefined) =>
    imageChoice({ "below-4g": values["below-4g"], ...(fdt !== undefined && { fdt }) });
  return [choice(addresses[0]), choice(addresses[1] ?? addresses[0])] as const;
}
