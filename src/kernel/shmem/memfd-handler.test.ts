import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { HandoverError } from "../../abi/handover-error.ts";
import { readKhoFdt } from "../../abi/kho.ts";
import { KHO_VMALLOC } from "../../abi/kho-vmalloc.ts";
import { LUO_FILE_SER, LUO_SER, LUO_SESSION_SER } from "../../abi/luo.ts";
import { MEMFD_LUO_SER } from "../../abi/memfd.ts";
import {
  F_ADD_SEALS,
  F_GET_SEALS,
  F_SEAL_EXEC,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  MFD_ALLOW_SEALING,
  MFD_NOEXEC_SEAL,
} from "../../abi/uapi/fs.ts";
import { type ErrnoCode, KernelError } from "../../base/errno.ts";
import { MIB, PAGE_SIZE } from "../../base/units.ts";
import { preserveFile, Rig, retrieveFile } from "../liveupdate/test-rig.ts";
import type { File } from "../vfs/file.ts";
import { MemfdFile } from "./memfd-file.ts";

function fails(code: ErrnoCode, action: () => unknown): void {
  assert.throws(
    action,
    (error: unknown) => error instanceof KernelError && error.code === code,
    `expected ${code}`,
  );
}

function start(flags = MFD_ALLOW_SEALING): { rig: Rig; session: File; memfd: MemfdFile } {
  const rig = Rig.cold();
  return { rig, session: rig.luo.createSession("s"), memfd: rig.shmem.memfdCreate("m", flags) };
}

/** The memfd in the next kernel, its session, and that kernel. */
function jump(rig: Rig): { next: Rig; session: File; memfd: MemfdFile } {
  const next = rig.jump();
  const session = next.luo.retrieveSession("s");
  const memfd = retrieveFile(next, session, 1n);
  assert.ok(memfd instanceof MemfdFile, "it is a memfd");
  return { next, session, memfd };
}

const FINISH = { request: (0xba << 8) | 0x42, bytes: () => Uint8Array.of(8, 0, 0, 0, 0, 0, 0, 0) };

function finish(rig: Rig, session: File): void {
  session.ioctl(FINISH.request, { bytes: FINISH.bytes() }, rig.fds);
}

function contents(memfd: MemfdFile): Uint8Array {
  const bytes = new Uint8Array(memfd.stat().sizeBytes);
  memfd.pread(bytes, 0);
  return bytes;
}

