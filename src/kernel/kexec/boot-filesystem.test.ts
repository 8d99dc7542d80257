import assert from "node:assert/strict";
import { test } from "node:test";
import {
  O_CREAT,
  O_DIRECTORY,
  O_EXCL,
  O_RDONLY,
  O_RDWR,
  O_TRUNC,
  O_WRONLY,
  SEEK_CUR,
  SEEK_END,
  SEEK_SET,
} from "../../abi/uapi/fs.ts";
import { type ErrnoCode, KernelError } from "../../base/errno.ts";
import { bootFilesystem } from "./boot-filesystem.ts";

const IMAGES = [
  { name: "kernel-1", entry: "file:///1.js", release: "1.0", restores: ["kho-v4", "größe-v1"] },
  { name: "kernel-2", entry: "file:///2.js", release: "2.0", restores: [] },
];

function fails(code: ErrnoCode, action: () => unknown): void {
  assert.throws(
    action,
    (error: unknown) => error instanceof KernelError && error.code === code,
    `expected ${code}`,
  );
}

test("each image is a file with its manifest, which does not say where its code is", () => {
  const boot = bootFilesystem(IMAGES);
  assert.deepEqual(boot.readdir("/"), ["kernel-1", "kernel-2"]);
  for (const { name, release, restores } of IMAGES) {
    const file = boot.open(`/${name}`, O_RDONLY);
    const { sizeBytes } = boot.stat(`/${name}`);
    assert.deepEqual(file.stat(), boot.stat(`/${name}`));
    const bytes = new Uint8Array(sizeBytes + 10);
    assert.equal(file.read(bytes), sizeBytes);
    assert.equal(file.read(bytes), 0);
    const manifest: unknown = JSON.parse(new TextDecoder().decode(bytes.subarray(0, sizeBytes)));
    assert.deepEqual(manifest, { format: 1, name, release, restores });
    assert.equal(file.seek(-1, SEEK_END), sizeBytes - 1);
    assert.equal(file.seek(1, SEEK_CUR), sizeBytes);
    assert.equal(file.seek(2, SEEK_SET), 2);
    assert.equal(file.pread(bytes, sizeBytes - 1), 1);
    fails("EINVAL", () => file.seek(-1, SEEK_SET));
    fails("EINVAL", () => file.seek(0, 9));
    fails("EINVAL", () => file.pread(bytes, -1));
    fails("EINVAL", () => file.write(bytes));
    file.put();
  }
});

test("nothing can be changed: EROFS", () => {
  const boot = bootFilesystem(IMAGES);
  fails("EROFS", () => boot.open("/kernel-1", O_RDWR));
  fails("EROFS", () => boot.open("/kernel-1", O_WRONLY));
  fails("EROFS", () => boot.open("/kernel-1", O_RDONLY | O_TRUNC));
  fails("EROFS", () => boot.open("/new", O_CREAT));
  fails("EROFS", () => boot.unlink("/kernel-1"));
  fails("EROFS", () => boot.mkdir("/d"));
  fails("EROFS", () => boot.rmdir("/d"));
  fails("EROFS", () => boot.rename("/kernel-1", "/kernel-2"));
});

test("open(), readdir() and stat() fail as on any file system", () => {
  const boot = bootFilesystem(IMAGES);
  fails("ENOENT", () => boot.open("/kernel-3", O_RDONLY));
  fails("ENOENT", () => boot.stat("/kernel-1/x"));
  fails("ENOENT", () => boot.readdir("/none"));
  fails("ENOTDIR", () => boot.readdir("/kernel-1"));
  fails("ENOTDIR", () => boot.open("/kernel-1", O_DIRECTORY));
  fails("EISDIR", () => boot.open("/", O_RDONLY));
  fails("EEXIST", () => boot.open("/kernel-1", O_CREAT | O_EXCL));
  assert.equal(boot.open("/kernel-1", O_CREAT).kind, "bootfs");
  assert.equal(boot.stat("/").kind, "directory");
  assert.equal(boot.statfs().inodes, 3);
});
