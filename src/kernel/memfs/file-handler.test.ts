import assert from "node:assert/strict";
import { test } from "node:test";
import { HandoverError } from "../../abi/handover-error.ts";
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, O_CREAT, O_RDWR } from "../../abi/uapi/fs.ts";
import { isKernelError } from "../../base/errno.ts";
import type { FileHandler, SessionView } from "../liveupdate/file-handler.ts";
import { Eventfd } from "../vfs/eventfd.ts";
import type { File } from "../vfs/file.ts";
import { MemfsFileHandler } from "./file-handler.ts";
import type { RetainedFile } from "./memfs.ts";
import { Box, type Kernel, PAGE, pagesInUse } from "./test-rig.ts";

const code = (expected: string) => (error: unknown) =>
  isKernelError(error) && error.code === expected;

/** A session that knows nothing: this handler asks it nothing. */
const SESSION: SessionView = {
  name: "vm0",
  contains: () => false,
  incomingFile: () => {
    throw new Error("not asked for");
  },
  tokenOf: () => null,
};

function build() {
  const box = new Box();
  const kernel = box.boot(null);
  const handler: FileHandler<RetainedFile> = new MemfsFileHandler(kernel.memfs);
  const fs = kernel.memfs.mount("guest0", "");
  const file = fs.open("/ram", O_RDWR | O_CREAT);
  file.fallocate(0, 0, 4 * PAGE);
  return { box, kernel, handler, fs, file };
}

const preserve = (handler: FileHandler<RetainedFile>, file: File, token: bigint) =>
  handler.preserve({ session: SESSION, file, token });

/** A jump, with the decoders of sessions between the check and the use of the handover. */
function jump(box: Box, kernel: Kernel, data: readonly bigint[]) {
  const next = box.boot(kernel.kho.bootParameters());
  const handler: FileHandler<RetainedFile> = new MemfsFileHandler(next.memfs);
  const incoming = next.incoming;
  assert.ok(incoming !== null);
  const decoded = data.map((d) => handler.decode(incoming, d, "session"));
  next.memfs.adopt();
  return { kernel: next, handler, decoded, fs: next.memfs.mount("guest0", "") };
}

test("canPreserve() takes memfs files only", () => {
  const { handler, file } = build();
  assert.equal(handler.canPreserve(file), true);
  assert.equal(handler.canPreserve(new Eventfd(0, 0)), false);
});

test("a preserved file is pinned and its size fixed: EBUSY, until it is unpreserved", () => {
  const { kernel, handler, fs, file } = build();
  fs.open("/other", O_RDWR | O_CREAT).put();
  const data = preserve(handler, file, 1n);
  assert.throws(() => preserve(handler, file, 2n), code("EBUSY"));
  assert.throws(() => fs.unlink("/ram"), code("EBUSY"));
  assert.throws(() => fs.rename("/other", "/ram"), code("EBUSY"));
  assert.throws(() => file.truncate(0), code("EBUSY"));
  assert.throws(() => file.truncate(8 * PAGE), code("EBUSY"));
  assert.throws(() => file.fallocate(0, 0, 5 * PAGE), code("EBUSY"));
  const punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  assert.throws(() => file.fallocate(punch, 0, PAGE), code("EBUSY"));
  // The name may change: it is not how the session finds the file.
  fs.rename("/ram", "/moved");
  handler.unpreserve({ session: SESSION, file, token: 1n, data });
  assert.equal(kernel.memfs.pinCount, 0);
  file.truncate(0);
  fs.unlink("/moved");
});

test("retrieve() opens the same file again; it stays pinned until finish()", () => {
  const { box, kernel, handler, fs, file } = build();
  const mapping = file.mmap(0, PAGE);
  mapping.pieces[0].bytes.fill(0x5a);
  const data = preserve(handler, file, 1n);
  fs.rename("/ram", "/moved");
  const next = jump(box, kernel, [data]);
  assert.throws(() => next.fs.unlink("/moved"), code("EBUSY"));
  const again = next.handler.retrieve({ session: SESSION, data: next.decoded[0], token: 1n });
  assert.equal(again.stat().sizeBytes, 4 * PAGE);
  assert.equal(again.mmap(0, PAGE).pieces[0].bytes[7], 0x5a);
  const opened = next.fs.open("/moved", O_RDWR);
  assert.equal(opened.inode, again.inode);
  // It is not free for another session before this one is finished.
  assert.throws(() => preserve(next.handler, again, 1n), code("EBUSY"));
  next.handler.finish({ data: next.decoded[0], file: again });
  preserve(next.handler, again, 1n);
});

test("finish() of a file that nobody retrieved leaves it under its name", () => {
  const { box, kernel, handler, file } = build();
  const data = preserve(handler, file, 1n);
  const next = jump(box, kernel, [data]);
  next.handler.finish({ data: next.decoded[0], file: null });
  assert.equal(next.kernel.memfs.pinCount, 0);
  assert.equal(next.fs.stat("/ram").sizeBytes, 4 * PAGE);
  next.fs.unlink("/ram");
});

test("an unlinked file lives on in its session, and goes with finish()", () => {
  const { box, kernel, handler, fs, file } = build();
  const empty = pagesInUse(kernel) - 5;
  fs.unlink("/ram");
  const data = preserve(handler, file, 1n);
  const next = jump(box, kernel, [data]);
  const again = next.handler.retrieve({ session: SESSION, data: next.decoded[0], token: 1n });
  assert.equal(again.stat().linkCount, 0);
  again.put();
  assert.ok(pagesInUse(next.kernel) > empty);
  next.handler.finish({ data: next.decoded[0], file: null });
  assert.equal(pagesInUse(next.kernel), empty);
});

test("decode() refuses what names no file, and a file named twice; the field is told", () => {
  const { box, kernel, handler, fs, file } = build();
  fs.mkdir("/directory");
  const data = preserve(handler, file, 1n);
  const next = box.boot(kernel.kho.bootParameters());
  const decoder: FileHandler<RetainedFile> = new MemfsFileHandler(next.memfs);
  const { incoming } = next;
  assert.ok(incoming !== null);
  const directory = (data & ~0xfffffffn) | BigInt(fs.stat("/directory").inode);
  const wrong = [0n, data + 1n, data + (1n << 28n), data + (1n << 52n), directory, 2n ** 64n - 1n];
  for (const value of wrong)
    assert.throws(
      () => decoder.decode(incoming, value, 'session "vm0" token 0x1'),
      (error) => error instanceof HandoverError && error.field === 'session "vm0" token 0x1',
    );
  decoder.decode(incoming, data, "session");
  assert.throws(() => decoder.decode(incoming, data, "session"), HandoverError);
});
