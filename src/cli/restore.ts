/** `holdfast restore`: wait for the VMs of the last update, or give some of them up. @module */
import { parse } from "./arguments.ts";
import type { Command } from "./command.ts";
import {
  AGENT_OPTIONS,
  EXIT_STATUS_HELP,
  SOCKET_OPTION_HELP,
  timeoutFields,
  withAgent,
} from "./control/agent-options.ts";
import { renderRestore } from "./control/agent-render.ts";
import { decodeRestore } from "./control/agent-results.ts";
import { progressPrinter } from "./control/progress.ts";
import { styleOf } from "./terminal.ts";

const HELP = `Waits until all VMs of the last update are back: each when its VMM has started again and has taken
it out of its session. Tells each as it comes, and in the end which are not there, and why.

The memory of a VM whose VMM never comes stays preserved, and unused. --abandon frees it: the VM is
lost then. That needs root.

Usage: holdfast restore [OPTIONS]

Options:
  --timeout S      Seconds to wait, 1 to 3600 (default: as long as it takes)
  --abandon VM     Give this VM up, and all memory that nobody has taken out of its session. May be
                   given again
${SOCKET_OPTION_HELP}
  --json           Print JSON, an object in each line: {"event": ...}; at last {"result": ...}, or
                   {"error": ...}
  --help           Show this text

Exit status: 0 all VMs are back, but those given up; 1 some are not; ${EXIT_STATUS_HELP}`;

export const restore: Command = {
  name: "restore",
  summary: "Wait for the VMs of the last update, or give some of them up",
  help: HELP,
  run(args) {
    const { values } = parse({
      args,
      options: {
        ...AGENT_OPTIONS,
        timeout: { type: "string" },
        abandon: { type: "string", multiple: true },
      },
      allowPositionals: false,
    });
    const fields = { ...timeoutFields(values.timeout), abandon: values.abandon ?? [] };
    return withAgent(values, async (agent) => {
      const answer = await agent.call("restore", fields, progressPrinter(values.json));
      const result = decodeRestore(answer);
      if (values.json) console.log(JSON.stringify({ result }));
      else console.log(renderRestore(result, styleOf(process.stdout)).join("\n"));
      return result.left === 0 ? 0 : 1;
    });
  },
};
