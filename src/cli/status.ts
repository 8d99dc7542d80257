/** `holdfast status`: the agent, its VMs, the last update. @module */
import type { StatusResult, VmStatus } from "../agent/control/protocol.ts";
import { parse } from "./arguments.ts";
import type { Command } from "./command.ts";
import type { AgentConnection } from "./control/agent-connection.ts";
import {
  AGENT_OPTIONS,
  EXIT_STATUS_HELP,
  SOCKET_OPTION_HELP,
  withAgent,
} from "./control/agent-options.ts";
import { renderStatus } from "./control/agent-render.ts";
import { decodeStatus } from "./control/agent-results.ts";
import { styleOf } from "./terminal.ts";

const HELP = `Shows what the agent of this host knows: its VMs with what each consists of, how the last update
went, and what an operator should look after.

Usage: holdfast status [OPTIONS]

Options:
${SOCKET_OPTION_HELP}
  --json           Print one JSON object
  --help           Show this text

Exit status: 0 the agent has answered; 1 it has answered with an error; ${EXIT_STATUS_HELP}`;

export const status: Command = {
  name: "status",
  summary: "Show the agent's VMs and how the last update went",
  help: HELP,
  run(args) {
    const { values } = parse({ args, options: AGENT_OPTIONS, allowPositionals: false });
    return withAgent(values, async (agent) => {
      const { first, vms } = await readStatus(agent);
      if (values.json) console.log(JSON.stringify({ ...first, vms, next: null }));
      else console.log(renderStatus(first, vms, styleOf(process.stdout)).join("\n"));
      return 0;
    });
  },
};

/** All pages. */
async function readStatus(
  agent: AgentConnection,
): Promise<{ readonly first: StatusResult; readonly vms: readonly VmStatus[] }> {
  const first = decodeStatus(await agent.call("status"));
  const vms = [...first.vms];
  for (let { next } = first; next !== null; ) {
    const page = decodeStatus(await agent.call("status", { from: next }));
    vms.push(...page.vms);
    // A page that does not lead on would never end.
    next = page.next !== null && page.next > next ? page.next : null;
  }
  return { first, vms };
}
