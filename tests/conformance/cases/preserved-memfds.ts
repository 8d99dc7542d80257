/**
 * memfds through a jump: what is kept, and what may be done to them meanwhile.
 *
 * Source: Linux 7.3 mm/memfd_luo.c
 * @module
 */
import assert from "node:assert/strict";
import {
  F_ADD_SEALS,
  F_SEAL_EXEC,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  F_SEAL_WRITE,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  MFD_ALLOW_SEALING,
  MFD_NOEXEC_SEAL,
  SEEK_DATA,
  SEEK_HOLE,
  SEEK_SET,
} from "../../../src/abi/uapi/fs.ts";
import { Prng } from "../../../src/base/prng.ts";
import { KIB, MIB, PAGE_SIZE } from "../../../src/base/units.ts";
import { finish, preserveFd } from "../../../src/host/liveupdate.ts";
import { MappedMemory } from "../../../src/host/mapped-memory.ts";
import type { CaseUser } from "../case-user.ts";
import type { ConformanceCase, Outcome } from "../conformance-case.ts";
import { LATE_SEALS, NOEXEC_SEALS, PUNCH_BEFORE_FINISH } from "../divergences.ts";

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const SIZES = [0, 1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 12_345, 2 * MIB, 2 * MIB + 77];
const SPARSE_BYTES = 3 * MIB + 5;
/** What F_SEAL_EXEC brings with it where a file may be executed. */
const SEALED_BY_EXEC = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;

/** Seals of memfds that go through a jump. The first is that of one that may not be sealed. */
const SEALS: readonly number[] = [
  F_SEAL_SEAL,
  0,
  F_SEAL_SHRINK,
  F_SEAL_GROW,
  F_SEAL_WRITE,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW,
  F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE,
  F_SEAL_EXEC | SEALED_BY_EXEC,
];
const SEALED_BYTES = 2 * PAGE_SIZE;

/** Bytes that depend on a seed. */
function pattern(seed: number, lengthBytes: number): Uint8Array {
  const prng = new Prng(seed);
  const bytes = new Uint8Array(lengthBytes);
  for (let i = 0; i < lengthBytes; i++) bytes[i] = prng.below(256);
  return bytes;
}

/** What each change of size, and of pages, comes to. */
function changes(user: CaseUser, file: number): Readonly<Record<string, Outcome>> {
  const { host } = user;
  const { sizeBytes } = host.fstat(file);
  return {
    same: user.outcome(() => host.ftruncate(file, sizeBytes)),
    shrink: user.outcome(() => host.ftruncate(file, sizeBytes - 1)),
    grow: user.outcome(() => host.ftruncate(file, sizeBytes + 1)),
    append: user.outcome(() => host.pwrite(file, Uint8Array.of(1), sizeBytes)),
    across: user.outcome(() => host.pwrite(file, Uint8Array.of(1, 1), sizeBytes - 1)),
    allocate: user.outcome(() => host.fallocate(file, 0, 0, PAGE_SIZE)),
    allocatePast: user.outcome(() => host.fallocate(file, 0, sizeBytes, PAGE_SIZE)),
    keepSize: user.outcome(() => host.fallocate(file, FALLOC_FL_KEEP_SIZE, 0, PAGE_SIZE)),
    punch: user.outcome(() => host.fallocate(file, PUNCH, 0, PAGE_SIZE)),
  };
}

const FROZEN: Readonly<Record<string, Outcome>> = {
  same: "ok",
  shrink: "EPERM",
  grow: "EPERM",
  append: "EPERM",
  across: "EPERM",
  allocate: "EPERM",
  allocatePast: "EPERM",
  keepSize: "EPERM",
  punch: "EPERM",
};

/** Whether each right that a seal takes is there. Sizes are as they were afterwards. */
function checkSeals(user: CaseUser, file: number, seals: number): void {
  const { host } = user;
  assert.equal(user.seals(file), seals);
  const mayWrite = (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) === 0;
  const expect = (may: boolean, action: () => unknown) =>
    assert.equal(user.outcome(action), may ? "ok" : "EPERM");
  expect(mayWrite, () => host.pwrite(file, Uint8Array.of(7), 0));
  expect(mayWrite, () => host.mmap(file, 0, PAGE_SIZE).unmap());
  expect(mayWrite && (seals & F_SEAL_GROW) === 0, () =>
    host.pwrite(file, Uint8Array.of(7), SEALED_BYTES),
  );
  expect((seals & F_SEAL_GROW) === 0, () => host.ftruncate(file, SEALED_BYTES + PAGE_SIZE));
  expect((seals & F_SEAL_SHRINK) === 0, () => host.ftruncate(file, SEALED_BYTES - 1));
  // Back to what it was, as far as the seals let it.
  user.outcome(() => host.ftruncate(file, SEALED_BYTES));
  expect((seals & F_SEAL_SEAL) === 0, () => host.fcntl(file, F_ADD_SEALS, 0));
}

