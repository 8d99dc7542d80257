/** How a reader sees what a command prints. @module */
import { COLOURED, PLAIN, type Style } from "../inspect/text.ts";

/** Colours on a terminal, unless the reader wants none (https://no-color.org). */
export function styleOf(stream: NodeJS.WriteStream): Style {
  return stream.isTTY && !process.env["NO_COLOR"] && process.env["TERM"] !== "dumb"
    ? COLOURED
    : PLAIN;
}
