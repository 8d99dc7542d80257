/**
 * A userspace process: its descriptors and mappings, and every system call that it may make.
 *
 * This class is the kernel's side of `Host` (src/host/host.ts), method by method. All arguments are untrusted:
 * of any type, NaN, negative, fractional, huge. They are checked here once, so that files get numbers in range
 * and buffers that are buffers; a call that fails has changed nothing.
 * What the calls reach beyond files comes in as {@link ProcessServices}.
 * Not modelled: blocking, signals, fork and exec (O_CLOEXEC is accepted and has no effect), permissions.
 * Source: Linux 7.3 fs/{open,read_write,ioctl,fcntl,eventfd}.c, mm/{mmap,memfd}.c
 * @module
 */
import {
  COMMAND_LINE_SIZE,
  F_DUPFD,
  F_GETFL,
  MFD_NAME_MAX_LEN,
  NOFILE_DEFAULT,
  O_ACCMODE,
  O_CREAT,
  O_EXCL,
  O_NOCTTY,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  O_WRONLY,
  PATH_MAX,
} from "../../abi/uapi/fs.ts";
import type { UserArgument, UserBuffer } from "../../abi/uapi/ioctl.ts";
import { KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { isAligned, isIndex, PAGE_SIZE } from "../../base/units.ts";
import { Eventfd } from "./eventfd.ts";
import { DescriptorTable, type OpenFile } from "./fd-table.ts";
import type { File, FileMapping, FileStat } from "./file.ts";
import type { Filesystem, FilesystemStat } from "./filesystem.ts";
import { describe, userString } from "./user-value.ts";
import type { Vfs } from "./vfs.ts";

const U32_LAST = 0xffffffff;
/** Userspace addresses are 47 bits wide on x86-64: no mapping can be longer. */
const TASK_SIZE = 2 ** 47;

/** The rest of the kernel, as system calls reach it. */
export interface ProcessServices {
  readonly vfs: Vfs;
  /** By the type that mount(2) names. @throws {KernelError} what mount(2) then returns */
  readonly filesystems: ReadonlyMap<string, (source: string, options: string) => Filesystem>;
  /** @returns a file with one reference */
  memfdCreate(name: string, flags: number): File;
  kexecFileLoad(image: string, commandLine: string): void;
  kexecUnload(): void;
  reboot(command: number): never;
  /** Takes pending interrupts to the eventfds that want them. @returns whether there was any */
  onSleep(): boolean;
  readonly clock: { nowNs(): number };
  readonly interrupts: { wait(timeoutNs: number): void };
  readonly serial: { writeLine(line: string): void };
  readonly release: string;
  readonly commandLine: string;
  /** RLIMIT_NOFILE, at most 65536. Default 1024. */
  readonly fileLimit?: number;
}

export class Process {
  readonly #services: ProcessServices;
  readonly #fds: DescriptorTable;
  readonly #mappings = new Set<FileMapping>();

  constructor(services: ProcessServices) {
    this.#services = services;
    this.#fds = new DescriptorTable(services.fileLimit ?? NOFILE_DEFAULT);
  }

  /** Descriptors that are open, for leak checks. */
  get openDescriptors(): readonly number[] {
    return this.#fds.openDescriptors();
  }

  /** Mappings that are alive, for leak checks. */
  get mappingCount(): number {
    return this.#mappings.size;
  }

  /**
   * Ends the process: all mappings go, then all descriptors, lowest first, as Linux does it.
   * An error of one release does not keep the others from being released; the first is thrown at the end.
   */
  exit(): void {
    const errors: unknown[] = [];
    const attempt = (action: () => void) => {
      try {
        action();
      } catch (error) {
        errors.push(error);
      }
    };
    for (const mapping of [...this.#mappings]) attempt(() => mapping.unmap());
    for (const fd of this.#fds.openDescriptors()) attempt(() => this.#fds.remove(fd).put());
    if (errors.length > 0) throw errors[0];
  }

  /** @throws {KernelError} as {@link Vfs.open}; EMFILE */
  open(path: string, flags: number): number {
    this.#fds.ensureRoom();
    return this.#install(() => this.#services.vfs.open(path, flags), flags);
  }

  close(fd: number): void {
    this.#fds.remove(fd).put();
  }

  dup(fd: number): number {
    return this.#dup(this.#fds.lookup(fd, "dup"), 0, "dup");
  }

  /** @throws {KernelError} EBADF also when it is not open for reading; EFAULT; else as the file gives */
  read(fd: number, target: Uint8Array): number {
    const file = this.#readable(fd, "read");
    checkBuffer(target, "read");
    // An interrupt that is pending already must be seen by a read that does not wait for it.
    if (file.kind === "eventfd") this.#services.onSleep();
    return file.read(target);
  }

  write(fd: number, bytes: Uint8Array): number {
    const file = this.#writable(fd, "write");
    checkBuffer(bytes, "write");
    return file.write(bytes);
  }

  pread(fd: number, target: Uint8Array, offset: number): number {
    checkOffset(offset, "pread");
    const file = this.#readable(fd, "pread");
    checkBuffer(target, "pread");
    return file.pread(target, offset);
  }

  pwrite(fd: number, bytes: Uint8Array, offset: number): number {
    checkOffset(offset, "pwrite");
    const file = this.#writable(fd, "pwrite");
    checkBuffer(bytes, "pwrite");
    return file.pwrite(bytes, offset);
  }

  lseek(fd: number, offset: number, whence: number): number {
    const { file } = this.#fds.lookup(fd, "lseek");
    if (!Number.isSafeInteger(offset) || !isIndex(whence, 4))
      throw new KernelError(
        "EINVAL",
        "lseek",
        `offset ${describe(offset)}, whence ${describe(whence)}`,
      );
    return file.seek(offset, whence);
  }

  /** @throws {KernelError} ENOTTY when the file has no such request; else as the file gives */
  ioctl(fd: number, request: number, argument: UserArgument): number {
    const { file } = this.#fds.lookup(fd, "ioctl");
    if (!isIndex(request, U32_LAST))
      throw new KernelError("ENOTTY", "ioctl", `${describe(request)} is no request number`);
    return file.ioctl(request, copyArgument(argument), this.#fds);
  }

  /**
   * Maps a file shared, readable and writable.
   *
   * @throws {KernelError} EACCES unless it is open for both; EINVAL for an offset off a page or an empty range;
   *   ENOMEM for a range longer than any address space; else as the file gives
   */
  mmap(fd: number, offset: number, lengthBytes: number): FileMapping {
    const { file, flags } = this.#fds.lookup(fd, "mmap");
    checkOffset(offset, "mmap");
    if (!isAligned(offset, PAGE_SIZE) || !isIndex(lengthBytes, Number.MAX_SAFE_INTEGER))
      throw new KernelError(
        "EINVAL",
        "mmap",
        `offset ${describe(offset)}, length ${describe(lengthBytes)}`,
      );
    if (lengthBytes === 0) throw new KernelError("EINVAL", "mmap", "the length is 0");
    if (lengthBytes > TASK_SIZE || offset > Number.MAX_SAFE_INTEGER - lengthBytes)
      throw new KernelError("ENOMEM", "mmap", `${lengthBytes} bytes fit no address space`);
    if ((flags & O_ACCMODE) !== O_RDWR)
      throw new KernelError("EACCES", "mmap", "the file is not open for reading and writing");
    const mapping = file.mmap(offset, lengthBytes);
    // Once only, however often userspace calls it: a second unmap must not take another holder's reference.
    const own: FileMapping = {
      pieces: mapping.pieces,
      unmap: () => {
        if (this.#mappings.delete(own)) mapping.unmap();
      },
    };
    this.#mappings.add(own);
    return own;
  }

  /** @throws {KernelError} EINVAL also when the file is not open for writing, as Linux has it */
  ftruncate(fd: number, lengthBytes: number): void {
    const { file, flags } = this.#fds.lookup(fd, "ftruncate");
    if (!isIndex(lengthBytes, Number.MAX_SAFE_INTEGER) || (flags & O_ACCMODE) === O_RDONLY)
      throw new KernelError(
        "EINVAL",
        "ftruncate",
        `length ${describe(lengthBytes)}, or the file is not open for writing`,
      );
    file.truncate(lengthBytes);
  }

  /** @throws {KernelError} EINVAL for an empty range; EFBIG past 2^53; EBADF when not open for writing */
  fallocate(fd: number, mode: number, offset: number, lengthBytes: number): void {
    const { file, flags } = this.#fds.lookup(fd, "fallocate");
    checkOffset(offset, "fallocate");
    if (!isIndex(lengthBytes, Number.MAX_SAFE_INTEGER) || lengthBytes === 0)
      throw new KernelError("EINVAL", "fallocate", `length ${describe(lengthBytes)}`);
    if (!isIndex(mode, U32_LAST))
      throw new KernelError("EOPNOTSUPP", "fallocate", `${describe(mode)} is no mode`);
    if ((flags & O_ACCMODE) === O_RDONLY)
      throw new KernelError("EBADF", "fallocate", "the file is not open for writing");
    if (offset > Number.MAX_SAFE_INTEGER - lengthBytes)
      throw new KernelError("EFBIG", "fallocate", `${offset} + ${lengthBytes}`);
    file.fallocate(mode, offset, lengthBytes);
  }

  fcntl(fd: number, command: number, argument: number): number {
    const open = this.#fds.lookup(fd, "fcntl");
    if (!isIndex(command, U32_LAST) || !isIndex(argument, U32_LAST))
      throw new KernelError(
        "EINVAL",
        "fcntl",
        `command ${describe(command)}, ${describe(argument)}`,
      );
    if (command === F_GETFL) return open.flags & ~(O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC);
    if (command !== F_DUPFD) return open.file.fcntl(command, argument);
    if (argument >= this.#fds.limit)
      throw new KernelError("EINVAL", "fcntl", `F_DUPFD from ${argument} on`);
    return this.#dup(open, argument, "fcntl");
  }

  fstat(fd: number): FileStat {
    return this.#fds.lookup(fd, "fstat").file.stat();
  }

  stat(path: string): FileStat {
    return this.#services.vfs.stat(path);
  }
  mkdir(path: string): void {
    this.#services.vfs.mkdir(path);
  }
  rmdir(path: string): void {
    this.#services.vfs.rmdir(path);
  }
  unlink(path: string): void {
    this.#services.vfs.unlink(path);
  }
  rename(from: string, to: string): void {
    this.#services.vfs.rename(from, to);
  }
  readdir(path: string): readonly string[] {
    return this.#services.vfs.readdir(path);
  }
  statfs(path: string): FilesystemStat {
    return this.#services.vfs.statfs(path);
  }

  /** @throws {KernelError} ENODEV for an unknown type; else as {@link Vfs.mount} and the file system give */
  mount(source: string, target: string, type: string, options: string): void {
    userString(source, PATH_MAX - 1, "mount", "ENAMETOOLONG");
    userString(type, PAGE_SIZE - 1, "mount", "EINVAL");
    userString(options, PAGE_SIZE - 1, "mount", "EINVAL");
    this.#services.vfs.mount(target, () => {
      const make = this.#services.filesystems.get(type);
      if (make === undefined) throw new KernelError("ENODEV", "mount", `no file system "${type}"`);
      return make(source, options);
    });
  }

  umount(target: string): void {
    this.#services.vfs.umount(target);
  }

  /** @throws {KernelError} EINVAL for a name above 249 bytes; EMFILE; else as memfd_create(2) */
  memfdCreate(name: string, flags: number): number {
    if (!isIndex(flags, U32_LAST))
      throw new KernelError("EINVAL", "memfd_create", `flags ${describe(flags)}`);
    userString(name, MFD_NAME_MAX_LEN, "memfd_create", "EINVAL");
    this.#fds.ensureRoom();
    return this.#install(() => this.#services.memfdCreate(name, flags), O_RDWR);
  }

  /** @throws {KernelError} EINVAL, EMFILE */
  eventfd(initial: number, flags: number): number {
    this.#fds.ensureRoom();
    return this.#install(() => new Eventfd(initial, flags), O_RDWR);
  }

  /** @throws {KernelError} EINVAL for an initrd: the image has all that it needs; else as {@link ProcessServices} */
  kexecFileLoad(kernel: string, initrd: string | null, commandLine: string): void {
    userString(kernel, PATH_MAX - 1, "kexec_file_load", "ENAMETOOLONG");
    if (initrd !== null)
      throw new KernelError(
        "EINVAL",
        "kexec_file_load",
        `initrd ${describe(initrd)}: images of this kernel take none`,
      );
    userString(commandLine, COMMAND_LINE_SIZE - 1, "kexec_file_load", "EINVAL");
    this.#services.kexecFileLoad(kernel, commandLine);
  }

  kexecUnload(): void {
    this.#services.kexecUnload();
  }

  reboot(command: number): never {
    if (!isIndex(command, U32_LAST))
      throw new KernelError("EINVAL", "reboot", `${describe(command)} is no command`);
    this.#services.reboot(command);
  }

  clockNs(): number {
    return this.#services.clock.nowNs();
  }

  /** The clock is the machine's: it knows nothing of kernels. */
  get bootedAtNs(): null {
    return null;
  }

  /** @throws {KernelError} EINVAL when the time is negative or not finite */
  sleep(timeoutNs: number): void {
    if (!(Number.isFinite(timeoutNs) && timeoutNs >= 0))
      throw new KernelError("EINVAL", "sleep", `${describe(timeoutNs)} ns`);
    // Interrupts that came since the last look end the sleep before it starts.
    if (this.#services.onSleep()) return;
    this.#services.interrupts.wait(timeoutNs);
    this.#services.onSleep();
  }

  get release(): string {
    return this.#services.release;
  }
  get commandLine(): string {
    return this.#services.commandLine;
  }

  print(line: string): void {
    this.#services.serial.writeLine(userString(line, Number.MAX_SAFE_INTEGER, "print", "EINVAL"));
  }

  #install(open: () => File, flags: number): number {
    return withUndo((undo) => {
      const file = open();
      undo(() => file.put());
      return this.#fds.installOpen({ file, flags }, 0, "open");
    });
  }

  #dup(open: OpenFile, minimum: number, op: string): number {
    const fd = this.#fds.installOpen(open, minimum, op);
    open.file.get();
    return fd;
  }

  #readable(fd: unknown, op: string): File {
    const { file, flags } = this.#fds.lookup(fd, op);
    if ((flags & O_ACCMODE) === O_WRONLY)
      throw new KernelError("EBADF", op, "the file is not open for reading");
    return file;
  }

  #writable(fd: unknown, op: string): File {
    const { file, flags } = this.#fds.lookup(fd, op);
    if ((flags & O_ACCMODE) === O_RDONLY)
      throw new KernelError("EBADF", op, "the file is not open for writing");
    return file;
  }
}

function checkOffset(offset: unknown, op: string): void {
  if (!isIndex(offset, Number.MAX_SAFE_INTEGER))
    throw new KernelError("EINVAL", op, `offset ${describe(offset)}`);
}

function checkBuffer(bytes: unknown, op: string): void {
  if (!(bytes instanceof Uint8Array))
    throw new KernelError("EFAULT", op, "the buffer is not memory");
}

/**
 * An ioctl's argument with the shape that files rely on. What is missing reads as no memory at all: a file that
 * needs it finds too few bytes and says EFAULT, after it has said ENOTTY to a request it does not know.
 */
function copyArgument(argument: unknown): UserArgument {
  const given: { readonly bytes?: unknown; readonly buffers?: unknown } =
    typeof argument === "object" && argument !== null ? argument : {};
  const bytes = given.bytes instanceof Uint8Array ? given.bytes : new Uint8Array(0);
  const buffers: UserBuffer[] = [];
  if (Array.isArray(given.buffers))
    for (const buffer of given.buffers as readonly unknown[]) {
      if (typeof buffer !== "object" || buffer === null) continue;
      const { pointerOffset, bytes: target } = buffer as Partial<UserBuffer>;
      if (isIndex(pointerOffset, U32_LAST) && target instanceof Uint8Array)
        buffers.push({ pointerOffset, bytes: target });
    }
  return { bytes, buffers };
}