export const PRESERVED_MEMFD_CASES: readonly ConformanceCase[] = [
  {
    name: "memfds of any size are carried: empty, odd, whole pages, large",
    stages: [
      (user) => {
        const session = user.create("sizes");
        for (const sizeBytes of SIZES) {
          const file = user.memfd(pattern(sizeBytes, sizeBytes));
          preserveFd(user.host, session, file, BigInt(sizeBytes));
        }
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("sizes");
        for (const sizeBytes of SIZES) {
          const file = user.retrieveFile(session, BigInt(sizeBytes));
          const { kind, linkCount, ...stat } = user.host.fstat(file);
          assert.deepEqual([kind, linkCount, stat.sizeBytes], ["file", 0, sizeBytes]);
          assert.deepEqual(user.bytes(file, 0, sizeBytes + 1), pattern(sizeBytes, sizeBytes));
        }
      },
    ],
  },
  {
    name: "the position is carried as it is at the jump, past the end too",
    stages: [
      (user) => {
        const session = user.create("position");
        const plans = [
          [0, 0],
          [0, 3],
          [4, 2],
          [4, 123_456_789_012],
        ];
        for (const [index, [before, after]] of plans.entries()) {
          const file = user.memfd("four");
          user.host.lseek(file, before, SEEK_SET);
          preserveFd(user.host, session, file, BigInt(index));
          user.host.lseek(file, after, SEEK_SET);
        }
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("position");
        const positions = [0n, 1n, 2n, 3n].map((token) =>
          user.position(user.retrieveFile(session, token)),
        );
        assert.deepEqual(positions, [0, 3, 2, 123_456_789_012]);
      },
    ],
  },
  {
    name: "PRESERVE_FD backs every hole of a sparse memfd, and holes are carried as zeroes",
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("sparse");
        const file = user.memfd();
        host.ftruncate(file, SPARSE_BYTES);
        host.pwrite(file, Uint8Array.of(1), MIB + 3);
        assert.equal(host.fstat(file).allocatedBytes < MIB, true);
        preserveFd(host, session, file, 1n);
        const allocatedBytes = Math.ceil(SPARSE_BYTES / PAGE_SIZE) * PAGE_SIZE;
        assert.equal(host.fstat(file).allocatedBytes, allocatedBytes);
        assert.equal(host.lseek(file, 0, SEEK_DATA), 0);
        assert.equal(host.lseek(file, 0, SEEK_HOLE), SPARSE_BYTES);
        user.carry(session);
      },
      (user) => {
        const { host } = user;
        const file = user.retrieveFile(user.retrieve("sparse"), 1n);
        const { allocatedBytes, sizeBytes } = host.fstat(file);
        assert.deepEqual([sizeBytes, allocatedBytes], [SPARSE_BYTES, 3 * MIB + PAGE_SIZE]);
        const expected = new Uint8Array(SPARSE_BYTES);
        expected[MIB + 3] = 1;
        assert.deepEqual(user.bytes(file, 0, SPARSE_BYTES), expected);
        assert.equal(host.lseek(file, 0, SEEK_HOLE), SPARSE_BYTES);
      },
    ],
  },
  {
    name: "pages that were allocated and never written are carried as zeroes",
    stages: [
      (user) => {
        const session = user.create("fallocated");
        const file = user.memfd();
        user.host.fallocate(file, 0, 0, 64 * KIB);
        preserveFd(user.host, session, file, 1n);
        user.carry(session);
      },
      (user) => {
        const file = user.retrieveFile(user.retrieve("fallocated"), 1n);
        assert.deepEqual(user.bytes(file, 0, 65 * KIB), new Uint8Array(64 * KIB));
      },
    ],
  },
  {
    name: "a preserved memfd may be written in place until the jump, by write and by mapping",
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("writes");
        const file = user.memfd(new Uint8Array(3 * PAGE_SIZE));
        const mapping = new MappedMemory(host.mmap(file, 0, 3 * PAGE_SIZE));
        preserveFd(host, session, file, 1n);
        host.pwrite(file, new TextEncoder().encode("written"), 0);
        mapping.write(PAGE_SIZE, new TextEncoder().encode("mapped before"));
        const later = new MappedMemory(host.mmap(file, 2 * PAGE_SIZE, PAGE_SIZE));
        later.write(0, new TextEncoder().encode("mapped after"));
        user.carry(session);
      },
      (user) => {
        const file = user.retrieveFile(user.retrieve("writes"), 1n);
        const text = user.text(file);
        for (const [index, words] of ["written", "mapped before", "mapped after"].entries()) {
          const at = index * PAGE_SIZE;
          assert.equal(text.slice(at, at + words.length + 1), `${words}\0`);
        }
      },
    ],
  },
  {
    name: "a preserved memfd has a fixed size and fixed pages (EPERM) until its session is closed",
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("frozen");
        const file = user.memfd(new Uint8Array(2 * PAGE_SIZE));
        preserveFd(host, session, file, 1n);
        assert.deepEqual(changes(user, file), FROZEN);
        assert.equal(host.fstat(file).sizeBytes, 2 * PAGE_SIZE);
        host.pwrite(file, Uint8Array.of(1), 2 * PAGE_SIZE - 1);
        user.fails("EOPNOTSUPP", () => host.fallocate(file, FALLOC_FL_PUNCH_HOLE, 0, PAGE_SIZE));
        user.close(session);
        const free = changes(user, file);
        assert.deepEqual(new Set(Object.values(free)), new Set(["ok"]), JSON.stringify(free));
      },
    ],
  },
  {
    name: "a retrieved memfd has a size that changes again, before its session is finished",
    stages: [
      (user) => {
        const session = user.create("thawed");
        preserveFd(user.host, session, user.memfd(new Uint8Array(2 * PAGE_SIZE)), 1n);
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("thawed");
        const free = changes(user, user.retrieveFile(session, 1n));
        assert.deepEqual(new Set(Object.values(free)), new Set(["ok"]), JSON.stringify(free));
      },
    ],
  },
  {
    name: "each seal is carried and holds after the jump",
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("seals");
        for (const [index, seals] of SEALS.entries()) {
          const file = user.memfd(
            new Uint8Array(SEALED_BYTES),
            seals === F_SEAL_SEAL ? 0 : MFD_ALLOW_SEALING,
          );
          if (seals !== F_SEAL_SEAL) host.fcntl(file, F_ADD_SEALS, seals);
          assert.equal(user.seals(file), seals);
          preserveFd(host, session, file, BigInt(index));
        }
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("seals");
        const files = SEALS.map((_, index) => user.retrieveFile(session, BigInt(index)));
        finish(user.host, session);
        for (const [index, file] of files.entries()) checkSeals(user, file, SEALS[index]);
      },
    ],
  },
  {
    name: "a memfd with MFD_NOEXEC_SEAL comes back read-only from Linux, and with its own seals from ours",
    stages: [
      (user) => {
        const session = user.create("noexec");
        const file = user.memfd(new Uint8Array(SEALED_BYTES), MFD_NOEXEC_SEAL);
        assert.equal(user.seals(file), F_SEAL_EXEC);
        preserveFd(user.host, session, file, 1n);
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("noexec");
        const file = user.retrieveFile(session, 1n);
        finish(user.host, session);
        checkSeals(user, file, user.expected(NOEXEC_SEALS));
      },
    ],
  },
  {
    name: "seals may be added to a preserved memfd, but for F_SEAL_WRITE (EBUSY); Linux forgets them",
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("late seals");
        const file = user.memfd(new Uint8Array(SEALED_BYTES));
        preserveFd(host, session, file, 1n);
        user.fails("EBUSY", () => host.fcntl(file, F_ADD_SEALS, F_SEAL_WRITE));
        host.fcntl(file, F_ADD_SEALS, F_SEAL_GROW);
        assert.equal(user.seals(file), F_SEAL_GROW);
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("late seals");
        const file = user.retrieveFile(session, 1n);
        finish(user.host, session);
        checkSeals(user, file, user.expected(LATE_SEALS));
      },
    ],
  },
  {
    name: "pages of a retrieved memfd sealed for DMA can be punched out before FINISH on Linux, after it on both",
    stages: [
      (user) => {
        const session = user.create("punch");
        const file = user.memfd(new Uint8Array(SEALED_BYTES));
        user.host.fcntl(file, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW);
        preserveFd(user.host, session, file, 1n);
        user.carry(session);
      },
      (user) => {
        const { host } = user;
        const session = user.retrieve("punch");
        const file = user.retrieveFile(session, 1n);
        const punch = () => host.fallocate(file, PUNCH, 0, PAGE_SIZE);
        assert.equal(user.outcome(punch), user.expected(PUNCH_BEFORE_FINISH));
        finish(host, session);
        punch();
        assert.equal(host.fstat(file).allocatedBytes, PAGE_SIZE);
      },
    ],
  },
  {
    name: "what one session carries is not what another carries: same names of files, same tokens",
    kselftests: ["preserve_multiple_memfds", "preserve_complex_scenario", "luo_multi_session.c"],
    stages: [
      (user) => {
        for (const name of ["apart 1", "apart 2"]) {
          const session = user.create(name);
          const file = user.memfd(`data of ${name}`);
          const empty = user.memfd();
          preserveFd(user.host, session, file, 1n);
          preserveFd(user.host, session, empty, 2n);
          assert.deepEqual([user.text(file), user.text(empty)], [`data of ${name}`, ""]);
          user.carry(session);
        }
        for (const name of ["apart empty 1", "apart empty 2"]) user.carry(user.create(name));
      },
      (user) => {
        for (const name of ["apart 2", "apart 1"]) {
          const session = user.retrieve(name);
          assert.equal(user.text(user.retrieveFile(session, 1n)), `data of ${name}`);
          assert.equal(user.text(user.retrieveFile(session, 2n)), "");
          finish(user.host, session);
        }
        for (const name of ["apart empty 1", "apart empty 2"])
          finish(user.host, user.retrieve(name));
      },
    ],
  },
];
