import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { BugError } from "../base/assert.ts";
import { GIB, MIB, PAGE_SIZE, TIB } from "../base/units.ts";
import { createSharedRam, ObservedRam, Ram } from "./physical-memory.ts";

const RANGES = [
  { start: 0, lengthBytes: 4 * MIB },
  { start: GIB - MIB, lengthBytes: 2 * MIB },
  { start: 5 * GIB, lengthBytes: 64 * 1024 },
];

describe("Ram", () => {
  it("contains() knows ranges, holes, and nonsense", () => {
    const ram = new Ram(createSharedRam(RANGES));
    const cases: [boolean, number, number][] = [
      [true, 0, 4 * MIB],
      [false, 0, 4 * MIB + 1],
      [true, GIB - MIB, 2 * MIB],
      [false, GIB - MIB - 1, 1],
      [false, GIB + MIB, 1],
      [true, 5 * GIB, 0],
      [false, -1, 1],
      [false, 0, -1],
      [false, Number.NaN, 1],
      [false, 0, Number.NaN],
      [false, Number.POSITIVE_INFINITY, 1],
      [false, 2 ** 60, 1],
    ];
    for (const [expected, pa, lengthBytes] of cases)
      assert.equal(ram.contains(pa, lengthBytes), expected, `${pa} ${lengthBytes}`);
  });

  it("behaves as bytes do, in any mix of word sizes, against a plain array", () => {
    const op = fc.record({
      offset: fc.nat({ max: 255 }),
      sizeLg2: fc.nat({ max: 3 }),
      value: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    });
    fc.assert(
      fc.property(fc.array(op, { maxLength: 60 }), (ops) => {
        const ram = new Ram(createSharedRam([{ start: GIB, lengthBytes: PAGE_SIZE }]));
        const model = new DataView(new ArrayBuffer(256));
        for (const { offset, sizeLg2, value } of ops) {
          const at = offset - (offset % 2 ** sizeLg2);
          const pa = GIB + at;
          const low = Number(value & 0xffffffffn);
          if (sizeLg2 === 0) {
            ram.store8(pa, low & 0xff);
            model.setUint8(at, low & 0xff);
          } else if (sizeLg2 === 1) {
            ram.store16(pa, low & 0xffff);
            model.setUint16(at, low & 0xffff, true);
          } else if (sizeLg2 === 2) {
            ram.store32(pa, low);
            model.setUint32(at, low, true);
          } else {
            ram.storeBig64(pa, value);
            model.setBigUint64(at, value, true);
          }
        }
        for (let at = 0; at < 256; at += 8) {
          assert.equal(ram.loadBig64(GIB + at), model.getBigUint64(at, true));
          assert.equal(ram.load64(GIB + at), Number(model.getBigUint64(at, true)));
          assert.equal(ram.load32(GIB + at), model.getUint32(at, true));
          assert.equal(ram.load16(GIB + at), model.getUint16(at, true));
          assert.equal(ram.load8(GIB + at), model.getUint8(at));
        }
      }),
    );
  });

  it("publishRun64() carries from the low into the high half", () => {
    const ram = new Ram(createSharedRam(RANGES));
    const base = 2 ** 32 - 2 * PAGE_SIZE + 7;
    ram.publishRun64(0x800, 4, base % 2 ** 32, 0, PAGE_SIZE);
    for (let i = 0; i < 4; i++) assert.equal(ram.load64(0x800 + 8 * i), base + i * PAGE_SIZE);
    ram.publishRun64(0x800, 3, 7, 1, GIB);
    for (let i = 0; i < 3; i++) assert.equal(ram.load64(0x800 + 8 * i), 2 ** 32 + 7 + i * GIB);
    ram.retractRun64(0x800, 4);
    for (let i = 0; i < 4; i++) assert.equal(ram.load64(0x800 + 8 * i), 0);
  });

  it("publishRun64() and storeRun64() store the same entries: base + i · stride", () => {
    const strideLg2 = fc.oneof(fc.constant(30), fc.integer({ min: 12, max: 40 }));
    const count = fc.integer({ min: 1, max: 512 });
    const base = fc.bigInt({ min: 0n, max: 2n ** 51n });
    fc.assert(
      fc.property(strideLg2, count, base, (lg2, entries, first) => {
        const stride = 2 ** lg2;
        const low = Number(first & 0xffffffffn);
        const high = Number(first >> 32n);
        const ram = new Ram(createSharedRam(RANGES));
        const observed = new ObservedRam(createSharedRam(RANGES), () => {});
        ram.publishRun64(0, entries, low, high, stride);
        ram.storeRun64(PAGE_SIZE, entries, low, high, stride);
        observed.storeRun64(0, entries, low, high, stride);
        for (let i = 0; i < 512; i++) {
          const expected =
            i < entries ? BigInt.asUintN(64, first + BigInt(i) * BigInt(stride)) : 0n;
          assert.equal(ram.loadBig64(8 * i), expected, `publishRun64, entry ${i}`);
          assert.equal(ram.loadBig64(PAGE_SIZE + 8 * i), expected, `storeRun64, entry ${i}`);
          if (expected < 2n ** 53n) assert.equal(observed.loadBig64(8 * i), expected);
        }
      }),
      { numRuns: 100 },
    );
  });

  it("publish64(), retract64() and exchange64() set both halves", () => {
    const ram = new Ram(createSharedRam(RANGES));
    ram.publish64(8, 0xdeadbeef, 0x12345678);
    assert.equal(ram.loadBig64(8), 0x12345678deadbeefn);
    ram.exchange64(8, 1, 0xffffffff);
    assert.equal(ram.loadBig64(8), 0xffffffff00000001n);
    ram.retract64(8);
    assert.equal(ram.loadBig64(8), 0n);
  });

  it("read(), write() and fill() cross a 1 GiB boundary; view() and words do not", () => {
    const ram = new Ram(createSharedRam(RANGES));
    const bytes = Uint8Array.from({ length: 100 }, (_, i) => i);
    ram.write(GIB - 50, bytes);
    const back = new Uint8Array(100);
    ram.read(GIB - 50, back);
    assert.deepEqual(back, bytes);
    ram.fill(GIB - 10, 20, 0xee);
    assert.equal(ram.load8(GIB - 11), 39);
    assert.equal(ram.load8(GIB - 10), 0xee);
    assert.equal(ram.load8(GIB + 9), 0xee);
    assert.equal(ram.load8(GIB + 10), 60);
    assert.throws(() => ram.view(GIB - 50, 100), BugError);
  });

  it("throws BugError on any access outside RAM or unaligned", () => {
    const ram = new Ram(createSharedRam(RANGES));
    const outside = [GIB + MIB, 2 * GIB, 5 * GIB + 64 * 1024, 6 * GIB, 2 ** 50];
    for (const pa of outside) {
      assert.throws(() => ram.load8(pa), BugError);
      assert.throws(() => ram.store8(pa, 0), BugError);
      assert.throws(() => ram.load32(pa), BugError);
      assert.throws(() => ram.store32(pa, 0), BugError);
      assert.throws(() => ram.publish64(pa, 0, 0), BugError);
      assert.throws(() => ram.exchange64(pa, 0, 0), BugError);
      assert.throws(() => ram.write(pa, new Uint8Array(1)), BugError);
      assert.throws(() => ram.read(pa, new Uint8Array(1)), BugError);
    }
    assert.throws(() => ram.load16(1), BugError);
    assert.throws(() => ram.load32(2), BugError);
    assert.throws(() => ram.load64(4), BugError);
    assert.throws(() => ram.store64(12, 0), BugError);
    assert.throws(() => ram.publishRun64(PAGE_SIZE - 8, 2, 0, 0, PAGE_SIZE), BugError);
    assert.throws(() => ram.storeRun64(PAGE_SIZE - 8, 2, 0, 0, PAGE_SIZE), BugError);
    assert.throws(() => ram.loadOrdered32(2), BugError);
    assert.throws(() => ram.loadOrdered32(2 * GIB), BugError);
  });

  it("isTouched() is true for whatever was stored, by any means", () => {
    const stores: ((ram: Ram, pa: number) => void)[] = [
      (ram, pa) => ram.store8(pa, 1),
      (ram, pa) => ram.store32(pa, 1),
      (ram, pa) => ram.store64(pa, 1),
      (ram, pa) => ram.publish64(pa, 1, 1),
      (ram, pa) => ram.exchange64(pa, 1, 1),
      (ram, pa) => ram.publishRun64(pa, 1, 1, 1, PAGE_SIZE),
      (ram, pa) => ram.storeRun64(pa, 1, 1, 1, PAGE_SIZE),
      (ram, pa) => ram.fill(pa, 1, 1),
      (ram, pa) => ram.write(pa, Uint8Array.of(1)),
      (ram, pa) => ram.view(pa, 1).fill(1),
    ];
    for (const store of stores) {
      const ram = new Ram(createSharedRam([{ start: 0, lengthBytes: 8 * MIB }]));
      assert.equal(ram.isTouched(2 * MIB), false);
      store(ram, 3 * MIB);
      assert.deepEqual(
        [0, 2, 4, 6].map((n) => ram.isTouched(n * MIB)),
        [false, true, false, false],
        String(store),
      );
    }
  });

  it("disconnect() makes every access a bug, and leaves others over the same memory alone", () => {
    const shared = createSharedRam(RANGES);
    const ram = new Ram(shared);
    ram.store32(0, 42);
    ram.disconnect();
    const accesses: (() => unknown)[] = [
      () => ram.load8(0),
      () => ram.load32(0),
      () => ram.loadOrdered32(0),
      () => ram.store8(0, 1),
      () => ram.store32(0, 1),
      () => ram.publish64(0, 1, 1),
      () => ram.exchange64(0, 1, 1),
      () => ram.publishRun64(0, 1, 1, 1, PAGE_SIZE),
      () => ram.storeRun64(0, 1, 1, 1, PAGE_SIZE),
      () => ram.retractRun64(0, 1),
      () => ram.fill(0, 1, 1),
      () => ram.write(0, Uint8Array.of(1)),
      () => ram.read(0, new Uint8Array(1)),
      () => ram.view(0, 1),
    ];
    for (const access of accesses) assert.throws(access, BugError, String(access));
    assert.equal(new Ram(shared).loadOrdered32(0), 42);
  });

  it("is seen by another Ram over the same shared memory", () => {
    const shared = createSharedRam(RANGES);
    new Ram(shared).store32(5 * GIB, 42);
    assert.equal(new Ram(shared).load32(5 * GIB), 42);
  });

  it("costs what is touched: 1 TiB takes less than 128 MiB of the host's memory", (t) => {
    const before = process.memoryUsage().rss;
    const start = process.hrtime.bigint();
    const ram = new Ram(createSharedRam([{ start: 0, lengthBytes: TIB }]));
    const ms = Number(process.hrtime.bigint() - start) / 1e6;
    for (let i = 0; i < 1024; i++) ram.store32(i * GIB, i + 1);
    for (let i = 0; i < 1024; i++) assert.equal(ram.load32(i * GIB), i + 1);
    const grown = process.memoryUsage().rss - before;
    t.diagnostic(`1 TiB in ${ms.toFixed(1)} ms; ${(grown / MIB).toFixed(0)} MiB resident`);
    assert.ok(grown < 128 * MIB, `${grown} bytes`);
  });
});

