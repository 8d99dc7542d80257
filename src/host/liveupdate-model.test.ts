import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isKernelError, KernelError } from "../base/errno.ts";
import { Rig, ToyFile, ToyFlb, ToyHandler } from "../kernel/liveupdate/test-rig.ts";
import { createSession, finish, preserveFd, retrieveFd, retrieveSession } from "./liveupdate.ts";

/** A file as the model knows it. */
interface ModelFile {
  readonly id: number;
  readonly fd: number;
  readonly isRetrieved?: boolean;
}

interface Outgoing {
  readonly fd: number;
  /** By token. */
  readonly files: Map<number, ModelFile>;
}

interface Incoming {
  /** -1: not retrieved. */
  fd: number;
  /** By token; null: not retrieved. */
  readonly files: Map<number, { readonly id: number; file: ModelFile | null }>;
}

/** What the orchestrator should be like: sessions and files as plain maps. */
class World {
  rig = Rig.cold({ handlers: () => [new ToyHandler([], [new ToyFlb([])])] });
  outgoing = new Map<string, Outgoing>();
  incoming = new Map<string, Incoming>();
  files: ModelFile[] = [];
  #nextId = 1;

  constructor() {
    this.#begin();
  }

  #begin(): void {
    assert.equal(this.rig.openDevice(), 0);
    this.files = [];
    for (let i = 0; i < 4; i++) {
      const id = this.#nextId++;
      this.files.push({ id, fd: this.rig.fds.install(new ToyFile(id)) });
    }
  }

  isTaken(file: ModelFile): boolean {
    const isSame = (other: ModelFile | null) => other?.id === file.id;
    for (const { files } of this.outgoing.values())
      if ([...files.values()].some(isSame)) return true;
    for (const { files } of this.incoming.values())
      if ([...files.values()].some((one) => isSame(one.file))) return true;
    return false;
  }

  jump(): void {
    this.rig = this.rig.jump();
    this.incoming = new Map();
    for (const [name, { files }] of this.outgoing) {
      const entries = [...files].map(([token, { id }]) => [token, { id, file: null }] as const);
      this.incoming.set(name, { fd: -1, files: new Map(entries) });
    }
    this.outgoing = new Map();
    this.#begin();
  }

  check(): void {
    const outgoingFiles = [...this.outgoing.values()].flatMap((one) => [...one.files.values()]);
    const incomingFiles = [...this.incoming.values()].flatMap((one) => [...one.files.values()]);
    const retrieved = incomingFiles.filter((one) => one.file !== null);
    assert.deepEqual(this.rig.luo.counts(), {
      outgoingSessions: this.outgoing.size,
      incomingSessions: this.incoming.size,
      preservedInodes: outgoingFiles.length + retrieved.length,
      outgoingFlbs: outgoingFiles.length > 0 ? 1 : 0,
      incomingFlbs: incomingFiles.length > 0 ? 1 : 0,
    });
  }
}

/** Runs a call that the model expects to give `expected`: "ok" or an errno. */
function expect<T>(expected: string, action: () => T): T | undefined {
  let result: T | undefined;
  let got = "ok";
  try {
    result = action();
  } catch (error) {
    if (!isKernelError(error)) throw error;
    got = error.code;
  }
  assert.equal(got, expected);
  return result;
}

const SEED = 4;
const NAMES = ["a", "b"];
const TOKENS = [1, 2];
/** How often each is done, so that runs get through all of a session's life. */
const STEPS = {
  create: 4,
  closeOutgoing: 1,
  preserve: 8,
  failingPreserve: 2,
  freezeAndBack: 1,
  failingFreeze: 1,
  jump: 2,
  retrieve: 4,
  retrieveFd: 8,
  finish: 3,
  closeIncoming: 1,
} as const;
type What = keyof typeof STEPS;

const step = fc.record({
  what: fc.oneof(
    ...Object.entries(STEPS).map(([what, weight]) => ({
      weight,
      arbitrary: fc.constant(what as What),
    })),
  ),
  name: fc.constantFrom(...NAMES),
  token: fc.constantFrom(...TOKENS),
  file: fc.nat(5),
  at: fc.nat(6),
});
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

function injected(point: string): Error {
  return new KernelError("EIO", "injected", point);
}

/** What the runs have met, so that a generator that misses the point shows. */
class Coverage {
  readonly #met = new Map<string, number>();

  note(what: string): void {
    this.#met.set(what, (this.#met.get(what) ?? 0) + 1);
  }

