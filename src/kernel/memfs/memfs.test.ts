import assert from "node:assert/strict";
import { test } from "node:test";
import { FIEMAP, FIEMAP_EXTENT, FIEMAP_EXTENT_LAST, FS_IOC_FIEMAP } from "../../abi/uapi/fiemap.ts";
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  O_CREAT,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  SEEK_CUR,
  SEEK_DATA,
  SEEK_END,
  SEEK_HOLE,
  SEEK_SET,
} from "../../abi/uapi/fs.ts";
import { ByteWords } from "../../abi/words.ts";
import { isKernelError } from "../../base/errno.ts";
import { DescriptorTable } from "../vfs/fd-table.ts";
import { RootFilesystem } from "../vfs/root-filesystem.ts";
import { Vfs } from "../vfs/vfs.ts";
import { MemfsFile } from "./memfs-file.ts";
import { Box, HUGE, type Kernel, listing, PAGE, pagesInUse, SMALL_CARVE_OUT } from "./test-rig.ts";

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const code = (expected: string) => (error: unknown) =>
  isKernelError(error) && error.code === expected;

function build(options = "") {
  const box = new Box();
  const kernel = box.boot(null);
  return { box, kernel, fs: kernel.memfs.mount("guest0", options) };
}

function create(fs: { open(path: string, flags: number): unknown }, path: string): MemfsFile {
  const file = fs.open(path, O_RDWR | O_CREAT);
  assert.ok(file instanceof MemfsFile);
  return file;
}

/** What a jump would hand over, as text. */
const seen = (box: Box, kernel: Kernel) => listing(box.look(kernel).decoded);

test("files and directories come, move and go as on Linux", () => {
  const { fs } = build();
  fs.mkdir("/vm0");
  create(fs, "/vm0/ram").put();
  fs.open("/vm0/ram", O_RDONLY).put();
  for (const [expected, action] of [
    ["EEXIST", () => fs.mkdir("/vm0")],
    ["EEXIST", () => fs.open("/vm0/ram", O_RDWR | O_CREAT | O_EXCL)],
    ["ENOENT", () => fs.open("/vm0/rom", O_RDWR)],
    ["ENOENT", () => fs.open("/vm1/ram", O_RDWR | O_CREAT)],
    ["ENOTDIR", () => fs.open("/vm0/ram/x", O_RDWR | O_CREAT)],
    ["ENOTDIR", () => fs.open("/vm0/ram/x/y", O_RDWR | O_CREAT)],
    ["EISDIR", () => fs.open("/vm0", O_RDONLY)],
    ["EISDIR", () => fs.unlink("/vm0")],
    ["ENOTDIR", () => fs.rmdir("/vm0/ram")],
    ["ENOTEMPTY", () => fs.rmdir("/vm0")],
    ["EBUSY", () => fs.rmdir("/")],
    ["ENOTDIR", () => fs.readdir("/vm0/ram")],
    ["EINVAL", () => fs.rename("/vm0", "/vm0/x")],
    ["EBUSY", () => fs.rename("/", "/x")],
    ["EBUSY", () => fs.rename("/vm0", "/")],
    ["ENOENT", () => fs.rename("/x", "/y")],
    ["EISDIR", () => fs.rename("/vm0/ram", "/vm0")],
    ["ENAMETOOLONG", () => fs.mkdir(`/${"n".repeat(256)}`)],
    ["EINVAL", () => fs.mkdir("/\ud800")],
  ] as const)
    assert.throws(action, code(expected), action.toString());
  fs.mkdir("/a");
  fs.mkdir("/a/b");
  assert.throws(() => fs.rename("/vm0", "/a"), code("ENOTEMPTY"));
  assert.throws(() => fs.rename("/a/b", "/vm0/ram"), code("ENOTDIR"));
  fs.rename("/vm0", "/a/b");
  assert.deepEqual(fs.readdir("/a/b"), ["ram"]);
  assert.equal(fs.stat("/a").linkCount, 3);
  assert.equal(fs.statfs().inodes, 4);
  fs.unlink("/a/b/ram");
  fs.rmdir("/a/b");
  fs.rmdir("/a");
  assert.deepEqual(fs.readdir("/"), []);
});

