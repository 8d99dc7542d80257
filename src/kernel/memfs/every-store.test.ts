/**
 * Stops every operation at every store: what the next kernel would find is the tree before or the tree after.
 *
 * Before each store the memory is exactly what a stop there would leave, so the next kernel's decoders are run on it
 * in place: the whole handover is read, every page claimed once. At some stores the next kernel also takes over, on a
 * copy of the memory, and must find the same tree and be able to work with it. And the operation is stopped for good
 * at some, by a store that fails and goes on failing, as a machine does that is off.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  O_CREAT,
  O_RDONLY,
  O_RDWR,
} from "../../abi/uapi/fs.ts";
import { MIB } from "../../base/units.ts";
import type { File } from "../vfs/file.ts";
import type { Filesystem } from "../vfs/filesystem.ts";
import { Box, HUGE, type Kernel, listing, PAGE, pagesInUse, SMALL_CARVE_OUT } from "./test-rig.ts";

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const LONG = "l".repeat(255);
const OTHER_LONG = "o".repeat(200);

interface Scene {
  readonly kernel: Kernel;
  readonly fs: Filesystem;
  /** "/f": 8 pages, a hole of 4, 2 pages, a hole, a huge page; open. */
  readonly file: File;
}

interface Operation {
  readonly name: string;
  readonly run: (scene: Scene) => void;
  /** Done before the operation, and not watched. */
  readonly prepare?: (scene: Scene) => void;
  /** Pages that a stop may leave preserved without an owner: what is allocated but not yet named, or the reverse. */
  readonly inFlightPages?: number;
}

const close = (file: File) => file.put();
const open = (fs: Filesystem, path: string) => fs.open(path, O_RDWR | O_CREAT);

const OPERATIONS: readonly Operation[] = [
  { name: "create a file", run: ({ fs }) => close(open(fs, "/new")) },
  { name: "create a file with a long name", run: ({ fs }) => close(open(fs, `/${LONG}`)) },
  { name: "make a directory", run: ({ fs }) => fs.mkdir("/d/e") },
  {
    name: "create the file that needs another inode block",
    prepare: ({ fs }) => {
      // With the root, 2 directories, 2 files and the long name's 5 slots, 63 are in use.
      for (let i = 0; i < 53; i++) close(open(fs, `/d/${i}`));
    },
    run: ({ fs }) => close(open(fs, "/d/one more")),
  },
  { name: "remove a directory", run: ({ fs }) => fs.rmdir("/empty") },
  { name: "unlink a file", run: ({ fs }) => fs.unlink("/g") },
  { name: "unlink an open file", run: ({ fs }) => fs.unlink("/f") },
  { name: "unlink a file with a long name", run: ({ fs }) => fs.unlink(`/d/${OTHER_LONG}`) },
  {
    name: "close an unlinked file",
    prepare: ({ fs }) => fs.unlink("/f"),
    run: ({ file }) => close(file),
  },
  { name: "rename", run: ({ fs }) => fs.rename("/f", "/d/f") },
  { name: "rename a directory", run: ({ fs }) => fs.rename("/d", "/empty/d") },
  { name: "rename over a file", run: ({ fs }) => fs.rename("/f", "/g") },
  { name: "rename over an open file", run: ({ fs }) => fs.rename("/g", "/f") },
  { name: "rename over an empty directory", run: ({ fs }) => fs.rename("/d", "/empty") },
  {
    name: "rename from one long name to another, over a file",
    run: ({ fs }) => {
      fs.rename(`/d/${OTHER_LONG}`, `/d/${LONG}`);
    },
    prepare: ({ fs }) => {
      close(open(fs, `/d/${LONG}`));
    },
  },
  { name: "grow", run: ({ file }) => file.truncate(32 * MIB) },
  { name: "shrink to nothing", run: ({ file }) => file.truncate(0) },
  {
    name: "shrink within a run",
    run: ({ file }) => file.truncate(3 * PAGE + 17),
    inFlightPages: 5,
  },
  { name: "allocate pages", run: ({ fs }) => open(fs, "/g").fallocate(0, 0, 16 * PAGE) },
  { name: "allocate a huge page", run: ({ file }) => file.fallocate(0, 4 * HUGE, HUGE) },
  {
    name: "allocate in holes between extents",
    run: ({ file }) => file.fallocate(0, 4 * PAGE, 14 * PAGE),
  },
  {
    name: "allocate behind the end, and grow",
    run: ({ file }) => file.fallocate(0, 2 * HUGE - PAGE, 3 * PAGE),
  },
  { name: "fill a hole by mapping it", run: ({ file }) => file.mmap(9 * PAGE, 2 * PAGE).unmap() },
  { name: "fill a hole by pinning it", run: ({ file }) => file.pin(9 * PAGE, 2 * PAGE).unpin() },
  { name: "punch a whole run", run: ({ file }) => file.fallocate(PUNCH, 0, 8 * PAGE) },
  {
    name: "punch the head of a run",
    run: ({ file }) => file.fallocate(PUNCH, 0, 2 * PAGE),
    inFlightPages: 2,
  },
  {
    name: "punch the middle of a run",
    run: ({ file }) => file.fallocate(PUNCH, 2 * PAGE + 9, 3 * PAGE),
    inFlightPages: 3,
  },
  {
    name: "punch across runs",
    run: ({ file }) => file.fallocate(PUNCH, 6 * PAGE, 2 * HUGE),
    inFlightPages: 2,
  },
  {
    name: "punch what fills the second extent block",
    prepare: ({ file }) => {
      for (let i = 0; i < 127; i++) file.fallocate(0, 8 * HUGE + 2 * i * PAGE, PAGE);
    },
    run: ({ file }) => file.fallocate(PUNCH, 8 * HUGE + 246 * PAGE, 8 * PAGE),
  },
];

