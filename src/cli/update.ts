/** `holdfast update`: replace the kernel of this host. @module */
import { parse } from "./arguments.ts";
import type { Command } from "./command.ts";
import { type AgentConnection, ConnectionLost } from "./control/agent-connection.ts";
import {
  AGENT_OPTIONS,
  EXIT_STATUS_HELP,
  SOCKET_OPTION_HELP,
  timeoutFields,
  UPDATE_OPTIONS,
  UPDATE_OPTIONS_HELP,
  updateFields,
  withAgent,
} from "./control/agent-options.ts";
import { progressPrinter } from "./control/progress.ts";
import { showPlan } from "./plan.ts";

const HELP = `Replaces the kernel of this host while its VMs keep their memory, and whatever else this kernel
preserves. Until the jump every step that fails is undone, in reverse: the VMs run on, on the old
kernel. The connection to the agent, this command and all other processes end with the kernel;
"jumping" is told just before.

Needs root.

Usage: holdfast update [OPTIONS]

Options:
${UPDATE_OPTIONS_HELP}
  --dry-run        Only look, as "holdfast plan" does
  --timeout S      Seconds that a VM may take for each step, 1 to 3600
${SOCKET_OPTION_HELP}
  --json           Print JSON, an object in each line: {"event": ...}; at last {"jumped": true}, or
                   {"error": ...}
  --help           Show this text

Exit status: 0 the host jumps (or, with --dry-run, could); 1 it does not, everything is as it was, and
the reason is told; ${EXIT_STATUS_HELP}`;

export const update: Command = {
  name: "update",
  summary: "Replace the kernel of this host; its VMs live on",
  help: HELP,
  run(args) {
    const { values } = parse({
      args,
      options: {
        ...AGENT_OPTIONS,
        ...UPDATE_OPTIONS,
        "dry-run": { type: "boolean", default: false },
        timeout: { type: "string" },
      },
      allowPositionals: false,
    });
    const fields = { ...updateFields(values), ...timeoutFields(values.timeout) };
    return withAgent(values, async (agent) =>
      values["dry-run"]
        ? showPlan(await agent.call("update", { ...fields, dryRun: true }), values.json)
        : performUpdate(agent, fields, values.json),
    );
  },
};

/** @returns 0 when the host jumps */
async function performUpdate(
  agent: AgentConnection,
  fields: Readonly<Record<string, unknown>>,
  json: boolean,
): Promise<number> {
  let jumps = false;
  const print = progressPrinter(json, (event) => {
    if (event.kind === "jump") jumps = true;
  });
  try {
    await agent.call("update", fields, print);
  } catch (error) {
    if (!(error instanceof ConnectionLost) || !jumps) throw error;
    if (json) console.log(JSON.stringify({ jumped: true }));
    return 0;
  }
  throw new ConnectionLost("the agent says that the update is done, and this kernel still runs");
}
