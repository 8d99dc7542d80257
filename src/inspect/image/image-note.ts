/**
 * What an embedded machine's image says beside its RAM: where the handover is, and what firmware tells.
 *
 * An ELF note of the name "HOLDFAST", type 1, whose bytes are JSON. It comes from a file that anybody may have
 * written, so each value is checked.
 * @module
 */
import { isIndex } from "../../base/units.ts";
import type { Firmware, KhoBootParameters } from "../../machine/machine.ts";

export const NOTE_NAME = "HOLDFAST";
export const NOTE_TYPE = 1;
/** Changes with any change of {@link ImageNote}. */
export const NOTE_FORMAT = "holdfast-image-v1";
/** A note is no longer than this. */
export const NOTE_BYTES_MAX = 1 << 20;

export interface ImageNote {
  /** Which live update since power-on this jump belonged to: 1 for the first. */
  readonly update: number;
  /** What the next kernel was told. */
  readonly kho: KhoBootParameters;
  readonly firmware: Pick<Firmware, "memory" | "rmrrs" | "mmioWindows">;
}

const ADDRESS_LAST = 2 ** 52;
const LIST_MAX = 4096;

export function encodeNote(note: ImageNote): Uint8Array {
  const { memory, rmrrs, mmioWindows } = note.firmware;
  const { update, kho } = note;
  const value = { format: NOTE_FORMAT, update, kho, firmware: { memory, rmrrs, mmioWindows } };
  return new TextEncoder().encode(JSON.stringify(value));
}

/** @returns the note, or what is wrong with it */
export function decodeNote(bytes: Uint8Array): ImageNote | string {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    return "is not JSON";
  }
  const root = fields(value);
  if (root["format"] !== NOTE_FORMAT)
    return `has format ${JSON.stringify(root["format"])?.slice(0, 64)}, not "${NOTE_FORMAT}"`;
  const kho = numbers(root["kho"], [
    "fdtAddress",
    "fdtSizeBytes",
    "scratchAddress",
    "scratchSizeBytes",
  ]);
  if (kho === null) return "has no boot parameters";
  const firmware = fields(root["firmware"]);
  const memory = list(firmware["memory"], ["start", "lengthBytes", "node"]);
  const rmrrs = list(firmware["rmrrs"], ["start", "lengthBytes", "segment", "bdf"]);
  const mmioWindows = list(firmware["mmioWindows"], ["start", "lengthBytes", "segment"]);
  if (memory === null || rmrrs === null || mmioWindows === null) return "has no firmware tables";
  const update = isIndex(root["update"], 2 ** 32) ? root["update"] : 0;
  return { update, kho, firmware: { memory, rmrrs, mmioWindows } };
}

function fields(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}

/** The named numbers, all there and all addresses or smaller; else null. */
function numbers<K extends string>(value: unknown, names: readonly K[]): Record<K, number> | null {
  const from = fields(value);
  const result: Partial<Record<K, number>> = {};
  for (const name of names) {
    const one = from[name];
    if (!isIndex(one, ADDRESS_LAST)) return null;
    result[name] = one;
  }
  return result as Record<K, number>;
}

function list<K extends string>(value: unknown, names: readonly K[]): Record<K, number>[] | null {
  if (!Array.isArray(value) || value.length > LIST_MAX) return null;
  const rows = value.map((row: unknown) => numbers(row, names));
  return rows.every((row) => row !== null) ? rows : null;
}
