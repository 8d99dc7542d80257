import assert from "node:assert/strict";
import { test } from "node:test";
import { isKernelError } from "../base/errno.ts";
import type { Host } from "./host.ts";
import { MemfdRecord } from "./memfd-record.ts";

const FD = 3;
const SLOT = 256;

/** What a kexec in the middle of a write looks like from inside. */
class Stop extends Error {}

/** One memfd. */
class FakeMemfd {
  bytes = new Uint8Array(0);
  /** Bytes that may still be written. */
  writable = Number.POSITIVE_INFINITY;
  readonly host = {
    ftruncate: (_fd: number, length: number) => {
      this.bytes = new Uint8Array(length);
    },
    fallocate: () => {},
    fstat: () => ({ sizeBytes: this.bytes.length }),
    pread: (_fd: number, target: Uint8Array, offset: number) => {
      const found = this.bytes.subarray(offset, offset + target.length);
      target.set(found);
      return found.length;
    },
    pwrite: (_fd: number, bytes: Uint8Array, offset: number) => {
      assert.ok(offset + bytes.length <= this.bytes.length, "a preserved memfd does not grow");
      for (const [i, byte] of bytes.entries()) {
        if (this.writable-- <= 0) throw new Stop();
        this.bytes[offset + i] = byte;
      }
      return bytes.length;
    },
  } as unknown as Host;
}

function reopen(memfd: FakeMemfd): unknown {
  return MemfdRecord.open(memfd.host, FD).read();
}

const isDamaged = (error: unknown) => isKernelError(error, "EIO");

test("the last record that was written is read, however many there were", () => {
  const memfd = new FakeMemfd();
  const record = MemfdRecord.create<unknown>(memfd.host, FD, SLOT, { step: 0 });
  assert.deepEqual(reopen(memfd), { step: 0 });
  for (let step = 1; step < 600; step++) {
    record.write({ step, name: "vm→0" });
    assert.deepEqual(record.read(), { step, name: "vm→0" });
    assert.deepEqual(reopen(memfd), { step, name: "vm→0" });
  }
});

test("who opens a record goes on where the one before it stopped", () => {
  const memfd = new FakeMemfd();
  MemfdRecord.create<number>(memfd.host, FD, SLOT, 1);
  for (let value = 2; value < 6; value++) {
    MemfdRecord.open<number>(memfd.host, FD).write(value);
    assert.equal(reopen(memfd), value);
  }
});

test("a write that stops at any byte leaves the record before it, until the last byte", () => {
  // Shorter, longer, equal, and equal to what the slot held before.
  const next = ["", "x".repeat(200), "second", "first!", "zeroth"];
  for (const text of next) {
    let stopped = 0;
    for (let written = 0; ; written++) {
      const memfd = new FakeMemfd();
      const record = MemfdRecord.create<string>(memfd.host, FD, SLOT, "zeroth");
      record.write("first!");
      memfd.writable = written;
      let isStopped = false;
      try {
        record.write(text);
      } catch (error) {
        if (!(error instanceof Stop)) throw error;
        isStopped = true;
      }
      memfd.writable = Number.POSITIVE_INFINITY;
      const found = reopen(memfd);
      if (!isStopped) {
        assert.equal(found, text);
        break;
      }
      stopped++;
      assert.ok(found === "first!" || found === text, `"${text}" after ${written} bytes: ${found}`);
      // The checksum is the header's last field, so it is complete only with the whole header.
      if (text !== "zeroth") assert.equal(found, "first!", `"${text}" after ${written} bytes`);
      // Whatever the stop has left, the next write takes.
      MemfdRecord.open<string>(memfd.host, FD).write("after");
      assert.equal(reopen(memfd), "after");
    }
    assert.ok(stopped >= 16, `${stopped} stops`);
  }
});

test("a damaged byte anywhere in the newest slot gives the record before it; in both, EIO", () => {
  for (let at = 0; at < 16 + JSON.stringify("newest").length; at++) {
    const memfd = new FakeMemfd();
    const record = MemfdRecord.create<string>(memfd.host, FD, SLOT, "older");
    record.write("newest");
    // Generation 2 is in slot 0. A generation that is damaged may sort before or behind the other one.
    if (at >= 4 && at < 8) continue;
    memfd.bytes[at] ^= 0x10;
    assert.equal(reopen(memfd), "older", `byte ${at}`);
    memfd.bytes[SLOT + 15] ^= 1;
    assert.throws(() => reopen(memfd), isDamaged, `byte ${at}`);
  }
});

test("open() fails with EIO when the file holds no record", () => {
  for (const bytes of [new Uint8Array(0), new Uint8Array(20), new Uint8Array(512).fill(0xff)]) {
    const memfd = new FakeMemfd();
    memfd.bytes = bytes;
    assert.throws(() => reopen(memfd), isDamaged, `${bytes.length} bytes`);
  }
});

test("open() fails with EIO when a slot's text is intact and no JSON", () => {
  const memfd = new FakeMemfd();
  const record = MemfdRecord.create<unknown>(memfd.host, FD, SLOT, 12345);
  record.write("x");
  // "12345" with the checksum of "1234x", as another writer of the same layout may leave it.
  const text = Buffer.from("1234x");
  let hash = 0x811c9dc5;
  for (const byte of text) hash = Math.imul(hash ^ byte, 0x01000193);
  memfd.bytes.set(text, SLOT + 16);
  Buffer.from(memfd.bytes.buffer).writeInt32LE(hash, SLOT + 12);
  assert.equal(reopen(memfd), "x");
  memfd.bytes[0] ^= 1;
  assert.throws(() => reopen(memfd), isDamaged);
});

test("write() fails with EFBIG when the record exceeds its slot, and the one before it stays", () => {
  const memfd = new FakeMemfd();
  const record = MemfdRecord.create<string>(memfd.host, FD, SLOT, "small");
  const largest = "x".repeat(SLOT - 16 - 2);
  assert.throws(
    () => record.write(`${largest}x`),
    (error) => isKernelError(error, "EFBIG"),
  );
  assert.equal(reopen(memfd), "small");
  record.write(largest);
  assert.equal(reopen(memfd), largest);
});

test("open() fails with EIO for a record of a size that none has, and does not make room for it", () => {
  const header = new Uint8Array(16);
  const words = new DataView(header.buffer);
  words.setUint32(0, 0x48464a31, true);
  words.setUint32(8, 0xffff_fff0, true);
  const host = {
    fstat: () => ({ sizeBytes: 2 ** 40 }),
    pread: (_fd: number, target: Uint8Array) => {
      assert.ok(target.length <= 16, `${target.length} bytes of room`);
      target.set(header);
      return header.length;
    },
  } as unknown as Host;
  assert.throws(() => MemfdRecord.open(host, FD), isDamaged);
});
