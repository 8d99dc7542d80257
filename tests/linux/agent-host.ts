/**
 * A Linux host with an agent and VMs, as an operator has it: for tests.
 *
 * Everything is `holdfast` commands in processes of their own; the guest's first process starts them as an init would, or the
 * test does.
 * @module
 */
import type { StatusResult } from "../../src/agent/control/protocol.ts";
import { decodeStatus } from "../../src/cli/control/agent-results.ts";
import type { TestVmEvent } from "../../src/cli/testvm/test-vm.ts";
import { CLOSED_LINE } from "./guest/control-mark.ts";
import type { Program, Service } from "./guest/orders.ts";
import type { GuestProcess } from "./guest-process.ts";
import { type LinuxMachine, programAt } from "./rig.ts";

const MAIN = "src/cli/main.ts";
const CONTROL_LINE = "tests/linux/guest/control-line.ts";
const KILLED_AT = "tests/linux/guest/killed-at.ts";
export const SOCKET = "/run/holdfast/agent.sock";

/** The command line of a `holdfast` command in the guest. */
export function holdfastIn(...args: readonly string[]): string[] {
  return programAt(MAIN, ...args);
}

export const AGENT: Service = { name: "agent", argv: holdfastIn("agent", "--json") };

/** A VM process. @param memory - as `--memory` */
export function testVm(name: string, memory: string, ...options: readonly string[]): Service {
  const seed = `${name.charCodeAt(name.length - 1)}`;
  const args = ["--name", name, "--memory", memory, "--seed", seed, "--json", ...options];
  return { name, argv: holdfastIn("testvm", ...args) };
}

/** A program that dies when it comes to a point of its work. @param point - as guest/killed-at.ts has it */
export function killedAt(program: Program, point: string): Program {
  const [node, ...args] = program.argv;
  const [, preload] = programAt(KILLED_AT);
  return {
    ...program,
    argv: [node, "--import", preload, ...args],
    env: { ...program.env, KILLED_AT: point },
  };
}

/** Waits for an event of a VM, and passes it. */
export async function vmEvent<E extends TestVmEvent["event"]>(
  vm: GuestProcess,
  event: E,
  timeoutMs?: number,
): Promise<Extract<TestVmEvent, { event: E }>> {
  const { input } = await vm.line(new RegExp(`"event":"${event}"`), "stdout", timeoutMs);
  return JSON.parse(input);
}

/** Waits until an agent listens. */
export async function listening(agent: GuestProcess): Promise<void> {
  await agent.line(/"event":"listening"/);
}

/** What came of a call: its answer, or that the connection ended without one. */
export interface CallOutcome {
  readonly result: unknown;
  readonly error: { readonly code: string; readonly message: string } | null;
  /** In their order. */
  readonly events: readonly unknown[];
}

/** Who asks the agent. */
export class Operator {
  readonly #process: GuestProcess;
  #calls = 0;

  private constructor(process: GuestProcess) {
    this.#process = process;
  }

  static async start(machine: LinuxMachine, socket: string = SOCKET): Promise<Operator> {
    const process = await machine.spawn(programAt(CONTROL_LINE, socket));
    await process.line(new RegExp(`^${CLOSED_LINE}$`));
    return new Operator(process);
  }

  /** Calls the agent, and waits until the connection is closed. */
  async call(call: string, fields: Readonly<Record<string, unknown>> = {}): Promise<CallOutcome> {
    const id = ++this.#calls;
    const from = this.#process.stdout.length;
    this.#process.write(`${JSON.stringify({ id, call, ...fields })}\n`);
    await this.#process.line(new RegExp(`^${CLOSED_LINE}$`));
    const messages = this.#process.stdout
      .slice(from)
      .split("\n")
      .filter((line) => line.startsWith("{"))
      .map((line) => JSON.parse(line) as Readonly<Record<string, unknown>>);
    const answer = messages.find(({ event }) => event === undefined);
    return {
      result: answer?.["result"] ?? null,
      error: (answer?.["error"] as CallOutcome["error"] | undefined) ?? null,
      events: messages.flatMap(({ event }) => event ?? []),
    };
  }

  /** @throws {Error} when there is no agent that answers */
  async status(): Promise<StatusResult> {
    const outcome = await this.call("status");
    if (outcome.result === null) throw new Error(`no status: ${JSON.stringify(outcome)}`);
    return decodeStatus(outcome.result);
  }
}
