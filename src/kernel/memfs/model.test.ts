/** memfs against a simple model of a tree, its sizes and its contents, with kexecs at any time. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  O_CREAT,
  O_EXCL,
  O_RDWR,
} from "../../abi/uapi/fs.ts";
import { isKernelError } from "../../base/errno.ts";
import type { Filesystem } from "../vfs/filesystem.ts";
import { Box, HUGE, type Kernel, PAGE, pagesInUse, SMALL_CARVE_OUT } from "./test-rig.ts";

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

/** A file: its size in pages, and the stamp at the start of each page that has one. */
interface ModelFile {
  pages: number;
  readonly stamps: Map<number, number>;
}
type Model = Map<string, ModelFile | "directory">;

interface Real {
  readonly box: Box;
  readonly store: string;
  kernel: Kernel;
  fs: Filesystem;
}

type Errno = string | null;

function attempt(action: () => void): Errno {
  try {
    action();
    return null;
  } catch (error) {
    assert.ok(isKernelError(error), String(error));
    return error.code;
  }
}

const parentOf = (path: string) => path.slice(0, path.lastIndexOf("/")) || "/";
const below = (model: Model, path: string) =>
  [...model.keys()].filter((other) => other.startsWith(path === "/" ? "/" : `${path}/`));

/** What look-up of the parent says. */
function parentErrno(model: Model, path: string): Errno {
  const parent = parentOf(path);
  if (parent === "/") return null;
  const up = parentErrno(model, parent);
  if (up !== null) return up;
  const entry = model.get(parent);
  return entry === undefined ? "ENOENT" : entry === "directory" ? null : "ENOTDIR";
}

abstract class Step implements fc.Command<Model, Real> {
  check(): boolean {
    return true;
  }
  abstract run(model: Model, real: Real): void;
  abstract toString(): string;
}

class Make extends Step {
  constructor(path: string, isDirectory: boolean) {
    super();
    this.path = path;
    this.isDirectory = isDirectory;
  }
  readonly path: string;
  readonly isDirectory: boolean;
  run(model: Model, { fs }: Real): void {
    const { path } = this;
    const expected = parentErrno(model, path) ?? (model.has(path) ? "EEXIST" : null);
    const got = attempt(() => {
      if (this.isDirectory) fs.mkdir(path);
      else fs.open(path, O_RDWR | O_CREAT | O_EXCL).put();
    });
    assert.equal(got, expected);
    if (got === null)
      model.set(path, this.isDirectory ? "directory" : { pages: 0, stamps: new Map() });
  }
  toString(): string {
    return `${this.isDirectory ? "mkdir" : "create"} ${this.path}`;
  }
}

class Remove extends Step {
  constructor(path: string, isRmdir: boolean) {
    super();
    this.path = path;
    this.isRmdir = isRmdir;
  }
  readonly path: string;
  readonly isRmdir: boolean;
  run(model: Model, { fs }: Real): void {
    const { path, isRmdir } = this;
    const entry = model.get(path);
    let expected = parentErrno(model, path) ?? (entry === undefined ? "ENOENT" : null);
    if (expected === null && isRmdir)
      if (entry !== "directory") expected = "ENOTDIR";
      else if (below(model, path).length > 0) expected = "ENOTEMPTY";
    if (expected === null && !isRmdir && entry === "directory") expected = "EISDIR";
    assert.equal(
      attempt(() => (isRmdir ? fs.rmdir(path) : fs.unlink(path))),
      expected,
    );
    if (expected === null) model.delete(path);
  }
  toString(): string {
    return `${this.isRmdir ? "rmdir" : "unlink"} ${this.path}`;
  }
}