  check(): void {
    for (const what of [
      "preserved",
      "EEXIST",
      "EBUSY",
      "EINVAL",
      "ENOENT",
      "failed preserve",
      "freeze with files",
      "failed freeze",
      "jump with files",
      "retrieved",
      "retrieved again",
      "finished open files",
      "finished files that nobody retrieved",
      "preserved again after finish",
    ])
      assert.ok((this.#met.get(what) ?? 0) > 0, `no run has met: ${what}`);
  }
}

function run(
  world: World,
  coverage: Coverage,
  { what, name, token, file: fileIndex, at }: Step,
): void {
  const { rig, outgoing, incoming } = world;
  const out = outgoing.get(name);
  const inc = incoming.get(name);
  // The latest come first: they are those that were retrieved.
  const file = world.files[world.files.length - 1 - (fileIndex % world.files.length)];
  const call = <T>(expected: string, action: () => T): T | undefined => {
    coverage.note(expected);
    return expect(expected, action);
  };
  const hasFiles = [...outgoing.values()].some((one) => one.files.size > 0);
  switch (what) {
    case "create": {
      const fd = call(out ? "EEXIST" : "ok", () => createSession(rig, 0, name));
      if (fd !== undefined) outgoing.set(name, { fd, files: new Map() });
      break;
    }
    case "closeOutgoing":
      if (out === undefined) break;
      rig.close(out.fd);
      outgoing.delete(name);
      break;
    case "preserve": {
      const fd = out?.fd ?? inc?.fd ?? -1;
      let expected = "ok";
      if (fd < 0) expected = "EBADF";
      else if (out === undefined) expected = "EINVAL";
      else if (out.files.has(token)) expected = "EEXIST";
      else if (world.isTaken(file)) expected = "EBUSY";
      call(expected, () => preserveFd(rig, fd, file.fd, BigInt(token)));
      if (expected !== "ok") break;
      out?.files.set(token, file);
      coverage.note("preserved");
      if (file.isRetrieved === true) coverage.note("preserved again after finish");
      break;
    }
    case "failingPreserve": {
      if (out === undefined || out.files.has(token) || world.isTaken(file)) break;
      const before = rig.usage();
      rig.faults.arm(at, injected);
      let failed = false;
      try {
        preserveFd(rig, out.fd, file.fd, BigInt(token));
      } catch (error) {
        if (!isKernelError(error, "EIO")) throw error;
        failed = true;
      }
      assert.equal(rig.faults.disarm(), failed);
      if (failed) {
        coverage.note("failed preserve");
        assert.deepEqual(rig.usage(), before);
      } else out.files.set(token, file);
      break;
    }
    case "freezeAndBack": {
      if (hasFiles) coverage.note("freeze with files");
      const before = rig.usage();
      const frozen = rig.luo.freeze();
      call("EBUSY", () => createSession(rig, 0, name));
      frozen.unfreeze();
      assert.deepEqual(rig.usage(), before);
      break;
    }
    case "failingFreeze": {
      const before = rig.usage();
      rig.faults.arm(at, injected);
      try {
        rig.luo.freeze().unfreeze();
      } catch (error) {
        if (!isKernelError(error, "EIO")) throw error;
        coverage.note("failed freeze");
      }
      rig.faults.disarm();
      assert.deepEqual(rig.usage(), before);
      break;
    }
    case "jump":
      if (hasFiles) coverage.note("jump with files");
      world.jump();
      break;
    case "retrieve": {
      const expected = inc === undefined ? "ENOENT" : inc.fd >= 0 ? "EINVAL" : "ok";
      const fd = call(expected, () => retrieveSession(rig, 0, name));
      if (fd !== undefined && inc !== undefined) inc.fd = fd;
      break;
    }
    case "retrieveFd": {
      if (inc === undefined || inc.fd < 0) break;
      const one = inc.files.get(token);
      const fd = call(one ? "ok" : "ENOENT", () => retrieveFd(rig, inc.fd, BigInt(token)));
      if (one === undefined || fd === undefined) break;
      assert.equal((rig.fds.get(fd) as ToyFile).id, one.id);
      if (one.file === null) {
        coverage.note("retrieved");
        one.file = { id: one.id, fd, isRetrieved: true };
        world.files.push(one.file);
      } else {
        coverage.note("retrieved again");
        assert.equal(rig.fds.get(fd), rig.fds.get(one.file.fd));
      }
      break;
    }
    case "finish":
      if (inc === undefined || inc.fd < 0) break;
      call("ok", () => finish(rig, inc.fd));
      for (const { file: open } of inc.files.values())
        coverage.note(
          open === null ? "finished files that nobody retrieved" : "finished open files",
        );
      inc.files.clear();
      break;
    case "closeIncoming":
      if (inc === undefined || inc.fd < 0) break;
      rig.close(inc.fd);
      incoming.delete(name);
      break;
  }
  world.check();
}

test("sessions behave as plain maps of files, over any calls, failures and jumps", () => {
  const coverage = new Coverage();
  fc.assert(
    fc.property(fc.array(step, { minLength: 40, maxLength: 120 }), (steps) => {
      const world = new World();
      for (const one of steps) run(world, coverage, one);
    }),
    // These very runs are known to meet everything; the next test goes elsewhere each time.
    { numRuns: 150, seed: SEED },
  );
  coverage.check();
});

test("whatever was done, closing everything gives everything back", () => {
  fc.assert(
    fc.property(fc.array(step, { minLength: 10, maxLength: 60 }), (steps) => {
      const world = new World();
      const fresh = world.rig.usage() as { pages: { free: number } };
      for (const one of steps) run(world, new Coverage(), one);
      // What nobody has retrieved is retrieved and so finished by its close.
      for (const [name, { fd }] of world.incoming)
        world.rig.close(fd < 0 ? retrieveSession(world.rig, 0, name) : fd);
      for (const { fd } of world.outgoing.values()) world.rig.close(fd);
      const usage = world.rig.usage() as typeof fresh;
      assert.deepEqual(usage, fresh);
    }),
    { numRuns: 60 },
  );
});
