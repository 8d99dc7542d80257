/**
 * Host on the Linux that this process runs on.
 *
 * Arguments that the system call interface cannot express (a fraction, a string with a NUL) get the errno that our
 * kernel gives them; all else is Linux's own answer.
 * Descriptors are closed on exec: one that a child inherits would keep a session open, and closing the last one
 * means something.
 * Source: Linux 7.3 include/uapi/linux/*.h; man 2 of each call
 * @module
 */
import {
  closeSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  type Stats,
  statfsSync,
  statSync,
  unlinkSync,
} from "node:fs";
import { release } from "node:os";
import {
  COMMAND_LINE_SIZE,
  EFD_CLOEXEC,
  F_DUPFD,
  MFD_CLOEXEC,
  MFD_NAME_MAX_LEN,
  O_NONBLOCK,
  O_RDONLY,
  PATH_MAX,
} from "../abi/uapi/fs.ts";
import type { UserArgument } from "../abi/uapi/ioctl.ts";
import { BugError } from "../base/assert.ts";
import { isKernelError, KernelError } from "../base/errno.ts";
import { isIndex, PAGE_SIZE } from "../base/units.ts";
import type { Host } from "../host/host.ts";
import type { FileStat } from "../kernel/vfs/file.ts";
import type { FilesystemStat } from "../kernel/vfs/filesystem.ts";
import { describe, userString } from "../kernel/vfs/user-value.ts";
import { bootCounters } from "./boot-counter.ts";
import { ContinuousClock, hideClock } from "./continuous-clock.ts";
import {
  F_DUPFD_CLOEXEC,
  type Ffi,
  KEXEC_FILE_NO_INITRAMFS,
  KEXEC_FILE_UNLOAD,
  loadFfi,
  POLLIN,
  POLLOUT,
} from "./ffi.ts";
import { IoctlArgument } from "./ioctl-argument.ts";
import { MemoryMapping } from "./memory-mapping.ts";
import { nodeCall } from "./node-call.ts";
import { PollSet, type Wanted } from "./poll-set.ts";

const FD_LAST = 0x7fffffff;
const U32_LAST = 0xffffffff;
const STDOUT = 1;

/** One process's view of its Linux. */
export class LinuxHost implements Host {
  readonly #ffi: Ffi;
  readonly #runFolder: string;
  readonly #argument: IoctlArgument;
  /** Those that this host made and has not closed: what `sleep` waits for. */
  readonly #eventfds = new Set<number>();
  /** Made when first asked for: /proc and /sys must be mounted then. */
  #clock: ContinuousClock | null = null;

  /**
   * @param runFolder - where the processes of one boot agree about its clock
   * @throws {KernelError} EOPNOTSUPP when koffi is not installed, or this is not Linux
   */
  constructor(ffi: Ffi = loadFfi(), runFolder: string = "/run/holdfast") {
    this.#ffi = ffi;
    this.#runFolder = runFolder;
    this.#argument = new IoctlArgument(ffi);
  }

  open(path: string, flags: number): number {
    checkPath(path, "open");
    if (!isIndex(flags, FD_LAST))
      throw new KernelError("EINVAL", "open", `flags ${describe(flags)}`);
    // Node adds O_CLOEXEC.
    return nodeCall("open", path, () => openSync(path, flags));
  }

  close(fd: number): void {
    this.#ffi.close(descriptor(fd, "close"));
    this.#eventfds.delete(fd);
  }

  dup(fd: number): number {
    return this.#ffi.fcntl(descriptor(fd, "dup"), F_DUPFD_CLOEXEC, 0);
  }

  read(fd: number, target: Uint8Array): number {
    return this.#ffi.read(descriptor(fd, "read"), buffer(target, "read"));
  }

  write(fd: number, bytes: Uint8Array): number {
    return this.#ffi.write(descriptor(fd, "write"), buffer(bytes, "write"));
  }

  pread(fd: number, target: Uint8Array, offset: number): number {
    checkOffset(offset, "pread");
    return this.#ffi.pread(descriptor(fd, "pread"), buffer(target, "pread"), offset);
  }

