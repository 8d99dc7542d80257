/** `holdfast reach`: which devices reach which memory. @module */
import { formatBytes } from "../base/units.ts";
import type { Handover } from "../inspect/handover.ts";
import { deviceNames, reachDevice, reachPage } from "../inspect/reach.ts";
import { renderRun } from "../inspect/render.ts";
import { renderLines } from "../inspect/text.ts";
import { parse, positionals } from "./arguments.ts";
import type { Command } from "./command.ts";
import {
  IMAGE_OPTIONS,
  IMAGE_OPTIONS_HELP,
  IMAGES_HELP,
  imageChoice,
  parseAddress,
  withImage,
} from "./image-options.ts";
import { styleOf } from "./terminal.ts";
import { UsageError } from "./usage-error.ts";

const HELP = `Tells which devices reach a page of memory, and by which address (IOVA); or what one device
reaches. It follows the context entries and page tables in memory, as the hardware does.

${IMAGES_HELP}

Usage: holdfast reach IMAGE --page ADDR [OPTIONS]
       holdfast reach IMAGE --device SEG:BUS:DEV.FN [OPTIONS]

Options:
  --page ADDR      A physical address: the page that it lies in
  --device NAME    A PCI function, as 0000:01:00.0
${IMAGE_OPTIONS_HELP}

Exit status: 0 answered; 1 the image cannot be read, or tells nothing of it; 2 the options are wrong.`;

const FUNCTION = /^([0-9a-f]{4}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$/i;

export const reach: Command = {
  name: "reach",
  summary: "Tell which devices reach a page, or what a device reaches",
  help: HELP,
  async run(args) {
    const { values, positionals: given } = parse({
      args,
      options: { ...IMAGE_OPTIONS, page: { type: "string" }, device: { type: "string" } },
      allowPositionals: true,
    });
    const [path] = positionals(given, ["IMAGE"]);
    const { page, device } = values;
    if ((page === undefined) === (device === undefined))
      throw new UsageError("say either --page ADDR or --device SEG:BUS:DEV.FN");
    if (device !== undefined && !FUNCTION.test(device))
      throw new UsageError(`--device ${device}: not a PCI function; write it as 0000:01:00.0`);
    const address = page === undefined ? null : parseAddress("--page", page);
    return withImage(path, imageChoice(values), (handover) => {
      if (handover.problems.list.length > 0)
        console.error(
          "holdfast: the handover breaks rules (holdfast verify): what follows is what can be read",
        );
      if (address !== null) return tellPage(handover, address, values.json);
      return tellDevice(handover, (device ?? "").toLowerCase(), values.json);
    });
  },
};

function tellPage(handover: Handover, address: number, isJson: boolean): number {
  const answer = reachPage(handover, address);
  if (!handover.image.contains(address, 1)) {
    console.error(`holdfast: 0x${address.toString(16)} is not in the image's RAM`);
    return 1;
  }
  const style = styleOf(process.stdout);
  if (isJson) console.log(JSON.stringify(answer));
  else {
    const lines = answer.reachedBy.map((one) => ({
      text: `${style.strong(one.function)} ${one.canRead ? "reads" : ""}${one.canRead && one.canWrite ? " and " : ""}${one.canWrite ? "writes" : ""} by iova ${one.iova}${one.session === null ? "" : `, session ${JSON.stringify(one.session)}`}`,
    }));
    const title = `page ${answer.page}: ${lines.length === 0 ? "no device reaches it" : "reached by"}`;
    console.log(renderLines([{ text: title, children: lines }]).join("\n"));
    for (const name of answer.unknown)
      console.log(style.bad(`${name}: its tables cannot be read, so it is not known`));
  }
  return answer.unknown.length === 0 ? 0 : 1;
}

function tellDevice(handover: Handover, name: string, isJson: boolean): number {
  const answer = reachDevice(handover, name);
  const known = deviceNames(handover);
  if (isJson) console.log(JSON.stringify(answer));
  else {
    const bytes = answer.ranges.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
    const what = {
      translated: `reaches ${formatBytes(bytes)}`,
      untranslated: "is not translated: reaches all memory by its own address",
      blocked: "is blocked: reaches nothing",
      unknown: "cannot be told: there are no tables that can be read",
    }[answer.how];
    const session = answer.session === null ? "" : `, session ${JSON.stringify(answer.session)}`;
    const children = answer.ranges.map(renderRun);
    console.log(renderLines([{ text: `${name} ${what}${session}`, children }]).join("\n"));
    if (!known.includes(name) && known.length > 0)
      console.error(`holdfast: functions with an entry or in a session: ${known.join(", ")}`);
  }
  return answer.how === "unknown" ? 1 : 0;
}
