/**
 * System calls of a real Linux for the programs that run on it: the part of `Host` that the scenarios use.
 *
 * So one scenario runs unchanged on Linux and on our kernel. Arguments that are pointers are Node buffers, which do
 * not move while a call runs.
 * Source: Linux 7.3 arch/x86/entry/syscalls/syscall_64.tbl; man 2 of each call
 * @module
 */
import { closeSync, openSync, readFileSync } from "node:fs";
import koffi from "koffi";
import type { UserArgument } from "../../../src/abi/uapi/ioctl.ts";
import { ERRNO, type ErrnoCode, KernelError } from "../../../src/base/errno.ts";
import type { ScenarioHost } from "../scenario.ts";

const SYS_KEXEC_FILE_LOAD = 320;
const KEXEC_FILE_NO_INITRAMFS = 4;
const PROT_READ = 1;
const MAP_SHARED = 1;
const MAP_POPULATE = 0x8000;

const libc = koffi.load("libc.so.6");
const calls = {
  open: libc.func("int open(const char *path, int flags, ...)"),
  close: libc.func("int close(int fd)"),
  pread: libc.func("int64_t pread(int fd, _Out_ uint8_t *target, size_t length, int64_t offset)"),
  pwrite: libc.func("int64_t pwrite(int fd, const uint8_t *bytes, size_t length, int64_t offset)"),
  lseek: libc.func("int64_t lseek(int fd, int64_t offset, int whence)"),
  ftruncate: libc.func("int ftruncate(int fd, int64_t length)"),
  fcntl: libc.func("int fcntl(int fd, int command, ...)"),
  ioctl: libc.func("int ioctl(int fd, unsigned long request, ...)"),
  memfdCreate: libc.func("int memfd_create(const char *name, unsigned int flags)"),
  mount: libc.func(
    "int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)",
  ),
  umount: libc.func("int umount(const char *target)"),
  mmap: libc.func(
    "void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)",
  ),
  munmap: libc.func("int munmap(void *address, size_t length)"),
  syscall: libc.func("long syscall(long number, ...)"),
  reboot: libc.func("int reboot(int command)"),
  sync: libc.func("void sync()"),
};

const NAMES = new Map<number, ErrnoCode>(
  Object.entries(ERRNO).map(([code, number]) => [number, code as ErrnoCode]),
);

/** @throws {KernelError} when the call returned -1 */
function checked(op: string, result: number | bigint): number {
  if (Number(result) !== -1) return Number(result);
  const errno = koffi.errno();
  const code = NAMES.get(errno);
  if (code === undefined) throw new Error(`${op}: errno ${errno}`);
  throw new KernelError(code, op, "Linux says so");
}

export class LinuxHost implements ScenarioHost {
  open(path: string, flags: number): number {
    return checked("open", calls.open(path, flags, "int", 0));
  }

  close(fd: number): void {
    checked("close", calls.close(fd));
  }

  pread(fd: number, target: Uint8Array, offset: number): number {
    return checked("pread", calls.pread(fd, target, target.length, offset));
  }

  pwrite(fd: number, bytes: Uint8Array, offset: number): number {
    return checked("pwrite", calls.pwrite(fd, bytes, bytes.length, offset));
  }

  lseek(fd: number, offset: number, whence: number): number {
    return checked("lseek", calls.lseek(fd, offset, whence));
  }

  ftruncate(fd: number, lengthBytes: number): void {
    checked("ftruncate", calls.ftruncate(fd, lengthBytes));
  }

  fcntl(fd: number, command: number, argument: number): number {
    return checked("fcntl", calls.fcntl(fd, command, "int", argument));
  }

  ioctl(fd: number, request: number, argument: UserArgument): number {
    return checked("ioctl", calls.ioctl(fd, request, "uint8_t *", argument.bytes));
  }

  memfdCreate(name: string, flags: number): number {
    return checked("memfd_create", calls.memfdCreate(name, flags));
  }
}

/** As mount(2), without flags. */
export function mount(source: string, target: string, type: string, options: string): void {
  checked(`mount ${target}`, calls.mount(source, target, type, 0, options));
}

/** As umount(2). */
export function umount(target: string): void {
  checked(`umount ${target}`, calls.umount(target));
}

/** kexec_file_load(2) of a kernel that has a root without an initramfs. */
export function kexecFileLoad(kernel: string, commandLine: string): void {
  const fd = openSync(kernel, "r");
  const bytes = Buffer.from(`${commandLine}\0`);
  const result = calls.syscall(
    SYS_KEXEC_FILE_LOAD,
    ...["int", fd, "int", -1, "unsigned long", bytes.length],
    ...["const char *", bytes, "unsigned long", KEXEC_FILE_NO_INITRAMFS],
  );
  checked("kexec_file_load", result);
  closeSync(fd);
}

/** reboot(2); returns only by throwing. */
export function reboot(command: number): never {
  calls.sync();
  checked("reboot", calls.reboot(command | 0));
  throw new Error("reboot(2) returned");
}

/** The kernel's own word on where a file's pages lie. */
export interface PageOfFile {
  /** Frame number. */
  readonly pfn: number;
  /** Whether it is part of a folio of more than one page. */
  readonly compound: boolean;
}

const PAGEMAP_PRESENT = 1n << 63n;
const PAGEMAP_PFN = (1n << 55n) - 1n;
const KPF_COMPOUND_HEAD = 1n << 15n;
const KPF_COMPOUND_TAIL = 1n << 16n;

/** Reads the frames of a memfd from /proc/self/pagemap: nothing of KHO has a part in it. */
export function pagesOf(host: LinuxHost, fd: number, sizeBytes: number): PageOfFile[] {
  const count = Math.ceil(sizeBytes / 4096);
  if (count === 0) return [];
  const address = calls.mmap(null, count * 4096, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
  const start = koffi.address(address);
  if (start === 2n ** 64n - 1n) throw new Error(`mmap: errno ${koffi.errno()}`);
  const entries = Buffer.alloc(count * 8);
  const pagemap = host.open("/proc/self/pagemap", 0);
  const got = host.pread(pagemap, entries, Number(start >> 12n) * 8);
  host.close(pagemap);
  if (got !== entries.length) throw new Error(`pagemap gave ${got} bytes`);
  const kpageflags = host.open("/proc/kpageflags", 0);
  const flags = Buffer.alloc(8);
  const pages: PageOfFile[] = [];
  for (let i = 0; i < count; i++) {
    const entry = entries.readBigUInt64LE(i * 8);
    if ((entry & PAGEMAP_PRESENT) === 0n) throw new Error(`page ${i} of a memfd is not present`);
    const pfn = Number(entry & PAGEMAP_PFN);
    host.pread(kpageflags, flags, pfn * 8);
    const compound = (flags.readBigUInt64LE() & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL)) !== 0n;
    pages.push({ pfn, compound });
  }
  host.close(kpageflags);
  checked("munmap", calls.munmap(address, count * 4096));
  return pages;
}

/** A line of a file of the kernel's, without its end. */
export function readText(path: string): string {
  return readFileSync(path, "utf8").trimEnd();
}
