import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, test } from "node:test";
import { type ErrnoCode, KernelError } from "../base/errno.ts";
import { Rig, ToyFile, ToyFlb, ToyHandler } from "../kernel/liveupdate/test-rig.ts";
import { keptRanges } from "../machine/embedded/kexec-kept.ts";
import {
  createSession,
  finish,
  getName,
  preserveFd,
  retrieveFd,
  retrieveSession,
} from "./liveupdate.ts";

function fails(code: ErrnoCode, action: () => unknown): void {
  assert.throws(
    action,
    (error: unknown) => error instanceof KernelError && error.code === code,
    `expected ${code}`,
  );
}

/** A kernel with toy files; all kernels of the line write into one list of calls. */
function toyRig(withFlb = false): { rig: Rig; calls: string[]; handler: () => ToyHandler } {
  const calls: string[] = [];
  let latest: ToyHandler | undefined;
  const handlers = () => {
    latest = new ToyHandler(calls, withFlb ? [new ToyFlb(calls)] : []);
    return [latest];
  };
  const rig = Rig.cold({ handlers });
  return { rig, calls, handler: () => latest as ToyHandler };
}

function memfd(rig: Rig, text = "", flags = 2): number {
  const file = rig.shmem.memfdCreate("test", flags);
  file.write(new TextEncoder().encode(text));
  return rig.fds.install(file);
}

function toy(rig: Rig, id: number): number {
  return rig.fds.install(new ToyFile(id));
}

describe("a created session", () => {
  test("close unpreserves all files, last first, and gives everything back", () => {
    const { rig, calls } = toyRig(true);
    const device = rig.openDevice();
    const before = rig.usage();
    const session = createSession(rig, device, "s");
    for (const id of [1, 2, 3]) preserveFd(rig, session, toy(rig, id), BigInt(id));
    rig.close(session);
    assert.deepEqual(calls, [
      "toy-flb-v1 preserve",
      "preserve 1",
      "preserve 2",
      "preserve 3",
      "unpreserve 3 3",
      "unpreserve 2 2",
      "unpreserve 1 1",
      "toy-flb-v1 unpreserve 7",
    ]);
    assert.deepEqual(rig.usage(), before);
  });

  test("a preserved file lives on after its descriptor is closed, until its session is", () => {
    const { rig } = toyRig();
    const session = createSession(rig, rig.openDevice(), "s");
    const file = new ToyFile(1);
    const fd = rig.fds.install(file);
    preserveFd(rig, session, fd, 1n);
    rig.close(fd);
    assert.equal(file.isReleased, false);
    rig.close(session);
    assert.equal(file.isReleased, true);
  });
});

