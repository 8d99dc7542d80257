import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { F_DUPFD, F_GETFL, O_CREAT, O_RDONLY, O_RDWR, O_WRONLY } from "../../abi/uapi/fs.ts";
import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { DeviceFilesystem } from "./device-filesystem.ts";
import { type FdTable, File, type FileMapping } from "./file.ts";
import { Process, type ProcessServices } from "./process.ts";
import { RootFilesystem } from "./root-filesystem.ts";
import { Vfs } from "./vfs.ts";

const code = (expected: string) => (error: unknown) =>
  isKernelError(error) && error.code === expected;

/** A file with everything, which counts what reaches it. */
class Probe extends File {
  readonly kind = "probe";
  readonly calls: string[] = [];
  mappings = 0;
  live = true;

  override ioctl(request: number, argument: UserArgument, fds: FdTable): number {
    this.calls.push(`ioctl ${request} ${argument.bytes.length} ${argument.buffers?.length}`);
    if (request === 1) return fds.install(new Probe());
    return 0;
  }
  override read(target: Uint8Array): number {
    return target.length;
  }
  override write(bytes: Uint8Array): number {
    return bytes.length;
  }
  override pread(target: Uint8Array, offset: number): number {
    this.calls.push(`pread ${offset}`);
    return target.length;
  }
  override truncate(lengthBytes: number): void {
    this.calls.push(`truncate ${lengthBytes}`);
  }
  override fallocate(mode: number, offset: number, lengthBytes: number): void {
    this.calls.push(`fallocate ${mode} ${offset} ${lengthBytes}`);
  }
  override mmap(): FileMapping {
    this.mappings++;
    return {
      pieces: [],
      unmap: () => {
        this.mappings--;
      },
    };
  }
  protected override release(): void {
    this.live = false;
  }
}

function build(options: { fileLimit?: number } = {}) {
  const log: string[] = [];
  const vfs = new Vfs(new RootFilesystem(["/dev", "/mnt"]));
  const devices = new DeviceFilesystem();
  vfs.mount("/dev", () => devices);
  const probes: Probe[] = [];
  const probe = () => {
    const file = new Probe();
    probes.push(file);
    return file;
  };
  devices.register("probe", probe);
  let interruptPending = false;
  const services: ProcessServices = {
    vfs,
    filesystems: new Map([["rootfs", () => new RootFilesystem(["/inside"])]]),
    memfdCreate: probe,
    kexecFileLoad: (image, commandLine) => log.push(`load ${image} ${commandLine}`),
    kexecUnload: () => log.push("unload"),
    reboot: (command) => {
      throw new KernelError("EINVAL", "reboot", `command ${command}`);
    },
    onSleep: () => {
      const was = interruptPending;
      interruptPending = false;
      return was;
    },
    clock: { nowNs: () => 42 },
    interrupts: { wait: (timeoutNs) => log.push(`wait ${timeoutNs}`) },
    serial: { writeLine: (line) => log.push(line) },
    release: "0.1.0",
    commandLine: "quiet",
    ...options,
  };
  return {
    process: new Process(services),
    probes,
    log,
    raise: () => {
      interruptPending = true;
    },
  };
}

test("open() gives the lowest free descriptor; close() frees it; then EBADF", () => {
  const { process, probes } = build();
  assert.equal(process.open("/dev/probe", O_RDWR), 0);
  assert.equal(process.open("/dev/probe", O_RDWR), 1);
  process.close(0);
  assert.equal(probes[0].live, false);
  assert.equal(process.dup(1), 0);
  process.close(1);
  assert.equal(probes[1].live, true);
  assert.throws(() => process.close(1), code("EBADF"));
  process.close(0);
  assert.equal(probes[1].live, false);
});

test("EMFILE when all descriptors are in use, and no file is left behind", () => {
  const { process, probes } = build({ fileLimit: 2 });
  process.open("/dev/probe", O_RDWR);
  process.eventfd(0, 0);
  assert.throws(() => process.open("/dev/probe", O_RDWR), code("EMFILE"));
  assert.throws(() => process.dup(0), code("EMFILE"));
  assert.throws(() => process.memfdCreate("m", 0), code("EMFILE"));
  assert.throws(() => process.eventfd(0, 0), code("EMFILE"));
  const before = probes[0].references;
  assert.throws(() => process.ioctl(0, 1, { bytes: new Uint8Array(4) }), code("EMFILE"));
  assert.equal(probes[0].references, before);
  assert.equal(probes.length, 1);
});

test("a descriptor allows only the access it was opened for; dup() shares it", () => {
  const { process } = build();
  const reader = process.open("/dev/probe", O_RDONLY);
  const writer = process.dup(process.open("/dev/probe", O_WRONLY));
  const byte = new Uint8Array(1);
  assert.equal(process.read(reader, byte), 1);
  assert.equal(process.write(writer, byte), 1);
  assert.throws(() => process.write(reader, byte), code("EBADF"));
  assert.throws(() => process.read(writer, byte), code("EBADF"));
  assert.throws(() => process.pread(writer, byte, 0), code("EBADF"));
  assert.throws(() => process.pwrite(reader, byte, 0), code("EBADF"));
  assert.throws(() => process.mmap(reader, 0, 4096), code("EACCES"));
  assert.throws(() => process.mmap(writer, 0, 4096), code("EACCES"));
  assert.throws(() => process.ftruncate(reader, 0), code("EINVAL"));
  assert.throws(() => process.fallocate(reader, 0, 0, 1), code("EBADF"));
  assert.equal(process.fcntl(writer, F_GETFL, 0), O_WRONLY);
});