class Rename extends Step {
  constructor(from: string, to: string) {
    super();
    this.from = from;
    this.to = to;
  }
  readonly from: string;
  readonly to: string;
  run(model: Model, { fs }: Real): void {
    const { from, to } = this;
    const source = model.get(from);
    const target = model.get(to);
    let expected = parentErrno(model, from) ?? (source === undefined ? "ENOENT" : null);
    expected ??= parentErrno(model, to);
    if (expected === null && to.startsWith(`${from}/`)) expected = "EINVAL";
    if (expected === null && from !== to && target !== undefined)
      if (target !== "directory") expected = source === "directory" ? "ENOTDIR" : null;
      else if (source !== "directory") expected = "EISDIR";
      else if (below(model, to).length > 0) expected = "ENOTEMPTY";
    assert.equal(
      attempt(() => fs.rename(from, to)),
      expected,
    );
    if (expected !== null || from === to || source === undefined) return;
    const moved = below(model, from).map((path) => [path, model.get(path)] as const);
    model.delete(from);
    model.set(to, source);
    for (const [path, entry] of moved) {
      model.delete(path);
      if (entry !== undefined) model.set(to + path.slice(from.length), entry);
    }
  }
  toString(): string {
    return `rename ${this.from} ${this.to}`;
  }
}

/** A change of a file's contents. Ranges are in pages. */
class Edit extends Step {
  constructor(
    path: string,
    kind: "truncate" | "allocate" | "keep" | "punch" | "stamp",
    from: number,
    count: number,
    stamp: number,
  ) {
    super();
    this.path = path;
    this.kind = kind;
    this.from = from;
    this.count = count;
    this.stamp = stamp;
  }
  readonly path: string;
  readonly kind: "truncate" | "allocate" | "keep" | "punch" | "stamp";
  readonly from: number;
  readonly count: number;
  readonly stamp: number;
  run(model: Model, { fs }: Real): void {
    const { path, kind, from, count } = this;
    const entry = model.get(path);
    if (entry === undefined || entry === "directory") return;
    const file = fs.open(path, O_RDWR);
    const end = from + count;
    const forget = (start: number, last: number) => {
      for (const page of entry.stamps.keys())
        if (page >= start && page < last) entry.stamps.delete(page);
    };
    let failed: Errno = null;
    if (kind === "truncate") {
      file.truncate(from * PAGE);
      entry.pages = from;
      forget(from, Number.POSITIVE_INFINITY);
    } else if (kind === "punch") {
      file.fallocate(PUNCH, from * PAGE, count * PAGE);
      forget(from, end);
    } else if (kind === "stamp") {
      if (end <= entry.pages) {
        failed = attempt(() => {
          const mapping = file.mmap(from * PAGE, count * PAGE);
          for (const piece of mapping.pieces)
            for (let at = 0; at < piece.bytes.length; at += PAGE) piece.bytes[at] = this.stamp;
          mapping.unmap();
        });
        if (failed === null)
          for (let page = from; page < end; page++) entry.stamps.set(page, this.stamp);
      } else
        assert.equal(
          attempt(() => file.mmap(from * PAGE, count * PAGE)),
          "EINVAL",
        );
    } else {
      const mode = kind === "keep" ? FALLOC_FL_KEEP_SIZE : 0;
      failed = attempt(() => file.fallocate(mode, from * PAGE, count * PAGE));
      if (failed === null && kind === "allocate") entry.pages = Math.max(entry.pages, end);
    }
    file.put();
    // Out of memory is all that may go wrong, and then nothing has changed: the comparison below finds it.
    assert.ok(failed === null || failed === "ENOMEM" || failed === "ENOSPC", String(failed));
  }
  toString(): string {
    return `${this.kind} ${this.path} ${this.from} ${this.count}`;
  }
}

class Jump extends Step {
  run(_model: Model, real: Real): void {
    const pages = pagesInUse(real.kernel);
    real.kernel = real.box.jump(real.kernel);
    real.fs = real.kernel.memfs.mount(real.store, "");
    assert.equal(real.kernel.kho.unrestoredPages(), 0);
    assert.ok(pagesInUse(real.kernel) <= pages);
  }
  toString(): string {
    return "kexec";
  }
}

class Compare extends Step {
  run(model: Model, real: Real): void {
    compare(model, real);
  }
  toString(): string {
    return "compare";
  }
}

