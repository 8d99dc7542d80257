/** No memory, at every allocation of every operation: ENOMEM or ENOSPC, everything as before, nothing leaked. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, O_CREAT, O_RDWR } from "../../abi/uapi/fs.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import type { File } from "../vfs/file.ts";
import type { Filesystem } from "../vfs/filesystem.ts";
import { Box, HUGE, type Kernel, listing, PAGE, pagesInUse, SMALL_CARVE_OUT } from "./test-rig.ts";

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const LONG = "l".repeat(255);

interface Scene {
  readonly kernel: Kernel;
  readonly fs: Filesystem;
  readonly file: File;
  /** Offset of a page with neighbours in the same run. */
  readonly inRun: number;
}

const OPERATIONS: readonly [name: string, run: (scene: Scene) => void][] = [
  ["create", ({ fs }) => fs.open("/new", O_RDWR | O_CREAT).put()],
  ["create with a long name", ({ fs }) => fs.open(`/${LONG}`, O_RDWR | O_CREAT).put()],
  ["mkdir", ({ fs }) => fs.mkdir("/new")],
  ["rename to a long name", ({ fs }) => fs.rename("/0", `/${LONG}`)],
  ["fallocate pages", ({ file }) => file.fallocate(0, 4 * HUGE, 5 * PAGE)],
  ["fallocate huge pages", ({ file }) => file.fallocate(0, 2 * HUGE - PAGE, HUGE + 2 * PAGE)],
  ["mmap", ({ file }) => file.mmap(0, 12 * PAGE).unmap()],
  ["pin", ({ file }) => file.pin(0, 12 * PAGE).unpin()],
  ["punch in the middle of a run", ({ file, inRun }) => file.fallocate(PUNCH, inRun, PAGE)],
  ["mount a new store", ({ kernel }) => kernel.memfs.mount("second", "").unmount?.()],
];

/** All inode slots and extent slots of a block are in use, so that what follows needs new blocks. */
function build(store: string) {
  const box = new Box();
  const kernel = box.boot(null, [SMALL_CARVE_OUT]);
  const fs = kernel.memfs.mount(store, "");
  for (let i = 0; i < 62; i++) fs.open(`/${i}`, O_RDWR | O_CREAT).put();
  const file = fs.open("/0", O_RDWR);
  file.fallocate(0, HUGE, 32 * PAGE);
  const extents = () => {
    const found = box.look(kernel).decoded?.stores.find((s) => s.superblock.name === store);
    return found?.inodes.get(file.stat().inode)?.extents ?? [];
  };
  const run = extents().find((extent) => extent.count >= 3);
  assert.ok(run !== undefined, "some pages follow one another");
  for (let i = extents().length; i < 127; i++) file.fallocate(0, 2 * i * PAGE, PAGE);
  assert.equal(extents().length, 127);
  file.truncate(5 * HUGE);
  return { box, kernel, fs, file, inRun: run.offset + PAGE };
}

for (const store of ["dynamic", SMALL_CARVE_OUT.name])
  for (const [name, run] of OPERATIONS)
    test(`${name} (${store}): a failure at any allocation changes nothing and leaks nothing`, () => {
      let scene = build(store);
      const points = scene.kernel.faults.record(() => run(scene)).length;
      assert.ok(points > 0, "the operation allocates something");
      scene = build(store);
      let failures = 0;
      for (let index = 0; index < points; index++) {
        const { box, kernel, file } = scene;
        const before = {
          list: listing(box.look(kernel).decoded),
          pages: pagesInUse(kernel),
          preserved: kernel.kho.sizes().preservedBytes,
          sizeBytes: file.stat().sizeBytes,
          pins: kernel.memfs.pinCount,
          free: scene.fs.statfs().freeBytes,
        };
        const tree = kernel.kho.sizes().metadataBytes;
        kernel.faults.arm(index, (point) => new KernelError("ENOMEM", point, "injected"));
        let failed = false;
        try {
          run(scene);
        } catch (error) {
          assert.ok(isKernelError(error, "ENOMEM"), String(error));
          failed = true;
        }
        assert.ok(kernel.faults.disarm(), `point ${index} was reached`);
        const { incoming, decoded } = box.look(kernel);
        assert.equal(incoming.unclaimedPages(), 0);
        if (!failed) {
          // A large block that cannot be had is replaced by smaller ones.
          scene = build(store);
          continue;
        }
        failures++;
        // KHO keeps nodes of its tree that it has made; they are its own.
        const nodes = (kernel.kho.sizes().metadataBytes - tree) / PAGE;
        assert.deepEqual(
          {
            list: listing(decoded),
            pages: pagesInUse(kernel) - nodes,
            preserved: kernel.kho.sizes().preservedBytes,
            sizeBytes: file.stat().sizeBytes,
            pins: kernel.memfs.pinCount,
            free: scene.fs.statfs().freeBytes + (store === "dynamic" ? nodes * PAGE : 0),
          },
          before,
        );
      }
      run(scene);
      assert.equal(scene.box.look(scene.kernel).incoming.unclaimedPages(), 0);
      assert.ok(failures > 0, "some failure is not made up for");
    });

test("a first store that cannot be made leaves no root page and no subtree behind", () => {
  const box = new Box();
  const kernel = box.boot(null, []);
  const pages = pagesInUse(kernel);
  const tree = kernel.kho.sizes().metadataBytes / PAGE;
  for (let index = 0; ; index++) {
    kernel.faults.arm(index, (point) => new KernelError("ENOMEM", point, "injected"));
    try {
      kernel.memfs.mount("first", "").unmount?.();
    } catch (error) {
      assert.ok(isKernelError(error, "ENOMEM"));
    }
    if (!kernel.faults.disarm()) {
      assert.ok(index >= 6, "root, superblock and inode block are allocated and preserved");
      break;
    }
    const nodes = kernel.kho.sizes().metadataBytes / PAGE - tree;
    assert.equal(pagesInUse(kernel), pages + nodes);
    assert.equal(box.look(kernel).decoded, null);
    assert.equal(box.look(kernel).incoming.unclaimedPages(), 0);
  }
});

test("a create that fails half-way gives the slots back that it had taken", () => {
  const { kernel, fs } = build("dynamic");
  fs.unlink("/61");
  const noMemory = (point: string) => new KernelError("ENOMEM", point, "injected");
  kernel.faults.arm(0, noMemory);
  // It takes the last slot of the block for the inode, and needs another block for the name.
  assert.throws(() => fs.open(`/${LONG}`, O_RDWR | O_CREAT), /injected/);
  kernel.faults.disarm();
  kernel.faults.arm(0, noMemory);
  fs.open("/61", O_RDWR | O_CREAT).put();
  assert.equal(kernel.faults.disarm(), false);
});