test("names up to 255 bytes survive a kexec, whatever their length", () => {
  const { box, kernel, fs } = build();
  const names = [1, 39, 40, 41, 88, 89, 136, 137, 232, 233, 255].map((n) => "x".repeat(n));
  names.push("é".repeat(127), "名".repeat(85), "🙂".repeat(63));
  for (const name of names) fs.mkdir(`/${name}`);
  for (const name of names.slice(3)) {
    fs.rename(`/${name}`, "/moving");
    fs.rename("/moving", `/${name}`);
  }
  const next = box.jump(kernel).memfs.mount("guest0", "");
  assert.deepEqual([...next.readdir("/")].sort(), [...names].sort());
});

test("fallocate() takes the largest blocks that are aligned in the file", () => {
  const { box, kernel, fs } = build();
  const file = create(fs, "/ram");
  file.fallocate(0, PAGE, 2 * HUGE + PAGE);
  assert.equal(file.stat().sizeBytes, 2 * HUGE + 2 * PAGE);
  assert.equal(file.stat().allocatedBytes, 2 * HUGE + PAGE);
  const inode = box.look(kernel).decoded?.stores[0].inodes.get(file.stat().inode);
  const orders = inode?.extents.map((e) => [e.offset, e.order]) ?? [];
  assert.deepEqual(orders[0], [PAGE, 0]);
  assert.ok(orders.some(([offset, order]) => offset === HUGE && order === 9));
  assert.ok(inode?.extents.every((e) => e.offset % (PAGE * 2 ** e.order) === 0));
});

test("fallocate() falls back to smaller blocks when large ones have run out", () => {
  const { kernel, fs } = build("node=1");
  const hog: number[] = [];
  for (;;) {
    try {
      hog.push(kernel.mm.alloc(9, { node: 1, thisNode: true, zero: false }));
    } catch (error) {
      assert.ok(isKernelError(error, "ENOMEM"));
      break;
    }
  }
  // Every second page of one huge block is free again: 1 MiB in single pages, and no huge block.
  const pages: number[] = [];
  kernel.mm.free(hog[0], 9);
  for (let i = 0; i < 512; i++) pages.push(kernel.mm.alloc(0, { node: 1, thisNode: true }));
  for (let i = 0; i < 512; i += 2) kernel.mm.free(pages[i], 0);
  const file = create(fs, "/ram");
  file.fallocate(0, 0, 128 * PAGE);
  assert.equal(file.stat().allocatedBytes, 128 * PAGE);
  const before = pagesInUse(kernel);
  const tooMuch = (129 + kernel.mm.counts(1).free) * PAGE;
  assert.throws(() => file.fallocate(0, 0, tooMuch), code("ENOMEM"));
  assert.equal(pagesInUse(kernel), before);
  assert.equal(file.stat().sizeBytes, 128 * PAGE);
});

test("fallocate() keeps the size if told so; other modes are EOPNOTSUPP", () => {
  const { fs } = build();
  const file = create(fs, "/ram");
  file.fallocate(FALLOC_FL_KEEP_SIZE, 0, PAGE);
  assert.deepEqual([file.stat().sizeBytes, file.stat().allocatedBytes], [0, PAGE]);
  assert.throws(() => file.fallocate(FALLOC_FL_PUNCH_HOLE, 0, PAGE), code("EOPNOTSUPP"));
  assert.throws(() => file.fallocate(0x10, 0, PAGE), code("EOPNOTSUPP"));
  assert.throws(() => file.fallocate(0, 2 ** 52, PAGE), code("EFBIG"));
  assert.throws(() => file.truncate(2 ** 52 + 1), code("EFBIG"));
  file.truncate(2 ** 52);
  file.truncate(0);
  assert.equal(file.stat().allocatedBytes, 0);
});

