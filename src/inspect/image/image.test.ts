import assert from "node:assert/strict";
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import fc from "fast-check";
import { HandoverError } from "../../abi/handover-error.ts";
import { GIB, MIB, PAGE_SIZE } from "../../base/units.ts";
import { createSharedRam, Ram } from "../../machine/physical-memory.ts";
import { encodeElfCore, ImageError } from "./elf-core.ts";
import { decodeNote, encodeNote, type ImageNote } from "./image-note.ts";
import { openImage } from "./open-image.ts";
import type { RamImage } from "./ram-image.ts";
import { rawSegments } from "./raw-image.ts";
import { saveImage } from "./save-image.ts";

const folder = mkdtempSync(join(tmpdir(), "holdfast-image-"));
after(() => rmSync(folder, { recursive: true }));
const file = (name: string) => join(folder, name);

const NOTE: ImageNote = {
  update: 3,
  kho: { fdtAddress: 0x1000, fdtSizeBytes: 200, scratchAddress: 0x40_0000, scratchSizeBytes: 48 },
  firmware: {
    memory: [{ start: MIB, lengthBytes: 63 * MIB, node: 0 }],
    rmrrs: [{ start: 0x1_0000, lengthBytes: PAGE_SIZE, segment: 0, bdf: 8 }],
    mmioWindows: [{ start: 0xd000_0000, lengthBytes: 128 * MIB, segment: 0 }],
  },
};

function use<T>(path: string, look: (image: RamImage) => T): T {
  const image = openImage(path);
  try {
    return look(image);
  } finally {
    image.close();
  }
}

describe("rawSegments()", () => {
  it("splits RAM around the hole as QEMU's q35 does", () => {
    const split = (bytes: number, below: number | null = null) =>
      rawSegments(bytes, below).map(({ pa, lengthBytes, fileOffset }) => [
        pa,
        lengthBytes,
        fileOffset,
      ]);
    assert.deepEqual(split(GIB), [[0, GIB, 0]]);
    assert.deepEqual(split(0xaff0_0000), [[0, 0xaff0_0000, 0]]);
    assert.deepEqual(split(0xb000_0000), [
      [0, 2 * GIB, 0],
      [4 * GIB, 0x3000_0000, 2 * GIB],
    ]);
    assert.deepEqual(split(8 * GIB), [
      [0, 2 * GIB, 0],
      [4 * GIB, 6 * GIB, 2 * GIB],
    ]);
    assert.deepEqual(split(8 * GIB, 3 * GIB), [
      [0, 3 * GIB, 0],
      [4 * GIB, 5 * GIB, 3 * GIB],
    ]);
  });
});

describe("a raw image", () => {
  it("has its words where the machine had them, and nothing in the hole", () => {
    const path = file("raw");
    writeFileSync(path, "");
    // Sparse: nothing is written.
    truncateSync(path, 3 * GIB);
    use(path, (image) => {
      assert.equal(image.info.format, "raw");
      assert.equal(image.contains(2 * GIB - 8, 8), true);
      assert.equal(image.contains(2 * GIB - 4, 8), false);
      assert.equal(image.contains(3 * GIB, 1), false);
      assert.equal(image.contains(4 * GIB, GIB), true);
      assert.equal(image.contains(5 * GIB - 1, 2), false);
      for (const odd of [-1, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60])
        assert.equal(image.contains(odd, 1), false, String(odd));
      assert.equal(image.load64(5 * GIB - 8), 0);
      assert.throws(() => image.load32(3 * GIB), HandoverError);
    });
  });

  it("is refused when it is no RAM, compressed, or not a file", () => {
    const problem = (path: string) => {
      try {
        openImage(path).close();
      } catch (error) {
        assert.ok(error instanceof ImageError, String(error));
        return error.message;
      }
      return assert.fail("it was opened");
    };
    writeFileSync(file("short"), "x");
    assert.match(problem(file("short")), /not a number of 4 KiB pages/);
    writeFileSync(file("kdump"), Buffer.concat([Buffer.from("KDUMP   "), Buffer.alloc(5000)]));
    assert.match(problem(file("kdump")), /makedumpfile/);
    assert.match(problem(folder), /not a regular file/);
  });
});

describe("saveImage()", () => {
  it("writes what openImage() reads back: all bytes, RAM that was never touched, the note", () => {
    const ram = new Ram(
      createSharedRam([
        { start: 0, lengthBytes: 64 * MIB },
        { start: 4 * GIB, lengthBytes: 32 * MIB },
      ]),
    );
    const bytes = Uint8Array.from({ length: 10_000 }, (_, i) => i % 251);
    const places = [0, 6 * MIB - 5000, 64 * MIB - bytes.length, 4 * GIB + 20 * MIB];
    for (const pa of places) ram.write(pa, bytes);
    const path = file("saved");
    saveImage(path, ram, NOTE);
    use(path, (image) => {
      assert.deepEqual(image.info.note, NOTE);
      assert.deepEqual(image.info.warnings, []);
      assert.deepEqual(image.ranges, ram.ranges);
      for (const pa of places) {
        const found = new Uint8Array(bytes.length);
        image.read(pa, found);
        assert.deepEqual(found, bytes);
        assert.equal(image.load8(pa + 300), bytes[300]);
      }
      assert.equal(image.load32(6 * MIB), ram.load32(6 * MIB));
      assert.equal(image.load64(6 * MIB + 8), ram.load64(6 * MIB + 8));
      assert.equal(image.loadBig64(6 * MIB + 8), ram.loadBig64(6 * MIB + 8));
      assert.equal(image.load16(6 * MIB + 2), ram.load16(6 * MIB + 2));
      assert.equal(image.load64(4 * GIB), 0);
    });
  });
});

