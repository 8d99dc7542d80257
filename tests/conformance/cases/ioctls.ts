/**
 * How requests are told apart and their structures are taken, on /dev/liveupdate and on sessions.
 *
 * Source: Linux 7.3 kernel/liveupdate/luo_core.c luo_ioctl, luo_session.c luo_session_ioctl
 * @module
 */
import assert from "node:assert/strict";
import {
  LIVEUPDATE_IOCTL_CREATE_SESSION,
  LIVEUPDATE_IOCTL_RETRIEVE_SESSION,
  LIVEUPDATE_SESSION_FINISH,
  LIVEUPDATE_SESSION_GET_NAME,
  LIVEUPDATE_SESSION_PRESERVE_FD,
  LIVEUPDATE_SESSION_RETRIEVE_FD,
} from "../../../src/abi/uapi/liveupdate.ts";
import { ByteWords } from "../../../src/abi/words.ts";
import { getName, retrieveSession } from "../../../src/host/liveupdate.ts";
import type { CaseUser } from "../case-user.ts";
import type { ConformanceCase } from "../conformance-case.ts";
import { UNKNOWN_REQUEST } from "../divergences.ts";

/** Bytes of each request's structure, which are also the least it takes. */
const DEVICE_REQUESTS: readonly (readonly [request: number, sizeBytes: number])[] = [
  [LIVEUPDATE_IOCTL_CREATE_SESSION, 72],
  [LIVEUPDATE_IOCTL_RETRIEVE_SESSION, 72],
];
const SESSION_REQUESTS: typeof DEVICE_REQUESTS = [
  [LIVEUPDATE_SESSION_PRESERVE_FD, 16],
  [LIVEUPDATE_SESSION_GET_NAME, 72],
];
const INCOMING_REQUESTS: typeof DEVICE_REQUESTS = [
  [LIVEUPDATE_SESSION_RETRIEVE_FD, 16],
  [LIVEUPDATE_SESSION_FINISH, 8],
  [LIVEUPDATE_SESSION_GET_NAME, 72],
];
/** The same number as `_IOR(type, number, u32)`. */
const WITH_DIRECTION = 0x80040000;
/** The same number of another driver. */
const OTHER_TYPE = 0x4100;

/** A zeroed argument that says how long it is. */
export function sized(lengthBytes: number, size: number = lengthBytes): { bytes: Uint8Array } {
  const bytes = new Uint8Array(lengthBytes);
  new ByteWords(bytes).store32(0, size);
  return { bytes };
}

function rejectsEncodings(user: CaseUser, fd: number, requests: typeof DEVICE_REQUESTS): void {
  const { host } = user;
  const nowhere = { bytes: new Uint8Array(0) };
  for (const [request, sizeBytes] of requests) {
    const other = (request & ~0xff00) | OTHER_TYPE;
    user.fails("EFAULT", () => host.ioctl(fd, request, nowhere));
    user.fails("ENOTTY", () => host.ioctl(fd, (request | WITH_DIRECTION) >>> 0, sized(sizeBytes)));
    user.fails("ENOTTY", () => host.ioctl(fd, other, sized(sizeBytes)));
    user.fails("EFAULT", () => host.ioctl(fd, request, sized(sizeBytes, sizeBytes + 1)));
    // The number alone makes the kernel read the size.
    user.fails("EFAULT", () => host.ioctl(fd, other, nowhere));
    for (const size of [0, 4, sizeBytes - 1])
      user.fails("EINVAL", () => host.ioctl(fd, request, sized(sizeBytes, size)));
    for (const at of [sizeBytes, sizeBytes + 3, 2 * sizeBytes - 1]) {
      const tail = sized(2 * sizeBytes);
      tail.bytes[at] = 1;
      const before = tail.bytes.slice();
      user.fails("E2BIG", () => host.ioctl(fd, request, tail));
      assert.deepEqual(tail.bytes, before, "the argument is untouched");
    }
  }
}

