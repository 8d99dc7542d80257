/** `holdfast agent`: the daemon that owns /dev/liveupdate. @module */
import { TIMEOUT_SECONDS_MAX } from "../../agent/control/protocol.ts";
import { isKernelError } from "../../base/errno.ts";
import { counted } from "../../inspect/text.ts";
import { parse } from "../arguments.ts";
import type { Command } from "../command.ts";
import { SOCKET_PATH } from "../control/agent-options.ts";
import { renderProgress } from "../control/agent-render.ts";
import { onEndingSignal } from "../ending-signals.ts";
import type { MachineAgentOptions } from "../machine-agent/machine-agent.ts";
import { styleOf } from "../terminal.ts";
import { UsageError } from "../usage-error.ts";
import { parseCount } from "../values.ts";
import { version } from "../version.ts";
import { type AgentEvent, runLinuxAgent } from "./linux-agent.ts";
import { MACHINE_OPTIONS, MACHINE_OPTIONS_HELP, machineOptions } from "./machine-options.ts";
import { groupId, localGroup } from "./user-group.ts";

/** What the agent must not forget as long as its kernel runs. */
export const STATE_FILE = "/run/holdfast/state.json";
/** Whose members may talk to the agent when nobody says otherwise, if there is such a group. */
const GROUP = "holdfast";
const NS_PER_SECOND = 1e9;

const HELP = `Owns /dev/liveupdate and carries out updates: VMMs register their VMs with it, "holdfast update" asks
it to replace the kernel, and in the next kernel it gives each VM its session back. Runs until it is
ended; as root, on Linux 6.19 or newer that was booted with liveupdate=on.

When it ends nothing is lost: VMs run on, those of an update that is not restored keep their sessions,
and whichever agent is started next goes on. It takes a listening socket and sessions from systemd.

Usage: holdfast agent [OPTIONS]

Options:
  --socket PATH    Where it listens (default ${SOCKET_PATH})
  --group GROUP    Who may talk to it beside root: name or number (default ${GROUP}, if there is one)
  --state FILE     What it must not forget as long as this kernel runs (default ${STATE_FILE})
  --timeout S      Seconds that a VM may take for each step of an update, 1 to 3600 (default 30)
${MACHINE_OPTIONS_HELP}
  --json           Print what happens as JSON, one object in each line
  --help           Show this text

Exit status: 0 it was ended by SIGINT, SIGTERM or SIGHUP; 1 it could not start, or go on, and says why;
2 the options are wrong.`;

export const agent: Command = {
  name: "agent",
  summary: "Run the daemon that owns /dev/liveupdate",
  help: HELP,
  outlivesReader: true,
  async run(args) {
    const { values } = parse({
      args,
      options: {
        socket: { type: "string", default: SOCKET_PATH },
        group: { type: "string" },
        state: { type: "string" },
        timeout: { type: "string" },
        json: { type: "boolean", default: false },
        ...MACHINE_OPTIONS,
      },
      allowPositionals: false,
    });
    const { socket, group, state, timeout, json } = values;
    const say = (event: AgentEvent) => {
      const line = json ? JSON.stringify(event) : render(event);
      if (line !== null) console.log(line);
    };
    const machine = machineOptions(values, socket);
    if (machine !== null) {
      for (const [option, value] of Object.entries({ group, state, timeout }))
        if (value !== undefined)
          throw new UsageError(`--${option} ${value}: a machine of ours has no use for it`);
      return run(() => untilSignal(say, (signal) => runMachine(machine, say, signal)));
    }
    const options = {
      socket,
      stateFile: state ?? STATE_FILE,
      group: group === undefined ? localGroup(GROUP) : groupId(group),
      timeoutNs:
        timeout === undefined
          ? null
          : parseCount("--timeout", timeout, 1, TIMEOUT_SECONDS_MAX) * NS_PER_SECOND,
    };
    return run(() => runLinuxAgent(options, say));
  },
};

/** @returns the exit status */
async function run(work: () => Promise<void>): Promise<number> {
  try {
    await work();
  } catch (error) {
    if (!isKernelError(error)) throw error;
    console.error(`holdfast: ${error.message}`);
    return 1;
  }
  return 0;
}

async function runMachine(
  options: MachineAgentOptions,
  say: (event: AgentEvent) => void,
  signal: AbortSignal,
): Promise<void> {
  // All of our machine, which the agent of a Linux host should not wait for.
  const { runMachineAgent } = await import("../machine-agent/machine-agent.ts");
  const watcher = {
    listening: () => say({ event: "listening", socket: options.socket, updates: 0 }),
    log: (line: string) => say({ event: "machine", line }),
  };
  await runMachineAgent(options, version(), watcher, signal);
}

async function untilSignal(
  say: (event: AgentEvent) => void,
  work: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const stopped = new AbortController();
  const stop = (signal: NodeJS.Signals) => {
    say({ event: "machine", line: `${signal}: the machine ends, and its VMs with it` });
    stopped.abort();
  };
  const ignore = onEndingSignal(stop);
  try {
    await work(stopped.signal);
  } finally {
    ignore();
  }
}

/** Null: a person need not see it. */
function render(event: AgentEvent): string | null {
  switch (event.event) {
    case "listening":
      return `listening at ${event.socket}, ${counted(event.updates, "update")} since the cold boot`;
    case "note":
      return `note: ${event.note}`;
    case "machine":
      return event.line;
    case "progress":
      return renderProgress(event.progress, styleOf(process.stdout));
    case "stopping":
      return `${event.signal}: ending; VMs run on${
        event.left.length === 0
          ? ""
          : `, and what is left of the last update waits for the next agent: ${event.left.join(", ")}`
      }`;
  }
}
