import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { describe, test } from "node:test";
import { type CpioEntry, encodeCpio, withFolders } from "./cpio.ts";

/** Reads an archive as the kernel's unpacker does. */
function decode(
  archive: Uint8Array,
): { path: string; mode: number; data: string; device: string }[] {
  const text = Buffer.from(archive).toString("latin1");
  const entries = [];
  for (let at = 0; ; ) {
    assert.equal(text.slice(at, at + 6), "070701", `an entry at ${at}`);
    const field = (i: number) => Number.parseInt(text.slice(at + 6 + i * 8, at + 14 + i * 8), 16);
    const nameEnd = at + 110 + field(11);
    const path = text.slice(at + 110, nameEnd - 1);
    assert.equal(text[nameEnd - 1], "\0");
    const start = (nameEnd + 3) & ~3;
    if (path === "TRAILER!!!") {
      assert.equal(archive.length, start);
      return entries;
    }
    const data = text.slice(start, start + field(6));
    entries.push({ path, mode: field(1), data, device: `${field(9)}:${field(10)}` });
    at = (start + field(6) + 3) & ~3;
  }
}

const file = (path: string, text: string): CpioEntry => ({
  kind: "file",
  path,
  bytes: Buffer.from(text),
  executable: true,
});

describe("cpio", () => {
  test("files, folders, links and devices have their modes and content, whatever their length", () => {
    for (const text of ["", "1", "12", "123", "1234", "12345"]) {
      const archive = encodeCpio([
        { kind: "folder", path: "dev" },
        { kind: "device", path: "dev/console", major: 5, minor: 1 },
        file("init", text),
        { kind: "link", path: "sh", target: "init" },
      ]);
      assert.deepEqual(decode(archive), [
        { path: "dev", mode: 0o040755, data: "", device: "0:0" },
        { path: "dev/console", mode: 0o020600, data: "", device: "5:1" },
        { path: "init", mode: 0o100755, data: text, device: "0:0" },
        { path: "sh", mode: 0o120777, data: "init", device: "0:0" },
      ]);
    }
  });

  test("folders come before what is in them, once", () => {
    const entries = withFolders([
      file("a/b/c", ""),
      { kind: "folder", path: "a" },
      file("a/d", ""),
      { kind: "folder", path: "e" },
    ]);
    assert.deepEqual(
      entries.map(({ path }) => path),
      ["a", "a/b", "a/b/c", "a/d", "e"],
    );
  });
});
