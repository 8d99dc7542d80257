/**
 * System calls of the Linux that this process runs on, for which Node has no function or not all of it.
 *
 * Why calls on descriptors are here though Node has some: Node answers some arguments itself (an empty read, a negative
 * length), and what a Host returns must be the kernel's own answer.
 * Buffers are passed by address: they do not move while a call runs.
 * Source: man 2 of each call; Linux 7.3 include/uapi/asm-generic/{mman-common,socket}.h, include/uapi/linux/kexec.h
 * @module
 */
import { ERRNO, KernelError } from "../base/errno.ts";
import { hex } from "../base/units.ts";
import { openCLibrary, unixAddress } from "../machine/qemu/c-library.ts";

/** kexec_file_load(2), by process.arch: the C library has no function for it. */
const SYS_KEXEC_FILE_LOAD: Readonly<Record<string, number>> = { x64: 320, arm64: 294 };
export const KEXEC_FILE_UNLOAD = 0x1;
export const KEXEC_FILE_NO_INITRAMFS = 0x4;

export const PROT_READ = 0x1;
export const PROT_WRITE = 0x2;
export const PROT_EXEC = 0x4;
export const MAP_SHARED = 0x01;
export const MAP_PRIVATE = 0x02;
const MAP_FIXED = 0x10;
export const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
export const MAP_POPULATE = 0x8000;
export const MADV_HUGEPAGE = 14;

export const F_DUPFD_CLOEXEC = 1030;
export const F_SETFD = 2;
export const F_SETFL = 4;
export const FD_CLOEXEC = 1;
const LOCK_EX_NB = 2 | 4;

export const POLLIN = 0x1;
export const POLLOUT = 0x4;
/** struct pollfd: descriptor, events asked for, events that are there. */
export const POLLFD_BYTES = 8;

export const AF_UNIX = 1;
export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;
export const SOL_SOCKET = 1;
export const SO_TYPE = 3;
export const SO_PEERCRED = 17;
export const SO_ACCEPTCONN = 30;
export const SO_DOMAIN = 39;
export const SO_PEERGROUPS = 59;
export const MSG_CTRUNC = 0x8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;

const CLOCK_REALTIME = 0;

/** A mapping that has ended and has arrays left. */
interface Retired {
  /** Views that are alive. */
  count: number;
  readonly address: bigint;
  readonly lengthBytes: number;
}

/** Each call throws KernelError with the kernel's errno. */
export type Ffi = ReturnType<typeof loadFfi>;