test("what is cut off and grown again, or punched, reads as zero", () => {
  const { fs } = build();
  const file = create(fs, "/ram");
  file.truncate(2 * HUGE);
  const fillAll = () => {
    const mapping = file.mmap(0, 2 * HUGE);
    for (const piece of mapping.pieces) piece.bytes.fill(0xaa);
    mapping.unmap();
  };
  const count = (value: number) => {
    const mapping = file.mmap(0, file.stat().sizeBytes);
    let found = 0;
    for (const piece of mapping.pieces) for (const byte of piece.bytes) if (byte === value) found++;
    mapping.unmap();
    return found;
  };
  fillAll();
  file.truncate(HUGE + 5);
  file.truncate(2 * HUGE);
  assert.equal(count(0xaa), HUGE + 5);
  fillAll();
  file.fallocate(PUNCH, 3, HUGE);
  assert.equal(count(0xaa), HUGE);
  // No whole block was in the range: nothing was freed.
  assert.equal(file.stat().allocatedBytes, 2 * HUGE);
  file.fallocate(PUNCH, 0, HUGE);
  assert.equal(file.stat().allocatedBytes, HUGE);
  assert.equal(count(0xaa), HUGE - 3);
});

test("punching the head, the tail and the middle of a run frees exactly those pages", () => {
  const { box, kernel, fs } = build();
  const file = create(fs, "/ram");
  file.fallocate(0, 0, 16 * PAGE);
  const before = pagesInUse(kernel);
  file.fallocate(PUNCH, 0, 2 * PAGE);
  file.fallocate(PUNCH, 14 * PAGE, 2 * PAGE);
  file.fallocate(PUNCH, 6 * PAGE, 4 * PAGE);
  assert.equal(pagesInUse(kernel), before - 8);
  assert.equal(file.stat().allocatedBytes, 8 * PAGE);
  assert.equal(file.stat().sizeBytes, 16 * PAGE);
  file.fallocate(PUNCH, 20 * PAGE, PAGE);
  assert.match(seen(box, kernel)[1], /65536 8192@\w+\+16384 40960@\w+\+16384$/);
  file.fallocate(0, 0, 16 * PAGE);
  assert.equal(pagesInUse(kernel), before);
});

test("FIEMAP tells where the file lies, in batches; EFAULT without room, ENOTTY for other requests", () => {
  const { box, kernel, fs } = build();
  const fds = new DescriptorTable(1);
  const file = create(fs, "/ram");
  file.fallocate(0, 0, PAGE);
  file.fallocate(0, HUGE, HUGE);
  const found = box.look(kernel).decoded?.stores[0].inodes.get(file.stat().inode)?.extents ?? [];
  const ask = (
    fm_start: number,
    fm_extent_count: number,
    sizeBytes = 32 + 56 * fm_extent_count,
  ) => {
    const bytes = new Uint8Array(sizeBytes);
    const words = new ByteWords(bytes);
    FIEMAP.write(words, 0, {
      fm_start,
      fm_length: 2 ** 52,
      fm_flags: 0,
      fm_mapped_extents: 0,
      fm_extent_count,
      fm_reserved: 0,
    });
    file.ioctl(FS_IOC_FIEMAP, { bytes }, fds);
    return { count: FIEMAP.read(words, 0).fm_mapped_extents, words };
  };
  assert.equal(ask(0, 0).count, 2);
  assert.equal(ask(0, 1).count, 1);
  const { count, words } = ask(PAGE, 8);
  assert.equal(count, 1);
  const extent = FIEMAP_EXTENT.read(words, 32);
  assert.deepEqual(
    [extent.fe_logical, extent.fe_physical, extent.fe_length, extent.fe_flags],
    [HUGE, found[1].pa, HUGE, FIEMAP_EXTENT_LAST],
  );
  assert.throws(() => ask(0, 2, 32 + 56), code("EFAULT"));
  const short = { bytes: new Uint8Array(31) };
  assert.throws(() => file.ioctl(FS_IOC_FIEMAP, short, fds), code("EFAULT"));
  assert.throws(() => file.ioctl(1, short, fds), code("ENOTTY"));
});

