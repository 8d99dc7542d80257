/**
 * Operating errors: what a system call of our kernel, of our host interface or of Linux can fail with.
 *
 * Why: simulated and real failures must look alike, so the shape is Node's SystemError: a `code`
 * ("ENOENT"), a negative `errno`, the operation that failed.
 * Source: Linux 7.3 include/uapi/asm-generic/errno-base.h, errno.h
 * @module
 */

/** Numbers of the errno codes that this project uses, as on x86-64 and arm64 Linux. */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  EXDEV: 18,
  ENODEV: 19,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  ENFILE: 23,
  EMFILE: 24,
  ENOTTY: 25,
  EFBIG: 27,
  ENOSPC: 28,
  ESPIPE: 29,
  EROFS: 30,
  ERANGE: 34,
  ENAMETOOLONG: 36,
  ENOTEMPTY: 39,
  ENODATA: 61,
  EPROTO: 71,
  EOVERFLOW: 75,
  EBADFD: 77,
  EMSGSIZE: 90,
  EOPNOTSUPP: 95,
  EADDRINUSE: 98,
  ETIMEDOUT: 110,
} as const;

/** The name of an errno. */
export type ErrnoCode = keyof typeof ERRNO;

/**
 * An operating error: bad input, a lack, a conflict. Never a bug of ours (see {@link BugError}).
 *
 * The message reads `EBUSY: cannot unlink "/vm0/ram": pinned by 2 DMA mappings`.
 */
export class KernelError extends Error {
  /** Name of the errno, as "ENOENT". */
  readonly code: ErrnoCode;
  /** Negative number of the errno, as Node's SystemError has it. */
  readonly errno: number;
  /** The operation that failed, in the field's terms: "unlink", "LIVEUPDATE_SESSION_PRESERVE_FD". */
  readonly op: string;

  /**
   * @param code - the errno that Linux returns in this case
   * @param op - the operation that failed
   * @param detail - which value, which limit, which way out
   * @param options - `cause`: what led to it
   */
  constructor(code: ErrnoCode, op: string, detail: string, options?: { cause?: unknown }) {
    super(`${code}: ${op}: ${detail}`, options);
    this.name = "KernelError";
    this.code = code;
    this.errno = -ERRNO[code];
    this.op = op;
  }
}

/** Whether `error` is an operating error, with that code if one is given. */
export function isKernelError(error: unknown, code?: ErrnoCode): error is KernelError {
  return error instanceof KernelError && (code === undefined || error.code === code);
}
