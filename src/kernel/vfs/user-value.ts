/**
 * Values from userspace that should be strings or numbers and may be anything.
 * @module
 */
import { KernelError } from "../../base/errno.ts";

/** A value for an error message; safe on symbols, and on objects whose toString would throw. */
export function describe(value: unknown): string {
  return (typeof value === "object" && value !== null) || typeof value === "function"
    ? typeof value
    : String(value);
}

/** Bytes of `text` in UTF-8, or -1 when it has a lone surrogate and so no UTF-8 form. */
export function utf8Length(text: string): number {
  let length = 0;
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i);
    if (unit < 0x80) length += 1;
    else if (unit < 0x800) length += 2;
    else if (unit < 0xd800 || unit > 0xdfff) length += 3;
    else {
      const next = text.charCodeAt(i + 1);
      if (unit > 0xdbff || !(next >= 0xdc00 && next <= 0xdfff)) return -1;
      length += 4;
      i++;
    }
  }
  return length;
}

/**
 * A string from userspace.
 *
 * @param maxBytes - most bytes of UTF-8, without a NUL
 * @throws {KernelError} EFAULT when it is not a string; `tooLong` when it exceeds `maxBytes`; EINVAL when no C
 *   string can hold it (a NUL, a lone surrogate)
 */
export function userString(
  value: unknown,
  maxBytes: number,
  op: string,
  tooLong: "EINVAL" | "ENAMETOOLONG",
): string {
  if (typeof value !== "string")
    throw new KernelError("EFAULT", op, "a string argument is not a string");
  const lengthBytes = value.length > maxBytes ? value.length : utf8Length(value);
  if (lengthBytes > maxBytes)
    throw new KernelError(tooLong, op, `a string of more than ${maxBytes} bytes`);
  if (lengthBytes < 0 || value.includes("\0"))
    throw new KernelError("EINVAL", op, "a string holds a NUL or a lone surrogate");
  return value;
}