test("read, write and positions: EINVAL for the data, lseek() as for any file", () => {
  const { fs } = build();
  const file = create(fs, "/ram");
  file.truncate(4 * PAGE);
  file.fallocate(0, PAGE, PAGE);
  const byte = new Uint8Array(1);
  assert.throws(() => file.read(byte), code("EINVAL"));
  assert.throws(() => file.write(byte), code("EINVAL"));
  assert.throws(() => file.pread(), code("EINVAL"));
  assert.throws(() => file.pwrite(), code("EINVAL"));
  assert.equal(file.seek(5, SEEK_SET), 5);
  assert.equal(file.seek(5, SEEK_CUR), 10);
  assert.equal(file.seek(-1, SEEK_END), 4 * PAGE - 1);
  assert.throws(() => file.seek(-1, SEEK_SET), code("EINVAL"));
  assert.throws(() => file.seek(0, 9), code("EINVAL"));
  assert.equal(file.seek(0, SEEK_DATA), PAGE);
  assert.equal(file.seek(PAGE + 1, SEEK_HOLE), 2 * PAGE);
  assert.equal(file.seek(3, SEEK_HOLE), 3);
  assert.throws(() => file.seek(2 * PAGE, SEEK_DATA), code("ENXIO"));
  assert.throws(() => file.seek(4 * PAGE, SEEK_HOLE), code("ENXIO"));
});

test("mmap() fills holes and gives the memory in order; past the last page it is EINVAL", () => {
  const { box, kernel, fs } = build();
  const file = create(fs, "/ram");
  file.truncate(HUGE + PAGE + 1);
  assert.throws(() => file.mmap(0, HUGE + 3 * PAGE), code("EINVAL"));
  assert.throws(() => file.mmap(0, 0), code("EINVAL"));
  const mapping = file.mmap(0, HUGE + 2 * PAGE);
  let at = 0;
  for (const piece of mapping.pieces) {
    assert.equal(piece.offsetBytes, at);
    piece.bytes.fill(1 + (at & 0x7f));
    at += piece.bytes.length;
  }
  assert.equal(at, HUGE + 2 * PAGE);
  mapping.unmap();
  const runs = box.look(kernel).decoded?.stores[0].inodes.get(file.stat().inode)?.extents ?? [];
  assert.equal(box.memory.load8(runs[0].pa), 1);
});

test("pinned bytes stay: EBUSY for unlink, rename over, shrink and punch, until unpinned", () => {
  const { kernel, fs } = build();
  const file = create(fs, "/ram");
  create(fs, "/other").put();
  file.truncate(16 * PAGE);
  assert.throws(() => file.pin(0, 17 * PAGE), code("EINVAL"));
  assert.throws(() => file.pin(-PAGE, PAGE), code("EINVAL"));
  const pin = file.pin(4 * PAGE + 100, PAGE);
  let at = 4 * PAGE + 100;
  for (const { offsetBytes, lengthBytes } of pin.extents) {
    assert.equal(offsetBytes, at);
    at += lengthBytes;
  }
  assert.equal(at, 5 * PAGE + 100);
  assert.equal(kernel.memfs.pinCount, 1);
  assert.throws(() => fs.unlink("/ram"), code("EBUSY"));
  assert.throws(() => fs.rename("/other", "/ram"), code("EBUSY"));
  assert.throws(() => file.truncate(5 * PAGE), code("EBUSY"));
  assert.throws(() => fs.open("/ram", O_RDWR | O_TRUNC), code("EBUSY"));
  assert.throws(() => file.fallocate(PUNCH, 5 * PAGE, PAGE), code("EBUSY"));
  file.fallocate(PUNCH, 6 * PAGE, PAGE);
  file.fallocate(PUNCH, 0, 4 * PAGE + 100);
  file.truncate(32 * PAGE);
  file.truncate(6 * PAGE);
  fs.rename("/ram", "/moved");
  pin.unpin();
  assert.throws(() => pin.unpin(), /once/);
  assert.equal(kernel.memfs.pinCount, 0);
  fs.rename("/other", "/moved");
});