/** @throws {KernelError} EOPNOTSUPP when koffi is not installed, or this is not Linux */
export function loadFfi() {
  const { koffi, func, checked } = openCLibrary("Linux as the host");
  const read = func("intptr_t read(int fd, void *target, size_t length)");
  const write = func("intptr_t write(int fd, const void *bytes, size_t length)");
  const pread = func("intptr_t pread(int fd, void *target, size_t length, int64_t offset)");
  const pwrite = func("intptr_t pwrite(int fd, const void *bytes, size_t length, int64_t offset)");
  const close = func("int close(int fd)");
  const lseek = func("int64_t lseek(int fd, int64_t offset, int whence)");
  const ftruncate = func("int ftruncate(int fd, int64_t length)");
  const fallocate = func("int fallocate(int fd, int mode, int64_t offset, int64_t length)");
  const fcntl = func("int fcntl(int fd, int command, ...)");
  const flock = func("int flock(int fd, int operation)");
  const ioctl = func("int ioctl(int fd, unsigned long request, ...)");
  const memfdCreate = func("int memfd_create(const char *name, unsigned int flags)");
  const eventfd = func("int eventfd(unsigned int initial, int flags)");
  const mmap = func(
    "intptr_t mmap(uintptr_t address, size_t length, int protection, int flags, int fd, int64_t offset)",
  );
  const mprotect = func("int mprotect(uintptr_t address, size_t length, int protection)");
  const munmap = func("int munmap(uintptr_t address, size_t length)");
  const madvise = func("int madvise(uintptr_t address, size_t length, int advice)");
  const mount = func(
    "int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)",
  );
  const umount = func("int umount(const char *target)");
  const syscall = func("long syscall(long number, ...)");
  const reboot = func("int reboot(int command)");
  const sync = func("void sync()");
  const clockGettime = func("int clock_gettime(int clock, _Out_ int64_t *timespec)");
  const poll = func("int poll(void *fds, unsigned long count, int timeout_ms)");
  const ppoll = func(
    "int ppoll(void *fds, unsigned long count, const int64_t *timespec, const void *sigmask)",
  );
  const socket = func("int socket(int domain, int type, int protocol)");
  const bind = func("int bind(int fd, const void *address, uint32_t length)");
  const listen = func("int listen(int fd, int backlog)");
  const accept4 = func("int accept4(int fd, void *address, void *length, int flags)");
  const connect = func("int connect(int fd, const void *address, uint32_t length)");
  const getsockopt = func(
    "int getsockopt(int fd, int level, int option, void *value, _Inout_ uint32_t *length)",
  );
  const sendmsg = func("intptr_t sendmsg(int fd, const void *message, int flags)");
  const recvmsg = func("intptr_t recvmsg(int fd, void *message, int flags)");

  const retired = new FinalizationRegistry<Retired>((mapping) => {
    if (--mapping.count === 0) munmap(mapping.address, mapping.lengthBytes);
  });

  return {
    read: (fd: number, target: Uint8Array): number =>
      checked("read", `fd ${fd}`, read(fd, target, target.length)),
    write: (fd: number, bytes: Uint8Array): number =>
      checked("write", `fd ${fd}`, write(fd, bytes, bytes.length)),
    pread: (fd: number, target: Uint8Array, offset: number): number =>
      checked("pread", `fd ${fd} at ${hex(offset)}`, pread(fd, target, target.length, offset)),
    pwrite: (fd: number, bytes: Uint8Array, offset: number): number =>
      checked("pwrite", `fd ${fd} at ${hex(offset)}`, pwrite(fd, bytes, bytes.length, offset)),
    close: (fd: number): void => {
      checked("close", `fd ${fd}`, close(fd));
    },
    lseek: (fd: number, offset: number, whence: number): number =>
      checked("lseek", `fd ${fd}, offset ${offset}, whence ${whence}`, lseek(fd, offset, whence)),
    ftruncate: (fd: number, lengthBytes: number): void => {
      checked("ftruncate", `fd ${fd} to ${lengthBytes} bytes`, ftruncate(fd, lengthBytes));
    },
    fallocate: (fd: number, mode: number, offset: number, lengthBytes: number): void => {
      const range = `fd ${fd}, mode ${hex(mode)}, ${lengthBytes} bytes from ${hex(offset)} on`;
      checked("fallocate", range, fallocate(fd, mode, offset, lengthBytes));
    },
    fcntl: (fd: number, command: number, argument: number): number =>
      checked(
        "fcntl",
        `fd ${fd}, command ${command}, ${argument}`,
        fcntl(fd, command, "unsigned long", argument),
      ),
    /** Without waiting. @throws {KernelError} EAGAIN somebody else has the lock */
    lockFile: (fd: number): void => {
      checked("flock", `fd ${fd}`, flock(fd, LOCK_EX_NB));
    },
    /** @param argument - null: none */
    ioctl: (fd: number, request: number, argument: Uint8Array | null): number =>
      checked("ioctl", `fd ${fd}, request ${hex(request)}`, ioctl(fd, request, "void *", argument)),
    memfdCreate: (name: string, flags: number): number =>
      checked("memfd_create", `"${name}", flags ${hex(flags)}`, memfdCreate(name, flags)),
    eventfd: (initial: number, flags: number): number =>
      checked("eventfd", `initial ${initial}, flags ${hex(flags)}`, eventfd(initial, flags)),

    /** @returns the address */
    mmap: (
      lengthBytes: number,
      protection: number,
      flags: number,
      fd: number,
      offset: number,
    ): bigint => {
      const address = mmap(0, lengthBytes, protection, flags, fd, offset);
      checked("mmap", `${lengthBytes} bytes of fd ${fd} from ${hex(offset)} on`, address);
      return BigInt(address);
    },
    mprotect: (address: bigint, lengthBytes: number, protection: number): void => {
      checked("mprotect", hex(address), mprotect(address, lengthBytes, protection));
    },
    munmap: (address: bigint, lengthBytes: number): void => {
      checked("munmap", hex(address), munmap(address, lengthBytes));
    },
    /**
     * Ends a mapping that arrays still show: empty memory takes its place until the last of them is gone.
     * @param views - what `view` gave for it
     */
    retire: (address: bigint, lengthBytes: number, views: readonly ArrayBuffer[]): void => {
      const flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
      const result = mmap(address, lengthBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
      checked("mmap", `${lengthBytes} bytes at ${hex(address)}`, result);
      const left = { count: views.length, address, lengthBytes };
      for (const view of views) retired.register(view, left);
    },
    madvise: (address: bigint, lengthBytes: number, advice: number): void => {
      checked(
        "madvise",
        `${hex(address)}, advice ${advice}`,
        madvise(address, lengthBytes, advice),
      );
    },
    /** Memory at an address, which must stay mapped for as long as anybody uses what this returns. */
    view: (address: bigint, lengthBytes: number): ArrayBuffer => koffi.view(address, lengthBytes),
    /** Where a buffer is. It stays there while the buffer is alive. */
    addressOf: (bytes: Uint8Array): bigint => koffi.address(bytes),
    /** A function of machine code at an address, without arguments, that returns 64 bits. */
    machineCode: (address: bigint): (() => number) => {
      const type = koffi.proto("uint64_t", []);
      return () => Number(koffi.call(address, type));
    },

    mount: (source: string, target: string, type: string, options: string): void => {
      checked("mount", `${type} on ${target}`, mount(source, target, type, 0, options));
    },
    umount: (target: string): void => {
      checked("umount", target, umount(target));
    },
    /** @param initrdFd - -1: none, with KEXEC_FILE_NO_INITRAMFS or KEXEC_FILE_UNLOAD */
    kexecFileLoad: (kernelFd: number, initrdFd: number, commandLine: string, flags: number) => {
      const number = SYS_KEXEC_FILE_LOAD[process.arch];
      if (number === undefined)
        throw new KernelError(
          "EOPNOTSUPP",
          "kexec_file_load",
          `its number on ${process.arch} is not known here; x64 and arm64 are`,
        );
      const line = new TextEncoder().encode(`${commandLine}\0`);
      const result = syscall(
        number,
        ...["int", kernelFd, "int", initrdFd],
        ...["unsigned long", line.length, "void *", line, "unsigned long", flags],
      );
      checked("kexec_file_load", `flags ${hex(flags)}, ${line.length - 1} bytes of line`, result);
    },
    reboot: (command: number): void => {
      // The C library takes it signed.
      checked("reboot", `command ${hex(command)}`, reboot(command | 0));
    },
    sync: (): void => sync(),
    /** Nanoseconds since 1970. */
    realtimeNs: (): number => {
      const timespec = [0, 0];
      checked("clock_gettime", "CLOCK_REALTIME", clockGettime(CLOCK_REALTIME, timespec));
      return Number(timespec[0]) * 1e9 + Number(timespec[1]);
    },

    /**
     * Waits until a descriptor is ready or the time has passed; signals do not end it.
     * @param fds - array of struct pollfd
     * @returns how many are ready
     */
    poll: (fds: Uint8Array, timeoutNs: number): number => {
      const wholeNs = BigInt(Math.ceil(Math.min(timeoutNs, Number.MAX_SAFE_INTEGER)));
      const end = process.hrtime.bigint() + wholeNs;
      for (let restNs = wholeNs; ; ) {
        const timespec = [restNs / 1_000_000_000n, restNs % 1_000_000_000n];
        const ready = ppoll(fds, fds.length / POLLFD_BYTES, timespec, null);
        if (ready >= 0 || koffi.errno() !== ERRNO.EINTR)
          return checked("ppoll", `${fds.length / POLLFD_BYTES} descriptors`, ready);
        restNs = end - process.hrtime.bigint();
        if (restNs < 0n) restNs = 0n;
      }
    },
    /**
     * Waits on another thread. It may end for no reason.
     * @param fds - array of struct pollfd
     * @param timeoutMs - -1: none
     */
    pollAsync: (fds: Uint8Array, timeoutMs: number): Promise<void> =>
      new Promise((resolve, reject) => {
        poll.async(fds, fds.length / POLLFD_BYTES, timeoutMs, (error: Error | null) => {
          if (error === null) resolve();
          else reject(error);
        });
      }),

    socket: (type: number): number =>
      checked("socket", "AF_UNIX", socket(AF_UNIX, type | SOCK_CLOEXEC, 0)),
    bind: (fd: number, path: string): void => {
      const address = unixAddress(path);
      checked("bind", path, bind(fd, address, address.length));
    },
    listen: (fd: number, backlog: number): void => {
      checked("listen", `fd ${fd}`, listen(fd, backlog));
    },
    connect: (fd: number, path: string): void => {
      const address = unixAddress(path);
      checked("connect", path, connect(fd, address, address.length));
    },
    /** @returns the connection, which does not block */
    accept: (fd: number): number =>
      checked("accept4", `fd ${fd}`, accept4(fd, null, null, SOCK_CLOEXEC | SOCK_NONBLOCK)),
    /**
     * An option of SOL_SOCKET.
     * @returns bytes of the value
     * @throws {KernelError} ERANGE it is longer; `value` is then not filled
     */
    getsockopt: (fd: number, option: number, value: Uint8Array): number => {
      const length = [value.length];
      const result = getsockopt(fd, SOL_SOCKET, option, value, length);
      checked("getsockopt", `fd ${fd}, option ${option}, ${length[0]} bytes`, result);
      return length[0];
    },
    /** @param message - a struct msghdr. @returns bytes sent */
    sendmsg: (fd: number, message: Uint8Array): number => {
      const sent = sendmsg(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL);
      return checked("sendmsg", `fd ${fd}`, sent);
    },
    /** @param message - a struct msghdr. @returns bytes received; 0: no more will come */
    recvmsg: (fd: number, message: Uint8Array): number =>
      checked("recvmsg", `fd ${fd}`, recvmsg(fd, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)),
  };
}
