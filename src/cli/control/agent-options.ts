/**
 * What the commands that talk to the agent have in common: where it is, what an update is to be, how failures are told.
 * @module
 */
import { resolve } from "node:path";
import { TIMEOUT_SECONDS_MAX } from "../../agent/control/protocol.ts";
import { isKernelError } from "../../base/errno.ts";
import { RESOURCE_KINDS, type ResourceKind } from "../../vmm/managed-vm.ts";
import { UsageError } from "../usage-error.ts";
import { parseCount } from "../values.ts";
import { AgentConnection, AgentUnreachable, ConnectionLost } from "./agent-connection.ts";

/** Where the agent listens when nobody says otherwise. */
export const SOCKET_PATH = "/run/holdfast/agent.sock";
/** Exit status when there is no agent to talk to. */
export const UNREACHABLE = 3;

export const AGENT_OPTIONS = {
  socket: { type: "string", default: SOCKET_PATH },
  json: { type: "boolean", default: false },
} as const;

export const SOCKET_OPTION_HELP = `  --socket PATH    Where the agent listens (default ${SOCKET_PATH})`;

export const EXIT_STATUS_HELP = `2 the options are
wrong; 3 there is no agent to talk to.`;

/** What an update is to be. */
export const UPDATE_OPTIONS = {
  kernel: { type: "string" },
  initrd: { type: "string" },
  "no-initrd": { type: "boolean", default: false },
  "command-line": { type: "string" },
  without: { type: "string", multiple: true },
  "allow-unknown": { type: "boolean", default: false },
} as const;

export const UPDATE_OPTIONS_HELP = `  --kernel FILE    Kernel image (default: that of the running kernel)
  --initrd FILE    Its initial RAM disk (default: that of the running kernel)
  --no-initrd      None
  --command-line TEXT  Its command line (default: that of the running kernel)
  --without KIND   Leave behind what VMs have of this kind: "iommufd" or "device". Their VMs go on without.
                   May be given again
  --allow-unknown  Take a kernel although it cannot be found out what it restores`;

interface UpdateValues {
  readonly kernel?: string | undefined;
  readonly initrd?: string | undefined;
  readonly "no-initrd": boolean;
  readonly "command-line"?: string | undefined;
  readonly without?: readonly string[] | undefined;
  readonly "allow-unknown": boolean;
}

/** The fields of a call to `plan` or `update`. */
export function updateFields(values: UpdateValues): Record<string, unknown> {
  const { kernel, initrd, "command-line": commandLine } = values;
  if (initrd !== undefined && values["no-initrd"])
    throw new UsageError("--initrd and --no-initrd: choose one");
  return {
    target: {
      // The agent has another working directory.
      ...(kernel === undefined ? {} : { kernel: resolve(kernel) }),
      ...(initrd === undefined ? {} : { initrd: resolve(initrd) }),
      ...(values["no-initrd"] ? { initrd: null } : {}),
      ...(commandLine === undefined ? {} : { commandLine }),
    },
    without: (values.without ?? []).map(parseKind),
    allowUnknown: values["allow-unknown"],
  };
}

function parseKind(text: string): ResourceKind {
  const kind = RESOURCE_KINDS.find((known) => known === text);
  if (kind === undefined)
    throw new UsageError(`--without ${text}: must be one of ${RESOURCE_KINDS.join(", ")}`);
  return kind;
}

/** The field for `--timeout`. */
export function timeoutFields(timeout: string | undefined): Record<string, unknown> {
  if (timeout === undefined) return {};
  return { timeoutSeconds: parseCount("--timeout", timeout, 1, TIMEOUT_SECONDS_MAX) };
}

/**
 * Connects to the agent and lets `use` talk to it.
 *
 * @returns what `use` returns; when it fails, the failure is told and this is the exit status
 */
export async function withAgent(
  { socket, json }: { readonly socket: string; readonly json: boolean },
  use: (agent: AgentConnection) => Promise<number>,
): Promise<number> {
  let agent: AgentConnection | null = null;
  try {
    agent = await AgentConnection.open(socket);
    return await use(agent);
  } catch (error) {
    const isUnreachable = error instanceof AgentUnreachable;
    if (!isUnreachable && !(error instanceof ConnectionLost) && !isKernelError(error)) throw error;
    console.error(`holdfast: ${error.message}`);
    const code = isKernelError(error) ? error.code : error.name;
    if (json) console.log(JSON.stringify({ error: { code, message: error.message } }));
    return isUnreachable ? UNREACHABLE : 1;
  } finally {
    agent?.close();
  }
}
