import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
  F_ADD_SEALS,
  F_GET_SEALS,
  F_SEAL_FUTURE_WRITE,
  F_SEAL_GROW,
  F_SEAL_WRITE,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  MFD_ALLOW_SEALING,
} from "../../abi/uapi/fs.ts";
import { BugError } from "../../base/assert.ts";
import { type ErrnoCode, KernelError } from "../../base/errno.ts";
import { MIB, PAGE_SIZE } from "../../base/units.ts";
import { Rig } from "../liveupdate/test-rig.ts";
import type { MemfdFile } from "./memfd-file.ts";

const PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

function fails(code: ErrnoCode, action: () => unknown): void {
  assert.throws(
    action,
    (error: unknown) => error instanceof KernelError && error.code === code,
    `expected ${code}`,
  );
}

function makeMemfd(flags = MFD_ALLOW_SEALING): { rig: Rig; memfd: MemfdFile; free: number } {
  const rig = Rig.cold();
  return { rig, memfd: rig.shmem.memfdCreate("m", flags), free: rig.mm.counts().free };
}

function contents(memfd: MemfdFile): Uint8Array {
  const bytes = new Uint8Array(memfd.stat().sizeBytes);
  assert.equal(memfd.pread(bytes, 0), bytes.length);
  return bytes;
}

describe("memfd_create()", () => {
  test("pinCount counts mappings, pins and holds of all memfds until each is let go", () => {
    const { rig, memfd } = makeMemfd();
    const { shmem } = rig;
    memfd.truncate(PAGE_SIZE);
    assert.equal(shmem.pinCount, 0);
    const mapping = memfd.mmap(0, PAGE_SIZE);
    const pin = memfd.pin(0, PAGE_SIZE);
    const other = shmem.memfdCreate("m", 0);
    const letGo = other.shmem.keepPages();
    assert.equal(shmem.pinCount, 3);
    mapping.unmap();
    pin.unpin();
    pin.unpin();
    assert.equal(shmem.pinCount, 1);
    other.put();
    assert.equal(shmem.pinCount, 1, "a file that is gone has left its pin");
    letGo();
    letGo();
    assert.equal(shmem.pinCount, 0);
  });
});

