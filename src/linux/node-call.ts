/** File system calls that Node has, with errors as a Host has them. @module */
import { systemCallError } from "../base/errno.ts";

/**
 * @param op - the system call
 * @param detail - what it is made on
 * @throws {KernelError} where Node throws its SystemError
 */
export function nodeCall<T>(op: string, detail: string, call: () => T): T {
  try {
    return call();
  } catch (error) {
    if (error instanceof Error && "errno" in error && typeof error.errno === "number")
      throw systemCallError(-error.errno, op, detail);
    throw error;
  }
}
