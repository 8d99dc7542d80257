import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError, KernelError } from "../base/errno.ts";
import type { Host } from "./host.ts";
import { readBytes, readTextFile } from "./read-file.ts";

/** A host with one file, read in pieces of at most `pieceBytes`. */
function host(content: Uint8Array, pieceBytes: number, kind = "file") {
  const open = new Set<number>();
  let at = 0;
  const fake = {
    open(path: string) {
      if (path !== "/file") throw new KernelError("ENOENT", "open", path);
      open.add(5);
      return 5;
    },
    fstat: () => ({ kind }),
    read(_fd: number, target: Uint8Array) {
      if (at > 8000) throw new KernelError("EIO", "read", "the medium is bad there");
      const piece = content.subarray(at, at + Math.min(pieceBytes, target.length));
      target.set(piece);
      at += piece.length;
      return piece.length;
    },
    close: (fd: number) => open.delete(fd),
  } as unknown as Host;
  return { fake, open };
}

test("readTextFile() reads all of a file, in pieces of any size, and characters across them", () => {
  const text = `${"a".repeat(4095)}→${"é".repeat(100)}`;
  for (const pieceBytes of [1, 7, 4096, 10_000]) {
    const { fake, open } = host(new TextEncoder().encode(text), pieceBytes);
    assert.equal(readTextFile(fake, "/file"), text);
    assert.equal(open.size, 0);
  }
  assert.equal(readTextFile(host(new Uint8Array(0), 10).fake, "/file"), "");
});

test("readTextFile() fails with the errno of the call that fails, and leaves nothing open", () => {
  const { fake, open } = host(new Uint8Array(9000), 4096);
  assert.throws(
    () => readTextFile(fake, "/file"),
    (error) => isKernelError(error, "EIO"),
  );
  assert.equal(open.size, 0);
  assert.throws(
    () => readTextFile(fake, "/other"),
    (error) => isKernelError(error, "ENOENT"),
  );
});

test("readBytes() fails with EFBIG when there is more than it may read, also where a file does not know its size", () => {
  for (const pieceBytes of [1, 10_000]) {
    const { fake, open } = host(new Uint8Array(5000), pieceBytes);
    assert.equal(readBytes(fake, "/file", 5000).length, 5000);
    const { fake: longer } = host(new Uint8Array(5001), pieceBytes);
    assert.throws(
      () => readBytes(longer, "/file", 5000),
      (error) => isKernelError(error, "EFBIG") && /more than 5000/.test(error.message),
    );
    assert.equal(open.size, 0);
  }
});

test("readBytes() fails with EINVAL for what is no regular file, and does not read it", () => {
  for (const kind of ["device", "directory", "anonymous"]) {
    const { fake, open } = host(new Uint8Array(9000), 4096, kind);
    assert.throws(
      () => readBytes(fake, "/file"),
      (error) => isKernelError(error, "EINVAL") && /\/file is no regular file/.test(error.message),
    );
    assert.equal(open.size, 0);
  }
});
