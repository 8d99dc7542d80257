/** Steps after the jump, which must not be given up at the first lack of something. @module */
import { KernelError } from "../base/errno.ts";

/** Attempts at a step of the restoration that may be repeated. */
const ATTEMPTS = 3;

/** Runs a step again when it fails. @throws {KernelError} of the last attempt */
export function retry<T>(step: () => T): T {
  for (let left = ATTEMPTS; ; left--) {
    try {
      return step();
    } catch (error) {
      if (!(error instanceof KernelError) || left === 1) throw error;
    }
  }
}
