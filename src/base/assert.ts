/** Bugs of our own, kept apart from failures that a caller can meet in normal operation. @module */

/** A broken invariant of this program. Nobody catches it to go on. */
export class BugError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "BugError";
  }
}

/**
 * Checks an invariant of this program. Never use it on bytes from userspace, a guest, a device or a
 * previous kernel: those get an errno.
 *
 * @param message - a function where the check is hot and the text is put together: it is not called when all is well
 * @throws {BugError} when `condition` is false
 */
export function assert(condition: boolean, message: string | (() => string)): asserts condition {
  if (!condition) throw new BugError(typeof message === "string" ? message : message());
}
