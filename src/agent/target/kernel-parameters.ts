/**
 * Parameters of a Linux command line, split and judged as the kernel does it.
 *
 * Source: Linux 7.3 lib/cmdline.c next_arg, kernel/params.c parse_args and parameq, lib/kstrtox.c kstrtobool
 * @module
 */

/**
 * Values of a parameter, first to last; null for one without "=". What follows "--" is for the first process.
 *
 * @param name - "-" and "_" are the same in it
 */
export function parameterValues(commandLine: string, name: string): readonly (string | null)[] {
  const wanted = name.replaceAll("-", "_");
  const values: (string | null)[] = [];
  // A quote keeps the spaces up to the next one in the word; it is no part of the value.
  for (const [word] of commandLine.matchAll(/(?:"[^"]*(?:"|$)|[^\s"])+/g)) {
    if (word === "--") break;
    const equals = word.indexOf("=");
    const key = (equals < 0 ? word : word.slice(0, equals)).replaceAll('"', "");
    if (key.replaceAll("-", "_") === wanted)
      values.push(equals < 0 ? null : word.slice(equals + 1).replaceAll('"', ""));
  }
  return values;
}

/**
 * What an early parameter of two values comes to: of several the last that can be understood counts.
 * @returns null when none says anything
 */
export function booleanParameter(commandLine: string, name: string): boolean | null {
  let result: boolean | null = null;
  for (const value of parameterValues(commandLine, name)) result = kstrtobool(value) ?? result;
  return result;
}

/** Null for what is neither; "e…" is on for some kernels only, and not taken for it. */
function kstrtobool(value: string | null): boolean | null {
  if (value === null) return null;
  if (/^([yt1]|on)/i.test(value)) return true;
  return /^([dnf0]|of)/i.test(value) ? false : null;
}
