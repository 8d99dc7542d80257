/**
 * A handover that this kernel will not take: raised by decoders before any byte is used.
 * @module
 */

/** Names the field, the value found and the rule that it breaks. */
export class HandoverError extends Error {
  /** The field in C's words: "luo_session_ser[3].count". */
  readonly field: string;

  constructor(field: string, problem: string) {
    super(`handover refused: ${field}: ${problem}`);
    this.name = "HandoverError";
    this.field = field;
  }
}