describe("freeze()", () => {
  test("freezes files in order, then FLBs, and fails every call with EBUSY until it is undone", () => {
    const { rig, calls } = toyRig(true);
    const device = rig.openDevice();
    const a = createSession(rig, device, "a");
    const b = createSession(rig, device, "b");
    preserveFd(rig, b, toy(rig, 1), 1n);
    preserveFd(rig, a, toy(rig, 2), 1n);
    preserveFd(rig, a, toy(rig, 3), 2n);
    const before = rig.usage();
    calls.length = 0;
    const frozen = rig.luo.freeze();
    assert.deepEqual(calls, ["freeze 2", "freeze 3", "freeze 1", "toy-flb-v1 freeze"]);
    fails("EBUSY", () => createSession(rig, device, "c"));
    fails("EBUSY", () => retrieveSession(rig, device, "c"));
    fails("EBUSY", () => preserveFd(rig, a, toy(rig, 4), 4n));
    fails("EBUSY", () => getName(rig, a));
    fails("EBUSY", () => rig.luo.freeze());
    calls.length = 0;
    frozen.unfreeze();
    assert.deepEqual(calls, [
      "toy-flb-v1 unfreeze 8",
      "unfreeze 1 1001",
      "unfreeze 3 1003",
      "unfreeze 2 1002",
    ]);
    assert.deepEqual(rig.usage(), before);
    assert.equal(getName(rig, a), "a");
    calls.length = 0;
    rig.close(a);
    assert.deepEqual(calls, ["unpreserve 3 3", "unpreserve 2 2"]);
  });

  test("a session that is closed while frozen goes when the freeze is undone", () => {
    const { rig, calls } = toyRig();
    const session = createSession(rig, rig.openDevice(), "s");
    const before = rig.luo.counts();
    preserveFd(rig, session, toy(rig, 1), 1n);
    const frozen = rig.luo.freeze();
    rig.close(session);
    assert.equal(calls.includes("unpreserve 1 1"), false);
    frozen.unfreeze();
    assert.deepEqual(calls.slice(-2), ["unfreeze 1 1001", "unpreserve 1 1"]);
    assert.deepEqual(rig.luo.counts(), { ...before, outgoingSessions: 0 });
  });

  test("after an undone freeze the next kernel would find nothing, after the next one all", () => {
    const { rig } = toyRig();
    const session = createSession(rig, rig.openDevice(), "s");
    preserveFd(rig, session, toy(rig, 1), 1n);
    rig.luo.freeze().unfreeze();
    rig.close(session);
    const again = createSession(rig, 0, "again");
    preserveFd(rig, again, toy(rig, 2), 2n);
    const next = rig.jump();
    const device = next.openDevice();
    fails("ENOENT", () => retrieveSession(next, device, "s"));
    const file = next.fds.get(retrieveFd(next, retrieveSession(next, device, "again"), 2n));
    assert.equal((file as ToyFile).id, 2);
  });

  test("every failure undoes what was done, last first, and the host runs on", () => {
    const { rig, calls } = toyRig(true);
    const device = rig.openDevice();
    for (const name of ["a", "b"]) {
      const session = createSession(rig, device, name);
      for (const id of [1, 2]) preserveFd(rig, session, toy(rig, id), BigInt(id));
    }
    const before = rig.usage();
    const memory = handoverBytes(rig);
    const points = rig.faults.record(() => rig.luo.freeze().unfreeze());
    assert.deepEqual(points, [...Array(4).fill("luo.freeze:file"), "luo.freeze:flb"]);
    for (let i = 0; i < points.length; i++) {
      calls.length = 0;
      rig.faults.arm(i, (point) => new KernelError("ENOMEM", "test", point));
      fails("ENOMEM", () => rig.luo.freeze());
      assert.equal(rig.faults.disarm(), true, "the armed step was reached");
      const frozen = calls.filter((call) => call.startsWith("freeze"));
      const undone = calls.filter((call) => call.startsWith("unfreeze"));
      assert.deepEqual(
        undone.map((call) => call.split(" ")[1]),
        frozen.map((call) => call.split(" ")[1]).reverse(),
      );
      assert.equal(frozen.length, Math.min(i, 4));
      assert.deepEqual(rig.usage(), before);
      assert.deepEqual(handoverBytes(rig), memory, "nothing is left in the handover");
    }
  });
});

/** All bytes that the next kernel would get. */
function handoverBytes(rig: Rig): string {
  const hash = createHash("sha256");
  for (const { start, lengthBytes } of keptRanges(rig.ram, rig.kho.bootParameters()).ranges) {
    const bytes = new Uint8Array(lengthBytes);
    rig.ram.read(start, bytes);
    hash.update(bytes);
  }
  return hash.digest("hex");
}

