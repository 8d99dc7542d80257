/** What happens while a call lasts, as it happens. @module */
import type { ProgressEvent } from "../../agent/control/protocol.ts";
import { styleOf } from "../terminal.ts";
import { renderProgress } from "./agent-render.ts";
import { decodeProgress } from "./agent-results.ts";

/**
 * Prints progress: a JSON object in each line, or lines for a person.
 *
 * @param look - told of each event before it is printed
 * @returns what {@link AgentConnection.call} is given
 */
export function progressPrinter(
  json: boolean,
  look: (event: ProgressEvent) => void = () => undefined,
): (event: unknown) => void {
  const style = styleOf(process.stdout);
  let update = 0;
  return (value) => {
    const event = decodeProgress(value);
    if (event === null) return;
    look(event);
    if (json) {
      console.log(JSON.stringify({ event }));
      return;
    }
    const line = renderProgress(event, style);
    if (line === null) return;
    if (event.kind === "phase" && event.update !== update) {
      update = event.update;
      console.log(`update ${update}`);
    }
    console.log(line);
  };
}
