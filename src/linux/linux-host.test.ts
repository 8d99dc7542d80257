import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { skipUnless, skipUnlessRoot } from "../../tests/support/skip.ts";
import {
  EFD_NONBLOCK,
  F_ADD_SEALS,
  F_DUPFD,
  F_GET_SEALS,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  MFD_ALLOW_SEALING,
  O_CREAT,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  SEEK_DATA,
  SEEK_END,
  SEEK_HOLE,
} from "../abi/uapi/fs.ts";
import { type ErrnoCode, KernelError } from "../base/errno.ts";
import { GIB, MIB } from "../base/units.ts";
import { readBytes } from "../host/read-file.ts";
import { SOCK_STREAM } from "./ffi.ts";
import { LinuxHost } from "./linux-host.ts";
import { linuxTests } from "./test-rig.ts";

const linux = process.platform === "linux" ? null : `needs Linux, not ${process.platform}`;
const linuxTest = linuxTests(skipUnless("Linux as the host", linux));
const rootTest = linuxTests(skipUnlessRoot("mounting"));

/** A call fails with this errno. */
function fails(code: ErrnoCode, call: () => void): void {
  assert.throws(call, { name: "KernelError", code });
}

linuxTest("files are made, written, read, listed, renamed and removed", ({ ffi, folder }) => {
  const host = new LinuxHost(ffi);
  const [sub, path] = [join(folder, "sub"), join(folder, "sub/file")];
  host.mkdir(sub);
  assert.equal(host.stat(sub).kind, "directory");
  const fd = host.open(path, O_RDWR | O_CREAT | O_EXCL);
  assert.equal(host.write(fd, new Uint8Array([1, 2, 3])), 3);
  assert.equal(host.pwrite(fd, new Uint8Array([9]), 5), 1);
  const bytes = new Uint8Array(8);
  assert.equal(host.pread(fd, bytes, 1), 5);
  assert.deepEqual([...bytes], [2, 3, 0, 0, 9, 0, 0, 0]);
  assert.equal(host.read(fd, bytes), 3);
  assert.equal(host.lseek(fd, 0, SEEK_END), 6);
  const { kind, sizeBytes, linkCount, inode } = host.fstat(fd);
  assert.deepEqual([kind, sizeBytes, linkCount, inode], ["file", 6, 1, statSync(path).ino]);
  host.close(fd);
  host.rename(path, join(folder, "moved"));
  assert.deepEqual(host.readdir(folder).toSorted(), ["moved", "sub"]);
  host.unlink(join(folder, "moved"));
  host.rmdir(sub);
  assert.deepEqual(host.readdir(folder), []);
});

linuxTest("what has gone wrong has Linux's errno", ({ ffi, folder }) => {
  const host = new LinuxHost(ffi);
  const path = join(folder, "file");
  writeFileSync(path, "");
  fails("ENOENT", () => host.open(join(folder, "none"), O_RDONLY));
  fails("EEXIST", () => host.open(path, O_CREAT | O_EXCL));
  fails("ENOTDIR", () => host.open(`${path}/x`, O_RDONLY));
  fails("EISDIR", () => host.open(folder, O_RDWR));
  fails("ELOOP", () => host.open("/proc/self/fd/../../self/exe", 0o400000));
  fails("ENAMETOOLONG", () => host.stat(join(folder, "x".repeat(256))));
  fails("ENAMETOOLONG", () => host.stat("/x".repeat(2048)));
  fails("ENOENT", () => host.stat(""));
  fails("EINVAL", () => host.stat("a\0b"));
  fails("EEXIST", () => host.mkdir(folder));
  fails("ENOTEMPTY", () => host.rmdir(folder));
  fails("ENOTDIR", () => host.rmdir(path));
  fails("EISDIR", () => host.unlink(folder));
  fails("ENOENT", () => host.rename(join(folder, "none"), path));
  fails("ENOENT", () => host.statfs(join(folder, "none")));
  fails("ENOTDIR", () => host.readdir(path));
  for (const fd of [-1, 1.5, Number.NaN, 2 ** 31, 999_999]) {
    fails("EBADF", () => host.close(fd));
    fails("EBADF", () => host.dup(fd));
    fails("EBADF", () => host.read(fd, new Uint8Array(0)));
    fails("EBADF", () => host.write(fd, new Uint8Array(0)));
    fails("EBADF", () => host.pread(fd, new Uint8Array(1), 0));
    fails("EBADF", () => host.pwrite(fd, new Uint8Array(1), 0));
    fails("EBADF", () => host.lseek(fd, 0, 0));
    fails("EBADF", () => host.ioctl(fd, 0xba00, { bytes: new Uint8Array(8) }));
    fails("EBADF", () => host.ftruncate(fd, 0));
    fails("EBADF", () => host.fallocate(fd, 0, 0, 1));
    fails("EBADF", () => host.fcntl(fd, F_GET_SEALS, 0));
    fails("EBADF", () => host.fstat(fd));
    fails("EBADF", () => host.mmap(fd, 0, 4096));
  }
  const fd = host.open(path, O_RDONLY);
  fails("EBADF", () => host.write(fd, new Uint8Array(1)));
  fails("EINVAL", () => host.pread(fd, new Uint8Array(1), -1));
  fails("EINVAL", () => host.ftruncate(fd, 0));
  fails("EINVAL", () => host.ftruncate(fd, -1));
  fails("EACCES", () => host.mmap(fd, 0, 4096));
  fails("EINVAL", () => host.mmap(fd, 0, 0));
  fails("EINVAL", () => host.lseek(fd, 0, 99));
  fails("EINVAL", () => host.fcntl(fd, 4096, 0));
  host.close(fd);
  fails("EBADF", () => host.close(fd));
});