describe("a preserved memfd", () => {
  test("keeps its pages until its session is finished, if it may have been mapped for DMA", () => {
    const punch = (memfd: MemfdFile) =>
      memfd.fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE_SIZE);
    for (const isSealed of [true, false]) {
      const { rig, session, memfd } = start();
      memfd.truncate(2 * PAGE_SIZE);
      if (isSealed) memfd.fcntl(F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_GROW | F_SEAL_SHRINK);
      preserveFile(rig, session, memfd, 1n);
      const { memfd: restored, session: incoming, next } = jump(rig);
      const bytes = restored.stat().allocatedBytes;
      if (isSealed) fails("EBUSY", () => punch(restored));
      else punch(restored);
      assert.equal(restored.stat().allocatedBytes, isSealed ? bytes : bytes - PAGE_SIZE);
      finish(next, incoming);
      punch(restored);
      assert.equal(restored.stat().allocatedBytes, bytes - PAGE_SIZE);
    }
  });

  test("has its holes filled, and its large pages stay large", () => {
    const { rig, session, memfd } = start();
    memfd.truncate(4 * MIB + 5 * PAGE_SIZE);
    memfd.pwrite(Uint8Array.of(1), 3 * MIB);
    preserveFile(rig, session, memfd, 1n);
    assert.equal(memfd.shmem.folios.orderAt(0), 9);
    assert.equal(memfd.shmem.folios.orderAt(512), 0);
    assert.equal(memfd.stat().allocatedBytes, 4 * MIB + 5 * PAGE_SIZE);
    const { memfd: restored, next } = jump(rig);
    assert.equal(restored.shmem.folios.orderAt(511), 9);
    assert.equal(restored.shmem.folios.orderAt(512), 0);
    assert.equal(restored.stat().allocatedBytes, 4 * MIB + 5 * PAGE_SIZE);
    assert.equal(
      contents(restored).every((byte, i) => byte === (i === 3 * MIB ? 1 : 0)),
      true,
    );
    restored.truncate(0);
    restored.put();
    assert.equal(next.kho.unrestoredPages(), 0);
  });

  test("sealed for ever stays so; one without execute bits stays writable", () => {
    for (const [flags, seals] of [
      [0, F_SEAL_SEAL],
      [MFD_NOEXEC_SEAL, F_SEAL_EXEC],
    ] as const) {
      const { rig, session, memfd } = start(flags);
      memfd.write(Uint8Array.of(1));
      preserveFile(rig, session, memfd, 1n);
      const { memfd: restored } = jump(rig);
      assert.equal(restored.fcntl(F_GET_SEALS, 0), seals);
      restored.pwrite(Uint8Array.of(2), 0);
      if (seals === F_SEAL_EXEC) {
        restored.fcntl(F_ADD_SEALS, F_SEAL_EXEC);
        assert.equal(restored.fcntl(F_GET_SEALS, 0), F_SEAL_EXEC, "its mode is known again");
      }
    }
  });

  test("survives many updates, its pages where they were", () => {
    let { rig, session, memfd } = start();
    memfd.write(new Uint8Array(3 * PAGE_SIZE).fill(5));
    const pa = memfd.shmem.folios.addressAt(1);
    let previous: unknown = null;
    for (let i = 0; i < 8; i++) {
      preserveFile(rig, session, memfd, 1n);
      const { next, session: retrieved, memfd: restored } = jump(rig);
      finish(next, retrieved);
      retrieved.put();
      assert.equal(restored.shmem.folios.addressAt(1), pa);
      const usage = next.usage();
      if (i > 0) assert.deepEqual(usage, previous);
      previous = usage;
      rig = next;
      memfd = restored.get();
      session = rig.luo.createSession("s");
    }
    assert.equal(
      contents(memfd).every((byte) => byte === 5),
      true,
    );
  });

  test("that nobody retrieves is freed when its session is finished", () => {
    const { rig, session, memfd } = start();
    memfd.write(new Uint8Array(2 * MIB + PAGE_SIZE).fill(5));
    preserveFile(rig, session, memfd, 1n);
    const next = rig.jump();
    const { free } = next.mm.counts();
    const retrieved = next.luo.retrieveSession("s");
    const memory = 512 + 1;
    // memfd_luo_ser, the array of folios and its chunk.
    const metadata = 3;
    finish(next, retrieved);
    assert.equal(next.mm.counts().free, free + memory + metadata);
    assert.equal(next.kho.unrestoredPages(), 0);
  });

  test("a failure at every step of preserve leaves memory, holes, seals and size alone", () => {
    const { rig, session, memfd } = start();
    memfd.truncate(3 * PAGE_SIZE);
    memfd.pwrite(Uint8Array.of(1), PAGE_SIZE);
    memfd.get();
    // The session's block is there already, so that only the memfd's part differs.
    preserveFile(rig, session, rig.shmem.memfdCreate("other", 0), 9n);
    const before = rig.usage();
    const stat = memfd.stat();
    const attempt = (token: bigint) => preserveFile(rig, session, memfd.get(), token);
    let steps = 0;
    for (let done = false; !done; steps++) {
      rig.faults.arm(steps, (point) => new KernelError("ENOMEM", "test", point));
      try {
        attempt(1n);
        done = true;
      } catch (error) {
        assert.ok(error instanceof KernelError, String(error));
        assert.deepEqual(rig.usage(), before);
        assert.deepEqual(memfd.stat(), stat);
        // Neither fixed nor pinned any more; what goes is a hole.
        memfd.truncate(2 * PAGE_SIZE);
        memfd.truncate(3 * PAGE_SIZE);
      }
      rig.faults.disarm();
    }
    // Handler, ser (2), two holes (2), three folios, one array page (2), one chunk (2).
    assert.equal(steps, 1 + 2 + 2 + 3 + 2 + 2 + 1);
    session.put();
    assert.equal(memfd.stat().allocatedBytes, 3 * PAGE_SIZE);
  });

  test("EFBIG for 2^32 pages", () => {
    const { rig, session, memfd } = start();
    memfd.truncate(2 ** 32 * PAGE_SIZE);
    const before = rig.usage();
    fails("EFBIG", () => preserveFile(rig, session, memfd, 1n));
    assert.deepEqual(rig.usage(), before);
  });
});

