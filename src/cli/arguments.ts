/** What follows a command's name on the command line. @module */
import { parseArgs } from "node:util";
import { UsageError } from "./usage-error.ts";

/** As parseArgs, with its complaints as {@link UsageError}. */
export function parse<
  T extends NonNullable<Parameters<typeof parseArgs>[0]> & { readonly args: readonly string[] },
>(config: T) {
  try {
    return parseArgs<T>({ ...config, args: joinNegativeNumbers(config.args) });
  } catch (error) {
    if (error instanceof TypeError && "code" in error)
      throw new UsageError(error.message.split("\n")[0]);
    throw error;
  }
}

/** parseArgs takes the "-1" of `--updates -1` for an option; as `--updates=-1` it is refused like any other value. */
function joinNegativeNumbers(args: readonly string[]): string[] {
  const joined: string[] = [];
  for (const arg of args) {
    const option = joined.at(-1);
    if (/^-\d/.test(arg) && option?.startsWith("--") && !option.includes("="))
      joined[joined.length - 1] = `${option}=${arg}`;
    else joined.push(arg);
  }
  return joined;
}

/** The names that a command must have been given. */
export function positionals(given: readonly string[], names: readonly string[]): readonly string[] {
  if (given.length !== names.length)
    throw new UsageError(`expected ${names.join(" ")}, got ${given.length} arguments`);
  return given;
}