function build(store: string): { box: Box; scene: Scene } {
  const box = new Box();
  const kernel = box.boot(null, [SMALL_CARVE_OUT]);
  const fs = kernel.memfs.mount(store, "");
  fs.mkdir("/d");
  fs.mkdir("/empty");
  const file = open(fs, "/f");
  file.fallocate(0, 0, 8 * PAGE);
  file.fallocate(0, 12 * PAGE, 2 * PAGE);
  file.fallocate(0, HUGE, HUGE);
  const other = open(fs, "/g");
  other.fallocate(0, 0, 3 * PAGE);
  close(other);
  close(open(fs, `/d/${OTHER_LONG}`));
  close(fs.open("/g", O_RDONLY));
  return { box, scene: { kernel, fs, file } };
}

const look = ({ box, scene }: ReturnType<typeof build>) => {
  const { decoded, incoming } = box.look(scene.kernel);
  return { list: listing(decoded).join("\n"), unclaimed: incoming.unclaimedPages() };
};

/** The next kernel takes over from a copy of the memory: it finds the same tree, loses no page, and works. */
function checkNextKernel(box: Box, kernel: Kernel, store: string, list: string): void {
  const copy = new Box();
  for (const { start, lengthBytes } of box.memory.ranges)
    for (let pa = start; pa < start + lengthBytes; pa += 2 * MIB)
      if (box.memory.isTouched(pa)) copy.memory.write(pa, box.memory.view(pa, 2 * MIB));
  const next = copy.boot(kernel.kho.bootParameters());
  const unclaimed = next.incoming?.unclaimedPages() ?? 0;
  next.memfs.adopt();
  assert.equal(listing(copy.look(next).decoded).join("\n"), list);
  assert.equal(next.kho.unrestoredPages(), unclaimed);
  const fs = next.memfs.mount(store, "");
  const removeAll = (path: string): void => {
    for (const name of fs.readdir(path)) {
      const child = `${path === "/" ? "" : path}/${name}`;
      if (fs.stat(child).kind === "directory") {
        removeAll(child);
        fs.rmdir(child);
      } else fs.unlink(child);
    }
  };
  const work = open(fs, "/work");
  work.fallocate(0, 0, 5 * PAGE);
  close(work);
  removeAll("/");
  fs.unmount?.();
  if (store === SMALL_CARVE_OUT.name) {
    assert.equal(fs.statfs().freeBytes, SMALL_CARVE_OUT.lengthBytes - 2 * PAGE);
    return;
  }
  // All pages but those without an owner are free again: what is left is what an empty kernel has.
  const reserved = next.mm.counts().reserved;
  const fresh = new Box().boot(null, [SMALL_CARVE_OUT]);
  assert.equal(reserved, unclaimed);
  const slack = next.kho.sizes().metadataBytes - fresh.kho.sizes().metadataBytes;
  assert.equal(pagesInUse(next) - reserved, pagesInUse(fresh) + slack / PAGE);
}

/** A carve-out differs only where memory comes and goes; there all is repeated. */
const MEMORY = /another inode block|unlink a file|over a file$|shrink|allocate|fill|punch|close/;

for (const store of ["dynamic", SMALL_CARVE_OUT.name])
  for (const operation of OPERATIONS.filter((o) => store === "dynamic" || MEMORY.test(o.name)))
    test(`${operation.name} (${store}): a stop at any store leaves the tree before or after`, () => {
      const world = build(store);
      const { box, scene } = world;
      operation.prepare?.(scene);
      const before = look(world).list;
      const trees: string[] = [];
      let stores = 0;
      const watch = () => {
        const at = stores++;
        // What looking stores elsewhere is not watched.
        box.beforeStore = null;
        const { list, unclaimed } = look(world);
        if (trees.at(-1) !== list) trees.push(list);
        const allowed = Math.max(operation.inFlightPages ?? 0, HUGE / PAGE);
        assert.ok(unclaimed <= allowed, `store ${at} leaves ${unclaimed} pages without an owner`);
        if (at % 83 === 17) checkNextKernel(box, scene.kernel, store, list);
        box.beforeStore = watch;
      };
      box.beforeStore = watch;
      operation.run(scene);
      box.beforeStore = null;
      const after = look(world);
      trees.push(after.list);
      assert.equal(after.unclaimed, 0);
      const distinct = new Set(trees);
      assert.ok(distinct.size <= 2, [...distinct].join("\n---\n"));
      assert.ok(distinct.has(before) && stores > 2);
      // And for good: everything that the stopped kernel still tries fails too.
      for (let stop = 3; stop < stores; stop += Math.max(7, Math.floor(stores / 4))) {
        const again = build(store);
        operation.prepare?.(again.scene);
        let count = 0;
        again.box.beforeStore = () => {
          if (count++ >= stop) throw new Error("the machine has stopped");
        };
        assert.throws(() => operation.run(again.scene), /the machine has stopped/);
        again.box.beforeStore = null;
        assert.ok(distinct.has(look(again).list), `stopped at store ${stop}`);
      }
    });
