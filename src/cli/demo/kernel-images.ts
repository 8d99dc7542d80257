/** Images on a machine's boot disk: builds of one kernel. @module */
import { RESTORES } from "../../kernel/restores.ts";
import type { KernelImage } from "../../machine/machine.ts";

/**
 * @param module - URL of the module that is their code, without its extension; it reads its release from the query
 * @param version - of this package; releases are VERSION-1, VERSION-2, ...
 */
export function kernelImages(module: string, version: string, count: number): KernelImage[] {
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  return Array.from({ length: count }, (_, i) => {
    const release = `${version}-${i + 1}`;
    const url = new URL(`${module}.${extension}`);
    url.searchParams.set("release", release);
    return { name: `vmlinuz-${release}`, entry: url.href, release, restores: RESTORES };
  });
}
