/**
 * Archives that a Linux kernel unpacks as its first root: cpio in the "newc" form.
 *
 * Why not cpio(1): it cannot make a device node without root, and its archives differ from run to run.
 * Source: Linux 7.3 Documentation/driver-api/early-userspace/buffer-format.rst
 * @module
 */
import { Buffer } from "node:buffer";

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;
const S_IFCHR = 0o020000;

/** One entry; `path` has no leading slash, and its folder comes before it. */
export type CpioEntry =
  | { readonly kind: "folder"; readonly path: string }
  | {
      readonly kind: "file";
      readonly path: string;
      readonly bytes: Uint8Array;
      readonly executable: boolean;
    }
  | { readonly kind: "link"; readonly path: string; readonly target: string }
  | {
      readonly kind: "device";
      readonly path: string;
      readonly major: number;
      readonly minor: number;
    };

/** Adds the folders above each entry that are not there yet, in the order that the kernel needs. */
export function withFolders(entries: readonly CpioEntry[]): CpioEntry[] {
  const seen = new Set<string>();
  const all: CpioEntry[] = [];
  for (const entry of entries) {
    const parts = entry.path.split("/");
    for (let i = 1; i < parts.length; i++) {
      const path = parts.slice(0, i).join("/");
      if (seen.has(path)) continue;
      seen.add(path);
      all.push({ kind: "folder", path });
    }
    if (entry.kind === "folder" && seen.has(entry.path)) continue;
    seen.add(entry.path);
    all.push(entry);
  }
  return all;
}

/** @returns the archive; archives one after another are unpacked one after another */
export function encodeCpio(entries: readonly CpioEntry[]): Uint8Array<ArrayBuffer> {
  const pieces: Uint8Array[] = [];
  for (const [i, entry] of entries.entries()) {
    const data = contentOf(entry);
    pieces.push(header(entry, i + 1, data.length), data, padding(data.length));
  }
  pieces.push(header({ kind: "file", path: "TRAILER!!!", bytes: NONE, executable: false }, 0, 0));
  return Buffer.concat(pieces);
}

const NONE = new Uint8Array(0);

function contentOf(entry: CpioEntry): Uint8Array {
  if (entry.kind === "file") return entry.bytes;
  return entry.kind === "link" ? Buffer.from(entry.target) : NONE;
}

function modeOf(entry: CpioEntry): number {
  switch (entry.kind) {
    case "folder":
      return S_IFDIR | 0o755;
    case "file":
      return S_IFREG | (entry.executable ? 0o755 : 0o644);
    case "link":
      return S_IFLNK | 0o777;
    case "device":
      return S_IFCHR | 0o600;
  }
}

function header(entry: CpioEntry, inode: number, sizeBytes: number): Uint8Array {
  const name = Buffer.from(`${entry.path}\0`);
  const [major, minor] = entry.kind === "device" ? [entry.major, entry.minor] : [0, 0];
  const fields = [
    inode,
    modeOf(entry),
    0, // uid
    0, // gid
    entry.kind === "folder" ? 2 : 1, // links
    0, // mtime
    sizeBytes,
    0, // device
    0,
    major,
    minor,
    name.length,
    0, // checksum: none in this form
  ];
  const text = `070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}`;
  return Buffer.concat([Buffer.from(text), name, padding(text.length + name.length)]);
}

function padding(lengthBytes: number): Uint8Array {
  return new Uint8Array(-lengthBytes & 3);
}