linuxTest("no descriptor is left to a child", ({ ffi, folder }) => {
  const host = new LinuxHost(ffi);
  const memfd = host.memfdCreate("x", 0);
  const fds = [
    memfd,
    host.open(join(folder, "file"), O_RDWR | O_CREAT),
    host.dup(memfd),
    host.fcntl(memfd, F_DUPFD, 100),
    host.eventfd(0, 0),
  ];
  assert.ok(fds[3] >= 100);
  for (const fd of fds) {
    const flags = /^flags:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "utf8"));
    assert.ok((Number.parseInt(flags?.[1] ?? "", 8) & 0o2000000) !== 0, `fd ${fd}`);
    host.close(fd);
  }
});

linuxTest("a memfd keeps its seals, its holes and its size", ({ ffi }) => {
  const host = new LinuxHost(ffi);
  const fd = host.memfdCreate("guest", MFD_ALLOW_SEALING);
  host.ftruncate(fd, 64 * MIB);
  host.pwrite(fd, new Uint8Array([1]), 32 * MIB);
  const { kind, sizeBytes, allocatedBytes } = host.fstat(fd);
  assert.deepEqual([kind, sizeBytes], ["file", 64 * MIB]);
  assert.ok(allocatedBytes >= 4096 && allocatedBytes <= 2 * MIB, `${allocatedBytes} bytes`);
  const data = host.lseek(fd, 0, SEEK_DATA);
  assert.ok(data > 0 && data <= 32 * MIB, `data from ${data} on`);
  const hole = host.lseek(fd, 32 * MIB, SEEK_HOLE);
  assert.ok(hole > 32 * MIB && hole < 64 * MIB, `hole from ${hole} on`);
  fails("ENXIO", () => host.lseek(fd, hole, SEEK_DATA));
  host.fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 64 * MIB);
  assert.equal(host.fstat(fd).allocatedBytes, 0);
  host.fallocate(fd, 0, 0, 8 * MIB);
  assert.equal(host.fstat(fd).allocatedBytes, 8 * MIB);
  fails("EOPNOTSUPP", () => host.fallocate(fd, 0x80, 0, 1));

  const seals = F_SEAL_SHRINK | F_SEAL_GROW;
  host.fcntl(fd, F_ADD_SEALS, seals);
  assert.equal(host.fcntl(fd, F_GET_SEALS, 0), seals);
  fails("EPERM", () => host.ftruncate(fd, 0));
  fails("EPERM", () => host.fallocate(fd, 0, 64 * MIB, 1));
  host.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL);
  fails("EPERM", () => host.fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
  host.close(fd);
  fails("EINVAL", () => host.memfdCreate("x".repeat(250), 0));
  fails("EINVAL", () => host.memfdCreate("x", 0x4000_0000));
});

