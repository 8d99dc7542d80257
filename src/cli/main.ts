/**
 * The `holdfast` command.
 *
 * Exit status: 0 success; 1 the work failed; 2 the command line is wrong; 3 no agent to talk to; 130, 143 interrupted.
 * @module
 */
import type { Command } from "./command.ts";
import { UsageError } from "./usage-error.ts";
import { version } from "./version.ts";

/**
 * The commands, each loaded when it is wanted: an agent that starts after a jump is waited for by all VMs, and the machine
 * of the demo is not its business.
 */
const COMMANDS: ReadonlyMap<string, () => Promise<Command>> = new Map([
  ["demo", async () => (await import("./demo/command.ts")).demo],
  ["agent", async () => (await import("./agent/command.ts")).agent],
  ["status", async () => (await import("./status.ts")).status],
  ["plan", async () => (await import("./plan.ts")).plan],
  ["update", async () => (await import("./update.ts")).update],
  ["restore", async () => (await import("./restore.ts")).restore],
  ["testvm", async () => (await import("./testvm/command.ts")).testvm],
  ["inspect", async () => (await import("./inspect.ts")).inspect],
  ["verify", async () => (await import("./verify.ts")).verify],
  ["diff", async () => (await import("./diff.ts")).diff],
  ["reach", async () => (await import("./reach.ts")).reach],
]);

async function usage(): Promise<string> {
  const commands = await Promise.all([...COMMANDS.values()].map((load) => load()));
  const width = Math.max(...commands.map((c) => c.name.length));
  return [
    "Replaces the kernel of a hypervisor host while its virtual machines keep their memory,",
    "their IOMMU translations and their assigned devices.",
    "",
    "Usage: holdfast COMMAND [OPTIONS]",
    "",
    "Commands:",
    ...commands.map((c) => `  ${c.name.padEnd(width)}  ${c.summary}`),
    `  ${"help".padEnd(width)}  Show the help of a command: holdfast help COMMAND`,
    "",
    "Options:",
    "  --help     Show this text, or a command's",
    "  --version  Show the version",
  ].join("\n");
}

async function find(name: string): Promise<Command> {
  const load = COMMANDS.get(name);
  if (load === undefined)
    throw new UsageError(
      `unknown command "${name}"; there are: ${[...COMMANDS.keys()].join(", ")}`,
    );
  return load();
}

async function main(args: readonly string[]): Promise<number> {
  const [first, ...rest] = args;
  let command: Command | null = null;
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    // A reader that has seen enough (`| head`) is no error of ours.
    if (command?.outlivesReader !== true) process.exit(0);
  });
  try {
    if (first === undefined) {
      console.error(await usage());
      return 2;
    }
    if (first === "--version") {
      console.log(version());
      return 0;
    }
    if (first === "--help" || first === "-h" || first === "help") {
      console.log(rest[0] === undefined ? await usage() : (await find(rest[0])).help);
      return 0;
    }
    command = await find(first);
    if (rest.includes("--help") || rest.includes("-h")) {
      console.log(command.help);
      return 0;
    }
    return await command.run(rest);
  } catch (error) {
    if (!(error instanceof UsageError)) return tellFailure(error);
    console.error(`holdfast: ${error.message}`);
    console.error(`Try: holdfast ${command === null ? "" : `${command.name} `}--help`);
    return 2;
  }
}

/** One line for the user; where it comes from only for who asks. @returns the exit status */
function tellFailure(error: unknown): number {
  const failure = error instanceof Error ? error : new Error(String(error));
  if (process.env.HOLDFAST_DEBUG === "1") console.error(failure);
  else {
    console.error(`holdfast: ${failure.message.split("\n")[0]}`);
    console.error("HOLDFAST_DEBUG=1 shows where it comes from.");
  }
  return 1;
}

process.exitCode = await main(process.argv.slice(2));
