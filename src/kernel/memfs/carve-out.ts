/**
 * Carve-outs: memory set apart at boot for a store, with no page metadata at all.
 *
 * The boot option is the seed's: `pkernfs=1G!1G`, size!start, aligned to 2 MiB; several are separated by commas; a
 * store's name may stand before the size, `pkernfs=vms:1G!1G,2G!4G`. Without one they are called "pkernfs",
 * "pkernfs1", "pkernfs2", ... by their place in the list.
 * It matters on a cold boot only: later kernels find carve-outs in the handover.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import { GIB, hex, isAligned, MIB, orderBytes } from "../../base/units.ts";
import type { MemoryRange } from "../../machine/machine.ts";
import { parseSize } from "./mount-options.ts";

export const CARVE_OUT_ALIGNMENT = 2 * MIB;

export interface CarveOut extends MemoryRange {
  /** Name of the store that it becomes. */
  readonly name: string;
}

/**
 * All carve-outs that a kernel command line asks for.
 *
 * @throws {KernelError} EINVAL when an option cannot be read, is empty or unaligned, overlaps another, or a name is
 *   used twice
 */
export function parseCarveOuts(commandLine: string): CarveOut[] {
  const carveOuts: CarveOut[] = [];
  for (const word of commandLine.split(/\s+/)) {
    if (!word.startsWith("pkernfs=")) continue;
    for (const part of word.slice("pkernfs=".length).split(","))
      carveOuts.push(parseOne(part, carveOuts.length));
  }
  const names = new Set(carveOuts.map((c) => c.name));
  if (names.size !== carveOuts.length) throw bad("two stores have the same name");
  const sorted = [...carveOuts].sort((a, b) => a.start - b.start);
  for (let i = 1; i < sorted.length; i++)
    if (sorted[i - 1].start + sorted[i - 1].lengthBytes > sorted[i].start)
      throw bad(`"${sorted[i - 1].name}" and "${sorted[i].name}" overlap`);
  return carveOuts;
}

function parseOne(text: string, position: number): CarveOut {
  const match = /^(?:([^:!]{1,63}):)?([^!]+)!(.+)$/.exec(text);
  const lengthBytes = match === null ? null : parseSize(match[2]);
  const start = match === null ? null : parseSize(match[3]);
  if (match === null || lengthBytes === null || start === null)
    throw bad(`"${text}" is not [NAME:]SIZE!START`);
  if (lengthBytes === 0) throw bad(`"${text}" is empty`);
  if (!isAligned(lengthBytes, CARVE_OUT_ALIGNMENT) || !isAligned(start, CARVE_OUT_ALIGNMENT))
    throw bad(`"${text}" is not aligned to ${hex(CARVE_OUT_ALIGNMENT)}`);
  if (start + lengthBytes > 2 ** 52) throw bad(`"${text}" ends above 2^52`);
  return { name: match[1] ?? `pkernfs${position === 0 ? "" : position}`, start, lengthBytes };
}

function bad(detail: string): KernelError {
  return new KernelError("EINVAL", "pkernfs=", detail);
}

/** The largest blocks that a carve-out consists of, orders 18 and 9 only, ascending: what KHO preserves. */
export function carveOutBlocks(range: MemoryRange): { pa: number; order: number }[] {
  const blocks: { pa: number; order: number }[] = [];
  const end = range.start + range.lengthBytes;
  for (let pa = range.start; pa < end; ) {
    const order = isAligned(pa, GIB) && pa + GIB <= end ? 18 : 9;
    blocks.push({ pa, order });
    pa += orderBytes(order);
  }
  return blocks;
}