describe("preserve", () => {
  test("a failure at every step leaves nothing", () => {
    const { rig, calls } = toyRig(true);
    const device = rig.openDevice();
    const session = createSession(rig, device, "s");
    const fd = toy(rig, 1);
    const before = rig.usage();
    const points = rig.faults.record(() => preserveFd(rig, session, fd, 1n));
    assert.deepEqual(points, [
      "luo.serialise:alloc",
      "mm:alloc",
      "kho:preserve",
      "luo.preserve:flb",
      "luo.preserve:handler",
    ]);
    rig.close(session);
    const again = createSession(rig, device, "s");
    assert.deepEqual(rig.usage(), before);
    for (let i = 0; i < points.length; i++) {
      calls.length = 0;
      rig.faults.arm(i, (point) => new KernelError("ENOMEM", "test", point));
      fails("ENOMEM", () => preserveFd(rig, again, fd, 1n));
      assert.equal(rig.faults.disarm(), true, "the armed step was reached");
      assert.deepEqual(rig.usage(), before, points[i]);
      assert.equal(rig.fds.get(fd).references, 1);
      assert.deepEqual(calls, i < 4 ? [] : ["toy-flb-v1 preserve", "toy-flb-v1 unpreserve 7"]);
    }
  });

  test("the second FLB of a handler fails: the first is given up", () => {
    const calls: string[] = [];
    const flbs = [new ToyFlb(calls, "one"), new ToyFlb(calls, "two")];
    const rig = Rig.cold({ handlers: () => [new ToyHandler(calls, flbs)] });
    const session = createSession(rig, rig.openDevice(), "s");
    rig.faults.arm(4, (point) => new KernelError("ENODEV", "test", point));
    fails("ENODEV", () => preserveFd(rig, session, toy(rig, 1), 1n));
    rig.faults.disarm();
    assert.deepEqual(calls, ["one preserve", "one unpreserve 7"]);
  });

  test("a session that cannot get its block is not there", () => {
    const rig = Rig.cold();
    const device = rig.openDevice();
    const before = rig.usage();
    for (const _ of [0, 1, 2]) {
      rig.faults.arm(_, (point) => new KernelError("ENOMEM", "test", point));
      fails("ENOMEM", () => createSession(rig, device, "s"));
      assert.equal(rig.faults.disarm(), true, "the armed step was reached");
      assert.deepEqual(rig.usage(), before);
    }
  });

  test("a freeze allocates nothing: it works when memory is full", () => {
    const { rig } = toyRig(true);
    const session = createSession(rig, rig.openDevice(), "s");
    for (let i = 0; i < 130; i++) preserveFd(rig, session, toy(rig, i), BigInt(i));
    const points = rig.faults.record(() => rig.luo.freeze());
    assert.equal(
      points.some((point) => point.startsWith("mm:") || point.startsWith("kho:")),
      false,
    );
  });
});

