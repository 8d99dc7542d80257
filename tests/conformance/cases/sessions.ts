/**
 * Sessions: names, creation, retrieval, closing.
 *
 * Source: Linux 7.3 kernel/liveupdate/luo_session.c
 * @module
 */
import assert from "node:assert/strict";
import {
  LIVEUPDATE_IOCTL_CREATE_SESSION,
  LIVEUPDATE_IOCTL_RETRIEVE_SESSION,
} from "../../../src/abi/uapi/liveupdate.ts";
import { ByteWords } from "../../../src/abi/words.ts";
import {
  createSession,
  finish,
  getName,
  preserveFd,
  retrieveFd,
  retrieveSession,
} from "../../../src/host/liveupdate.ts";
import type { CaseUser } from "../case-user.ts";
import type { ConformanceCase } from "../conformance-case.ts";
import { NAME_NOT_UTF8 } from "../divergences.ts";
import { sized } from "./ioctls.ts";

const LONGEST = "n".repeat(63);
const MANY = 2000;
/** Sessions that fit into one page of the handover. */
const SESSIONS_OF_A_BLOCK = 51;

/** A request for a session whose name field holds any bytes. @returns the descriptor */
function rawRequest(user: CaseUser, request: number, nameField: Uint8Array): number {
  const argument = sized(72);
  argument.bytes.set(nameField, 8);
  user.withDevice((device) => user.host.ioctl(device, request, argument));
  return user.own(new ByteWords(argument.bytes).load32(4));
}

function field(fill: number, ...ends: readonly (readonly [index: number, byte: number])[]) {
  const bytes = new Uint8Array(64).fill(fill);
  for (const [index, byte] of ends) bytes[index] = byte;
  return bytes;
}

