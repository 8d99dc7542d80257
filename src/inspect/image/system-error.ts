/** Failures of the operating system, as Node reports them. @module */

/** Whether an error is a failed system call: a file that is not there, a full disk. */
export function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && "syscall" in error && "code" in error;
}
