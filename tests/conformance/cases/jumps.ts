/**
 * reboot(2) and several jumps in a row.
 *
 * Source: Linux 7.3 kernel/reboot.c, kernel/kexec_core.c kernel_kexec, kernel/liveupdate/luo_session.c luo_session_serialize
 * @module
 */
import assert from "node:assert/strict";
import {
  COMMAND_LINE_SIZE,
  F_ADD_SEALS,
  F_SEAL_SHRINK,
  SEEK_SET,
} from "../../../src/abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_KEXEC } from "../../../src/abi/uapi/reboot.ts";
import { PAGE_SIZE } from "../../../src/base/units.ts";
import { finish, preserveFd } from "../../../src/host/liveupdate.ts";
import type { CaseUser } from "../case-user.ts";
import type { ConformanceCase } from "../conformance-case.ts";
import { loadNextKernel } from "../stage-run.ts";

const CARRIED = "three jumps";
const TOKEN = 7n;
const CARRIED_BYTES = 4 * PAGE_SIZE;

/** Takes the file over, checks what all stages so far have written, and preserves it anew. */
function carryOn(user: CaseUser, stage: number, isLast: boolean): void {
  const { host } = user;
  const session = user.retrieve(CARRIED);
  const file = user.retrieveFile(session, TOKEN);
  const expected = new Uint8Array(CARRIED_BYTES);
  for (let written = 0; written < stage; written++) expected[written * PAGE_SIZE] = written + 1;
  assert.deepEqual(user.bytes(file, 0, CARRIED_BYTES), expected);
  assert.equal(user.position(file), stage);
  assert.equal(user.seals(file), F_SEAL_SHRINK);
  if (isLast) return;
  const next = user.create(CARRIED);
  user.fails("EBUSY", () => preserveFd(host, next, file, TOKEN));
  finish(host, session);
  user.close(session);
  writeMark(user, file, stage);
  preserveFd(host, next, file, TOKEN);
  user.carry(next);
}

function writeMark(user: CaseUser, file: number, stage: number): void {
  user.host.pwrite(file, Uint8Array.of(stage + 1), stage * PAGE_SIZE);
  user.host.lseek(file, stage + 1, SEEK_SET);
}

export const JUMP_CASES: readonly ConformanceCase[] = [
  {
    name: "reboot fails with EINVAL for KEXEC while no image is loaded, and for what is no command",
    stages: [
      (user) => {
        const { host } = user;
        user.fails("EINVAL", () => host.reboot(LINUX_REBOOT_CMD_KEXEC));
        host.kexecUnload();
        loadNextKernel(user);
        host.kexecUnload();
        user.fails("EINVAL", () => host.reboot(LINUX_REBOOT_CMD_KEXEC));
        user.fails("EINVAL", () => host.reboot(0x12345678));
        const { kernel, initrd } = user.nextKernel;
        user.fails("ENOENT", () => host.kexecFileLoad(`${kernel} too`, initrd, ""));
        for (const line of ["x".repeat(COMMAND_LINE_SIZE), "a\0b"])
          user.fails("EINVAL", () => host.kexecFileLoad(kernel, initrd, line));
        user.fails("EINVAL", () => host.reboot(LINUX_REBOOT_CMD_KEXEC));
        // Nothing of it has frozen anything.
        const session = user.create("reboot refused");
        preserveFd(host, session, user.memfd("x"), 1n);
      },
    ],
  },
  {
    name: "a freeze that fails leaves everything usable",
    skip: { linux: "the freeze of a memfd cannot fail" },
    stages: [
      (user) => {
        const { host } = user;
        const session = user.create("freeze fails");
        const file = user.memfd("x");
        preserveFd(host, session, file, 1n);
        loadNextKernel(user);
        const reached = user.faults.during(1, () =>
          user.fails("ENOMEM", () => host.reboot(LINUX_REBOOT_CMD_KEXEC)),
        );
        assert.equal(reached, true);
        host.kexecUnload();
        preserveFd(host, session, user.memfd("y"), 2n);
        user.fails("EPERM", () => host.ftruncate(file, 0));
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("freeze fails");
        assert.equal(user.text(user.retrieveFile(session, 1n)), "x");
        assert.equal(user.text(user.retrieveFile(session, 2n)), "y");
      },
    ],
  },
  {
    name: "a file is carried through three jumps when each kernel preserves it anew",
    stages: [
      (user) => {
        const session = user.create(CARRIED);
        const file = user.memfd();
        user.host.ftruncate(file, CARRIED_BYTES);
        user.host.fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK);
        writeMark(user, file, 0);
        preserveFd(user.host, session, file, TOKEN);
        user.carry(session);
      },
      (user) => carryOn(user, 1, false),
      (user) => carryOn(user, 2, false),
      (user) => carryOn(user, 3, true),
    ],
  },
  {
    name: "a session created after a jump is there after the next, whatever the first left",
    stages: [
      null,
      (user) => {
        const session = user.create("second generation");
        preserveFd(user.host, session, user.memfd("second"), 1n);
        user.carry(session);
      },
      (user) => {
        const session = user.retrieve("second generation");
        assert.equal(user.text(user.retrieveFile(session, 1n)), "second");
        finish(user.host, session);
      },
      (user) => user.fails("ENOENT", () => user.retrieve("second generation")),
    ],
  },
];
