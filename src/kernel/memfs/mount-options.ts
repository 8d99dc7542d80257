/** The data string of mount(2) for memfs: "node=0,size=64G". @module */
import { KernelError } from "../../base/errno.ts";
import { alignUp, PAGE_SIZE } from "../../base/units.ts";

export interface MountOptions {
  /** All pages come from this NUMA node; null: from any, node 0 first. */
  readonly node: number | null;
  /** Most bytes of file memory, a multiple of 4 KiB; 0: no limit. */
  readonly limitBytes: number;
}

/** Bytes as Linux's memparse() takes them: decimal or 0x, then K, M, G or T; null when it is something else. */
export function parseSize(text: string): number | null {
  const match = /^(0x[0-9a-f]{1,13}|\d{1,15})([kmgt]?)$/i.exec(text);
  if (match === null) return null;
  const bytes = Number(match[1]) * 1024 ** ("kmgt".indexOf(match[2].toLowerCase() || "-") + 1);
  return bytes <= 2 ** 52 ? bytes : null;
}

/**
 * @param nodeCount - NUMA nodes of the machine
 * @returns options that were given; what is absent is undefined
 * @throws {KernelError} EINVAL on an unknown or malformed option, or a node that does not exist
 */
export function parseMountOptions(text: string, nodeCount: number): Partial<MountOptions> {
  const options: { node?: number; limitBytes?: number } = {};
  for (const option of text.split(",")) {
    if (option === "") continue;
    const [key, value = ""] = option.split("=", 2);
    if (key === "node" && /^\d{1,4}$/.test(value) && Number(value) < nodeCount)
      options.node = Number(value);
    else {
      const bytes = key === "size" ? parseSize(value) : null;
      if (bytes === null)
        throw new KernelError("EINVAL", "mount", `memfs has no option "${option}" here`);
      options.limitBytes = alignUp(bytes, PAGE_SIZE);
    }
  }
  return options;
}