describe("seals", () => {
  test("F_SEAL_WRITE fails with EBUSY while it is mapped or pinned; F_SEAL_FUTURE_WRITE does not", () => {
    const { memfd } = makeMemfd();
    memfd.truncate(PAGE_SIZE);
    const mapping = memfd.mmap(0, PAGE_SIZE);
    fails("EBUSY", () => memfd.fcntl(F_ADD_SEALS, F_SEAL_WRITE));
    mapping.unmap();
    const pin = memfd.pin(0, PAGE_SIZE);
    fails("EBUSY", () => memfd.fcntl(F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW));
    assert.equal(memfd.fcntl(F_GET_SEALS, 0), 0);
    memfd.fcntl(F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
    pin.unpin();
    memfd.fcntl(F_ADD_SEALS, F_SEAL_WRITE);
  });
});

describe("bytes and size", () => {
  test("sizes and ranges fail with EINVAL, EFBIG and EOPNOTSUPP", () => {
    const { memfd, rig, free } = makeMemfd();
    fails("EINVAL", () => memfd.truncate(-1));
    fails("EINVAL", () => memfd.truncate(1.5));
    fails("EFBIG", () => memfd.truncate(2 ** 52 + 1));
    memfd.truncate(2 ** 52);
    assert.equal(rig.mm.counts().free, free);
    memfd.truncate(0);
    fails("EINVAL", () => memfd.fallocate(0, 0, 0));
    fails("EINVAL", () => memfd.fallocate(0, -1, 1));
    fails("EFBIG", () => memfd.fallocate(0, 2 ** 52, 1));
    fails("EOPNOTSUPP", () => memfd.fallocate(FALLOC_FL_PUNCH_HOLE, 0, 1));
    fails("EOPNOTSUPP", () => memfd.fallocate(8, 0, 1));
    fails("EFBIG", () => memfd.pwrite(Uint8Array.of(1), 2 ** 52));
    fails("EINVAL", () => memfd.pwrite(Uint8Array.of(1), -1));
    fails("EINVAL", () => memfd.pread(Uint8Array.of(1), 0.5));
  });

  test("2 MiB that are asked for as a whole get one large page, and less gets small ones", () => {
    const { memfd, rig, free } = makeMemfd();
    memfd.fallocate(0, PAGE_SIZE, 4 * MIB);
    assert.equal(memfd.shmem.folios.orderAt(512), 9);
    assert.equal(memfd.shmem.folios.orderAt(511), 0);
    assert.equal(memfd.shmem.folios.orderAt(1024), 0);
    assert.equal(memfd.stat().allocatedBytes, 4 * MIB);
    // A part of a large page that is punched reads as zero; its memory stays.
    memfd.pwrite(new Uint8Array(2 * MIB).fill(7), 2 * MIB);
    memfd.fallocate(PUNCH, 2 * MIB + 10, 3 * PAGE_SIZE);
    const bytes = new Uint8Array(3 * PAGE_SIZE + 2);
    memfd.pread(bytes, 2 * MIB + 9);
    assert.equal(
      bytes[0] === 7 && bytes.at(-1) === 7 && bytes.subarray(1, -1).every((b) => b === 0),
      true,
    );
    assert.equal(memfd.stat().allocatedBytes, 4 * MIB);
    memfd.truncate(2 * MIB);
    assert.equal(memfd.stat().allocatedBytes, 2 * MIB - PAGE_SIZE);
    memfd.put();
    assert.equal(rig.mm.counts().free, free);
  });

  test("without a large page small ones are taken; without memory nothing is changed", () => {
    const { memfd, rig } = makeMemfd();
    const failing = (order: number) => {
      const { alloc } = rig.mm;
      rig.mm.alloc = (wanted, options) => {
        if (wanted === order) throw new KernelError("ENOMEM", "alloc", "test");
        return alloc.call(rig.mm, wanted, options);
      };
    };
    failing(9);
    memfd.fallocate(0, 0, 2 * MIB);
    assert.equal(memfd.shmem.folios.orderAt(0), 0);
    assert.equal(memfd.stat().allocatedBytes, 2 * MIB);
  });

  test("ENOMEM at each allocation of fallocate, write, mmap and pin leaves size and memory", () => {
    for (const action of [
      (m: MemfdFile) => m.fallocate(0, 0, 2 * MIB + 3 * PAGE_SIZE),
      (m: MemfdFile) => m.pwrite(new Uint8Array(3 * PAGE_SIZE).fill(1), 100),
      (m: MemfdFile) => m.mmap(0, 3 * PAGE_SIZE),
      (m: MemfdFile) => m.pin(0, 3 * PAGE_SIZE),
    ]) {
      const { rig, memfd } = makeMemfd();
      memfd.truncate(3 * PAGE_SIZE);
      memfd.pwrite(Uint8Array.of(5), PAGE_SIZE);
      const before = [memfd.stat(), contents(memfd)];
      const like = makeLike(rig, memfd);
      const count = rig.faults.record(() => action(like)).length;
      assert.ok(count >= 2, `${count} steps`);
      for (let i = 0; i < count; i++) {
        const after = rig.mm.counts();
        rig.faults.arm(i, (point) => new KernelError("EIO", "test", point));
        fails("EIO", () => action(memfd));
        assert.equal(rig.faults.disarm(), true, "the armed step was reached");
        assert.deepEqual(rig.mm.counts(), after);
        assert.deepEqual([memfd.stat(), contents(memfd)], before);
        assert.equal(memfd.references, 1);
      }
    }
  });
});

/** Another memfd with the same size and pages. */
function makeLike(rig: Rig, memfd: MemfdFile): MemfdFile {
  const like = rig.shmem.memfdCreate("m", MFD_ALLOW_SEALING);
  like.truncate(memfd.stat().sizeBytes);
  like.pwrite(Uint8Array.of(5), PAGE_SIZE);
  return like;
}

describe("mappings and pins", () => {
  test("mmap() shares memory with write and read", () => {
    const { memfd } = makeMemfd();
    memfd.truncate(2 * MIB + PAGE_SIZE);
    const { pieces, unmap } = memfd.mmap(0, 2 * MIB + PAGE_SIZE);
    let offset = 0;
    for (const piece of pieces) {
      assert.equal(piece.offsetBytes, offset);
      piece.bytes[3] = 77;
      const one = new Uint8Array(1);
      memfd.pread(one, offset + 3);
      assert.equal(one[0], 77);
      offset += piece.bytes.length;
    }
    assert.equal(offset, 2 * MIB + PAGE_SIZE);
    unmap();
  });

  test("pin() covers exactly what was asked for, in file order, adjoining pieces joined", () => {
    const { memfd, rig } = makeMemfd();
    memfd.truncate(4 * MIB);
    const pin = memfd.pin(PAGE_SIZE + 3, 2 * MIB + 5 * PAGE_SIZE);
    let offset = PAGE_SIZE + 3;
    for (const { offsetBytes, pa, lengthBytes } of pin.extents) {
      assert.equal(offsetBytes, offset);
      memfd.pwrite(Uint8Array.of(offset % 251), offset);
      assert.equal(rig.ram.load8(pa), offset % 251);
      offset += lengthBytes;
    }
    assert.equal(offset, 2 * MIB + 6 * PAGE_SIZE + 3);
    for (let i = 1; i < pin.extents.length; i++) {
      const before = pin.extents[i - 1];
      assert.notEqual(before.pa + before.lengthBytes, pin.extents[i].pa);
    }
    fails("EINVAL", () => memfd.pin(0, 0));
    fails("EINVAL", () => memfd.pin(4 * MIB - 1, 2));
    fails("EINVAL", () => memfd.pin(-1, 2));
  });

  test("what is mapped or pinned cannot be cut off or punched: EBUSY; its neighbours can", () => {
    for (const hold of [
      (m: MemfdFile) => m.mmap(PAGE_SIZE, PAGE_SIZE).unmap,
      (m: MemfdFile) => m.pin(PAGE_SIZE, PAGE_SIZE).unpin,
    ]) {
      const { memfd } = makeMemfd();
      memfd.pwrite(new Uint8Array(3 * PAGE_SIZE).fill(1), 0);
      const release = hold(memfd);
      const before = contents(memfd);
      fails("EBUSY", () => memfd.truncate(0));
      fails("EBUSY", () => memfd.truncate(2 * PAGE_SIZE - 1));
      fails("EBUSY", () => memfd.fallocate(PUNCH, 0, PAGE_SIZE + 1));
      assert.deepEqual(contents(memfd), before);
      memfd.fallocate(PUNCH, 0, PAGE_SIZE);
      memfd.truncate(2 * PAGE_SIZE);
      release();
      memfd.truncate(0);
    }
  });

  test("a mapping or a pin keeps the file's memory after its last descriptor; twice released is once", () => {
    const { memfd, rig, free } = makeMemfd();
    memfd.truncate(PAGE_SIZE);
    const pin = memfd.pin(0, PAGE_SIZE);
    const mapping = memfd.mmap(0, PAGE_SIZE);
    memfd.put();
    assert.equal(rig.mm.counts().free, free - 1);
    pin.unpin();
    pin.unpin();
    assert.equal(rig.mm.counts().free, free - 1);
    mapping.unmap();
    assert.equal(rig.mm.counts().free, free);
    mapping.unmap();
    assert.throws(() => memfd.put(), BugError);
  });
});

test("behaves as an array of bytes under random calls", () => {
  const LIMIT = 5 * MIB;
  const offset = fc.oneof(
    fc.integer({ min: 0, max: LIMIT }),
    fc.integer({ min: 0, max: 5 }).map((n) => n * MIB),
  );
  const length = fc.oneof(
    fc.integer({ min: 1, max: 3 * PAGE_SIZE }),
    fc.constant(2 * MIB),
    fc.constant(4 * MIB),
  );
  const call = fc.record({
    what: fc.constantFrom("write", "truncate", "punch", "allocate", "keep", "read"),
    offset,
    length,
    byte: fc.integer({ min: 1, max: 255 }),
  });
  fc.assert(
    fc.property(fc.array(call, { maxLength: 25 }), (calls) => {
      const { rig, memfd, free } = makeMemfd();
      let model = new Uint8Array(0);
      const grow = (size: number) => {
        if (size <= model.length) return;
        const larger = new Uint8Array(size);
        larger.set(model);
        model = larger;
      };
      for (const { what, offset, length, byte } of calls) {
        if (what === "write") {
          const bytes = new Uint8Array(Math.min(length, 3 * PAGE_SIZE)).fill(byte);
          memfd.pwrite(bytes, offset);
          grow(offset + bytes.length);
          model.set(bytes, offset);
        } else if (what === "truncate") {
          memfd.truncate(offset);
          model = model.slice(0, offset);
          grow(offset);
        } else if (what === "punch") {
          memfd.fallocate(PUNCH, offset, length);
          model.fill(0, offset, offset + length);
        } else if (what === "allocate") {
          memfd.fallocate(0, offset, length);
          grow(offset + length);
        } else if (what === "keep") memfd.fallocate(FALLOC_FL_KEEP_SIZE, offset, length);
        else {
          const bytes = new Uint8Array(length);
          const count = memfd.pread(bytes, offset);
          assert.deepEqual(bytes.subarray(0, count), model.slice(offset, offset + length));
        }
        assert.equal(memfd.stat().sizeBytes, model.length);
      }
      assert.equal(Buffer.from(contents(memfd)).equals(model), true, "contents");
      assert.equal(rig.mm.counts().free, free - memfd.stat().allocatedBytes / PAGE_SIZE);
      memfd.put();
      assert.equal(rig.mm.counts().free, free);
    }),
    { numRuns: 40 },
  );
});
