import assert from "node:assert/strict";
import { test } from "node:test";
import { O_CREAT, O_DIRECTORY, O_EXCL, O_PATH, O_RDONLY, O_RDWR } from "../../abi/uapi/fs.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { DeviceFilesystem } from "./device-filesystem.ts";
import { Eventfd } from "./eventfd.ts";
import { RootFilesystem } from "./root-filesystem.ts";
import { Vfs } from "./vfs.ts";

const code = (expected: string) => (error: unknown) =>
  isKernelError(error) && error.code === expected;

function build() {
  const vfs = new Vfs(new RootFilesystem(["/dev", "/mnt"]));
  const devices = new DeviceFilesystem();
  vfs.mount("/dev", () => devices);
  devices.register("iommu", () => new Eventfd(0, 0));
  devices.register("vfio/devices/vfio0", () => new Eventfd(0, 0));
  return { vfs, devices };
}

test("devices appear under /dev with the directories above them", () => {
  const { vfs, devices } = build();
  assert.deepEqual(vfs.readdir("/dev"), ["iommu", "vfio"]);
  assert.deepEqual(vfs.readdir("/dev/vfio/devices"), ["vfio0"]);
  assert.equal(vfs.stat("/dev/vfio/devices/vfio0").kind, "device");
  assert.equal(vfs.stat("/dev/vfio").kind, "directory");
  vfs.open("/dev/../dev/./vfio/devices/vfio0", O_RDWR).put();
  devices.unregister("vfio/devices/vfio0");
  assert.throws(() => vfs.stat("/dev/vfio"), code("ENOENT"));
  assert.throws(() => vfs.open("/dev/vfio/devices/vfio0", O_RDWR), code("ENOENT"));
});

test("open() fails with the errno of open(2)", () => {
  const { vfs } = build();
  for (const [path, flags, errno] of [
    ["/nothing", O_RDONLY, "ENOENT"],
    ["/nothing/file", O_RDWR | O_CREAT, "ENOENT"],
    ["/file", O_RDWR | O_CREAT, "EACCES"],
    ["/file/", O_RDWR | O_CREAT, "EISDIR"],
    ["/dev/file", O_RDWR | O_CREAT, "EACCES"],
    ["/dev/iommu/x", O_RDWR, "ENOTDIR"],
    ["/dev/iommu/", O_RDWR, "ENOTDIR"],
    ["/dev/iommu/..", O_RDONLY, "ENOTDIR"],
    ["/nothing/..", O_RDONLY, "ENOENT"],
    ["/dev/iommu", O_RDONLY | O_DIRECTORY, "ENOTDIR"],
    ["/dev/iommu", O_RDWR | O_CREAT | O_EXCL, "EEXIST"],
    ["/dev", O_RDWR, "EISDIR"],
    ["/dev", O_RDONLY | O_CREAT, "EISDIR"],
    ["/dev", O_RDONLY | O_CREAT | O_EXCL, "EEXIST"],
    ["/dev", O_CREAT | O_DIRECTORY, "EINVAL"],
    ["/dev", O_PATH, "EINVAL"],
    ["/dev", 3, "EINVAL"],
    ["/dev", Number.NaN, "EINVAL"],
    ["dev", O_RDONLY, "EINVAL"],
  ] as const)
    assert.throws(() => vfs.open(path, flags), code(errno), `${path} ${flags}`);
});

test("/dev refuses changes by userspace with EPERM", () => {
  const { vfs } = build();
  assert.throws(() => vfs.unlink("/dev/iommu"), code("EPERM"));
  assert.throws(() => vfs.mkdir("/dev/x"), code("EPERM"));
  assert.throws(() => vfs.rmdir("/dev/vfio"), code("EPERM"));
  assert.throws(() => vfs.rename("/dev/iommu", "/dev/x"), code("EPERM"));
});