describe("ObservedRam", () => {
  it("tells of each store before it happens, and a hook that throws prevents it", () => {
    const stores: [name: string, tells: number, (ram: Ram) => void][] = [
      ["store8", 1, (ram) => ram.store8(0, 255)],
      ["store16", 1, (ram) => ram.store16(0, 0xffff)],
      ["store32", 1, (ram) => ram.store32(0, 0xffffffff)],
      ["store64", 2, (ram) => ram.store64(0, 2 ** 53 - 1)],
      ["storeBig64", 2, (ram) => ram.storeBig64(0, 2n ** 64n - 1n)],
      ["publish64", 2, (ram) => ram.publish64(0, 0xffffffff, 0xffffffff)],
      ["retract64", 2, (ram) => ram.retract64(0)],
      ["exchange64", 1, (ram) => ram.exchange64(0, 0xffffffff, 0xffffffff)],
      ["publishRun64", 4, (ram) => ram.publishRun64(0, 2, 1, 1, PAGE_SIZE)],
      ["retractRun64", 4, (ram) => ram.retractRun64(0, 2)],
      ["fill", 2, (ram) => ram.fill(0, 2 * PAGE_SIZE, 0xff)],
      ["write", 2, (ram) => ram.write(0, new Uint8Array(16).fill(0xff))],
    ];
    for (const [name, tells, store] of stores) {
      for (let stopAt = 1; stopAt <= tells + 1; stopAt++) {
        const shared = createSharedRam([{ start: 0, lengthBytes: 2 * MIB }]);
        const raw = new Ram(shared);
        raw.fill(0, 64, 0x55);
        let told = 0;
        let before = "";
        const ram = new ObservedRam(shared, () => {
          before = Buffer.from(raw.view(0, 2 * PAGE_SIZE)).toString("hex");
          if (++told === stopAt) throw new Error("stop");
        });
        if (stopAt <= tells) {
          assert.throws(() => store(ram), /stop/, name);
          const after = Buffer.from(raw.view(0, 2 * PAGE_SIZE)).toString("hex");
          assert.equal(after, before, `${name} changed memory at the store that was prevented`);
        } else {
          store(ram);
          assert.equal(told, tells, name);
        }
      }
    }
  });

  it("stores what Ram stores", () => {
    const run = (ram: Ram) => {
      ram.publishRun64(0, 300, 0xfffff007, 0, PAGE_SIZE);
      ram.retractRun64(8, 3);
      ram.store64(4096, 2 ** 52 + 3);
      ram.exchange64(4104, 0x80000001, 0x90000001);
      ram.fill(5000, 9000, 7);
      ram.write(
        20001,
        Uint8Array.from({ length: 77 }, (_, i) => i),
      );
      return Buffer.from(ram.view(0, 65536)).toString("hex");
    };
    const ranges = [{ start: 0, lengthBytes: 2 * MIB }];
    assert.equal(
      run(new ObservedRam(createSharedRam(ranges), () => {})),
      run(new Ram(createSharedRam(ranges))),
    );
  });
});