test("F_GETFL hides the flags of creation; F_DUPFD starts where it is told", () => {
  const { process } = build();
  const fd = process.open("/dev/probe", O_RDWR | O_CREAT);
  assert.equal(process.fcntl(fd, F_GETFL, 0), O_RDWR);
  assert.equal(process.fcntl(fd, F_DUPFD, 10), 10);
  assert.throws(() => process.fcntl(fd, F_DUPFD, 1024), code("EINVAL"));
  assert.throws(() => process.fcntl(fd, 999, 0), code("EINVAL"));
});

test("exit() unmaps everything and closes every descriptor, also past a failing release", () => {
  const { process, probes } = build();
  const fd = process.open("/dev/probe", O_RDWR);
  const mapping = process.mmap(fd, 0, 4096);
  process.mmap(fd, 4096, 4096);
  mapping.unmap();
  mapping.unmap();
  assert.equal(probes[0].mappings, 1);
  process.open("/dev/probe", O_RDWR);
  probes[0].put = () => {
    throw new KernelError("EIO", "release", "test");
  };
  assert.throws(() => process.exit(), code("EIO"));
  assert.equal(probes[0].mappings, 0);
  assert.equal(probes[1].live, false);
  assert.deepEqual(process.openDescriptors, []);
  assert.equal(process.mappingCount, 0);
});

test("ioctl() hands files an argument of the right shape whatever was passed", () => {
  const { process, probes } = build();
  const fd = process.open("/dev/probe", O_RDWR);
  const garbage = [undefined, null, 5, "x", {}, { bytes: [1] }, { bytes: "x", buffers: 3 }];
  for (const argument of garbage) process.ioctl(fd, 7, argument as UserArgument);
  assert.deepEqual(new Set(probes[0].calls), new Set(["ioctl 7 0 0"]));
  probes[0].calls.length = 0;
  const bytes = new Uint8Array(4);
  const buffers = [null, 4, { pointerOffset: -1, bytes }, { pointerOffset: 8, bytes }];
  process.ioctl(fd, 7, { bytes, buffers } as UserArgument);
  assert.deepEqual(probes[0].calls, ["ioctl 7 4 1"]);
  assert.throws(() => process.ioctl(fd, -1, { bytes }), code("ENOTTY"));
});

test("mount() finds the type, checks the target first, umount() undoes it", () => {
  const { process } = build();
  assert.throws(() => process.mount("x", "/mnt", "ext4", ""), code("ENODEV"));
  assert.throws(() => process.mount("x", "/none", "rootfs", ""), code("ENOENT"));
  process.mount("x", "/mnt", "rootfs", "");
  assert.deepEqual(process.readdir("/mnt"), ["inside"]);
  process.umount("/mnt");
  assert.deepEqual(process.readdir("/mnt"), []);
});

test("sleep() ends at once when an interrupt has been delivered", () => {
  const { process, log, raise } = build();
  raise();
  process.sleep(1000);
  assert.deepEqual(log, []);
  process.sleep(1000);
  assert.deepEqual(log, ["wait 1000"]);
  assert.throws(() => process.sleep(-1), code("EINVAL"));
  assert.throws(() => process.sleep(Number.POSITIVE_INFINITY), code("EINVAL"));
});

test("garbage on every call: only KernelError, and nothing changes", () => {
  const garbage = fc.oneof(
    fc.constantFrom<unknown>(
      undefined,
      null,
      Number.NaN,
      -1,
      0.5,
      2 ** 53,
      2 ** 60,
      -(2 ** 60),
      Number.POSITIVE_INFINITY,
      true,
      Symbol("s"),
      10n,
      {},
      [],
      Object.create(null),
      () => 0,
      "\ud800",
      "\0",
      "",
      "relative",
      "x".repeat(5000),
    ),
    fc.integer({ min: 1024, max: 2 ** 31 }),
    fc.double(),
  );
  const calls = [
    "open",
    "close",
    "dup",
    "read",
    "write",
    "pread",
    "pwrite",
    "lseek",
    "ioctl",
    "mmap",
    "ftruncate",
    "fallocate",
    "fcntl",
    "fstat",
    "stat",
    "mkdir",
    "rmdir",
    "unlink",
    "rename",
    "readdir",
    "statfs",
    "mount",
    "umount",
    "memfdCreate",
    "eventfd",
    "kexecFileLoad",
    "reboot",
    "sleep",
    "print",
  ] as const;
  fc.assert(
    fc.property(
      fc.constantFrom(...calls),
      fc.array(garbage, { minLength: 4, maxLength: 4 }),
      fc.boolean(),
      (name, values, withFd) => {
        const { process, probes, log } = build();
        const fd = process.open("/dev/probe", O_RDWR);
        // Half of the time the descriptor is good, so that the later arguments are reached.
        const args = withFd ? [fd, ...values.slice(1)] : values;
        const call = (process as unknown as Record<string, (...a: unknown[]) => unknown>)[name];
        let failed = false;
        try {
          call.apply(process, args);
        } catch (error) {
          failed = true;
          assert.ok(isKernelError(error), `${name} threw ${error}`);
        }
        if (!failed) return;
        assert.deepEqual(process.openDescriptors, [fd]);
        assert.equal(process.mappingCount, 0);
        assert.equal(probes[0].references, 1);
        assert.deepEqual(log, []);
        assert.deepEqual(process.readdir("/"), ["dev", "mnt"]);
      },
    ),
    { numRuns: 2000 },
  );
});
