/**
 * The few calls of the C library that Node has no function for: shared file mappings and connected sockets.
 *
 * Why koffi, and why only when asked for: it is native code that only this machine needs, so it is an optional
 * dependency that is loaded when a QEMU machine starts.
 * Source: memfd_create(2), mmap(2), lseek(2), socketpair(2), unix(7)
 * @module
 */
import { constants } from "node:os";
import { ERRNO, type ErrnoCode, KernelError } from "../../base/errno.ts";
import { hex } from "../../base/units.ts";

const MFD_CLOEXEC = 1;
const PROT_READ_WRITE = 3;
const MAP_SHARED_FIXED = 0x11;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const SOCK_NONBLOCK = 0o4000;
/** struct sockaddr_un: the family, then a path with its NUL. */
const SUN_PATH_BYTES = 108;

/** Calls throw KernelError with the errno. */
export interface Libc {
  /** A file in memory that has no name. @returns its descriptor */
  memfdCreate(name: string): number;
  /**
   * Replaces all of `memory` by a part of a file, for all who share it.
   * @param memory - all of the buffer of a WebAssembly memory, so page aligned and mapped on its own
   */
  mapOver(memory: Uint8Array, fd: number, offset: number): void;
  /** First byte at or after `offset` that was ever stored to, rounded down to a page; Infinity if none was. */
  seekData(fd: number, offset: number): number;
  /** First byte at or after `offset` that no memory backs, or the end of the file. */
  seekHole(fd: number, offset: number): number;
  /** Two connected sockets that keep messages apart, lose none and do not block. */
  messageSocketPair(): readonly [number, number];
  /** @returns a blocking stream socket, connected; null while nobody listens there */
  connectUnix(path: string): number | null;
}

/**
 * Loads the C library.
 *
 * @throws {KernelError} EOPNOTSUPP when koffi is not installed, or this is not Linux
 */
export async function loadLibc(): Promise<Libc> {
  if (process.platform !== "linux")
    throw new KernelError(
      "EOPNOTSUPP",
      "power on",
      `the QEMU machine needs Linux, not ${process.platform}`,
    );
  const { default: koffi } = await import("koffi").catch((cause: unknown) => {
    throw new KernelError(
      "EOPNOTSUPP",
      "power on",
      "the QEMU machine maps its memory with the package koffi, which cannot be loaded: npm install koffi",
      { cause },
    );
  });
  const libc = koffi.load("libc.so.6");
  const memfdCreate = libc.func("int memfd_create(const char *name, uint flags)");
  const mmap = libc.func(
    "intptr_t mmap(void *address, size_t length, int prot, int flags, int fd, int64_t offset)",
  );
  const lseek = libc.func("int64_t lseek(int fd, int64_t offset, int whence)");
  const socketpair = libc.func(
    "int socketpair(int domain, int type, int protocol, _Out_ int32_t *sockets)",
  );
  const socket = libc.func("int socket(int domain, int type, int protocol)");
  const connect = libc.func("int connect(int fd, const void *address, uint length)");
  const close = libc.func("int close(int fd)");

  const checked = (op: string, result: number): number =>
    result < 0 ? fail(op, koffi.errno()) : result;

  return {
    memfdCreate: (name) => checked("memfd_create", memfdCreate(name, MFD_CLOEXEC) as number),
    mapOver(memory, fd, offset) {
      const at = mmap(
        memory,
        memory.byteLength,
        PROT_READ_WRITE,
        MAP_SHARED_FIXED,
        fd,
        offset,
      ) as number;
      checked("mmap", at);
    },
    seekData(fd, offset) {
      const at = Number(lseek(fd, offset, SEEK_DATA));
      // Nothing but a hole is left.
      if (at < 0 && koffi.errno() === constants.errno.ENXIO) return Number.POSITIVE_INFINITY;
      return checked(`lseek ${hex(offset)}`, at);
    },
    seekHole: (fd, offset) => checked("lseek", Number(lseek(fd, offset, SEEK_HOLE))),
    messageSocketPair() {
      const sockets = [-1, -1];
      const type = SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK;
      checked("socketpair", socketpair(AF_UNIX, type, 0, sockets) as number);
      return [sockets[0], sockets[1]];
    },
    connectUnix(path) {
      const name = Buffer.from(path);
      if (name.length >= SUN_PATH_BYTES)
        throw new KernelError("ENAMETOOLONG", "connect", `${path} is too long for a socket`);
      const address = Buffer.alloc(2 + SUN_PATH_BYTES);
      address.writeUInt16LE(AF_UNIX, 0);
      name.copy(address, 2);
      const fd = checked("socket", socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) as number);
      if ((connect(fd, address, address.length) as number) < 0) {
        const errno = koffi.errno();
        close(fd);
        if (errno === constants.errno.ENOENT || errno === constants.errno.ECONNREFUSED) return null;
        fail("connect", errno);
      }
      return fd;
    },
  };
}

function fail(op: string, errno: number): never {
  const code = (Object.keys(ERRNO) as ErrnoCode[]).find((name) => ERRNO[name] === errno);
  throw new KernelError(code ?? "EIO", op, `the system call fails with errno ${errno}`);
}