linuxTest("mappings of a file share its memory, in pieces of at most 1 GiB", ({ ffi }) => {
  const host = new LinuxHost(ffi);
  const fd = host.memfdCreate("guest", 0);
  host.ftruncate(fd, 2 * GIB + 4096);
  const whole = host.mmap(fd, 0, 2 * GIB + 4096);
  assert.deepEqual(
    whole.pieces.map(({ offsetBytes, bytes }) => [offsetBytes, bytes.length]),
    [
      [0, GIB],
      [GIB, GIB],
      [2 * GIB, 4096],
    ],
  );
  const last = host.mmap(fd, 2 * GIB, 4096);
  assert.equal(last.pieces[0].offsetBytes, 2 * GIB);
  whole.pieces[2].bytes[5] = 7;
  assert.equal(last.pieces[0].bytes[5], 7);
  const byte = new Uint8Array(1);
  host.pread(fd, byte, 2 * GIB + 5);
  assert.equal(byte[0], 7);
  const words = new Uint32Array(last.pieces[0].bytes.buffer);
  Atomics.store(words, 2, 0xdeadbeef);
  assert.equal(whole.pieces[2].bytes[8], 0xef);
  whole.unmap();
  last.unmap();
  fails("EINVAL", () => host.mmap(fd, 1, 4096));
  fails("ENOMEM", () => host.mmap(fd, 0, 2 ** 50));
  host.close(fd);
});