describe("a session of the previous kernel", () => {
  test("a retrieval that failed fails for ever, and finish discards the file", () => {
    const { rig, calls } = toyRig();
    const session = createSession(rig, rig.openDevice(), "s");
    for (const id of [1, 2]) preserveFd(rig, session, toy(rig, id), BigInt(id));
    const next = rig.jump();
    const retrieved = retrieveSession(next, next.openDevice(), "s");
    next.faults.arm(0, (point) => new KernelError("EIO", "test", point));
    fails("EIO", () => retrieveFd(next, retrieved, 1n));
    next.faults.disarm();
    calls.length = 0;
    fails("EIO", () => retrieveFd(next, retrieved, 1n));
    assert.deepEqual(calls, []);
    retrieveFd(next, retrieved, 2n);
    finish(next, retrieved);
    assert.deepEqual(calls, ["retrieve 2", "finish 2", "finish 1 discarded"]);
  });

  test("finish fails with EBUSY as long as a file cannot be given up, and changes nothing", () => {
    const { rig, calls, handler } = toyRig(true);
    const session = createSession(rig, rig.openDevice(), "s");
    for (const id of [1, 2]) preserveFd(rig, session, toy(rig, id), BigInt(id));
    const next = rig.jump();
    const device = next.openDevice();
    const retrieved = retrieveSession(next, device, "s");
    const file = next.fds.get(retrieveFd(next, retrieved, 1n));
    handler().mayFinish = false;
    const before = next.usage();
    calls.length = 0;
    fails("EBUSY", () => finish(next, retrieved));
    assert.deepEqual(next.usage(), before);
    // Closing it does not lose it either.
    next.close(retrieved);
    assert.deepEqual(next.usage(), before);
    assert.equal(next.warnings.length, 1);
    assert.deepEqual(calls, []);
    const again = retrieveSession(next, device, "s");
    assert.equal(next.fds.get(retrieveFd(next, again, 1n)), file);
    handler().mayFinish = true;
    finish(next, again);
    assert.deepEqual(calls, ["finish 2 discarded", "finish 1", "toy-flb-v1 finish 8"]);
    finish(next, again);
    fails("ENOENT", () => retrieveFd(next, again, 1n));
    fails("EINVAL", () => retrieveSession(next, device, "s"));
    next.close(again);
    fails("ENOENT", () => retrieveSession(next, device, "s"));
    const { incomingSessions, incomingFlbs, preservedInodes } = next.luo.counts();
    assert.deepEqual([incomingSessions, incomingFlbs, preservedInodes], [0, 0, 0]);
  });

  test("a failure before any file is finished leaves all of them", () => {
    const { rig, calls } = toyRig();
    const session = createSession(rig, rig.openDevice(), "s");
    for (const id of [1, 2]) preserveFd(rig, session, toy(rig, id), BigInt(id));
    const next = rig.jump();
    const retrieved = retrieveSession(next, next.openDevice(), "s");
    const before = next.usage();
    calls.length = 0;
    for (const i of [0, 1]) {
      next.faults.arm(i, (point) => new KernelError("EIO", "test", point));
      fails("EIO", () => finish(next, retrieved));
      assert.equal(next.faults.disarm(), true, "the armed step was reached");
      assert.deepEqual(next.usage(), before);
    }
    assert.deepEqual(calls, []);
    retrieveFd(next, retrieved, 2n);
  });

  test("a file lives as long as its session is unfinished or a descriptor is open", () => {
    const { rig } = toyRig();
    const session = createSession(rig, rig.openDevice(), "s");
    for (const id of [1, 2]) preserveFd(rig, session, toy(rig, id), BigInt(id));
    const next = rig.jump();
    const retrieved = retrieveSession(next, next.openDevice(), "s");
    const fds = [1n, 2n].map((token) => retrieveFd(next, retrieved, token));
    const [first, second] = fds.map((fd) => next.fds.get(fd) as ToyFile);
    next.close(fds[0]);
    assert.equal(first.isReleased, false);
    finish(next, retrieved);
    assert.deepEqual([first.isReleased, second.isReleased], [true, false]);
    next.close(fds[1]);
    assert.equal(second.isReleased, true);
  });

  test("closing it finishes it", () => {
    const { rig, calls } = toyRig(true);
    const session = createSession(rig, rig.openDevice(), "s");
    preserveFd(rig, session, toy(rig, 1), 1n);
    const next = rig.jump();
    next.close(retrieveSession(next, next.openDevice(), "s"));
    assert.deepEqual(calls.slice(-2), ["finish 1 discarded", "toy-flb-v1 finish 8"]);
    assert.equal(next.luo.counts().incomingSessions, 0);
  });

  test("a handler finds other files of its session by token, and itself not at all", () => {
    const calls: string[] = [];
    class Needy extends ToyHandler {
      override retrieve(args: Parameters<ToyHandler["retrieve"]>[0]) {
        if (args.data === 2) assert.equal((args.session.incomingFile(1n) as ToyFile).id, 1);
        if (args.data === 3) args.session.incomingFile(3n);
        return super.retrieve(args);
      }
    }
    const rig = Rig.cold({ handlers: () => [new Needy(calls)] });
    const session = createSession(rig, rig.openDevice(), "s");
    for (const id of [1, 2, 3]) preserveFd(rig, session, toy(rig, id), BigInt(id));
    const next = rig.jump();
    const retrieved = retrieveSession(next, next.openDevice(), "s");
    calls.length = 0;
    const second = next.fds.get(retrieveFd(next, retrieved, 2n));
    assert.deepEqual(calls, ["retrieve 1", "retrieve 2"]);
    assert.equal(second.references, 2);
    assert.equal(next.fds.get(retrieveFd(next, retrieved, 1n)).references, 2);
    fails("EINVAL", () => retrieveFd(next, retrieved, 3n));
  });
});

describe("what a handler sees of its session", () => {
  test("contains() and tokenOf() know the session's files by inode, on both sides of the jump", () => {
    const seen: unknown[] = [];
    class Curious extends ToyHandler {
      override preserve(args: Parameters<ToyHandler["preserve"]>[0]) {
        const { session, file } = args;
        seen.push([session.name, session.contains(first), session.tokenOf(first)]);
        seen.push(session.contains(file));
        return super.preserve(args);
      }
      override retrieve(args: Parameters<ToyHandler["retrieve"]>[0]) {
        const { session } = args;
        if (args.data === 2) {
          seen.push(session.contains(first), session.tokenOf(session.incomingFile(11n)));
          seen.push(session.contains(session.incomingFile(11n)));
        }
        return super.retrieve(args);
      }
    }
    const first = new ToyFile(1);
    const rig = Rig.cold({ handlers: () => [new Curious()] });
    const session = createSession(rig, rig.openDevice(), "s");
    preserveFd(rig, session, rig.fds.install(first), 11n);
    preserveFd(rig, session, toy(rig, 2), 12n);
    assert.deepEqual(seen, [["s", false, null], false, ["s", true, 11n], false]);
    const next = rig.jump();
    seen.length = 0;
    retrieveFd(next, retrieveSession(next, next.openDevice(), "s"), 12n);
    assert.deepEqual(seen, [false, null, true]);
  });
});

