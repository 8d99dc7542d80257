/**
 * eventfds, by which interrupts reach a VMM.
 *
 * Source: Linux 7.3 fs/eventfd.c; eventfd(2)
 * @module
 */
import assert from "node:assert/strict";
import { EFD_NONBLOCK, EFD_SEMAPHORE } from "../../../src/abi/uapi/fs.ts";
import { ByteWords } from "../../../src/abi/words.ts";
import type { CaseUser } from "../case-user.ts";
import type { ConformanceCase } from "../conformance-case.ts";

const U32_LAST = 0xffff_ffff;

function counter(low: number, high = 0): Uint8Array {
  const bytes = new Uint8Array(8);
  new ByteWords(bytes).store32(0, low);
  new ByteWords(bytes).store32(4, high);
  return bytes;
}

/** What a read gives. */
function taken(user: CaseUser, fd: number): Uint8Array {
  const bytes = new Uint8Array(8);
  assert.equal(user.host.read(fd, bytes), 8);
  return bytes;
}

export const EVENTFD_CASES: readonly ConformanceCase[] = [
  {
    name: "eventfd adds up what is written, and a read takes all of it, or EAGAIN",
    stages: [
      (user) => {
        const { host } = user;
        const fd = user.own(host.eventfd(3, EFD_NONBLOCK));
        host.write(fd, counter(U32_LAST));
        host.write(fd, counter(5, 7));
        assert.deepEqual(taken(user, fd), counter(7, 8));
        user.fails("EAGAIN", () => host.read(fd, new Uint8Array(8)));
        host.write(fd, counter(1));
        const wide = new Uint8Array(16).fill(9);
        assert.equal(host.read(fd, wide), 8);
        assert.deepEqual(wide.subarray(8), new Uint8Array(8).fill(9));
      },
    ],
  },
  {
    name: "eventfd with EFD_SEMAPHORE gives one at a time",
    stages: [
      (user) => {
        const { host } = user;
        const fd = user.own(host.eventfd(2, EFD_NONBLOCK | EFD_SEMAPHORE));
        for (let i = 0; i < 2; i++) assert.deepEqual(taken(user, fd), counter(1));
        user.fails("EAGAIN", () => host.read(fd, new Uint8Array(8)));
      },
    ],
  },
  {
    name: "eventfd fails with EAGAIN where its counter would pass 2^64 - 2, and with EINVAL for 2^64 - 1",
    stages: [
      (user) => {
        const { host } = user;
        const fd = user.own(host.eventfd(1, EFD_NONBLOCK));
        user.fails("EINVAL", () => host.write(fd, counter(U32_LAST, U32_LAST)));
        user.fails("EAGAIN", () => host.write(fd, counter(U32_LAST - 1, U32_LAST)));
        host.write(fd, counter(U32_LAST - 2, U32_LAST));
        assert.deepEqual(taken(user, fd), counter(U32_LAST - 1, U32_LAST));
      },
    ],
  },
  {
    name: "eventfd has 8 bytes to read and to write (EINVAL), and no positions",
    stages: [
      (user) => {
        const { host } = user;
        const fd = user.own(host.eventfd(1, EFD_NONBLOCK));
        user.fails("EINVAL", () => host.eventfd(0, 0x10));
        user.fails("EINVAL", () => host.read(fd, new Uint8Array(7)));
        for (const lengthBytes of [0, 7, 9, 16])
          user.fails("EINVAL", () => host.write(fd, new Uint8Array(lengthBytes)));
        user.fails("ESPIPE", () => host.pread(fd, new Uint8Array(8), 0));
        user.fails("ESPIPE", () => host.pwrite(fd, counter(1), 0));
        assert.equal(host.lseek(fd, 5, 0), 0);
        user.fails("ENODEV", () => host.mmap(fd, 0, 4096));
        user.fails("EINVAL", () => host.ftruncate(fd, 0));
        user.fails("ENODEV", () => host.fallocate(fd, 0, 0, 1));
        assert.equal(host.fstat(fd).kind, "anonymous");
        assert.deepEqual(taken(user, fd), counter(1));
      },
    ],
  },
];