/** A frozen handover of one memfd with a hole-free file of three small pages. */
function frozen(): { rig: Rig; ser: number; array: number; chunk: number; pages: number[] } {
  const { rig, session, memfd } = start();
  memfd.write(new Uint8Array(3 * PAGE_SIZE).fill(0xab));
  preserveFile(rig, session, memfd, 1n);
  rig.luo.freeze();
  const { fdtAddress, fdtSizeBytes } = rig.kho.bootParameters();
  const fdt = readKhoFdt(rig.ram, fdtAddress, fdtSizeBytes);
  const luo = fdt.subtrees.find((one) => one.name === "LUO")?.pa ?? 0;
  const { sessions_pa } = LUO_SER.read(rig.ram, luo);
  const { files } = LUO_SESSION_SER.read(rig.ram, sessions_pa + 16);
  const ser = Number(LUO_FILE_SER.read(rig.ram, files + 16).data);
  const chunk = MEMFD_LUO_SER.read(rig.ram, ser).folios.first;
  const array = rig.ram.load64(chunk + 8);
  return { rig, ser, array, chunk, pages: [0, 1, 2].map((i) => memfd.shmem.folios.addressAt(i)) };
}

const NAME = 'session "s" token 0x1';
const SER = `${NAME} memfd_luo_ser`;
const FOLIO = `${NAME} memfd_luo_folio_ser`;
type At = ReturnType<typeof frozen>;
type Wrong = readonly [change: (at: At) => void, field: string];

const OFFSET = MEMFD_LUO_SER.offset;

/** Bad values of every field; a field of the layout without an entry fails the test. */
const WRONG: Readonly<Record<string, readonly Wrong[]>> = {
  pos: [[({ rig, ser }) => rig.ram.store64(ser + OFFSET.pos, 2 ** 52 + 4096), `${SER}.pos`]],
  size: [
    [({ rig, ser }) => rig.ram.store32(ser + OFFSET.size + 4, 2 ** 31), `${SER}.size`],
    [({ rig, ser }) => rig.ram.store64(ser + OFFSET.size, 2 * PAGE_SIZE), `${SER}.nr_folios`],
    [({ rig, ser }) => rig.ram.store64(ser + OFFSET.size, 0), `${SER}.nr_folios`],
  ],
  seals: [[({ rig, ser }) => rig.ram.store32(ser + OFFSET.seals, 0x40), `${SER}.seals`]],
  flags: [[({ rig, ser }) => rig.ram.store32(ser + OFFSET.flags, 1), `${SER}.flags`]],
  nr_folios: [
    [({ rig, ser }) => rig.ram.store64(ser + OFFSET.nr_folios, 4), `${SER}.nr_folios`],
    [({ rig, ser }) => rig.ram.store32(ser + OFFSET.nr_folios + 4, 1), `${SER}.nr_folios`],
    [({ rig, ser }) => rig.ram.store64(ser + OFFSET.nr_folios, 0), `${SER}.nr_folios`],
  ],
  folios: [
    [({ rig, ser }) => rig.ram.store64(ser + OFFSET.folios, 0), `${SER}.folios.first`],
    [({ rig, ser }) => rig.ram.store64(ser + OFFSET.folios, ser), `${SER}.folios.first`],
    [
      ({ rig, ser }) => rig.ram.store32(ser + OFFSET.folios + KHO_VMALLOC.offset.total_pages, 2),
      `${SER}.folios.total_pages`,
    ],
    [
      ({ rig, ser }) => rig.ram.store16(ser + OFFSET.folios + KHO_VMALLOC.offset.flags, 4),
      `${SER}.folios.flags`,
    ],
    [
      ({ rig, ser }) => rig.ram.store16(ser + OFFSET.folios + KHO_VMALLOC.offset.order, 60),
      `${SER}.folios.order`,
    ],
    [
      ({ rig, chunk }) => rig.ram.store64(chunk + 8, chunk),
      `${SER}.folios: kho_vmalloc_chunk[0].phys[0]`,
    ],
  ],
};

