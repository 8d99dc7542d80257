/** `holdfast inspect`: what a handover holds, whoever wrote it. @module */
import { writeFileSync } from "node:fs";
import { formatBytes } from "../base/units.ts";
import { describe } from "../inspect/describe.ts";
import { contentBytes, extract, findFiles } from "../inspect/extract.ts";
import { fdtBytes } from "../inspect/find-fdt.ts";
import type { Handover } from "../inspect/handover.ts";
import { renderHandover } from "../inspect/render.ts";
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

const HELP = `Shows what one kernel has handed over to the next: KHO's FDT and preserved pages, live-update
sessions with their files, memfs trees, IOMMU domains with their translations, PCI functions.
Damaged parts are named; what is readable beside them is shown.

${IMAGES_HELP}

Usage: holdfast inspect IMAGE [OPTIONS]

Options:
  --extract TOKEN FILE  Write the content of the memfd or memfs file with that token to FILE (sparse)
  --session NAME   With --extract: of which session, when several have the token
  --fdt-blob FILE  Write the root FDT to FILE: dtc and fdtdump read it
  --full           Show all ranges and files, not only the first of each list
${IMAGE_OPTIONS_HELP}

Exit status: 0 something was found and shown, problems or not ("holdfast verify" judges); 1 the image
cannot be read, or there is no handover in it; 2 the options are wrong.`;

interface Extraction {
  readonly token: bigint;
  readonly target: string;
  readonly session: string | null;
}

export const inspect: Command = {
  name: "inspect",
  summary: "Show what a kernel has handed over, out of an image of its memory",
  help: HELP,
  async run(args) {
    const {
      values,
      positionals: given,
      tokens,
    } = parse({
      args,
      tokens: true,
      options: {
        ...IMAGE_OPTIONS,
        extract: { type: "string" },
        session: { type: "string" },
        "fdt-blob": { type: "string" },
        full: { type: "boolean", default: false },
      },
      allowPositionals: true,
    });
    // parseArgs gives an option one value: the file is the name that follows it.
    const at = tokens.findIndex((t) => t.kind === "option" && t.name === "extract");
    const follows = at < 0 ? undefined : tokens[at + 1];
    const target = follows?.kind === "positional" ? follows.value : null;
    const extraction = extractionOf(values.extract, target, values.session);
    const others = [...given];
    if (target !== null) others.splice(others.indexOf(target), 1);
    const [path] = positionals(others, ["IMAGE"]);
    return withImage(path, imageChoice(values), (handover) => {
      const blob = values["fdt-blob"];
      if (blob !== undefined) saveFdt(handover, blob);
      if (extraction !== null) return runExtraction(handover, extraction);
      const view = describe(handover);
      if (values.json) console.log(JSON.stringify(view));
      else {
        const options = { style: styleOf(process.stdout), isFull: values.full };
        console.log(renderHandover(view, options).join("\n"));
      }
      return handover.fdt === null ? 1 : 0;
    });
  },
};

function extractionOf(
  token: string | undefined,
  target: string | null,
  session: string | undefined,
): Extraction | null {
  if (token === undefined) {
    if (session !== undefined) throw new UsageError("--session: only with --extract");
    return null;
  }
  if (!/^(0x[0-9a-f]{1,16}|\d{1,20})$/i.test(token) || BigInt(token) >= 1n << 64n)
    throw new UsageError(`--extract ${token}: not a token; write it as 0x2 or 2`);
  if (target === null) throw new UsageError(`--extract ${token}: say after it which file to write`);
  return { token: BigInt(token), target, session: session ?? null };
}

function saveFdt(handover: Handover, path: string): void {
  const bytes = handover.fdtPa === null ? null : fdtBytes(handover.image, handover.fdtPa);
  if (bytes !== null) writeFileSync(path, bytes);
}

function runExtraction(handover: Handover, { token, target, session }: Extraction): number {
  const found = findFiles(handover, token, session);
  const name = `token 0x${token.toString(16)}`;
  if (found.length !== 1) {
    const sessions = found.map((file) => JSON.stringify(file.session)).join(", ");
    console.error(
      found.length === 0
        ? `holdfast: no session has ${name}`
        : `holdfast: ${name} is in sessions ${sessions}: choose one by --session NAME`,
    );
    return 1;
  }
  const [{ content }] = found;
  const size = contentBytes(content);
  if (size === null) {
    console.error(`holdfast: ${name} is a file of kind ${content.kind}: it has no content`);
    return 1;
  }
  const written = extract(handover, content, target);
  console.error(`${formatBytes(size)}, of which ${formatBytes(written)} are not zero`);
  return 0;
}