export const SESSION_CASES: readonly ConformanceCase[] = [
  {
    name: "CREATE_SESSION takes names of 1 to 63 bytes, and fails with EINVAL for none and for 64",
    kselftests: [
      "create_session_no_null_termination",
      "create_session_empty_name",
      "get_session_name",
      "get_session_name_max_length",
    ],
    stages: [
      (user) => {
        for (const name of ["n", LONGEST, "größe", " /.\n"]) {
          const session = user.create(name);
          assert.equal(getName(user.host, session), name);
          user.carry(session);
        }
        user.fails("EINVAL", () => user.create(""));
        const unterminated = field(0x78);
        user.fails("EINVAL", () => rawRequest(user, LIVEUPDATE_IOCTL_CREATE_SESSION, unterminated));
      },
      (user) => {
        for (const name of ["n", LONGEST, "größe", " /.\n"])
          assert.equal(getName(user.host, user.retrieve(name)), name);
      },
    ],
  },
  {
    name: "CREATE_SESSION and RETRIEVE_SESSION ignore what stands behind the name's NUL",
    stages: [
      (user) => {
        const name = field(0x79, [3, 0]);
        const session = rawRequest(user, LIVEUPDATE_IOCTL_CREATE_SESSION, name);
        assert.equal(getName(user.host, session), "yyy");
        user.fails("EEXIST", () => user.create("yyy"));
        user.carry(session);
      },
      (user) => {
        const session = rawRequest(
          user,
          LIVEUPDATE_IOCTL_RETRIEVE_SESSION,
          field(0x7a, [0, 0x79], [1, 0x79], [2, 0x79], [3, 0]),
        );
        assert.equal(getName(user.host, session), "yyy");
      },
    ],
  },
  {
    name: "CREATE_SESSION of a name that is not UTF-8 is taken by Linux and EINVAL for ours",
    stages: [
      (user) => {
        const name = field(0xff, [63, 0]);
        assert.equal(
          user.outcome(() => rawRequest(user, LIVEUPDATE_IOCTL_CREATE_SESSION, name)),
          user.expected(NAME_NOT_UTF8),
        );
      },
    ],
  },
  {
    name: "CREATE_SESSION fails with EEXIST for a name in use, and not after its session was closed",
    kselftests: ["create_duplicate_session", "create_distinct_sessions"],
    stages: [
      (user) => {
        const session = user.create("exists");
        user.fails("EEXIST", () => user.create("exists"));
        user.create("exists not");
        user.close(session);
        user.create("exists");
      },
    ],
  },
  {
    name: "CREATE_SESSION fails with EMFILE without a free descriptor, before the name is looked at",
    stages: [
      (user) => {
        user.withDevice((device) =>
          user.withoutDescriptors(device, () => {
            user.fails("EMFILE", () => createSession(user.host, device, "create emfile"));
            user.fails("EMFILE", () => createSession(user.host, device, ""));
          }),
        );
        user.create("create emfile");
      },
    ],
  },
  {
    name: "CREATE_SESSION leaves no session when it fails with ENOMEM at any allocation",
    stages: [
      (user) => {
        let failures = 0;
        // As many as fill a block and one: whichever needs another block has more to allocate.
        for (let i = 0; i <= SESSIONS_OF_A_BLOCK; i++) {
          const name = `create enomem ${i}`;
          failures += user.withDevice((device) =>
            user.failEachAllocation(
              () => user.own(createSession(user.host, device, name)),
              (session) => user.close(session),
            ),
          );
          user.create(name);
        }
        assert(failures > 0, "some allocation failed the call");
      },
    ],
  },
  {
    name: "RETRIEVE_SESSION fails with ENOENT for a name that there is not, on a created session too",
    stages: [
      (user) => {
        const session = user.create("retrieve enoent");
        user.fails("ENOENT", () => user.retrieve("retrieve enoent"));
        user.fails("ENOENT", () => user.retrieve(""));
        const unterminated = field(0x78);
        user.fails("ENOENT", () =>
          rawRequest(user, LIVEUPDATE_IOCTL_RETRIEVE_SESSION, unterminated),
        );
        user.carry(session);
      },
      (user) => {
        user.fails("ENOENT", () => user.retrieve("retrieve enoen"));
        user.fails("ENOENT", () => user.retrieve("retrieve enoent2"));
        user.fails("ENOENT", () => user.retrieve(""));
        user.retrieve("retrieve enoent");
      },
    ],
  },
  {
    name: "RETRIEVE_SESSION fails with EINVAL the second time, finished or not, and ENOENT once it is closed",
    stages: [
      (user) => user.carry(user.create("retrieve twice")),
      (user) => {
        const session = user.retrieve("retrieve twice");
        user.fails("EINVAL", () => user.retrieve("retrieve twice"));
        finish(user.host, session);
        user.fails("EINVAL", () => user.retrieve("retrieve twice"));
        user.close(session);
        user.fails("ENOENT", () => user.retrieve("retrieve twice"));
      },
    ],
  },
  {
    name: "RETRIEVE_SESSION fails with EMFILE without a free descriptor, and works afterwards",
    stages: [
      (user) => user.carry(user.create("retrieve emfile")),
      (user) => {
        user.withDevice((device) =>
          user.withoutDescriptors(device, () =>
            user.fails("EMFILE", () => retrieveSession(user.host, device, "retrieve emfile")),
          ),
        );
        user.retrieve("retrieve emfile");
      },
    ],
  },
  {
    name: "RETRIEVE_SESSION works after it failed with ENOMEM at any allocation",
    stages: [
      // One session for each try: closing one that was retrieved finishes it.
      (user) => {
        for (let i = 0; i < 16; i++) user.carry(user.create(`retrieve enomem ${i}`));
      },
      (user) => {
        let retrieved = 0;
        user.withDevice((device) =>
          user.failEachAllocation(
            () => user.own(retrieveSession(user.host, device, `retrieve enomem ${retrieved}`)),
            () => {
              retrieved++;
            },
          ),
        );
        assert(retrieved > 0 && retrieved < 16, `${retrieved} sessions retrieved`);
        assert.equal(getName(user.host, user.retrieve("retrieve enomem 15")), "retrieve enomem 15");
      },
    ],
  },
  {
    name: "created and retrieved sessions have name spaces of their own",
    stages: [
      (user) => user.carry(user.create("name space")),
      (user) => {
        const created = user.create("name space");
        const retrieved = user.retrieve("name space");
        user.fails("EEXIST", () => user.create("name space"));
        finish(user.host, retrieved);
        user.close(retrieved);
        assert.equal(getName(user.host, created), "name space");
        user.fails("ENOENT", () => user.retrieve("name space"));
        user.fails("EEXIST", () => user.create("name space"));
      },
    ],
  },
  {
    name: "closing a created session gives its files and its name up",
    kselftests: ["preserve_memfd"],
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("close created");
        const file = user.memfd("its own");
        preserveFd(host, session, file, 1n);
        user.close(session);
        assert.equal(user.text(file), "its own");
        host.ftruncate(file, 8192);
        const again = user.create("close created");
        preserveFd(host, again, file, 1n);
        user.close(again);
      },
      (user) => user.fails("ENOENT", () => user.retrieve("close created")),
    ],
  },
  {
    name: "closing a retrieved session finishes it: files that were retrieved live on, the others are gone",
    stages: [
      (user) => {
        const session = user.create("close retrieved");
        preserveFd(user.host, session, user.memfd("kept"), 1n);
        preserveFd(user.host, session, user.memfd("discarded"), 2n);
        user.carry(session);
      },
      (user) => {
        const { host } = user;
        const session = user.retrieve("close retrieved");
        const file = user.retrieveFile(session, 1n);
        user.close(session);
        user.fails("ENOENT", () => user.retrieve("close retrieved"));
        assert.equal(user.text(file), "kept");
        preserveFd(host, user.create("close retrieved"), file, 1n);
      },
    ],
  },
  {
    name: "a session that was not retrieved, or not finished, is not there after the next jump",
    stages: [
      (user) => {
        for (const name of ["left alone", "left open", "left retrieved"]) {
          const session = user.create(name);
          preserveFd(user.host, session, user.memfd(name), 1n);
          user.carry(session);
        }
      },
      (user) => {
        user.carry(user.retrieve("left open"));
        const session = user.retrieve("left retrieved");
        user.carry(retrieveFd(user.host, session, 1n));
        user.carry(session);
      },
      (user) => {
        for (const name of ["left alone", "left open", "left retrieved"])
          user.fails("ENOENT", () => user.retrieve(name));
      },
    ],
  },
  {
    name: "2000 sessions are carried, and retrieved in any order",
    kselftests: ["preserve_many_sessions", "luo_stress_sessions.c"],
    stages: [
      (user) => {
        const sessions = user.withDevice((device) =>
          Array.from({ length: MANY }, (_, i) =>
            user.own(createSession(user.host, device, `many ${i}`)),
          ),
        );
        for (const session of sessions) user.carry(session);
      },
      (user) =>
        user.withDevice((device) => {
          for (let i = 0; i < MANY; i++) {
            // 7 and 2000 have no common divisor.
            const name = `many ${(i * 7) % MANY}`;
            const session = user.own(retrieveSession(user.host, device, name));
            if (i % 100 === 0) assert.equal(getName(user.host, session), name);
            if (i % 2 === 0) finish(user.host, session);
            user.close(session);
          }
          user.fails("ENOENT", () => retrieveSession(user.host, device, "many 0"));
        }),
    ],
  },
];