test("an unlinked file lives until the last holder is gone, or until a kexec", () => {
  const { box, kernel, fs } = build();
  const empty = pagesInUse(kernel);
  const file = create(fs, "/ram");
  file.fallocate(0, 0, 8 * PAGE);
  const mapping = file.mmap(0, PAGE);
  assert.throws(() => fs.unlink("/ram"), code("EBUSY"));
  mapping.unmap();
  fs.unlink("/ram");
  assert.throws(() => fs.stat("/ram"), code("ENOENT"));
  assert.equal(file.stat().linkCount, 0);
  const pin = file.pin(0, PAGE);
  file.fallocate(0, 0, 16 * PAGE);
  file.put();
  assert.ok(pagesInUse(kernel) > empty);
  pin.unpin();
  assert.equal(pagesInUse(kernel), empty);
  const again = create(fs, "/ram");
  again.fallocate(0, 0, HUGE);
  create(fs, "/kept").put();
  fs.unlink("/ram");
  const next = box.jump(kernel);
  assert.deepEqual(next.memfs.mount("guest0", "").readdir("/"), ["kept"]);
  assert.equal(next.kho.unrestoredPages(), 0);
  assert.equal(pagesInUse(next), empty);
});

test("a store is found by name again, also after a kexec; an empty one goes with its last mount", () => {
  const { box, kernel, fs } = build("node=1,size=4M");
  const empty = pagesInUse(kernel);
  const second = kernel.memfs.mount("guest1", "");
  create(fs, "/a").fallocate(0, 0, PAGE);
  const third = kernel.memfs.mount("guest0", "size=4096K");
  assert.deepEqual(third.readdir("/"), ["a"]);
  assert.throws(() => kernel.memfs.mount("guest0", "node=0"), code("EINVAL"));
  assert.throws(() => kernel.memfs.mount("guest0", "size=8M"), code("EINVAL"));
  assert.throws(() => kernel.memfs.mount("guest2", "node=2"), code("EINVAL"));
  assert.throws(() => kernel.memfs.mount("guest2", "colour=red"), code("EINVAL"));
  assert.throws(() => kernel.memfs.mount("", ""), code("EINVAL"));
  assert.throws(() => kernel.memfs.mount("n".repeat(64), ""), code("EINVAL"));
  assert.throws(() => fs.unmount?.(), code("EBUSY"));
  second.unmount?.();
  assert.deepEqual(kernel.memfs.storeNames, ["guest0"]);
  const next = box.jump(kernel);
  assert.deepEqual(next.memfs.storeNames, ["guest0"]);
  const again = next.memfs.mount("guest0", "node=1");
  again.unlink("/a");
  again.unmount?.();
  assert.deepEqual(next.memfs.storeNames, []);
  assert.ok(pagesInUse(next) < empty);
});

test("node=N takes pages of that node only, and size= limits a store with ENOSPC", () => {
  const { box, kernel, fs } = build("node=1,size=1M");
  const file = create(fs, "/ram");
  file.fallocate(0, 0, 1024 * 1024);
  assert.throws(() => file.fallocate(0, 0, 1024 * 1024 + 1), code("ENOSPC"));
  assert.equal(fs.statfs().freeBytes, 0);
  assert.equal(fs.statfs().totalBytes, 1024 * 1024);
  const store = box.look(kernel).decoded?.stores[0];
  for (const { pa } of store?.used ?? []) assert.equal(kernel.mm.nodeOf(pa), 1);
  file.truncate(0);
  assert.equal(fs.statfs().freeBytes, 1024 * 1024);
});

