/**
 * A function with a present context entry, as a domain knows it: whose caches to flush, by which DID.
 * @module
 */
import type { RemappingUnit } from "./remapping-unit.ts";

/** Its DID is its own on its unit. */
export interface AttachedFunction {
  readonly unit: RemappingUnit;
  /** PCI segment group. */
  readonly segment: number;
  readonly bdf: number;
  readonly did: number;
  /** Of its tables: fixed as long as it is attached. */
  readonly levels: number;
}

/** One number for a function, for maps. */
export function functionKey(segment: number, bdf: number): number {
  return segment * 2 ** 16 + bdf;
}
