/**
 * /dev/liveupdate and session descriptors as files.
 *
 * Source: Linux 7.3 kernel/liveupdate/luo_core.c luo_open, luo_session.c luo_session_getfile
 * @module
 */
import assert from "node:assert/strict";
import {
  F_GET_SEALS,
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  SEEK_CUR,
} from "../../../src/abi/uapi/fs.ts";
import { createSession, getName, preserveFd } from "../../../src/host/liveupdate.ts";
import { type CaseUser, LIVEUPDATE_DEVICE } from "../case-user.ts";
import type { ConformanceCase } from "../conformance-case.ts";

/** It has nothing but ioctls. */
function hasNoBytes(user: CaseUser, fd: number): void {
  const { host } = user;
  const byte = new Uint8Array(1);
  user.fails("EINVAL", () => host.read(fd, byte));
  user.fails("EINVAL", () => host.write(fd, byte));
  // The position of a device's descriptor counts as one that there is; it has nothing to read there.
  const positioned = host.fstat(fd).kind === "device" ? "EINVAL" : "ESPIPE";
  user.fails(positioned, () => host.pread(fd, byte, 0));
  user.fails(positioned, () => host.pwrite(fd, byte, 0));
  user.fails("ESPIPE", () => host.lseek(fd, 0, SEEK_CUR));
  user.fails("ENODEV", () => host.mmap(fd, 0, 4096));
  user.fails("EINVAL", () => host.ftruncate(fd, 0));
  user.fails("ENODEV", () => host.fallocate(fd, 0, 0, 4096));
  user.fails("EINVAL", () => host.fcntl(fd, F_GET_SEALS, 0));
}

export const DEVICE_CASES: readonly ConformanceCase[] = [
  {
    name: "the device can be opened again when it was closed",
    kselftests: ["basic_open_close"],
    stages: [
      (user) => {
        for (let i = 0; i < 3; i++) user.withDevice((device) => assert(device >= 0));
        assert.equal(user.host.stat(LIVEUPDATE_DEVICE).kind, "device");
      },
    ],
  },
  {
    name: "the device opened for reading alone creates sessions; EEXIST, ENOTDIR and ENOENT beside it",
    stages: [
      (user) => {
        const { host } = user;
        const device = user.own(host.open(LIVEUPDATE_DEVICE, O_RDONLY));
        user.own(createSession(host, device, "device read-only"));
        user.close(device);
        user.fails("EEXIST", () => host.open(LIVEUPDATE_DEVICE, O_RDWR | O_CREAT | O_EXCL));
        user.fails("ENOTDIR", () => host.open(LIVEUPDATE_DEVICE, O_RDONLY | O_DIRECTORY));
        user.fails("ENOTDIR", () => host.open(`${LIVEUPDATE_DEVICE}/x`, O_RDWR));
        user.fails("ENOENT", () => host.open(`${LIVEUPDATE_DEVICE}2`, O_RDWR));
        // None of them has opened it.
        user.withDevice(() => {});
      },
    ],
  },
  {
    name: "open() of the device fails with EBUSY until its last descriptor is closed",
    kselftests: ["exclusive_open"],
    stages: [
      (user) => {
        const { host } = user;
        const device = user.own(host.open(LIVEUPDATE_DEVICE, O_RDWR));
        user.fails("EBUSY", () => host.open(LIVEUPDATE_DEVICE, O_RDWR));
        const twin = user.own(host.dup(device));
        user.close(device);
        user.fails("EBUSY", () => host.open(LIVEUPDATE_DEVICE, O_RDWR));
        user.close(twin);
        user.own(host.open(LIVEUPDATE_DEVICE, O_RDWR));
      },
    ],
  },
  {
    name: "a session outlives the descriptor of the device",
    stages: [
      (user) => {
        const { host } = user;
        const device = user.own(host.open(LIVEUPDATE_DEVICE, O_RDWR));
        const session = user.own(createSession(host, device, "device closed"));
        user.close(device);
        preserveFd(host, session, user.memfd("x"), 1n);
        assert.equal(getName(host, session), "device closed");
      },
    ],
  },
  {
    name: "a session lives until its last descriptor is closed",
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("session dup");
        const file = user.memfd("x");
        preserveFd(host, session, file, 1n);
        const twin = user.own(host.dup(session));
        user.close(session);
        user.fails("EEXIST", () => user.create("session dup"));
        user.fails("EPERM", () => host.ftruncate(file, 0));
        user.close(twin);
        host.ftruncate(file, 0);
        user.create("session dup");
      },
    ],
  },
  {
    name: "what is done with bytes fails on the device and on a session, with Linux's errnos",
    stages: [
      (user) => {
        user.withDevice((device) => {
          assert.equal(user.host.fstat(device).kind, "device");
          hasNoBytes(user, device);
        });
        const session = user.create("session bytes");
        assert.equal(user.host.fstat(session).kind, "anonymous");
        hasNoBytes(user, session);
      },
    ],
  },
];