function compare(model: Model, real: Real): void {
  const { fs, box, kernel } = real;
  const { decoded, incoming } = box.look(kernel);
  assert.equal(incoming.unclaimedPages(), 0);
  const store = decoded?.stores.find((s) => s.superblock.name === real.store);
  assert.ok(store !== undefined);
  const paths: string[] = [];
  const walk = (path: string): void => {
    for (const name of fs.readdir(path)) {
      const child = path === "/" ? `/${name}` : `${path}/${name}`;
      paths.push(child);
      if (fs.stat(child).kind === "directory") walk(child);
    }
  };
  walk("/");
  assert.deepEqual(paths.sort(), [...model.keys()].sort());
  for (const [path, entry] of model) {
    const stat = fs.stat(path);
    if (entry === "directory") continue;
    assert.equal(stat.sizeBytes, entry.pages * PAGE, path);
    // Contents as the next kernel would find them: by the decoded extents, out of memory.
    const stamps = new Map<number, number>();
    for (const extent of store.inodes.get(stat.inode)?.extents ?? [])
      for (let i = 0; i < extent.count * 2 ** extent.order; i++) {
        const value = box.memory.load8(extent.pa + i * PAGE);
        if (value !== 0) stamps.set(extent.offset / PAGE + i, value);
      }
    assert.deepEqual(
      [...stamps].sort(([a], [b]) => a - b),
      [...entry.stamps].sort(([a], [b]) => a - b),
      path,
    );
  }
}

const name = fc.constantFrom("a", "b", "c", "n".repeat(100));
const path = fc
  .array(name, { minLength: 1, maxLength: 3 })
  .map((names) => names.map((part) => `/${part}`).join(""));
/** Positions that meet: around the first pages, and around the ends of the first two huge pages. */
const page = fc.oneof(
  fc.integer({ min: 0, max: 12 }),
  fc
    .tuple(fc.constantFrom(0, HUGE / PAGE, (2 * HUGE) / PAGE), fc.integer({ min: 0, max: 3 }))
    .map(([start, more]) => start + more),
);
const count = fc.oneof(
  fc.integer({ min: 1, max: 12 }),
  fc.constantFrom(HUGE / PAGE, (2 * HUGE) / PAGE),
);
const kind = fc.constantFrom("truncate", "allocate", "keep", "punch", "stamp", "stamp" as const);
const edit = (file: fc.Arbitrary<string>) =>
  fc
    .tuple(file, kind, page, count, fc.integer({ min: 1, max: 255 }))
    .map(([p, k, f, c, s]) => new Edit(p, k, f, c, s));

const commands = fc.commands(
  [
    fc.tuple(path, fc.boolean()).map(([p, d]) => new Make(p, d)),
    fc.tuple(path, fc.boolean()).map(([p, d]) => new Remove(p, d)),
    fc.tuple(path, path).map(([a, b]) => new Rename(a, b)),
    edit(path),
    edit(fc.constant("/file")),
    edit(fc.constant("/file")),
    edit(fc.constant("/file")),
    fc.constant(new Jump()),
    fc.constant(new Compare()),
  ],
  { size: "max", maxCommands: 50 },
);

for (const store of ["dynamic", SMALL_CARVE_OUT.name])
  test(`any sequence of operations and kexecs does what the model does (${store})`, () => {
    fc.assert(
      fc.property(commands, (steps) => {
        const box = new Box();
        const kernel = box.boot(null, [SMALL_CARVE_OUT]);
        const empty = kernel.kho.sizes().preservedBytes;
        const real: Real = { box, store, kernel, fs: kernel.memfs.mount(store, "") };
        // A file that no step removes, for the steps that edit to meet.
        real.fs.open("/file", O_RDWR | O_CREAT).put();
        const model: Model = new Map([["/file", { pages: 0, stamps: new Map() }]]);
        fc.modelRun(() => ({ model, real }), steps);
        compare(model, real);
        const deepestFirst = [...model.keys()].sort((a, b) => b.length - a.length);
        for (const at of deepestFirst)
          if (model.get(at) === "directory") real.fs.rmdir(at);
          else real.fs.unlink(at);
        real.fs.unmount?.();
        // A dynamic store has gone, metadata and all; what is left is the carve-out.
        assert.equal(real.kernel.kho.sizes().preservedBytes, empty);
      }),
      { numRuns: 100 },
    );
  });
