/**
 * Numbers of the file system calls, as x86-64 Linux has them.
 *
 * Source: Linux 7.3 include/uapi/asm-generic/fcntl.h, include/uapi/linux/{fcntl,falloc,memfd,eventfd,limits,fs}.h
 * @module
 */

// open(2)
export const O_RDONLY = 0o0;
export const O_WRONLY = 0o1;
export const O_RDWR = 0o2;
export const O_ACCMODE = 0o3;
export const O_CREAT = 0o100;
export const O_EXCL = 0o200;
export const O_NOCTTY = 0o400;
export const O_TRUNC = 0o1000;
export const O_NONBLOCK = 0o4000;
export const O_DIRECTORY = 0o200000;
export const O_CLOEXEC = 0o2000000;
export const O_PATH = 0o10000000;

// lseek(2)
export const SEEK_SET = 0;
export const SEEK_CUR = 1;
export const SEEK_END = 2;
export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;

// fallocate(2)
export const FALLOC_FL_KEEP_SIZE = 0x01;
export const FALLOC_FL_PUNCH_HOLE = 0x02;

// fcntl(2)
export const F_DUPFD = 0;
export const F_GETFL = 3;
export const F_ADD_SEALS = 1033;
export const F_GET_SEALS = 1034;

export const F_SEAL_SEAL = 0x0001;
export const F_SEAL_SHRINK = 0x0002;
export const F_SEAL_GROW = 0x0004;
export const F_SEAL_WRITE = 0x0008;
export const F_SEAL_FUTURE_WRITE = 0x0010;
export const F_SEAL_EXEC = 0x0020;

// memfd_create(2)
export const MFD_CLOEXEC = 0x0001;
export const MFD_ALLOW_SEALING = 0x0002;
export const MFD_HUGETLB = 0x0004;
export const MFD_NOEXEC_SEAL = 0x0008;
export const MFD_EXEC = 0x0010;
export const MFD_HUGE_SHIFT = 26;
/** Longest name, in bytes without the NUL: NAME_MAX less the prefix "memfd:". */
export const MFD_NAME_MAX_LEN = 249;

// eventfd2(2)
export const EFD_SEMAPHORE = 0o1;
export const EFD_CLOEXEC = O_CLOEXEC;
export const EFD_NONBLOCK = O_NONBLOCK;

// Limits
/** Bytes of one component of a path, without a NUL. */
export const NAME_MAX = 255;
/** Bytes of a path with its NUL. */
export const PATH_MAX = 4096;
/** Default of RLIMIT_NOFILE (INR_OPEN_CUR). */
export const NOFILE_DEFAULT = 1024;
/** Bytes of a kernel command line with its NUL (x86 COMMAND_LINE_SIZE). */
export const COMMAND_LINE_SIZE = 2048;