linuxTest("ioctl() gives structures in place, and buffers by their addresses", ({ ffi }) => {
  const host = new LinuxHost(ffi);
  const fd = host.memfdCreate("x", 0);
  fails("ENOTTY", () => host.ioctl(fd, 0xba00, { bytes: new Uint8Array(8) }));
  host.close(fd);
  const exe = host.open("/proc/self/exe", O_RDONLY);
  fails("E2BIG", () => host.ioctl(exe, 1, { bytes: new Uint8Array(65537) }));
  const bytes = new Uint8Array(16);
  const pointer = { pointerOffset: 12, bytes: new Uint8Array(4) };
  fails("EFAULT", () => host.ioctl(exe, 1, { bytes, buffers: [pointer] }));
  host.close(exe);

  // ETHTOOL_GLINK of the loopback device: struct ifreq {name, pointer to struct ethtool_value {command, data}}.
  const SIOCETHTOOL = 0x8946;
  const socket = ffi.socket(SOCK_STREAM);
  const value = new Uint8Array([0x0a, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
  const ifreq = new Uint8Array(40);
  ifreq.set(new TextEncoder().encode("lo"));
  host.ioctl(socket, SIOCETHTOOL, {
    bytes: ifreq,
    buffers: [{ pointerOffset: 16, bytes: value }],
  });
  assert.ok(new DataView(value.buffer).getUint32(4, true) <= 1, "link is up or down");
  host.close(socket);

  // FIONREAD writes 4 bytes: how many a file has left to read.
  const FIONREAD = 0x541b;
  const file = host.open("/proc/self/exe", O_RDONLY);
  const length = new Uint8Array(8).fill(0xff);
  host.ioctl(file, FIONREAD, { bytes: length });
  const words = new DataView(length.buffer);
  assert.equal(words.getInt32(0, true), host.fstat(file).sizeBytes);
  assert.equal(words.getUint32(4, true), 0xffffffff);
  // Two bytes are not enough: the kernel must not write beyond them.
  fails("EFAULT", () => host.ioctl(file, FIONREAD, { bytes: new Uint8Array(2) }));
  host.close(file);
});

linuxTest("sleep() ends when an eventfd of the host is readable, or with its time", ({ ffi }) => {
  const host = new LinuxHost(ffi);
  const event = host.eventfd(0, EFD_NONBLOCK);
  fails("EAGAIN", () => host.read(event, new Uint8Array(8)));
  const timed = (timeoutNs: number) => {
    const start = performance.now();
    host.sleep(timeoutNs);
    return performance.now() - start;
  };
  assert.ok(timed(20e6) >= 19);
  const counter = new Uint8Array(8);
  counter[0] = 3;
  host.write(event, counter);
  assert.ok(timed(10e9) < 5000);
  assert.equal(host.read(event, counter), 8);
  assert.equal(counter[0], 3);
  assert.ok(timed(20e6) >= 19);
  host.close(event);
  assert.ok(timed(20e6) >= 19);
  fails("EINVAL", () => host.sleep(-1));
  fails("EINVAL", () => host.sleep(Number.NaN));
  fails("EINVAL", () => host.eventfd(-1, 0));
  fails("EINVAL", () => host.eventfd(0, 2));
});

linuxTest("statfs() names the file system", ({ ffi }) => {
  const host = new LinuxHost(ffi);
  assert.equal(host.statfs("/proc").type, "proc");
  assert.equal(host.statfs("/sys/devices").type, "sysfs");
  assert.ok(host.statfs("/").totalBytes > host.statfs("/").freeBytes);
});

rootTest("mount() and umount() of a tmpfs", ({ ffi, folder }) => {
  const host = new LinuxHost(ffi);
  host.mount("none", folder, "tmpfs", "size=1m,nr_inodes=10");
  try {
    const { type, totalBytes, freeBytes, inodes } = host.statfs(folder);
    assert.deepEqual([type, totalBytes, freeBytes, inodes], ["tmpfs", MIB, MIB, 1]);
    writeFileSync(join(folder, "file"), "x");
    assert.equal(host.statfs(folder).inodes, 2);
    const fd = host.open(join(folder, "file"), O_RDWR);
    fails("EBUSY", () => host.umount(folder));
    fails("ENOSPC", () => host.fallocate(fd, 0, 0, 2 * MIB));
    host.close(fd);
  } finally {
    host.umount(folder);
  }
  assert.deepEqual(host.readdir(folder), []);
  fails("EINVAL", () => host.umount(folder));
  fails("ENODEV", () => host.mount("none", folder, "nosuchfs", ""));
  fails("EINVAL", () => host.mount("none", folder, "tmpfs", "nosuchoption"));
});

linuxTest("print() writes a whole line, whatever standard output is", ({ ffi }) => {
  let written = "";
  let waits = 0;
  const answers: (number | ErrnoCode)[] = ["EAGAIN", 3, 1, "EAGAIN", 100, "EPIPE", "EIO"];
  const host = new LinuxHost({
    ...ffi,
    write(fd, bytes) {
      assert.equal(fd, 1);
      const answer = answers.shift();
      if (typeof answer !== "number") throw new KernelError(answer ?? "EINVAL", "write", "");
      const part = bytes.subarray(0, answer);
      written += Buffer.from(part).toString();
      return part.length;
    },
    poll: () => ++waits,
  });
  host.print("one line");
  assert.deepEqual([written, waits], ["one line\n", 2]);
  host.print("nobody reads it");
  fails("EIO", () => host.print("lost"));
  assert.deepEqual(answers, []);
});

linuxTest(
  "kexecFileLoad() refuses what is no image, and leaves nothing loaded",
  ({ ffi, folder }) => {
    const host = new LinuxHost(ffi, folder);
    fails("ENOENT", () => host.kexecFileLoad("/none", null, "quiet"));
    fails("ENOENT", () => host.kexecFileLoad("/proc/version", "/none", "quiet"));
    fails("EINVAL", () => host.kexecFileLoad("/proc/version", null, "x".repeat(2000)));
    fails("EINVAL", () => host.kexecFileLoad("/proc/version", null, "a\0b"));
    // ENOSYS where the kernel has no kexec, EPERM for others than root: this test wants the call, not its success.
    for (const initrd of [null, "/proc/version"])
      assert.throws(() => host.kexecFileLoad("/proc/version", initrd, "quiet"), {
        code: /^(ENOSYS|EPERM|ENOEXEC|EINVAL)$/,
      });
    fails("EINVAL", () => host.reboot(-1));
  },
);

linuxTest(
  "a FIFO is no image, nor a file to be read: nobody waits for its writer",
  ({ ffi, folder }) => {
    const host = new LinuxHost(ffi, folder);
    const path = join(folder, "fifo");
    assert.equal(spawnSync("mkfifo", [path]).status, 0);
    // Each that waits all the same is let go.
    const program = 'for i in 1 2 3; do sleep 3; : > "$0"; done';
    const writer = spawn("sh", ["-c", program, path], { stdio: "ignore" });
    const start = performance.now();
    fails("EINVAL", () => readBytes(host, path));
    for (const [kernel, initrd] of [
      [path, null],
      ["/proc/version", path],
    ] as const)
      assert.throws(() => host.kexecFileLoad(kernel, initrd, "quiet"), KernelError);
    assert.ok(performance.now() - start < 2500);
    writer.kill();
  },
);

linuxTest("the host tells its release and its command line", ({ ffi }) => {
  const host = new LinuxHost(ffi);
  assert.equal(host.release, readFileSync("/proc/sys/kernel/osrelease", "utf8").trim());
  assert.equal(host.commandLine, readFileSync("/proc/cmdline", "utf8").trim());
});

linuxTest(
  "clockNs() runs with CLOCK_MONOTONIC, from the time the kernel booted on",
  ({ ffi, folder }) => {
    const host = new LinuxHost(ffi, folder);
    const before = Number(process.hrtime.bigint());
    const now = host.clockNs() - host.bootedAtNs;
    const after = Number(process.hrtime.bigint());
    assert.ok(now >= before && now <= after, `${before} ${now} ${after}`);
  },
);
