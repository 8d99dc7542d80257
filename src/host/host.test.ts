/** That our kernel's process is a `Host`: the compiler checks the signatures, a run that nothing is missing. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Process } from "../kernel/vfs/process.ts";
import type { Host } from "./host.ts";

/** Does not compile when a signature of Process is not that of Host. */
const asHost: (process: Process) => Host = (process) => process;

/** Does not compile when Host has a member that is not here, or the other way round. */
const MEMBERS: Readonly<Record<keyof Host, "call" | "value">> = {
  open: "call",
  close: "call",
  dup: "call",
  read: "call",
  write: "call",
  pread: "call",
  pwrite: "call",
  lseek: "call",
  ioctl: "call",
  mmap: "call",
  ftruncate: "call",
  fallocate: "call",
  fcntl: "call",
  fstat: "call",
  stat: "call",
  mkdir: "call",
  rmdir: "call",
  unlink: "call",
  rename: "call",
  readdir: "call",
  statfs: "call",
  mount: "call",
  umount: "call",
  memfdCreate: "call",
  eventfd: "call",
  kexecFileLoad: "call",
  kexecUnload: "call",
  reboot: "call",
  clockNs: "call",
  sleep: "call",
  bootedAtNs: "value",
  release: "value",
  commandLine: "value",
  print: "call",
};

/** What a process has for its kernel's tests. */
const OWN = ["constructor", "openDescriptors", "mappingCount", "exit"];

test("Process has every member of Host, and nothing else for userspace", () => {
  assert.equal(typeof asHost, "function");
  const members = Object.getOwnPropertyDescriptors(Process.prototype);
  for (const [name, kind] of Object.entries(MEMBERS)) {
    const found: PropertyDescriptor | undefined = members[name as keyof typeof members];
    assert.equal(typeof (kind === "call" ? found?.value : found?.get), "function", name);
  }
  assert.deepEqual(
    Object.keys(members).filter((name) => !(name in MEMBERS) && !OWN.includes(name)),
    [],
  );
});
