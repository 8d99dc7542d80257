/**
 * The few calls of the C library that Node has no function for: shared file mappings and connected sockets.
 *
 * Source: memfd_create(2), mmap(2), lseek(2), socketpair(2), unix(7)
 * @module
 */
import { ERRNO, systemCallError } from "../../base/errno.ts";
import { hex } from "../../base/units.ts";
import { openCLibrary, unixAddress } from "./c-library.ts";

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
const SOL_SOCKET = 1;
const SO_RCVTIMEO = 20;
const SO_SNDTIMEO = 21;

const NOT_CONNECTED: readonly number[] = [ERRNO.ENOENT, ERRNO.ECONNREFUSED, ERRNO.EAGAIN];

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
  /**
   * @param timeoutMs - longer no call waits on it: EAGAIN
   * @returns a blocking stream socket, connected; null while nobody listens there, or takes the connection in time
   */
  connectUnix(path: string, timeoutMs: number): number | null;
}

/** @throws {KernelError} as {@link openCLibrary} */
export function loadLibc(): Libc {
  const { koffi, func, checked } = openCLibrary("the QEMU machine");
  const memfdCreate = func("int memfd_create(const char *name, uint flags)");
  const mmap = func(
    "intptr_t mmap(void *address, size_t length, int prot, int flags, int fd, int64_t offset)",
  );
  const lseek = func("int64_t lseek(int fd, int64_t offset, int whence)");
  const socketpair = func(
    "int socketpair(int domain, int type, int protocol, _Out_ int32_t *sockets)",
  );
  const socket = func("int socket(int domain, int type, int protocol)");
  const connect = func("int connect(int fd, const void *address, uint length)");
  const setsockopt = func(
    "int setsockopt(int fd, int level, int option, const void *value, uint length)",
  );
  const close = func("int close(int fd)");

  return {
    memfdCreate: (name) => checked("memfd_create", name, memfdCreate(name, MFD_CLOEXEC)),
    mapOver(memory, fd, offset) {
      const length = memory.byteLength;
      const at = mmap(memory, length, PROT_READ_WRITE, MAP_SHARED_FIXED, fd, offset);
      checked("mmap", `${length} bytes of fd ${fd} from ${hex(offset)} on`, at);
    },
    seekData(fd, offset) {
      const at = lseek(fd, offset, SEEK_DATA);
      // Nothing but a hole is left.
      if (at < 0 && koffi.errno() === ERRNO.ENXIO) return Number.POSITIVE_INFINITY;
      return checked("lseek", `data of fd ${fd} from ${hex(offset)} on`, at);
    },
    seekHole: (fd, offset) =>
      checked("lseek", `hole of fd ${fd} from ${hex(offset)} on`, lseek(fd, offset, SEEK_HOLE)),
    messageSocketPair() {
      const sockets = [-1, -1];
      const type = SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK;
      checked("socketpair", "of datagrams", socketpair(AF_UNIX, type, 0, sockets));
      return [sockets[0], sockets[1]];
    },
    connectUnix(path, timeoutMs) {
      const address = unixAddress(path);
      const fd = checked("socket", path, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
      // struct timeval: seconds, microseconds.
      const time = BigInt64Array.of(
        BigInt(Math.floor(timeoutMs / 1000)),
        BigInt((timeoutMs % 1000) * 1000),
      );
      for (const option of [SO_RCVTIMEO, SO_SNDTIMEO])
        checked("setsockopt", path, setsockopt(fd, SOL_SOCKET, option, time, time.byteLength));
      if (connect(fd, address, address.length) < 0) {
        const errno = koffi.errno();
        close(fd);
        if (NOT_CONNECTED.includes(errno)) return null;
        throw systemCallError(errno, "connect", path);
      }
      return fd;
    },
  };
}
