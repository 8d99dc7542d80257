/**
 * Operating errors: what a system call of our kernel, of our host interface or of Linux can fail with.
 *
 * Why: simulated and real failures must look alike, so the shape is Node's SystemError: a `code`
 * ("ENOENT"), a negative `errno`, the operation that failed.
 * Source: Linux 7.3 include/uapi/asm-generic/errno-base.h, errno.h; include/linux/errno.h
 * @module
 */

/** Every errno, as on x86-64 and arm64 Linux. ENOTSUPP is not meant for userspace, and some drivers return it. */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  ENOEXEC: 8,
  EBADF: 9,
  ECHILD: 10,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  ENOTBLK: 15,
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
  ETXTBSY: 26,
  EFBIG: 27,
  ENOSPC: 28,
  ESPIPE: 29,
  EROFS: 30,
  EMLINK: 31,
  EPIPE: 32,
  EDOM: 33,
  ERANGE: 34,
  EDEADLK: 35,
  ENAMETOOLONG: 36,
  ENOLCK: 37,
  ENOSYS: 38,
  ENOTEMPTY: 39,
  ELOOP: 40,
  ENOMSG: 42,
  EIDRM: 43,
  ECHRNG: 44,
  EL2NSYNC: 45,
  EL3HLT: 46,
  EL3RST: 47,
  ELNRNG: 48,
  EUNATCH: 49,
  ENOCSI: 50,
  EL2HLT: 51,
  EBADE: 52,
  EBADR: 53,
  EXFULL: 54,
  ENOANO: 55,
  EBADRQC: 56,
  EBADSLT: 57,
  EBFONT: 59,
  ENOSTR: 60,
  ENODATA: 61,
  ETIME: 62,
  ENOSR: 63,
  ENONET: 64,
  ENOPKG: 65,
  EREMOTE: 66,
  ENOLINK: 67,
  EADV: 68,
  ESRMNT: 69,
  ECOMM: 70,
  EPROTO: 71,
  EMULTIHOP: 72,
  EDOTDOT: 73,
  EBADMSG: 74,
  EOVERFLOW: 75,
  ENOTUNIQ: 76,
  EBADFD: 77,
  EREMCHG: 78,
  ELIBACC: 79,
  ELIBBAD: 80,
  ELIBSCN: 81,
  ELIBMAX: 82,
  ELIBEXEC: 83,
  EILSEQ: 84,
  ERESTART: 85,
  ESTRPIPE: 86,
  EUSERS: 87,
  ENOTSOCK: 88,
  EDESTADDRREQ: 89,
  EMSGSIZE: 90,
  EPROTOTYPE: 91,
  ENOPROTOOPT: 92,
  EPROTONOSUPPORT: 93,
  ESOCKTNOSUPPORT: 94,
  EOPNOTSUPP: 95,
  EPFNOSUPPORT: 96,
  EAFNOSUPPORT: 97,
  EADDRINUSE: 98,
  EADDRNOTAVAIL: 99,
  ENETDOWN: 100,
  ENETUNREACH: 101,
  ENETRESET: 102,
  ECONNABORTED: 103,
  ECONNRESET: 104,
  ENOBUFS: 105,
  EISCONN: 106,
  ENOTCONN: 107,
  ESHUTDOWN: 108,
  ETOOMANYREFS: 109,
  ETIMEDOUT: 110,
  ECONNREFUSED: 111,
  EHOSTDOWN: 112,
  EHOSTUNREACH: 113,
  EALREADY: 114,
  EINPROGRESS: 115,
  ESTALE: 116,
  EUCLEAN: 117,
  ENOTNAM: 118,
  ENAVAIL: 119,
  EISNAM: 120,
  EREMOTEIO: 121,
  EDQUOT: 122,
  ENOMEDIUM: 123,
  EMEDIUMTYPE: 124,
  ECANCELED: 125,
  ENOKEY: 126,
  EKEYEXPIRED: 127,
  EKEYREVOKED: 128,
  EKEYREJECTED: 129,
  EOWNERDEAD: 130,
  ENOTRECOVERABLE: 131,
  ERFKILL: 132,
  EHWPOISON: 133,
  ENOTSUPP: 524,
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

/**
 * The error of a system call of the operating system that we run on.
 *
 * @param errno - as the C library has it, positive. One without a name becomes EIO, and the message has the number
 */
export function systemCallError(errno: number, op: string, detail: string): KernelError {
  for (const [code, number] of Object.entries(ERRNO))
    if (number === errno) return new KernelError(code as ErrnoCode, op, detail);
  return new KernelError("EIO", op, `${detail}: errno ${errno}, which has no name`);
}

/** Whether `error` is an operating error, with that code if one is given. */
export function isKernelError(error: unknown, code?: ErrnoCode): error is KernelError {
  return error instanceof KernelError && (code === undefined || error.code === code);
}