const WRONG_FOLIOS: readonly Wrong[] = [
  [({ rig, array }) => rig.ram.store32(array, 5), `${FOLIO}[0].pfn`],
  [({ rig, array }) => rig.ram.store32(array + 4, 0xfffff), `${FOLIO}[0].pfn`],
  [({ rig, array, pages }) => rig.ram.store32(array + 16, pages[0] / PAGE_SIZE), `${FOLIO}[1].pfn`],
  [({ rig, array, chunk }) => rig.ram.store32(array + 16, chunk / PAGE_SIZE), `${FOLIO}[1].pfn`],
  [({ rig, array }) => rig.ram.store8(array + 23, 0x01), `${FOLIO}[1].flags`],
  [({ rig, array }) => rig.ram.store64(array + 24, 0), `${FOLIO}[1].index`],
  [({ rig, array }) => rig.ram.store64(array + 40, 3), `${FOLIO}[2].index`],
  [({ rig, array }) => rig.ram.store32(array + 44, 2 ** 31), `${FOLIO}[2].index`],
];

function refuses(at: At, field: string): void {
  const next = Rig.enter(at.rig.ram, at.rig.kho.bootParameters(), {});
  const before = next.usage();
  assert.throws(
    () => next.luo.decode(),
    (error: unknown) => {
      assert.ok(error instanceof HandoverError, String(error));
      assert.equal(error.field, field);
      return true;
    },
  );
  assert.deepEqual(next.usage(), before);
}

describe("decode()", () => {
  test("refuses every wrong field of memfd_luo_ser by name", () => {
    assert.deepEqual(Object.keys(WRONG), Object.keys(MEMFD_LUO_SER.fields));
    for (const wrongs of Object.values(WRONG))
      for (const [change, field] of wrongs) {
        const at = frozen();
        change(at);
        refuses(at, field);
      }
  });

  test("refuses every wrong field of memfd_luo_folio_ser by name", () => {
    for (const [change, field] of WRONG_FOLIOS) {
      const at = frozen();
      change(at);
      refuses(at, field);
    }
  });

  test("refuses a large folio that is not aligned in the file", () => {
    const { rig, session, memfd } = start();
    memfd.fallocate(0, 0, 4 * MIB);
    preserveFile(rig, session, memfd, 1n);
    rig.luo.freeze();
    const { fdtAddress, fdtSizeBytes } = rig.kho.bootParameters();
    const fdt = readKhoFdt(rig.ram, fdtAddress, fdtSizeBytes);
    const luo = fdt.subtrees.find((one) => one.name === "LUO")?.pa ?? 0;
    const { files } = LUO_SESSION_SER.read(rig.ram, LUO_SER.read(rig.ram, luo).sessions_pa + 16);
    const ser = Number(LUO_FILE_SER.read(rig.ram, files + 16).data);
    const chunk = MEMFD_LUO_SER.read(rig.ram, ser).folios.first;
    const array = rig.ram.load64(chunk + 8);
    rig.ram.store64(array + 8, 1);
    refuses({ rig, ser, array, chunk, pages: [] }, `${FOLIO}[0].index`);
  });

  test("takes an entry without a folio as a hole, and zeroes one that is not up to date", () => {
    const at = frozen();
    at.rig.ram.store32(at.array, 0);
    at.rig.ram.store32(at.array + 4, 0);
    at.rig.ram.store32(at.array + 20, (at.rig.ram.load32(at.array + 20) & 0xfffff) | (1 << 20));
    const next = Rig.enter(at.rig.ram, at.rig.kho.bootParameters(), {}).boot();
    const memfd = retrieveFile(next, next.luo.retrieveSession("s"), 1n) as MemfdFile;
    assert.equal(memfd.shmem.folios.addressAt(0), -1);
    const bytes = contents(memfd);
    assert.equal(
      bytes.subarray(0, 2 * PAGE_SIZE).every((byte) => byte === 0),
      true,
    );
    assert.equal(
      bytes.subarray(2 * PAGE_SIZE).every((byte) => byte === 0xab),
      true,
    );
    // The page that nobody names any more stays out of use.
    assert.equal(next.kho.unrestoredPages(), 1);
  });
});
