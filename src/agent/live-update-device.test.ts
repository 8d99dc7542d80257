import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError } from "../base/errno.ts";
import { createSession } from "../host/liveupdate.ts";
import { LiveUpdateDevice } from "./live-update-device.ts";
import { FakeHost, Panicked, SESSIONS_PER_BLOCK } from "./test-rig.ts";

/** A kernel in which somebody has `count` sessions open, "other0" and so on. */
function hostWithSessions(count: number) {
  const fake = new FakeHost();
  const device = LiveUpdateDevice.open(fake.host);
  const sessions = Array.from({ length: count }, (_, i) => device.create(`other${i}`));
  return { fake, device, sessions };
}

/** CREATE_SESSION of a name in use, as any process may do it. */
function duplicate(fake: FakeHost, device: number): void {
  assert.throws(
    () => createSession(fake.host, device, "other0"),
    (error) => isKernelError(error, "EEXIST"),
  );
}

test("a name in use at 51·k sessions panics the next kernel of whoever does nothing about it", () => {
  for (const count of [1, 50, 51, 52, 101, 102, 153]) {
    const fake = new FakeHost();
    const device = fake.host.open("/dev/liveupdate", 0);
    for (let i = 0; i < count; i++) createSession(fake.host, device, `other${i}`);
    duplicate(fake, device);
    if (count % SESSIONS_PER_BLOCK === 0) assert.throws(() => fake.afterJump(), Panicked);
    else assert.equal(fake.afterJump().incoming.size, count);
  }
});

test("create() of a name in use fails with EEXIST and leaves no empty block, also when sessions are closed and made later", () => {
  for (let count = 1; count <= 2 * SESSIONS_PER_BLOCK + 2; count++) {
    const { fake, device, sessions } = hostWithSessions(count);
    const refused = (error: unknown) =>
      isKernelError(error, "EEXIST") && /session "other0" open/.test(error.message);
    assert.throws(() => device.create("other0"), refused);
    assert.equal(fake.openSessions, count);
    assert.equal(fake.afterJump().incoming.size, count, `${count} sessions`);
    fake.host.close(sessions[0]);
    assert.equal(fake.afterJump().incoming.size, count - 1, `${count} sessions, one closed`);
    for (const name of ["other0", "a", "b"]) device.create(name);
    assert.throws(
      () => device.create("a"),
      (error) => isKernelError(error, "EEXIST"),
    );
    assert.equal(fake.afterJump().incoming.size, count + 2, `${count} sessions, three made`);
  }
});

test("withThrowaway() takes away the empty block that another process has left, and its own session", () => {
  const { fake, device } = hostWithSessions(SESSIONS_PER_BLOCK);
  device.close();
  const other = fake.host.open("/dev/liveupdate", 0);
  duplicate(fake, other);
  fake.host.close(other);
  assert.throws(() => fake.afterJump(), Panicked);
  assert.equal(
    LiveUpdateDevice.open(fake.host).withThrowaway((session) => {
      assert.ok(fake.outgoing.has("holdfast-probe"));
      assert.ok(session > 0);
      return 7;
    }),
    7,
  );
  assert.equal(fake.afterJump().incoming.size, SESSIONS_PER_BLOCK);
});

test("withThrowaway() closes its session when what it is for fails", () => {
  const { fake, device } = hostWithSessions(1);
  const bug = new TypeError("a bug");
  assert.throws(
    () =>
      device.withThrowaway(() => {
        throw bug;
      }),
    (error) => error === bug,
  );
  assert.deepEqual([...fake.outgoing.keys()], ["other0"]);
});

test("withThrowaway() takes another name where one is in use, and fails with EEXIST when all are", () => {
  const { fake, device } = hostWithSessions(SESSIONS_PER_BLOCK - 1);
  device.create("holdfast-probe");
  device.withThrowaway(() => assert.ok(fake.outgoing.has("holdfast-probe-1")));
  assert.equal(fake.afterJump().incoming.size, SESSIONS_PER_BLOCK);
  device.create("holdfast-probe-1");
  device.create("holdfast-probe-2");
  assert.throws(
    () => device.withThrowaway(() => assert.fail("there is no session")),
    (error) => isKernelError(error, "EEXIST") && /holdfast-probe-2/.test(error.message),
  );
});

test("open() fails with EBUSY when another has the device, and can be repeated after close()", () => {
  const { fake, device } = hostWithSessions(1);
  assert.throws(
    () => LiveUpdateDevice.open(fake.host),
    (error) => isKernelError(error, "EBUSY"),
  );
  device.close();
  LiveUpdateDevice.open(fake.host);
  assert.ok(fake.outgoing.has("other0"), "sessions live on");
});