describe("adopt()", () => {
  test("a failure at every step takes nothing over; it works when it is tried again", () => {
    const { rig, calls } = toyRig(true);
    preserveFd(rig, createSession(rig, rig.openDevice(), "s"), toy(rig, 1), 1n);
    const next = rig.jumpUnbooted();
    next.luo.decode();
    const before = next.usage();
    calls.length = 0;
    for (let i = 0; i < 5; i++) {
      next.faults.arm(i, (point) => new KernelError("ENOMEM", "test", point));
      fails("ENOMEM", () => next.luo.adopt());
      assert.equal(next.faults.disarm(), true, "the armed step was reached");
      assert.deepEqual(next.usage(), before);
    }
    assert.deepEqual(calls, []);
    assert.equal(next.faults.record(() => next.luo.adopt()).length, 5, "steps that can fail");
    const session = retrieveSession(next, next.openDevice(), "s");
    assert.equal((next.fds.get(retrieveFd(next, session, 1n)) as ToyFile).id, 1);
    assert.equal(next.jump().luo.liveupdateNumber, 2);
  });
});

describe("FLBs", () => {
  test("live with their files over two kernels, also when nobody fetches a file", () => {
    const { rig, calls } = toyRig(true);
    const device = rig.openDevice();
    for (const name of ["a", "b"])
      preserveFd(rig, createSession(rig, device, name), toy(rig, 1), 1n);
    const next = rig.jump();
    assert.deepEqual(calls.slice(-3), [
      "toy-flb-v1 freeze",
      "toy-flb-v1 decode 8",
      "toy-flb-v1 adopt 8",
    ]);
    calls.length = 0;
    const nextDevice = next.openDevice();
    for (const name of ["a", "b"]) finish(next, retrieveSession(next, nextDevice, name));
    assert.deepEqual(calls, ["finish 1 discarded", "finish 1 discarded", "toy-flb-v1 finish 8"]);
  });
});

describe("requirements()", () => {
  test("names the formats in use, and nothing without a session", () => {
    const { rig } = toyRig(true);
    assert.deepEqual([...rig.luo.requirements()], []);
    const session = createSession(rig, rig.openDevice(), "s");
    preserveFd(rig, session, toy(rig, 1), 2n);
    assert.deepEqual(
      [...rig.luo.requirements()].map(({ compatible, neededBy }) => [compatible, neededBy]),
      [
        ["kho-v4", 'session "s"'],
        ["luo-v5", 'session "s"'],
        ["toy-v1", 'session "s" token 0x2'],
        ["toy-flb-v1", 'session "s" token 0x2'],
      ],
    );
  });
});

describe("many", () => {
  test("51·k sessions and a duplicate leave no empty block: the next kernel takes them all", () => {
    const rig = Rig.cold();
    const device = rig.openDevice();
    for (let i = 0; i < 51; i++) createSession(rig, device, `s${i}`);
    const before = rig.usage();
    fails("EEXIST", () => createSession(rig, device, "s0"));
    assert.deepEqual(rig.usage(), before);
    const next = rig.jump();
    assert.equal(next.luo.counts().incomingSessions, 51);
  });

  test("ten updates in a row use no more memory from one to the next", () => {
    let { rig } = toyRig(true);
    const usages: unknown[] = [];
    for (let i = 1; i <= 10; i++) {
      const device = rig.openDevice();
      const session = createSession(rig, device, "s");
      preserveFd(rig, session, memfd(rig, "data"), 1n);
      preserveFd(rig, session, toy(rig, i), 2n);
      rig = rig.jump();
      assert.equal(rig.luo.liveupdateNumber, i);
      const retrieved = retrieveSession(rig, rig.openDevice(), "s");
      rig.close(retrieveFd(rig, retrieved, 1n));
      finish(rig, retrieved);
      rig.close(retrieved);
      rig.close(0);
      usages.push(rig.usage());
    }
    for (const usage of usages.slice(1)) assert.deepEqual(usage, usages[0]);
  });
});