/** An ELF core of pieces whose bytes are all `value`. */
function writeCore(
  path: string,
  pieces: readonly { pa: number; lengthBytes: number; value: number }[],
): void {
  const parts = pieces.map(({ pa, lengthBytes }) => ({ pa, lengthBytes, isInFile: true }));
  const { head } = encodeElfCore(parts, encodeNote(NOTE));
  writeFileSync(
    path,
    Buffer.concat([head, ...pieces.map((p) => Buffer.alloc(p.lengthBytes, p.value))]),
  );
}

describe("an ELF core", () => {
  it("may name memory twice, as a vmcore does: what comes first in memory counts", () => {
    const path = file("vmcore");
    writeCore(path, [
      { pa: 0x3000, lengthBytes: 0x2000, value: 2 },
      { pa: 0x1000, lengthBytes: 0x3000, value: 1 },
    ]);
    use(path, (image) => {
      assert.deepEqual(image.ranges, [{ start: 0x1000, lengthBytes: 0x4000 }]);
      const found = [0x1000, 0x2fff, 0x3fff, 0x4000, 0x4fff].map((pa) => image.load8(pa));
      assert.deepEqual(found, [1, 1, 1, 2, 2]);
    });
  });

  it("that ends early is read as far as it goes, and says so", () => {
    const path = file("truncated");
    writeCore(path, [{ pa: 0x1000, lengthBytes: 0x4000, value: 7 }]);
    truncateSync(path, 4096 + 0x2000);
    use(path, (image) => {
      assert.match(image.info.warnings.join(), /the file ends 8192 bytes before 0x5000/);
      assert.deepEqual([image.load8(0x2fff), image.load8(0x3000)], [7, 0]);
      assert.equal(image.contains(0x1000, 0x4000), true);
    });
  });

  it("with 70,000 pieces is written and read", () => {
    const pieces = Array.from({ length: 70_000 }, (_, i) => ({
      pa: 2 * i * PAGE_SIZE,
      lengthBytes: PAGE_SIZE,
      isInFile: false,
    }));
    const path = file("many");
    writeFileSync(path, encodeElfCore(pieces, encodeNote(NOTE)).head);
    use(path, (image) => {
      assert.equal(image.ranges.length, 70_000);
      assert.equal(image.contains(2 * 69_999 * PAGE_SIZE, PAGE_SIZE), true);
      assert.deepEqual(image.info.note, NOTE);
    });
  });

  it("is opened or refused by a message, whatever its headers hold", () => {
    const path = file("garbage");
    const { head } = encodeElfCore(
      [{ pa: 0x1000, lengthBytes: 0x1000, isInFile: true }],
      encodeNote(NOTE),
    );
    const whole = Buffer.concat([head, Buffer.alloc(0x1000, 3)]);
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(200), fc.nat(255)), { minLength: 1, maxLength: 12 }),
        fc.option(fc.nat(whole.length)),
        (changes, length) => {
          const bytes = Buffer.from(whole);
          // The magic stays, else it is a raw file.
          for (const [at, value] of changes) bytes[4 + at] = value;
          writeFileSync(path, bytes.subarray(0, Math.max(4, length ?? bytes.length)));
          try {
            use(path, (image) => {
              for (const { start } of image.ranges) image.load64(start);
            });
          } catch (error) {
            assert.ok(error instanceof ImageError, String(error));
            assert.match(error.message, /ELF/);
          }
        },
      ),
      { numRuns: 500 },
    );
  });
});

describe("decodeNote()", () => {
  it("takes what encodeNote() makes, and names what is wrong with anything else", () => {
    assert.deepEqual(decodeNote(encodeNote(NOTE)), NOTE);
    const note = (change: object) =>
      decodeNote(
        new TextEncoder().encode(
          JSON.stringify({ ...JSON.parse(new TextDecoder().decode(encodeNote(NOTE))), ...change }),
        ),
      );
    assert.match(String(note({ format: "holdfast-image-v2" })), /holdfast-image-v2/);
    assert.match(String(note({ kho: { ...NOTE.kho, fdtAddress: -1 } })), /boot parameters/);
    assert.match(String(note({ firmware: { ...NOTE.firmware, rmrrs: [{}] } })), /firmware/);
    assert.match(String(note({ firmware: null })), /firmware/);
    assert.equal(decodeNote(Uint8Array.of(0xff, 1)), "is not JSON");
  });
});
