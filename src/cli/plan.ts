/** `holdfast plan`: what an update would do, and what stands in its way. @module */
import { parse } from "./arguments.ts";
import type { Command } from "./command.ts";
import {
  AGENT_OPTIONS,
  EXIT_STATUS_HELP,
  SOCKET_OPTION_HELP,
  UPDATE_OPTIONS,
  UPDATE_OPTIONS_HELP,
  updateFields,
  withAgent,
} from "./control/agent-options.ts";
import { renderPlan } from "./control/agent-render.ts";
import { decodePlan } from "./control/agent-results.ts";
import { styleOf } from "./terminal.ts";

const HELP = `Looks at an update without changing anything: which kernel it would be, what of the VMs goes along,
and every reason why it cannot be done: what this kernel cannot preserve, what the next one cannot
restore or was not told to, what a VM holds that blocks it.

Usage: holdfast plan [OPTIONS]

Options:
${UPDATE_OPTIONS_HELP}
${SOCKET_OPTION_HELP}
  --json           Print one JSON object
  --help           Show this text

Exit status: 0 nothing stands in the way; 1 something does, and is named; ${EXIT_STATUS_HELP}`;

export const plan: Command = {
  name: "plan",
  summary: "Show what an update would do, and what stands in its way",
  help: HELP,
  run(args) {
    const options = { ...AGENT_OPTIONS, ...UPDATE_OPTIONS };
    const { values } = parse({ args, options, allowPositionals: false });
    const fields = updateFields(values);
    return withAgent(values, async (agent) =>
      showPlan(await agent.call("plan", fields), values.json),
    );
  },
};

/** @returns the exit status */
export function showPlan(answer: unknown, json: boolean): number {
  const found = decodePlan(answer);
  if (json) console.log(JSON.stringify(found));
  else console.log(renderPlan(found, styleOf(process.stdout)).join("\n"));
  return found.blocked === 0 ? 0 : 1;
}
