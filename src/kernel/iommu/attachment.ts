/**
 * Which function uses which tables: the link between a context entry, its DID and a domain.
 * @module
 */
import type { RemappingUnit } from "./remapping-unit.ts";
import type { RestoredTables } from "./restored-tables.ts";
import type { SecondStageDomain } from "./second-stage-domain.ts";

/** One function with a present context entry. Its DID is its own on its unit. */
export interface Attachment {
  readonly unit: RemappingUnit;
  readonly segment: number;
  readonly bdf: number;
  readonly did: number;
  readonly levels: number;
  domain: SecondStageDomain | RestoredTables;
}

/** One number for a function, for maps. */
export function functionKey(segment: number, bdf: number): number {
  return segment * 2 ** 16 + bdf;
}