function rejectsUnknown(user: CaseUser, fd: number, numbers: readonly number[]): void {
  const { host } = user;
  const expected = user.expected(UNKNOWN_REQUEST);
  for (const number of numbers) {
    const request = (LIVEUPDATE_IOCTL_CREATE_SESSION & ~0xff) | number;
    assert.equal(
      user.outcome(() => host.ioctl(fd, request, sized(72))),
      expected,
      `number ${number}`,
    );
    // Before the argument is read.
    assert.equal(
      user.outcome(() => host.ioctl(fd, request, { bytes: new Uint8Array(0) })),
      expected,
    );
  }
}

export const IOCTL_CASES: readonly ConformanceCase[] = [
  {
    name: "ioctl of the device fails with EFAULT, ENOTTY, EINVAL and E2BIG when its argument is wrong",
    stages: [
      (user) => user.withDevice((device) => rejectsEncodings(user, device, DEVICE_REQUESTS)),
    ],
  },
  {
    name: "ioctl of a session fails with EFAULT, ENOTTY, EINVAL and E2BIG when its argument is wrong",
    stages: [
      (user) => {
        const session = user.create("ioctl encodings");
        rejectsEncodings(user, session, SESSION_REQUESTS);
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("ioctl encodings");
        rejectsEncodings(user, session, INCOMING_REQUESTS);
        // None of it has finished the session.
        user.fails("EINVAL", () => user.retrieve("ioctl encodings"));
      },
    ],
  },
  {
    name: "ioctl refuses a number that there is not, before it reads the argument",
    stages: [
      (user) => {
        user.withDevice((device) => rejectsUnknown(user, device, [0x02, 0x3f, 0x40, 0x43, 0xff]));
        rejectsUnknown(user, user.create("ioctl numbers"), [0x00, 0x01, 0x3f, 0x44, 0xff]);
      },
    ],
  },
  {
    name: "ioctl takes a structure of a later uAPI when what it adds is zero",
    stages: [
      (user) => {
        const session = user.create("ioctl later uapi");
        for (const lengthBytes of [76, 200, 8192]) {
          const argument = sized(lengthBytes);
          user.host.ioctl(session, LIVEUPDATE_SESSION_GET_NAME, argument);
          assert.equal(
            new TextDecoder().decode(argument.bytes.subarray(8, 24)),
            "ioctl later uapi",
          );
        }
      },
    ],
  },
  {
    name: "a request of the other direction fails with EINVAL, before its size is looked at",
    stages: [
      (user) => {
        const session = user.create("ioctl direction");
        const { host } = user;
        for (const request of [LIVEUPDATE_SESSION_RETRIEVE_FD, LIVEUPDATE_SESSION_FINISH]) {
          user.fails("EINVAL", () => host.ioctl(session, request, sized(16)));
          const tail = sized(32);
          tail.bytes[31] = 1;
          user.fails("EINVAL", () => host.ioctl(session, request, tail));
        }
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("ioctl direction");
        const tail = sized(32);
        tail.bytes[31] = 1;
        user.fails("EINVAL", () =>
          user.host.ioctl(session, LIVEUPDATE_SESSION_PRESERVE_FD, sized(16)),
        );
        user.fails("EINVAL", () => user.host.ioctl(session, LIVEUPDATE_SESSION_PRESERVE_FD, tail));
        assert.equal(getName(user.host, session), "ioctl direction");
      },
    ],
  },
  {
    name: "FINISH and GET_NAME fail with EINVAL when reserved is set",
    stages: [
      (user) => {
        const session = user.create("ioctl reserved");
        const argument = sized(72);
        argument.bytes[4] = 1;
        user.fails("EINVAL", () => user.host.ioctl(session, LIVEUPDATE_SESSION_GET_NAME, argument));
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("ioctl reserved");
        const argument = sized(8);
        argument.bytes[7] = 1;
        user.fails("EINVAL", () => user.host.ioctl(session, LIVEUPDATE_SESSION_FINISH, argument));
        user.withDevice((device) =>
          user.fails("EINVAL", () => retrieveSession(user.host, device, "ioctl reserved")),
        );
      },
    ],
  },
];
