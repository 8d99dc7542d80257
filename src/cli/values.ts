/**
 * Values on the command line: checked, with an error that names the value, the limit and the way out.
 * @module
 */
import { formatBytes } from "../base/units.ts";
import { UsageError } from "./usage-error.ts";

const UNITS: Record<string, number> = { "": 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** A size in bytes: "256M", "1G", "4096"; K, M, G and T are powers of 1024. */
export function parseSize(option: string, text: string, min: number, max: number): number {
  const match = /^(\d+)([KMGT]?)(?:i?B)?$/i.exec(text);
  if (match === null)
    throw new UsageError(`${option} ${text}: not a size; write it as 256M, 1G or 1T`);
  const bytes = Number(match[1]) * UNITS[match[2].toUpperCase()];
  if (bytes < min || bytes > max)
    throw new UsageError(
      `${option} ${text}: must be from ${formatBytes(min)} to ${formatBytes(max)}`,
    );
  return bytes;
}

/** A whole number from `min` to `max`. */
export function parseCount(option: string, text: string, min: number, max: number): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < min || value > max)
    throw new UsageError(`${option} ${text}: must be a whole number from ${min} to ${max}`);
  return value;
}
