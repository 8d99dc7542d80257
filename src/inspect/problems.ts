/**
 * What is wrong with a handover: each broken rule once, by address and field.
 * @module
 */
import type { HandoverError } from "../abi/handover-error.ts";
import type { Place } from "../kernel/kho/incoming.ts";

export interface Problem {
  /** Of the field, where that is known, else of the structure that it is in; null: of none. */
  readonly address: number | null;
  readonly field: string;
  readonly problem: string;
}

/** More are counted, not kept: a damaged image must not fill the heap. */
const PROBLEMS_MAX = 1000;
const PREFIX = "handover refused: ";

export class Problems {
  readonly list: Problem[] = [];
  /** Those that were not kept. */
  omitted = 0;
  readonly #seen = new Set<string>();

  add(problem: Problem): void {
    const key = `${problem.address} ${problem.field} ${problem.problem}`;
    if (this.#seen.has(key)) return;
    if (this.list.length === PROBLEMS_MAX) {
      this.omitted++;
      return;
    }
    this.#seen.add(key);
    this.list.push(problem);
  }

  /**
   * A rule that a decoder found broken.
   * @param places - structures that were being read, the innermost last
   */
  addError(error: HandoverError, ...places: readonly Place[]): void {
    this.add({
      address: fieldAddress(error.field, places),
      field: error.field,
      problem: error.message.slice(PREFIX.length + error.field.length + 2),
    });
  }
}

/**
 * Address of the field that a message names last ("luo_session_ser[3].count"): in the innermost structure that has such a
 * field; where none has, of the innermost structure.
 */
function fieldAddress(field: string, places: readonly Place[]): number | null {
  const name = /([A-Za-z0-9_]+)(\[\d+\])?$/.exec(field)?.[1] ?? "";
  for (const { pa, struct } of places.toReversed())
    if (struct !== undefined && Object.hasOwn(struct.offset, name)) return pa + struct.offset[name];
  return places.at(-1)?.pa ?? null;
}
