/**
 * What userspace may call: the second of the four boundaries (docs/architecture.md).
 *
 * The calls are Linux's system calls, with its names, arguments and errnos, so that the same agent and the
 * same VMM run on our kernel and on Linux. What goes through ioctl(2) has typed callers in this folder
 * (`liveupdate.ts`, `iommufd.ts`, `vfio.ts`), which encode the structures of `abi/uapi`.
 * Every call throws {@link KernelError} with Linux's errno; none changes anything when it fails.
 * @module
 */
import type { UserArgument } from "../abi/uapi/ioctl.ts";
import type { FileMapping, FileStat } from "../kernel/vfs/file.ts";
import type { FilesystemStat } from "../kernel/vfs/filesystem.ts";

/** A process's view of its kernel. */
export interface Host {
  /** @returns a file descriptor, the lowest free one */
  open(path: string, flags: number): number;
  close(fd: number): void;
  dup(fd: number): number;
  read(fd: number, target: Uint8Array): number;
  write(fd: number, bytes: Uint8Array): number;
  pread(fd: number, target: Uint8Array, offset: number): number;
  pwrite(fd: number, bytes: Uint8Array, offset: number): number;
  lseek(fd: number, offset: number, whence: number): number;
  ioctl(fd: number, request: number, argument: UserArgument): number;
  /** Always shared, readable and writable. */
  mmap(fd: number, offset: number, lengthBytes: number): FileMapping;
  ftruncate(fd: number, lengthBytes: number): void;
  fallocate(fd: number, mode: number, offset: number, lengthBytes: number): void;
  fcntl(fd: number, command: number, argument: number): number;
  fstat(fd: number): FileStat;

  stat(path: string): FileStat;
  mkdir(path: string): void;
  rmdir(path: string): void;
  unlink(path: string): void;
  rename(from: string, to: string): void;
  readdir(path: string): readonly string[];
  statfs(path: string): FilesystemStat;
  /** As mount(2): `options` is the comma-separated data string. */
  mount(source: string, target: string, type: string, options: string): void;
  umount(target: string): void;

  memfdCreate(name: string, flags: number): number;
  eventfd(initial: number, flags: number): number;

  /**
   * @param kernel - path of a kernel image
   * @param initrd - path of what the image's first process comes from; null for none. Images of our kernel have none
   * @throws {KernelError} ENOENT; EINVAL, ENOEXEC it is not an image, or the kernel takes no initrd; EPERM; EBUSY
   */
  kexecFileLoad(kernel: string, initrd: string | null, commandLine: string): void;
  /** Unloads the image that kexecFileLoad loaded. */
  kexecUnload(): void;
  /** `LINUX_REBOOT_CMD_*`. Returns only by throwing; KEXEC without a loaded image is EINVAL. */
  reboot(command: number): never;

  /** Monotonic nanoseconds; goes on through a kexec. */
  clockNs(): number;
  /** First moment of this kernel's own clock, as `clockNs` counts; null where clocks do not begin with kernels. */
  readonly bootedAtNs: number | null;
  /** Sleeps until a file descriptor that interrupts signal may be readable, or the time has passed. */
  sleep(timeoutNs: number): void;
  /** uname -r */
  readonly release: string;
  /** /proc/cmdline */
  readonly commandLine: string;
  /** Standard output: the serial line. */
  print(line: string): void;
}
