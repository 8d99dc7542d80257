/**
 * memfds as files, without any live update: what an agent and a VMM do with them.
 *
 * Source: Linux 7.3 mm/memfd.c, mm/shmem.c; man 2 of each call
 * @module
 */
import assert from "node:assert/strict";
import {
  F_ADD_SEALS,
  F_DUPFD,
  F_GET_SEALS,
  F_GETFL,
  F_SEAL_EXEC,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  MFD_ALLOW_SEALING,
  MFD_EXEC,
  MFD_NOEXEC_SEAL,
  O_ACCMODE,
  O_RDWR,
  SEEK_CUR,
  SEEK_DATA,
  SEEK_END,
  SEEK_HOLE,
  SEEK_SET,
} from "../../../src/abi/uapi/fs.ts";
import { MIB, PAGE_SIZE } from "../../../src/base/units.ts";
import { MappedMemory } from "../../../src/host/mapped-memory.ts";
import type { ConformanceCase } from "../conformance-case.ts";
import { CUT_WHILE_MAPPED, LARGEST_FILE, MAP_PAST_END, SEEK_ALLOCATED } from "../divergences.ts";

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const LARGEST_BYTES = 2 ** 52;
const ONE = Uint8Array.of(1);

export const MEMFD_CASES: readonly ConformanceCase[] = [
  {
    name: "memfd_create fails with EINVAL for unknown flags, EXEC with NOEXEC_SEAL, and names of 250 bytes",
    stages: [
      (user) => {
        const { host } = user;
        for (const flags of [0x20, 0x8000_0000, MFD_EXEC | MFD_NOEXEC_SEAL])
          user.fails("EINVAL", () => host.memfdCreate("x", flags));
        user.fails("EINVAL", () => host.memfdCreate("n".repeat(250), 0));
        for (const name of ["", "n".repeat(249), "a/b", "größe"])
          user.own(host.memfdCreate(name, 0));
      },
    ],
  },
  {
    name: "memfd_create fails with EMFILE without a free descriptor",
    stages: [
      (user) => {
        const any = user.memfd();
        user.withoutDescriptors(any, () => {
          user.fails("EMFILE", () => user.host.memfdCreate("x", 0));
          user.fails("EMFILE", () => user.host.dup(any));
          user.fails("EMFILE", () => user.host.fcntl(any, F_DUPFD, 0));
          user.fails("EMFILE", () => user.host.open("/dev/liveupdate", O_RDWR));
          user.fails("EMFILE", () => user.host.eventfd(0, 0));
        });
      },
    ],
  },
  {
    name: "a new memfd is empty, has no link and no memory, and the seals of its flags",
    stages: [
      (user) => {
        const { host } = user;
        const one = user.memfd("", 0);
        const { inode, ...stat } = host.fstat(one);
        assert.deepEqual(stat, { kind: "file", sizeBytes: 0, allocatedBytes: 0, linkCount: 0 });
        assert.notEqual(host.fstat(user.memfd()).inode, inode);
        assert.equal(user.seals(one), F_SEAL_SEAL);
        assert.equal(user.seals(user.memfd("", MFD_EXEC)), F_SEAL_SEAL);
        assert.equal(user.seals(user.memfd("", MFD_ALLOW_SEALING)), 0);
        assert.equal(user.seals(user.memfd("", MFD_NOEXEC_SEAL)), F_SEAL_EXEC);
        assert.equal(host.fcntl(one, F_GETFL, 0) & O_ACCMODE, O_RDWR);
      },
    ],
  },
  {
    name: "every call fails with EBADF on a closed descriptor",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd("x");
        user.close(file);
        for (const fd of [file, -1, 0x7fff_ffff])
          for (const call of [
            () => host.close(fd),
            () => host.dup(fd),
            () => host.read(fd, new Uint8Array(1)),
            () => host.write(fd, ONE),
            () => host.pread(fd, new Uint8Array(1), 0),
            () => host.pwrite(fd, ONE, 0),
            () => host.lseek(fd, 0, SEEK_SET),
            () => host.ioctl(fd, 0xba00, { bytes: new Uint8Array(8) }),
            () => host.mmap(fd, 0, PAGE_SIZE),
            () => host.ftruncate(fd, 0),
            () => host.fallocate(fd, 0, 0, PAGE_SIZE),
            () => host.fcntl(fd, F_GET_SEALS, 0),
            () => host.fstat(fd),
          ])
            user.fails("EBADF", call);
      },
    ],
  },
  {
    name: "read and write move the position, pread and pwrite do not; past the end is 0 and a hole",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd("abcdef");
        const bytes = new Uint8Array(4);
        assert.equal(host.read(file, bytes), 0);
        host.lseek(file, 4, SEEK_SET);
        assert.equal(host.read(file, bytes), 2);
        assert.equal(user.position(file), 6);
        assert.equal(host.pread(file, bytes, 1), 4);
        assert.equal(new TextDecoder().decode(bytes), "bcde");
        assert.equal(host.pread(file, bytes, 6), 0);
        assert.equal(host.pread(file, bytes, 2 ** 40), 0);
        assert.equal(host.pwrite(file, new TextEncoder().encode("XY"), 2), 2);
        assert.equal(user.position(file), 6);
        host.lseek(file, 3 * PAGE_SIZE, SEEK_SET);
        assert.equal(host.write(file, ONE), 1);
        assert.equal(host.fstat(file).sizeBytes, 3 * PAGE_SIZE + 1);
        assert.equal(host.fstat(file).allocatedBytes, 2 * PAGE_SIZE);
        assert.equal(user.text(file).slice(0, 8), "abXYef\0\0");
        assert.equal(host.read(file, new Uint8Array(0)), 0);
        assert.equal(host.write(file, new Uint8Array(0)), 0);
      },
    ],
  },
  {
    name: "pread and pwrite fail with EINVAL at a negative offset",
    stages: [
      (user) => {
        const file = user.memfd("x");
        user.fails("EINVAL", () => user.host.pread(file, new Uint8Array(1), -1));
        user.fails("EINVAL", () => user.host.pwrite(file, ONE, -1));
      },
    ],
  },
  {
    name: "lseek goes from start, position and end, past the end too; EINVAL below 0 and for no whence",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd("abcdef");
        assert.equal(host.lseek(file, 2, SEEK_SET), 2);
        assert.equal(host.lseek(file, 3, SEEK_CUR), 5);
        assert.equal(host.lseek(file, -6, SEEK_END), 0);
        assert.equal(host.lseek(file, 2 ** 40, SEEK_END), 2 ** 40 + 6);
        for (const [offset, whence] of [
          [-1, SEEK_SET],
          [-7, SEEK_END],
          [-(2 ** 41), SEEK_CUR],
          [0, 5],
          [0, -1],
        ])
          user.fails("EINVAL", () => host.lseek(file, offset, whence));
        assert.equal(user.position(file), 2 ** 40 + 6);
      },
    ],
  },
  {
    name: "SEEK_DATA and SEEK_HOLE know which pages there are; ENXIO where there is nothing",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd();
        host.ftruncate(file, 6 * PAGE_SIZE);
        host.pwrite(file, ONE, 2 * PAGE_SIZE + 5);
        host.pwrite(file, ONE, 3 * PAGE_SIZE);
        assert.equal(host.lseek(file, 0, SEEK_DATA), 2 * PAGE_SIZE);
        assert.equal(host.lseek(file, 2 * PAGE_SIZE + 9, SEEK_DATA), 2 * PAGE_SIZE + 9);
        assert.equal(host.lseek(file, 0, SEEK_HOLE), 0);
        assert.equal(host.lseek(file, 2 * PAGE_SIZE, SEEK_HOLE), 4 * PAGE_SIZE);
        user.fails("ENXIO", () => host.lseek(file, 4 * PAGE_SIZE, SEEK_DATA));
        user.fails("ENXIO", () => host.lseek(file, 6 * PAGE_SIZE, SEEK_DATA));
        user.fails("ENXIO", () => host.lseek(file, 6 * PAGE_SIZE, SEEK_HOLE));
        user.fails("ENXIO", () => host.lseek(file, -1, SEEK_DATA));
      },
    ],
  },
  {
    name: "ftruncate cuts off and adds zeroes; EINVAL below 0",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd(new Uint8Array(3 * PAGE_SIZE).fill(9));
        host.ftruncate(file, PAGE_SIZE + 1);
        assert.equal(host.fstat(file).allocatedBytes, 2 * PAGE_SIZE);
        host.ftruncate(file, 3 * PAGE_SIZE);
        const expected = new Uint8Array(3 * PAGE_SIZE).fill(9, 0, PAGE_SIZE + 1);
        assert.deepEqual(user.bytes(file, 0, 3 * PAGE_SIZE), expected);
        assert.equal(host.fstat(file).allocatedBytes, 2 * PAGE_SIZE);
        host.ftruncate(file, 0);
        assert.equal(host.fstat(file).allocatedBytes, 0);
        user.fails("EINVAL", () => host.ftruncate(file, -1));
        host.ftruncate(file, LARGEST_BYTES);
        assert.equal(host.fstat(file).sizeBytes, LARGEST_BYTES);
      },
    ],
  },
  {
    name: "a memfd of more than 2^52 bytes can be on Linux alone",
    stages: [
      (user) => {
        const file = user.memfd();
        const grow = () => user.host.ftruncate(file, LARGEST_BYTES + PAGE_SIZE);
        assert.equal(user.outcome(grow), user.expected(LARGEST_FILE));
      },
    ],
  },
  {
    name: "fallocate backs a range, with KEEP_SIZE past the end; punching frees pages and zeroes parts",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd();
        host.fallocate(file, 0, PAGE_SIZE + 1, 1);
        assert.deepEqual(
          [host.fstat(file).sizeBytes, host.fstat(file).allocatedBytes],
          [PAGE_SIZE + 2, PAGE_SIZE],
        );
        host.fallocate(file, FALLOC_FL_KEEP_SIZE, 0, 4 * PAGE_SIZE);
        assert.deepEqual(
          [host.fstat(file).sizeBytes, host.fstat(file).allocatedBytes],
          [PAGE_SIZE + 2, 4 * PAGE_SIZE],
        );
        // What lies past the end goes when the size is set, even to what it is.
        host.ftruncate(file, PAGE_SIZE + 2);
        assert.equal(host.fstat(file).allocatedBytes, 2 * PAGE_SIZE);

        const full = user.memfd(new Uint8Array(4 * PAGE_SIZE).fill(5));
        host.fallocate(full, PUNCH, PAGE_SIZE - 10, PAGE_SIZE + 20);
        const expected = new Uint8Array(4 * PAGE_SIZE).fill(5);
        expected.fill(0, PAGE_SIZE - 10, 2 * PAGE_SIZE + 10);
        assert.deepEqual(user.bytes(full, 0, 4 * PAGE_SIZE), expected);
        assert.equal(host.fstat(full).allocatedBytes, 3 * PAGE_SIZE);
        host.fallocate(full, PUNCH, 100 * PAGE_SIZE, PAGE_SIZE);
        assert.equal(host.fstat(full).sizeBytes, 4 * PAGE_SIZE);
      },
    ],
  },
  {
    name: "fallocate fails with EINVAL for no range, EOPNOTSUPP for other modes, EFBIG past the largest file",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd("x");
        for (const [offset, lengthBytes] of [
          [0, 0],
          [-1, 1],
          [0, -1],
        ])
          user.fails("EINVAL", () => host.fallocate(file, 0, offset, lengthBytes));
        for (const mode of [FALLOC_FL_PUNCH_HOLE, 0x08, 0x10 | FALLOC_FL_KEEP_SIZE, 0x20, 0x1000])
          user.fails("EOPNOTSUPP", () => host.fallocate(file, mode, 0, PAGE_SIZE));
      },
    ],
  },
  {
    name: "fcntl fails with EINVAL for unknown seals and commands, and where there are no seals",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd("x");
        user.fails("EINVAL", () => host.fcntl(file, F_ADD_SEALS, 0x40));
        user.fails("EINVAL", () => host.fcntl(file, 9999, 0));
        const eventfd = user.own(host.eventfd(0, 0));
        user.fails("EINVAL", () => host.fcntl(eventfd, F_GET_SEALS, 0));
        user.fails("EINVAL", () => host.fcntl(eventfd, F_ADD_SEALS, F_SEAL_SEAL));
      },
    ],
  },
  {
    name: "F_ADD_SEALS fails with EPERM where sealing is sealed; seals add up",
    stages: [
      (user) => {
        const { host } = user;
        user.fails("EPERM", () => host.fcntl(user.memfd("x", 0), F_ADD_SEALS, F_SEAL_SHRINK));
        const file = user.memfd("x");
        host.fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK);
        host.fcntl(file, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL);
        assert.equal(user.seals(file), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
        user.fails("EPERM", () => host.fcntl(file, F_ADD_SEALS, 0));
        user.fails("EINVAL", () => host.fcntl(file, F_ADD_SEALS, 0x40));
      },
    ],
  },
  {
    name: "seals refuse what they are for with EPERM, and nothing else",
    stages: [
      (user) => {
        const { host } = user;
        const sealed = (seals: number): number => {
          const file = user.memfd(new Uint8Array(2 * PAGE_SIZE));
          host.fcntl(file, F_ADD_SEALS, seals);
          return file;
        };
        const outcomes = (file: number) => [
          user.outcome(() => host.pwrite(file, ONE, 0)),
          user.outcome(() => host.mmap(file, 0, PAGE_SIZE).unmap()),
          user.outcome(() => host.fallocate(file, PUNCH, 0, PAGE_SIZE)),
          user.outcome(() => host.fallocate(file, 0, 0, PAGE_SIZE)),
          user.outcome(() => host.fallocate(file, FALLOC_FL_KEEP_SIZE, 2 * PAGE_SIZE, PAGE_SIZE)),
          user.outcome(() => host.pwrite(file, ONE, 2 * PAGE_SIZE)),
          user.outcome(() => host.ftruncate(file, 4 * PAGE_SIZE)),
          user.outcome(() => host.ftruncate(file, PAGE_SIZE)),
        ];
        const ok = "ok";
        const no = "EPERM";
        assert.deepEqual(outcomes(sealed(0)), [ok, ok, ok, ok, ok, ok, ok, ok]);
        assert.deepEqual(outcomes(sealed(F_SEAL_SHRINK)), [ok, ok, ok, ok, ok, ok, ok, no]);
        assert.deepEqual(outcomes(sealed(F_SEAL_GROW)), [ok, ok, ok, ok, no, no, no, ok]);
        for (const write of [F_SEAL_WRITE, F_SEAL_FUTURE_WRITE])
          assert.deepEqual(outcomes(sealed(write)), [no, no, no, ok, ok, no, ok, ok]);
        // An executable file must not be writable either.
        const exec = sealed(F_SEAL_EXEC);
        assert.equal(
          user.seals(exec),
          F_SEAL_EXEC | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE,
        );
        const plain = user.memfd("x", MFD_NOEXEC_SEAL);
        host.fcntl(plain, F_ADD_SEALS, F_SEAL_EXEC);
        assert.equal(user.seals(plain), F_SEAL_EXEC);
      },
    ],
  },
  {
    name: "F_SEAL_WRITE fails with EBUSY while the file is mapped, F_SEAL_FUTURE_WRITE does not",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd(new Uint8Array(PAGE_SIZE));
        const mapping = new MappedMemory(host.mmap(file, 0, PAGE_SIZE));
        user.fails("EBUSY", () => host.fcntl(file, F_ADD_SEALS, F_SEAL_WRITE));
        assert.equal(user.seals(file), 0);
        host.fcntl(file, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
        mapping.write(0, ONE);
        assert.equal(user.bytes(file, 0, 1)[0], 1, "the mapping that was there may write");
        mapping.unmap();
        host.fcntl(file, F_ADD_SEALS, F_SEAL_WRITE);
      },
    ],
  },
  {
    name: "dup and F_DUPFD share the open file; EINVAL from where there are no descriptors",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd("abc");
        const twin = user.own(host.dup(file));
        const high = user.own(host.fcntl(file, F_DUPFD, 500));
        assert(high >= 500);
        host.lseek(twin, 1, SEEK_SET);
        assert.deepEqual([user.position(file), user.position(high)], [1, 1]);
        assert.equal(host.fstat(high).inode, host.fstat(file).inode);
        user.close(file);
        assert.equal(user.text(twin), "abc");
        user.fails("EINVAL", () => host.fcntl(twin, F_DUPFD, 0x7fff_ffff));
      },
    ],
  },
  {
    name: "a mapping shares the file's memory, and outlives its descriptor",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd();
        host.ftruncate(file, 3 * PAGE_SIZE);
        const mapping = new MappedMemory(host.mmap(file, PAGE_SIZE, 2 * PAGE_SIZE));
        assert.equal(mapping.lengthBytes, 2 * PAGE_SIZE);
        mapping.write(PAGE_SIZE - 1, Uint8Array.of(1, 2));
        assert.deepEqual(user.bytes(file, 2 * PAGE_SIZE - 1, 2), Uint8Array.of(1, 2));
        host.pwrite(file, Uint8Array.of(3, 4), PAGE_SIZE);
        assert.deepEqual(mapping.bytes(0, 2), Uint8Array.of(3, 4));
        mapping.store32(8, 0xdead_beef);
        assert.deepEqual(user.bytes(file, PAGE_SIZE + 8, 4), Uint8Array.of(0xef, 0xbe, 0xad, 0xde));
        user.close(file);
        assert.equal(mapping.load32(8), 0xdead_beef);
        mapping.unmap();
      },
    ],
  },
  {
    name: "mmap fails with EINVAL for an offset off a page and for no length",
    stages: [
      (user) => {
        const file = user.memfd(new Uint8Array(2 * PAGE_SIZE));
        user.fails("EINVAL", () => user.host.mmap(file, 1, PAGE_SIZE));
        user.fails("EINVAL", () => user.host.mmap(file, 0, 0));
      },
    ],
  },
  {
    name: "mmap past the end of a file is taken by Linux and EINVAL for ours",
    stages: [
      (user) => {
        const file = user.memfd("x");
        const map = () => user.host.mmap(file, 0, 2 * PAGE_SIZE).unmap();
        assert.equal(user.outcome(map), user.expected(MAP_PAST_END));
      },
    ],
  },
  {
    name: "pages that are mapped can be cut off and punched out on Linux; on ours that is EBUSY",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd(new Uint8Array(4 * PAGE_SIZE));
        const mapping = host.mmap(file, 2 * PAGE_SIZE, 2 * PAGE_SIZE);
        const expected = user.expected(CUT_WHILE_MAPPED);
        // Their neighbours always can.
        host.fallocate(file, PUNCH, 0, PAGE_SIZE);
        assert.equal(
          user.outcome(() => host.fallocate(file, PUNCH, 2 * PAGE_SIZE, PAGE_SIZE)),
          expected,
        );
        assert.equal(
          user.outcome(() => host.ftruncate(file, PAGE_SIZE)),
          expected,
        );
        mapping.unmap();
        host.ftruncate(file, PAGE_SIZE);
      },
    ],
  },
  {
    name: "a write across the end of a file that may not grow writes nothing: EPERM",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd(new Uint8Array(2 * PAGE_SIZE));
        host.fcntl(file, F_ADD_SEALS, F_SEAL_GROW);
        const bytes = new Uint8Array(2 * PAGE_SIZE).fill(1);
        for (const offset of [PAGE_SIZE, PAGE_SIZE + 100, 2 * PAGE_SIZE - 1])
          user.fails("EPERM", () => host.pwrite(file, bytes, offset));
        host.lseek(file, PAGE_SIZE, SEEK_SET);
        user.fails("EPERM", () => host.write(file, bytes));
        assert.equal(user.position(file), PAGE_SIZE);
        assert.deepEqual(user.bytes(file, 0, 2 * PAGE_SIZE), new Uint8Array(2 * PAGE_SIZE));
      },
    ],
  },
  {
    name: "what a mapping has written behind the end is there when the file grows",
    stages: [
      (user) => {
        const { host } = user;
        for (const grow of [
          (file: number) => host.ftruncate(file, PAGE_SIZE),
          (file: number) => host.pwrite(file, ONE, 300),
        ]) {
          const file = user.memfd("x".repeat(100));
          const mapping = new MappedMemory(host.mmap(file, 0, PAGE_SIZE));
          mapping.write(200, ONE);
          grow(file);
          assert.deepEqual(user.bytes(file, 199, 3), Uint8Array.of(0, 1, 0));
          mapping.unmap();
        }
      },
    ],
  },
  {
    name: "pages that were allocated and never written are a hole to SEEK_DATA on Linux, and data on ours",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd();
        host.fallocate(file, 0, 0, 4 * PAGE_SIZE);
        assert.equal(
          user.outcome(() => host.lseek(file, 0, SEEK_DATA)),
          user.expected(SEEK_ALLOCATED),
        );
        host.pwrite(file, ONE, 2 * PAGE_SIZE);
        const isHole = user.expected(SEEK_ALLOCATED) === "ENXIO";
        assert.equal(host.lseek(file, 0, SEEK_DATA), isHole ? 2 * PAGE_SIZE : 0);
        assert.equal(host.lseek(file, 0, SEEK_HOLE), isHole ? 0 : 4 * PAGE_SIZE);
      },
    ],
  },
  {
    name: "memory that a file gave up is zero when it comes back",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd(new Uint8Array(MIB).fill(0xee));
        host.ftruncate(file, 0);
        host.fallocate(file, 0, 0, MIB);
        assert.deepEqual(user.bytes(file, 0, MIB), new Uint8Array(MIB));
      },
    ],
  },
];
