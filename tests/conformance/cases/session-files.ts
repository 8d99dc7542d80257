/**
 * PRESERVE_FD, RETRIEVE_FD and FINISH: what they refuse and what they leave.
 *
 * Source: Linux 7.3 kernel/liveupdate/luo_file.c
 * @module
 */
import assert from "node:assert/strict";
import { MFD_HUGETLB, SEEK_SET } from "../../../src/abi/uapi/fs.ts";
import { KIB, PAGE_SIZE } from "../../../src/base/units.ts";
import { finish, getName, preserveFd, retrieveFd } from "../../../src/host/liveupdate.ts";
import type { ConformanceCase, Outcome } from "../conformance-case.ts";
import { HUGETLB } from "../divergences.ts";

const LARGEST_TOKEN = 2n ** 64n - 1n;
const FILES = 500;
/** More than any retrieval has allocations. */
const RETRIEVALS = 48;

export const SESSION_FILE_CASES: readonly ConformanceCase[] = [
  {
    name: "PRESERVE_FD fails with EEXIST for a used token, before the descriptor is looked at",
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("preserve eexist");
        preserveFd(host, session, user.memfd("1"), 5n);
        user.fails("EEXIST", () => preserveFd(host, session, user.memfd("2"), 5n));
        user.fails("EEXIST", () => preserveFd(host, session, -1, 5n));
        user.fails("EEXIST", () => preserveFd(host, session, session, 5n));
        preserveFd(host, user.create("preserve eexist too"), user.memfd("3"), 5n);
      },
    ],
  },
  {
    name: "PRESERVE_FD fails with EBADF for what is no descriptor, and its token stays free",
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("preserve ebadf");
        const closed = user.memfd("closed");
        user.close(closed);
        for (const fd of [-1, closed, 0x7fff_ffff, -0x8000_0000])
          user.fails("EBADF", () => preserveFd(host, session, fd, 1n));
        preserveFd(host, session, user.memfd("x"), 1n);
      },
    ],
  },
  {
    name: "PRESERVE_FD fails with ENOENT for files that nothing preserves: eventfds, the device, sessions",
    kselftests: ["preserve_unsupported_fd"],
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("preserve enoent");
        const eventfd = user.own(host.eventfd(0, 0));
        user.fails("ENOENT", () => preserveFd(host, session, eventfd, 1n));
        user.withDevice((device) =>
          user.fails("ENOENT", () => preserveFd(host, session, device, 1n)),
        );
        user.fails("ENOENT", () => preserveFd(host, session, session, 1n));
        preserveFd(host, session, user.memfd("x"), 1n);
      },
    ],
  },
  {
    name: "PRESERVE_FD fails with ENOENT for a memfd of hugetlbfs, which ours does not make",
    stages: [
      (user) => {
        const { host } = user;
        const make = () => user.own(host.memfdCreate("huge", MFD_HUGETLB));
        assert.equal(user.outcome(make), user.expected(HUGETLB));
        if (user.expected(HUGETLB) !== "ok") return;
        const session = user.create("preserve hugetlb");
        user.fails("ENOENT", () => preserveFd(host, session, make(), 1n));
      },
    ],
  },
  {
    name: "PRESERVE_FD fails with EBUSY for an inode that a session has, by whatever descriptor",
    kselftests: ["prevent_double_preservation"],
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("preserve ebusy");
        const other = user.create("preserve ebusy too");
        const file = user.memfd("x");
        const twin = user.own(host.dup(file));
        preserveFd(host, session, file, 1n);
        for (const fd of [file, twin]) {
          user.fails("EBUSY", () => preserveFd(host, session, fd, 2n));
          user.fails("EBUSY", () => preserveFd(host, other, fd, 1n));
        }
        user.close(session);
        preserveFd(host, other, twin, LARGEST_TOKEN);
      },
    ],
  },
  {
    name: "PRESERVE_FD fails with EBUSY for a retrieved file until its session is finished",
    stages: [
      (user) => {
        const session = user.create("preserve retrieved");
        preserveFd(user.host, session, user.memfd("kept"), 1n);
        preserveFd(user.host, session, user.memfd("new"), 2n);
        user.carry(session);
      },
      (user) => {
        const { host } = user;
        const session = user.retrieve("preserve retrieved");
        const file = user.retrieveFile(session, 1n);
        const outgoing = user.create("preserve retrieved");
        user.fails("EBUSY", () => preserveFd(host, outgoing, file, 1n));
        user.fails("EINVAL", () => preserveFd(host, session, user.memfd("x"), 9n));
        finish(host, session);
        preserveFd(host, outgoing, file, 1n);
        user.fails("EINVAL", () => preserveFd(host, session, user.memfd("x"), 9n));
      },
    ],
  },
  {
    name: "PRESERVE_FD fails with EFBIG for a memfd of 2^32 pages",
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("preserve efbig");
        const file = user.memfd();
        host.ftruncate(file, 2 ** 32 * PAGE_SIZE);
        user.fails("EFBIG", () => preserveFd(host, session, file, 1n));
        // Nothing is left of it: the size is free, and so is the token.
        host.ftruncate(file, 10);
        preserveFd(host, session, file, 1n);
      },
    ],
  },
  {
    name: "PRESERVE_FD has changed nothing when it fails with ENOMEM at any allocation",
    stages: [
      (user) => {
        const { host } = user;
        const file = user.memfd("enomem");
        host.ftruncate(file, 64 * KIB);
        let round = 0;
        let session = user.create("preserve enomem");
        const failures = user.failEachAllocation(
          () => preserveFd(host, session, file, 1n),
          () => {
            // Preserved in spite of it; the next try needs the file again.
            user.close(session);
            session = user.create(`preserve enomem ${++round}`);
          },
        );
        assert(failures > 0, "some allocation failed the call");
        host.ftruncate(file, 32 * KIB);
        assert.equal(user.text(file).slice(0, 7), "enomem\0");
        preserveFd(host, session, file, 1n);
        user.fails("EPERM", () => host.ftruncate(file, 64 * KIB));
      },
    ],
  },
  {
    name: "a preserved file is carried although every descriptor of it is closed",
    kselftests: ["luo_kexec_simple.c"],
    stages: [
      (user) => {
        const session = user.create("preserve closed");
        for (const token of [0n, 1n, LARGEST_TOKEN]) {
          const file = user.memfd(`token ${token}`);
          preserveFd(user.host, session, file, token);
          user.close(file);
        }
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("preserve closed");
        for (const token of [LARGEST_TOKEN, 0n, 1n])
          assert.equal(user.text(user.retrieveFile(session, token)), `token ${token}`);
      },
    ],
  },
  {
    name: "RETRIEVE_FD gives the same open file again, with ENOENT for a token that there is not",
    stages: [
      (user) => {
        const session = user.create("retrieve again");
        for (const token of [10n, 20n, 30n])
          preserveFd(user.host, session, user.memfd(`${token}`), token);
        user.carry(session);
        user.carry(user.create("retrieve from none"));
      },
      (user) => {
        const { host } = user;
        user.fails("ENOENT", () => retrieveFd(host, user.retrieve("retrieve from none"), 10n));
        const session = user.retrieve("retrieve again");
        const first = user.retrieveFile(session, 30n);
        const again = user.retrieveFile(session, 30n);
        assert.notEqual(first, again);
        assert.equal(host.fstat(first).inode, host.fstat(again).inode);
        host.lseek(first, 1, SEEK_SET);
        assert.equal(user.position(again), 1, "one open file has one position");
        user.close(first);
        user.close(again);
        // The session has it still.
        assert.equal(user.position(user.retrieveFile(session, 30n)), 1);
        assert.equal(user.text(user.retrieveFile(session, 10n)), "10");
        for (const token of [0n, 11n, LARGEST_TOKEN])
          user.fails("ENOENT", () => retrieveFd(host, session, token));
      },
    ],
  },
  {
    name: "RETRIEVE_FD fails with EMFILE without a free descriptor, and works afterwards",
    stages: [
      (user) => {
        const session = user.create("retrieve fd emfile");
        preserveFd(user.host, session, user.memfd("x"), 1n);
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("retrieve fd emfile");
        user.withoutDescriptors(session, () => {
          user.fails("EMFILE", () => retrieveFd(user.host, session, 1n));
          user.fails("EMFILE", () => retrieveFd(user.host, session, 2n));
        });
        assert.equal(user.text(user.retrieveFile(session, 1n)), "x");
      },
    ],
  },
  {
    name: "RETRIEVE_FD that failed fails the same way for ever; other files and FINISH do not suffer",
    stages: [
      (user) => {
        const session = user.create("retrieve failed");
        for (let token = 1; token <= RETRIEVALS; token++)
          preserveFd(user.host, session, user.memfd(`file ${token}`), BigInt(token));
        user.carry(session);
      },
      (user) => {
        const { host } = user;
        const session = user.retrieve("retrieve failed");
        // A failure is final, so each try has a file of its own.
        let failures = 0;
        let nth = 1;
        for (; nth < RETRIEVALS; nth++) {
          const token = BigInt(nth);
          let outcome: Outcome = "ok";
          const retrieve = () => user.retrieveFile(session, token);
          const reached = user.faults.during(nth, () => {
            outcome = user.outcome(retrieve);
          });
          if (outcome === "ok") {
            assert.equal(user.text(retrieve()), `file ${nth}`);
          } else {
            failures++;
            for (let again = 0; again < 2; again++) user.fails(outcome, retrieve);
          }
          if (!reached) break;
        }
        assert(nth < RETRIEVALS, "every allocation was reached");
        assert(failures > 0, "some allocation failed the call");
        assert.equal(
          user.text(user.retrieveFile(session, BigInt(RETRIEVALS))),
          `file ${RETRIEVALS}`,
        );
        finish(host, session);
        user.fails("ENOENT", () => retrieveFd(host, session, 1n));
      },
    ],
  },
  {
    name: "FINISH discards files that nobody retrieved, and succeeds again; no token is left",
    stages: [
      (user) => {
        const session = user.create("finish discards");
        for (const token of [1n, 2n, 3n])
          preserveFd(user.host, session, user.memfd(`file ${token}`), token);
        user.carry(session);
      },
      (user) => {
        const { host } = user;
        const session = user.retrieve("finish discards");
        const file = user.retrieveFile(session, 2n);
        finish(host, session);
        finish(host, session);
        for (const token of [1n, 2n, 3n])
          user.fails("ENOENT", () => retrieveFd(host, session, token));
        assert.equal(getName(host, session), "finish discards");
        assert.equal(user.text(file), "file 2");
      },
    ],
  },
  {
    name: "FINISH of a session without files succeeds",
    stages: [
      (user) => user.carry(user.create("finish empty")),
      (user) => {
        const session = user.retrieve("finish empty");
        finish(user.host, session);
        finish(user.host, session);
      },
    ],
  },
  {
    name: "500 files of one session are carried, each with its own bytes",
    kselftests: ["preserve_many_files", "luo_stress_files.c"],
    stages: [
      (user) => {
        const session = user.create("500 files");
        for (let i = 0; i < FILES; i++) {
          const file = user.memfd(`file ${i}`);
          preserveFd(user.host, session, file, BigInt(i));
          user.close(file);
        }
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("500 files");
        for (let i = 0; i < FILES; i++) {
          const token = (i * 7) % FILES;
          const file = user.retrieveFile(session, BigInt(token));
          assert.equal(user.text(file), `file ${token}`);
          user.close(file);
        }
        finish(user.host, session);
      },
    ],
  },
];
