/**
 * Reading JSON that somebody else wrote: each field is checked for type, range and length before it is used, and what is
 * wrong is named by its path.
 * @module
 */
import { encodeUtf8 } from "../abi/struct.ts";
import type { KernelError } from "../base/errno.ts";

/** Makes the error of a value that is not as it should be, from a sentence about it. */
export type Mismatch = (message: string) => KernelError;

/** A value of untrusted JSON with its path. */
export class JsonField {
  readonly #value: unknown;
  readonly #path: string;
  readonly #mismatch: Mismatch;

  /** @param path - how messages name it: "message", then "message.target.kernel" */
  constructor(value: unknown, path: string, mismatch: Mismatch) {
    this.#value = value;
    this.#path = path;
    this.#mismatch = mismatch;
  }

  /** @throws {KernelError} of `mismatch` when the text is not JSON */
  static parse(text: string, path: string, mismatch: Mismatch): JsonField {
    try {
      return new JsonField(JSON.parse(text), path, mismatch);
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      throw mismatch(`${path} is not JSON: ${error.message.slice(0, 80)}`);
    }
  }

  /** The value, unchecked: for another decoder. */
  get raw(): unknown {
    return this.#value;
  }

  /** Whether it is not there at all. */
  get isMissing(): boolean {
    return this.#value === undefined;
  }

  /** Whether it is not there; null counts as that. */
  get isAbsent(): boolean {
    return this.#value === undefined || this.#value === null;
  }

  /** A field of this object; absent when the object does not have it. @throws when this is not an object */
  field(name: string): JsonField {
    const value = this.#value;
    if (typeof value !== "object" || value === null || Array.isArray(value))
      throw this.wrong("an object");
    const own = Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined;
    return new JsonField(own, `${this.#path}.${name}`, this.#mismatch);
  }

  /** What `read` makes of it, or `otherwise` when it is absent. */
  optional<T, O>(read: (field: JsonField) => T, otherwise: O): T | O {
    return this.isAbsent ? otherwise : read(this);
  }

  list<T>(maxLength: number, read: (element: JsonField) => T): T[] {
    const value = this.#value;
    if (!Array.isArray(value)) throw this.wrong("a list");
    if (value.length > maxLength)
      throw this.#mismatch(
        `${this.#path} has ${value.length} elements, ${maxLength} at most are allowed`,
      );
    return value.map((element, i) =>
      read(new JsonField(element, `${this.#path}[${i}]`, this.#mismatch)),
    );
  }

  /** Text without control characters: it ends up on terminals and in logs. @param maxBytes - of UTF-8 */
  text(maxBytes: number): string {
    const value = this.#value;
    if (typeof value !== "string") throw this.wrong("a string");
    if (encodeUtf8(value).length > maxBytes)
      throw this.#mismatch(`${this.#path} is longer than ${maxBytes} bytes`);
    if (/\p{Cc}/u.test(value)) throw this.wrong("text without control characters");
    return value;
  }

  /** Text for a person, made harmless: control characters are spaces, and it is cut off. @param maxLength - in UTF-16 units */
  prose(maxLength: number): string {
    if (typeof this.#value !== "string") throw this.wrong("a string");
    return this.#value.slice(0, maxLength).replaceAll(/\p{Cc}/gu, " ");
  }

  /** Text that matches. @param wanted - the pattern in words */
  matching(pattern: RegExp, wanted: string): string {
    if (typeof this.#value !== "string" || !pattern.test(this.#value)) throw this.wrong(wanted);
    return this.#value;
  }

  integer(min: number, max: number): number {
    const value = this.#value;
    if (typeof value !== "number" || !Number.isSafeInteger(value) || value < min || value > max)
      throw this.wrong(`a whole number from ${min} to ${max}`);
    return value;
  }

  /** A finite number from 0 on: a time. */
  nanoseconds(): number {
    const value = this.#value;
    if (typeof value !== "number" || !Number.isFinite(value) || value < 0)
      throw this.wrong("a time in nanoseconds");
    return value;
  }

  boolean(): boolean {
    if (typeof this.#value !== "boolean") throw this.wrong("true or false");
    return this.#value;
  }

  oneOf<T extends string>(values: readonly T[]): T {
    const found = values.find((value) => value === this.#value);
    if (found === undefined)
      throw this.wrong(`one of ${values.map((value) => `"${value}"`).join(", ")}`);
    return found;
  }

  /** The error that it is not what it should be. */
  wrong(wanted: string): KernelError {
    return this.#mismatch(`${this.#path} is ${describeJson(this.#value)}, not ${wanted}`);
  }
}

/**
 * A value of untrusted JSON for a message. What is in a list or an object is left out: it may be nested deeper than the stack
 * is, which JSON.stringify does not survive.
 */
export function describeJson(value: unknown): string {
  if (value === undefined) return "missing";
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value === "object" && value !== null) return "an object";
  return (JSON.stringify(value) ?? typeof value).slice(0, 80);
}
