/**
 * The `holdfast` command.
 *
 * Exit status: 0 success; 1 the work failed; 2 the command line is wrong; 3 no agent to talk to; 130, 143 interrupted.
 * @module
 */
import { agent } from "./agent/command.ts";
import type { Command } from "./command.ts";
import { demo } from "./demo/command.ts";
import { diff } from "./diff.ts";
import { inspect } from "./inspect.ts";
import { plan } from "./plan.ts";
import { reach } from "./reach.ts";
import { restore } from "./restore.ts";
import { status } from "./status.ts";
import { update } from "./update.ts";
import { UsageError } from "./usage-error.ts";
import { verify } from "./verify.ts";
import { version } from "./version.ts";

const COMMANDS: readonly Command[] = [
  demo,
  agent,
  status,
  plan,
  update,
  restore,
  inspect,
  verify,
  diff,
  reach,
];

function usage(): string {
  const width = Math.max(...COMMANDS.map((c) => c.name.length));
  return [
    "Replaces the kernel of a hypervisor host while its virtual machines keep their memory,",
    "their IOMMU translations and their assigned devices.",
    "",
    "Usage: holdfast COMMAND [OPTIONS]",
    "",
    "Commands:",
    ...COMMANDS.map((c) => `  ${c.name.padEnd(width)}  ${c.summary}`),
    `  ${"help".padEnd(width)}  Show the help of a command: holdfast help COMMAND`,
    "",
    "Options:",
    "  --help     Show this text, or a command's",
    "  --version  Show the version",
  ].join("\n");
}

function find(name: string): Command {
  const command = COMMANDS.find((c) => c.name === name);
  if (command === undefined)
    throw new UsageError(
      `unknown command "${name}"; there are: ${COMMANDS.map((c) => c.name).join(", ")}`,
    );
  return command;
}

async function main(args: readonly string[]): Promise<number> {
  const [first, ...rest] = args;
  try {
    if (first === undefined) {
      console.error(usage());
      return 2;
    }
    if (first === "--version") {
      console.log(version());
      return 0;
    }
    if (first === "--help" || first === "-h" || first === "help") {
      console.log(rest[0] === undefined ? usage() : find(rest[0]).help);
      return 0;
    }
    const command = find(first);
    if (rest.includes("--help") || rest.includes("-h")) {
      console.log(command.help);
      return 0;
    }
    return await command.run(rest);
  } catch (error) {
    if (!(error instanceof UsageError)) return tellFailure(error);
    console.error(`holdfast: ${error.message}`);
    const command = COMMANDS.some((c) => c.name === first) ? `${first} ` : "";
    console.error(`Try: holdfast ${command}--help`);
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

// A reader that has seen enough (`| head`) is no error of ours.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});
process.exitCode = await main(process.argv.slice(2));
