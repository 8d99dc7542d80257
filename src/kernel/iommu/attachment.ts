/**
 * Which function uses which tables: the link between a context entry, its DID and a domain.
 * @module
 */
import type { AttachedFunction } from "./attached-function.ts";
import type { RestoredTables } from "./restored-tables.ts";
import type { SecondStageDomain } from "./second-stage-domain.ts";

/** One function and the domain that it uses now. */
export interface Attachment extends AttachedFunction {
  domain: SecondStageDomain | RestoredTables;
}