test("the root makes, renames and removes directories as Linux does", () => {
  const { vfs } = build();
  vfs.mkdir("/mnt/a");
  vfs.mkdir("/mnt/a/b/");
  assert.throws(() => vfs.mkdir("/mnt/a"), code("EEXIST"));
  assert.throws(() => vfs.mkdir("/"), code("EEXIST"));
  assert.throws(() => vfs.mkdir("/dev"), code("EEXIST"));
  assert.throws(() => vfs.mkdir("/mnt/x/y"), code("ENOENT"));
  assert.throws(() => vfs.rmdir("/mnt/a"), code("ENOTEMPTY"));
  assert.throws(() => vfs.rmdir("/mnt/a/."), code("EINVAL"));
  assert.throws(() => vfs.rmdir("/mnt/a/.."), code("ENOTEMPTY"));
  assert.throws(() => vfs.unlink("/mnt/a"), code("EISDIR"));
  assert.throws(() => vfs.rename("/mnt/a", "/mnt/a/b/c"), code("EINVAL"));
  assert.throws(() => vfs.rename("/mnt/a/..", "/mnt/c"), code("EBUSY"));
  vfs.mkdir("/mnt/c");
  vfs.rename("/mnt/a", "/mnt/c");
  assert.deepEqual(vfs.readdir("/mnt"), ["c"]);
  assert.deepEqual(vfs.readdir("/mnt/c"), ["b"]);
  vfs.mkdir("/mnt/d");
  assert.throws(() => vfs.rename("/mnt/d", "/mnt/c"), code("ENOTEMPTY"));
  assert.throws(() => vfs.rename("/mnt/d", "/dev/d"), code("EXDEV"));
  assert.equal(vfs.statfs("/mnt").inodes, 6);
  vfs.rmdir("/mnt/c/b");
  vfs.rename("/mnt/d", "/mnt/c");
  assert.equal(vfs.statfs("/mnt").inodes, 4);
});

test("mount() takes any directory once; what is above a mount point stays", () => {
  const { vfs } = build();
  vfs.mkdir("/mnt/a");
  vfs.mkdir("/mnt/a/b");
  const inner = () => new RootFilesystem(["/deep"]);
  vfs.mount("/mnt/a/b", inner);
  assert.deepEqual(vfs.readdir("/mnt/a/b"), ["deep"]);
  vfs.mount("/mnt/a/b/deep", inner);
  assert.deepEqual(vfs.readdir("/mnt/a/b/deep/../deep"), ["deep"]);
  const neverMade = () => {
    throw new Error("made");
  };
  assert.throws(() => vfs.mount("/mnt/a/b", neverMade), code("EBUSY"));
  assert.throws(() => vfs.mount("/mnt/x", neverMade), code("ENOENT"));
  assert.throws(() => vfs.mount("/dev/iommu", neverMade), code("ENOTDIR"));
  assert.throws(() => vfs.rmdir("/mnt/a/b"), code("EBUSY"));
  assert.throws(() => vfs.rename("/mnt/a", "/mnt/z"), code("EBUSY"));
  assert.throws(() => vfs.umount("/mnt/a"), code("EINVAL"));
  assert.throws(() => vfs.umount("/"), code("EINVAL"));
  assert.throws(() => vfs.umount("/mnt/a/b"), code("EBUSY"));
  const directory = vfs.open("/mnt/a/b/deep/deep", O_RDONLY | O_DIRECTORY);
  assert.equal(directory.stat().kind, "directory");
  assert.throws(() => directory.read(new Uint8Array(1)), code("EISDIR"));
  assert.throws(() => vfs.umount("/mnt/a/b/deep"), code("EBUSY"));
  directory.put();
  vfs.umount("/mnt/a/b/deep");
  vfs.umount("/mnt/a/b");
  assert.deepEqual(vfs.readdir("/mnt/a/b"), []);
  vfs.rename("/mnt/a", "/mnt/z");
});

test("umount() keeps the mount when the file system says EBUSY", () => {
  const { vfs } = build();
  const busy = Object.assign(new RootFilesystem([]), {
    unmount() {
      throw new KernelError("EBUSY", "umount", "in use");
    },
  });
  vfs.mount("/mnt", () => busy);
  assert.throws(() => vfs.umount("/mnt"), code("EBUSY"));
  assert.deepEqual(
    vfs.mounts.map((m) => m.target),
    ["/", "/dev", "/mnt"],
  );
});
