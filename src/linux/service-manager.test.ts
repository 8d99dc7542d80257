import assert from "node:assert/strict";
import { join } from "node:path";
import { skipUnless } from "../../tests/support/skip.ts";
import { type Ffi, SOCK_DGRAM, SOCK_NONBLOCK } from "./ffi.ts";
import { ServiceManager, takePassedDescriptors } from "./service-manager.ts";
import { SocketMessages } from "./socket-messages.ts";
import { linuxTests } from "./test-rig.ts";

const linux = process.platform === "linux" ? null : `needs Linux, not ${process.platform}`;
const linuxTest = linuxTests(skipUnless("a service manager", linux));

/** What a service manager receives. */
function receiver(ffi: Ffi, path: string) {
  const socket = ffi.socket(SOCK_DGRAM | SOCK_NONBLOCK);
  ffi.bind(socket, path);
  const messages = new SocketMessages(ffi);
  return {
    next(): { readonly text: string; readonly fds: readonly number[] } {
      const bytes = new Uint8Array(4096);
      const { lengthBytes, fds } = messages.receive(socket, bytes);
      return { text: Buffer.from(bytes.subarray(0, lengthBytes)).toString(), fds };
    },
    close: () => ffi.close(socket),
  };
}

for (const kind of ["a path", "an abstract name"])
  linuxTest(`a service manager at ${kind} is told, and keeps descriptors`, ({ ffi, folder }) => {
    const path = kind === "a path" ? join(folder, "notify") : `@holdfast-test-${process.pid}`;
    const manager = receiver(ffi, path);
    const service = ServiceManager.fromEnvironment(ffi, { NOTIFY_SOCKET: path });
    assert.ok(service !== null);
    service.ready();
    assert.deepEqual(manager.next(), { text: "READY=1", fds: [] });
    service.status("two\nlines");
    assert.equal(manager.next().text, "STATUS=two lines");
    const file = ffi.memfdCreate("session", 1);
    ffi.write(file, new Uint8Array([42]));
    service.store("session-vm:ü 1", file);
    ffi.close(file);
    const { text, fds } = manager.next();
    assert.equal(text, "FDSTORE=1\nFDNAME=session-vm%3A%C3%BC%201");
    const byte = new Uint8Array(1);
    ffi.pread(fds[0], byte, 0);
    assert.deepEqual([fds.length, byte[0]], [1, 42]);
    ffi.close(fds[0]);
    service.remove("session-vm:ü 1");
    assert.equal(manager.next().text, "FDSTOREREMOVE=1\nFDNAME=session-vm%3A%C3%BC%201");
    service.stopping();
    assert.equal(manager.next().text, "STOPPING=1");
    for (const name of ["", "x".repeat(256), "ü".repeat(43), "\ud800"])
      assert.throws(() => service.store(name, 0), { code: "EINVAL" });
    service.remove("ü".repeat(42));
    assert.throws(() => service.store("x", 999_999), { code: "EBADF" });
    manager.close();
    assert.throws(() => service.ready(), { code: "ECONNREFUSED" });
  });

linuxTest(
  "a service manager that is busy gets its message later, or the caller is told",
  ({ ffi, folder }) => {
    const path = join(folder, "notify");
    const manager = receiver(ffi, path);
    let waits = 0;
    const patient: Ffi = {
      ...ffi,
      // It reads when it has been waited for once.
      poll(fds, timeoutNs) {
        if (++waits > 1) return 0;
        manager.next();
        return ffi.poll(fds, timeoutNs);
      },
    };
    const service = ServiceManager.fromEnvironment(patient, { NOTIFY_SOCKET: path });
    assert.ok(service !== null);
    let sent = 0;
    assert.throws(
      () => {
        for (; sent < 10_000; sent++) service.status(`${sent}`);
      },
      { code: "EAGAIN" },
    );
    assert.equal(waits, 2);
    for (let i = 1; i < sent; i++) assert.equal(manager.next().text, `STATUS=${i}`);
    assert.throws(() => manager.next(), { code: "EAGAIN" });
    manager.close();
  },
);

linuxTest("without a service manager nobody is told; a wrong address is refused", ({ ffi }) => {
  assert.equal(ServiceManager.fromEnvironment(ffi, {}), null);
  assert.equal(ServiceManager.fromEnvironment(ffi, { NOTIFY_SOCKET: "" }), null);
  for (const NOTIFY_SOCKET of ["vsock:2:1", "relative"])
    assert.throws(() => ServiceManager.fromEnvironment(ffi, { NOTIFY_SOCKET }), {
      code: "EINVAL",
    });
});

linuxTest("passed descriptors are taken once, with their names, and not inherited", ({ ffi }) => {
  const calls: (readonly number[])[] = [];
  const recording: Ffi = {
    ...ffi,
    fcntl(...args) {
      calls.push(args);
      return 0;
    },
  };
  const passed = {
    LISTEN_PID: String(process.pid),
    LISTEN_FDS: "4",
    LISTEN_FDNAMES: "agent.socket:session-vm%3A1::50%",
  };
  const environment: Record<string, string | undefined> = { ...passed, PATH: "/bin" };
  assert.deepEqual(takePassedDescriptors(recording, environment), [
    { fd: 3, name: "agent.socket" },
    { fd: 4, name: "session-vm:1" },
    { fd: 5, name: "" },
    { fd: 6, name: "50%" },
  ]);
  const [F_SETFD, FD_CLOEXEC] = [2, 1];
  assert.deepEqual(
    calls,
    [3, 4, 5, 6].map((fd) => [fd, F_SETFD, FD_CLOEXEC]),
  );
  assert.deepEqual(environment, { PATH: "/bin" });
  assert.deepEqual(takePassedDescriptors(recording, environment), []);
  // Those of the parent, or nonsense, are not this process's.
  for (const wrong of [
    { LISTEN_PID: "1" },
    { LISTEN_PID: undefined },
    { LISTEN_FDS: "-1" },
    { LISTEN_FDS: "1e3" },
    { LISTEN_FDS: undefined },
    { LISTEN_FDS: "999999" },
  ])
    assert.deepEqual(takePassedDescriptors(recording, { ...passed, ...wrong }), []);
  assert.equal(calls.length, 4);
  assert.deepEqual(takePassedDescriptors(ffi, { ...passed, LISTEN_FDS: "0" }), []);
  // The number says more than there are.
  assert.throws(() => takePassedDescriptors(ffi, { ...passed, LISTEN_FDS: "9999" }), {
    code: "EBADF",
  });
});