test("a carve-out holds data and metadata of its store, and the handover alone tells it", () => {
  const box = new Box();
  let kernel = box.boot(null, [SMALL_CARVE_OUT]);
  const { start, lengthBytes } = SMALL_CARVE_OUT;
  const fs = kernel.memfs.mount("carved", "");
  const before = pagesInUse(kernel);
  const file = create(fs, "/ram");
  file.fallocate(0, 0, 2 * HUGE);
  assert.throws(() => create(fs, "/big").fallocate(0, 0, lengthBytes), code("ENOSPC"));
  assert.equal(pagesInUse(kernel), before);
  assert.equal(fs.statfs().totalBytes, lengthBytes);
  for (let jumps = 0; jumps < 3; jumps++) {
    const list = seen(box, kernel);
    kernel = box.jump(kernel);
    assert.deepEqual(kernel.decoded?.carveOuts, [{ start, lengthBytes }]);
    assert.ok(kernel.mm.isCarvedOut(start));
    assert.deepEqual(seen(box, kernel), list);
    assert.equal(kernel.kho.unrestoredPages(), 0);
  }
  const store = box.look(kernel).decoded?.stores[0];
  for (const used of store?.used ?? [])
    assert.ok(used.pa >= start && used.pa + used.lengthBytes <= start + lengthBytes);
  const again = kernel.memfs.mount("carved", "");
  again.unlink("/ram");
  again.unlink("/big");
  // Superblock and inode block are all that is in use.
  assert.equal(again.statfs().freeBytes, lengthBytes - 2 * PAGE);
  again.unmount?.();
  assert.deepEqual(kernel.memfs.storeNames, ["carved"]);
});

test("addCarveOut() fails with EINVAL for memory that is not carved out, EEXIST for a name in use", () => {
  const box = new Box();
  const kernel = box.boot(null, [SMALL_CARVE_OUT]);
  const elsewhere = { ...SMALL_CARVE_OUT, name: "x", start: 24 * 1024 * 1024 };
  assert.throws(() => kernel.memfs.addCarveOut(elsewhere), code("EINVAL"));
  assert.throws(() => kernel.memfs.addCarveOut(SMALL_CARVE_OUT), code("EEXIST"));
});

test("memfs under a path: umount() is EBUSY while a file is open or mapped", () => {
  const { kernel } = build();
  const vfs = new Vfs(new RootFilesystem(["/mnt"]));
  vfs.mount("/mnt", () => kernel.memfs.mount("guest9", ""));
  vfs.mkdir("/mnt/vm0");
  const file = vfs.open("/mnt/vm0/ram", O_RDWR | O_CREAT);
  file.truncate(PAGE);
  const mapping = file.mmap(0, PAGE);
  file.put();
  assert.throws(() => vfs.umount("/mnt"), code("EBUSY"));
  mapping.unmap();
  vfs.umount("/mnt");
  assert.deepEqual(vfs.readdir("/mnt"), []);
});

test("ten kernels in a row: the tree stays, the pages in use stay", () => {
  const box = new Box();
  let kernel = box.boot(null);
  const fs = kernel.memfs.mount("guest0", "");
  fs.mkdir("/vm0");
  create(fs, "/vm0/ram").fallocate(0, 0, 3 * HUGE + PAGE);
  const list = seen(box, kernel);
  const pages = pagesInUse(kernel);
  for (let i = 0; i < 10; i++) {
    kernel = box.jump(kernel);
    assert.deepEqual(seen(box, kernel), list);
    assert.equal(kernel.kho.unrestoredPages(), 0);
    assert.equal(pagesInUse(kernel), pages);
  }
});