  pwrite(fd: number, bytes: Uint8Array, offset: number): number {
    checkOffset(offset, "pwrite");
    return this.#ffi.pwrite(descriptor(fd, "pwrite"), buffer(bytes, "pwrite"), offset);
  }

  lseek(fd: number, offset: number, whence: number): number {
    descriptor(fd, "lseek");
    if (!Number.isSafeInteger(offset) || !isIndex(whence, FD_LAST))
      throw new KernelError(
        "EINVAL",
        "lseek",
        `offset ${describe(offset)}, whence ${describe(whence)}`,
      );
    return this.#ffi.lseek(fd, offset, whence);
  }

  ioctl(fd: number, request: number, argument: UserArgument): number {
    descriptor(fd, "ioctl");
    if (!isIndex(request, U32_LAST))
      throw new KernelError("ENOTTY", "ioctl", `${describe(request)} is no request number`);
    return this.#argument.with(argument, (place) => this.#ffi.ioctl(fd, request, place));
  }

  /** The mapping's pieces have at most 1 GiB; when it ends they become empty. */
  mmap(fd: number, offset: number, lengthBytes: number): MemoryMapping {
    descriptor(fd, "mmap");
    if (!isIndex(offset, Number.MAX_SAFE_INTEGER) || !isIndex(lengthBytes, Number.MAX_SAFE_INTEGER))
      throw new KernelError(
        "EINVAL",
        "mmap",
        `offset ${describe(offset)}, length ${describe(lengthBytes)}`,
      );
    return new MemoryMapping(this.#ffi, fd, offset, lengthBytes);
  }

  ftruncate(fd: number, lengthBytes: number): void {
    descriptor(fd, "ftruncate");
    if (!isIndex(lengthBytes, Number.MAX_SAFE_INTEGER))
      throw new KernelError("EINVAL", "ftruncate", `length ${describe(lengthBytes)}`);
    this.#ffi.ftruncate(fd, lengthBytes);
  }

  fallocate(fd: number, mode: number, offset: number, lengthBytes: number): void {
    descriptor(fd, "fallocate");
    checkOffset(offset, "fallocate");
    if (!isIndex(lengthBytes, Number.MAX_SAFE_INTEGER))
      throw new KernelError("EINVAL", "fallocate", `length ${describe(lengthBytes)}`);
    if (!isIndex(mode, FD_LAST))
      throw new KernelError("EOPNOTSUPP", "fallocate", `${describe(mode)} is no mode`);
    this.#ffi.fallocate(fd, mode, offset, lengthBytes);
  }

  fcntl(fd: number, command: number, argument: number): number {
    descriptor(fd, "fcntl");
    if (!isIndex(command, FD_LAST) || !isIndex(argument, U32_LAST))
      throw new KernelError(
        "EINVAL",
        "fcntl",
        `command ${describe(command)}, ${describe(argument)}`,
      );
    return this.#ffi.fcntl(fd, command === F_DUPFD ? F_DUPFD_CLOEXEC : command, argument);
  }

  fstat(fd: number): FileStat {
    descriptor(fd, "fstat");
    return fileStat(nodeCall("fstat", `fd ${fd}`, () => fstatSync(fd)));
  }

  stat(path: string): FileStat {
    checkPath(path, "stat");
    return fileStat(nodeCall("stat", path, () => statSync(path)));
  }

  mkdir(path: string): void {
    checkPath(path, "mkdir");
    nodeCall("mkdir", path, () => mkdirSync(path));
  }

  rmdir(path: string): void {
    checkPath(path, "rmdir");
    nodeCall("rmdir", path, () => rmdirSync(path));
  }

  unlink(path: string): void {
    checkPath(path, "unlink");
    nodeCall("unlink", path, () => unlinkSync(path));
  }

  rename(from: string, to: string): void {
    checkPath(from, "rename");
    checkPath(to, "rename");
    nodeCall("rename", `${from} to ${to}`, () => renameSync(from, to));
  }

  readdir(path: string): readonly string[] {
    checkPath(path, "readdir");
    return nodeCall("readdir", path, () => readdirSync(path));
  }

  statfs(path: string): FilesystemStat {
    checkPath(path, "statfs");
    const { type, bsize, blocks, bfree, files, ffree } = nodeCall("statfs", path, () =>
      statfsSync(path),
    );
    const { dev } = nodeCall("stat", path, () => statSync(path));
    return {
      type: filesystemName(dev) ?? `0x${type.toString(16)}`,
      totalBytes: blocks * bsize,
      freeBytes: bfree * bsize,
      inodes: files - ffree,
    };
  }

  mount(source: string, target: string, type: string, options: string): void {
    userString(source, PATH_MAX - 1, "mount", "ENAMETOOLONG");
    checkPath(target, "mount");
    userString(type, PAGE_SIZE - 1, "mount", "EINVAL");
    userString(options, PAGE_SIZE - 1, "mount", "EINVAL");
    this.#ffi.mount(source, target, type, options);
  }

  umount(target: string): void {
    checkPath(target, "umount");
    this.#ffi.umount(target);
  }

  memfdCreate(name: string, flags: number): number {
    if (!isIndex(flags, U32_LAST))
      throw new KernelError("EINVAL", "memfd_create", `flags ${describe(flags)}`);
    userString(name, MFD_NAME_MAX_LEN, "memfd_create", "EINVAL");
    return this.#ffi.memfdCreate(name, (flags | MFD_CLOEXEC) >>> 0);
  }

  eventfd(initial: number, flags: number): number {
    if (!isIndex(initial, U32_LAST) || !isIndex(flags, FD_LAST))
      throw new KernelError(
        "EINVAL",
        "eventfd",
        `initial ${describe(initial)}, flags ${describe(flags)}`,
      );
    const fd = this.#ffi.eventfd(initial, flags | EFD_CLOEXEC);
    this.#eventfds.add(fd);
    return fd;
  }

  /**
   * The next kernel's command line gets a parameter by which the clock goes on there.
   * @throws {KernelError} also EINVAL when the line is too long for that parameter
   */
  kexecFileLoad(kernel: string, initrd: string | null, commandLine: string): void {
    const op = "kexec_file_load";
    checkPath(kernel, op);
    if (initrd !== null) checkPath(initrd, op);
    userString(commandLine, COMMAND_LINE_SIZE - 1, op, "EINVAL");
    const line = `${hideClock(commandLine)} ${this.#continuousClock().parameter()}`.trimStart();
    if (line.length >= COMMAND_LINE_SIZE)
      throw new KernelError(
        "EINVAL",
        op,
        `the command line has ${line.length} bytes with the clock's parameter; the most is ${COMMAND_LINE_SIZE - 1}: shorten it`,
      );
    withFile(kernel, (kernelFd) => {
      if (initrd === null) this.#ffi.kexecFileLoad(kernelFd, -1, line, KEXEC_FILE_NO_INITRAMFS);
      else withFile(initrd, (initrdFd) => this.#ffi.kexecFileLoad(kernelFd, initrdFd, line, 0));
    });
    // What is dirty now would be written in reboot(), when VMs stand still.
    this.#ffi.sync();
  }

  kexecUnload(): void {
    this.#ffi.kexecFileLoad(-1, -1, "", KEXEC_FILE_UNLOAD);
  }

  /** What file systems have not written yet is written first. */
  reboot(command: number): never {
    if (!isIndex(command, U32_LAST))
      throw new KernelError("EINVAL", "reboot", `${describe(command)} is no command`);
    this.#ffi.sync();
    this.#ffi.reboot(command);
    throw new BugError(`reboot(2) of ${command} returned`);
  }

  clockNs(): number {
    return this.#continuousClock().nowNs();
  }

  get bootedAtNs(): number {
    return this.#continuousClock().bootedAtNs;
  }

  /** What carries `clockNs` over a kexec: "tsc", to microseconds; "realtime", to the second that the RTC counts. */
  get clockSource(): "tsc" | "realtime" {
    return this.#continuousClock().source;
  }

  /** Ends early when an eventfd of this host is readable. */
  sleep(timeoutNs: number): void {
    if (!(Number.isFinite(timeoutNs) && timeoutNs >= 0))
      throw new KernelError("EINVAL", "sleep", `${describe(timeoutNs)} ns`);
    const set = new PollSet([...this.#eventfds].map((fd): Wanted => [fd, POLLIN]));
    this.#ffi.poll(set.bytes, timeoutNs);
  }

  get release(): string {
    return release();
  }

  /** Without the clock's parameter: as it was given to `kexecFileLoad`. */
  get commandLine(): string {
    return hideClock(procText("/proc/cmdline"));
  }

  /** Returns when the line is written, so that nothing is lost in a kexec. */
  print(line: string): void {
    userString(line, Number.MAX_SAFE_INTEGER, "print", "EINVAL");
    const bytes = new TextEncoder().encode(`${line}\n`);
    for (let done = 0; done < bytes.length; ) {
      try {
        done += this.#ffi.write(STDOUT, bytes.subarray(done));
      } catch (error) {
        // Node may have made a pipe non-blocking.
        if (isKernelError(error, "EAGAIN"))
          this.#ffi.poll(new PollSet([[STDOUT, POLLOUT]]).bytes, Number.MAX_SAFE_INTEGER);
        // Whoever read it has gone: that must not stop an update.
        else if (isKernelError(error, "EPIPE")) return;
        else throw error;
      }
    }
  }

  #continuousClock(): ContinuousClock {
    this.#clock ??= new ContinuousClock({
      counters: bootCounters(this.#ffi),
      monotonicNs: () => Number(process.hrtime.bigint()),
      sleep: (timeoutNs) => this.#ffi.poll(new Uint8Array(0), timeoutNs),
      folder: this.#runFolder,
      commandLine: procText("/proc/cmdline"),
      bootId: procText("/proc/sys/kernel/random/boot_id"),
    });
    return this.#clock;
  }
}

function descriptor(fd: number, op: string): number {
  if (!isIndex(fd, FD_LAST)) throw new KernelError("EBADF", op, `${describe(fd)} is no descriptor`);
  return fd;
}

function buffer(bytes: Uint8Array, op: string): Uint8Array {
  if (!(bytes instanceof Uint8Array))
    throw new KernelError("EFAULT", op, "the buffer is not memory");
  return bytes;
}

function checkOffset(offset: number, op: string): void {
  if (!isIndex(offset, Number.MAX_SAFE_INTEGER))
    throw new KernelError("EINVAL", op, `offset ${describe(offset)}`);
}

function checkPath(path: string, op: string): void {
  userString(path, PATH_MAX - 1, op, "ENAMETOOLONG");
}

/** Opens a file to be read for as long as `use` runs. Of a FIFO that would wait for a writer; what is no file the kernel refuses. */
function withFile(path: string, use: (fd: number) => void): void {
  const fd = nodeCall("open", path, () => openSync(path, O_RDONLY | O_NONBLOCK));
  try {
    use(fd);
  } finally {
    closeSync(fd);
  }
}

function procText(path: string): string {
  return nodeCall("read", path, () => readFileSync(path, "utf8")).trimEnd();
}

function fileStat(stats: Stats): FileStat {
  return {
    kind: kindOf(stats),
    inode: stats.ino,
    sizeBytes: stats.size,
    allocatedBytes: stats.blocks * 512,
    linkCount: stats.nlink,
  };
}

function kindOf(stats: Stats): FileStat["kind"] {
  if (stats.isFile()) return "file";
  if (stats.isDirectory()) return "directory";
  return stats.isCharacterDevice() || stats.isBlockDevice() ? "device" : "anonymous";
}

/** Name of a mounted file system by its device number; null when nothing of that number is mounted here. */
function filesystemName(dev: number): string | null {
  const major = Math.floor(dev / 256) % 4096;
  const minor = (dev % 256) + Math.floor(dev / 2 ** 20) * 256;
  for (const line of procText("/proc/self/mountinfo").split("\n")) {
    const fields = line.split(" ");
    if (fields[2] === `${major}:${minor}`) return fields[fields.indexOf("-") + 1];
  }
  return null;
}
