import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { HandoverError } from "../../abi/handover-error.ts";
import { khoRecordOrder } from "../../abi/kho-record.ts";
import { BugError } from "../../base/assert.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { MIB, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import { keptRanges } from "../../machine/embedded/kexec-kept.ts";
import type { KhoBootParameters } from "../../machine/machine.ts";
import { createSharedRam, Ram } from "../../machine/physical-memory.ts";
import { BuddyAllocator } from "../mm/buddy-allocator.ts";
import { IncomingHandover } from "./incoming-handover.ts";
import { Kho } from "./kho.ts";
import { RecordPages } from "./record-pages.ts";
import { Scratch } from "./scratch.ts";

const FIRMWARE = { memory: [{ start: 0, lengthBytes: 64 * MIB, node: 0 }], nodeCount: 1 };

/** A kernel as far as records need one. */
function boot(memory = newRam(), parameters: KhoBootParameters | null = null) {
  const faults = new FaultInjector();
  const incoming = parameters === null ? null : IncomingHandover.read(memory, parameters);
  const scratch = incoming?.scratch ?? Scratch.reserve(FIRMWARE, []);
  const reserved = incoming === null ? {} : { reserved: incoming.blocks };
  const mm = new BuddyAllocator({
    memory,
    firmware: FIRMWARE,
    scratch: scratch.ranges,
    ...reserved,
    faults,
  });
  const kho = Kho.start({ memory, mm, scratch, incoming, release: "test", faults });
  const records = new RecordPages({ memory, mm, kho, faults });
  return { memory, faults, mm, kho, records, incoming };
}

function newRam(): Ram {
  return new Ram(createSharedRam(FIRMWARE.memory));
}

type Kernel = ReturnType<typeof boot>;

/** The next kernel, with only what was preserved. */
function jump({ memory, kho }: Kernel): Kernel & { readonly incoming: IncomingHandover } {
  const parameters = kho.bootParameters();
  const { ranges, problem } = keptRanges(memory, parameters);
  assert.equal(problem, null);
  const isKept = (pa: number) =>
    ranges.some(({ start, lengthBytes }) => pa >= start && pa < start + lengthBytes);
  for (let pa = 0; pa < 64 * MIB; pa += PAGE_SIZE)
    if (memory.isTouched(pa) && !isKept(pa)) memory.fill(pa, PAGE_SIZE, 0xa5);
  const next = boot(memory, parameters);
  assert.ok(next.incoming !== null);
  return { ...next, incoming: next.incoming };
}

const held = ({ mm, kho }: Kernel) => [mm.counts(), kho.sizes()];
const refused = (text: RegExp) => (error: unknown) =>
  error instanceof HandoverError && text.test(error.message);

describe("RecordPages", () => {
  it("gives each record a place of its own, preserved and zero, whatever comes and goes", () => {
    const sizes = fc.constantFrom(1, 32, 64, 65, 200, 2047, 2048, 2049, 5000);
    const step = fc.record({ isFree: fc.boolean(), size: sizes, which: fc.nat() });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const kernel = boot();
        const { memory, kho, records } = kernel;
        const before = held(kernel);
        const live: { pa: number; size: number }[] = [];
        for (const { isFree, size, which } of steps) {
          if (isFree && live.length > 0) {
            const [gone] = live.splice(which % live.length, 1);
            records.free(gone.pa, gone.size);
          } else {
            const pa = records.alloc(size);
            for (let i = 0; i < size; i++) assert.equal(memory.load8(pa + i), 0);
            memory.fill(pa, size, 0xff);
            live.push({ pa, size });
          }
          const sorted = [...live].sort((a, b) => a.pa - b.pa);
          for (const [i, { pa, size: bytes }] of sorted.entries()) {
            const order = khoRecordOrder(bytes);
            assert.equal(pa % 64, 0);
            assert.ok(kho.isPreserved(pa - (pa % orderBytes(order ?? 0)), order ?? 0));
            if (order === null) assert.ok((pa % PAGE_SIZE) + bytes <= PAGE_SIZE, "in one page");
            assert.ok(i + 1 === sorted.length || pa + bytes <= sorted[i + 1].pa, "no overlap");
          }
        }
        for (const { pa, size } of live) records.free(pa, size);
        assert.deepEqual(held(kernel), before);
      }),
      { numRuns: 60 },
    );
  });

  it("puts 64 records of 64 bytes into one page, and takes freed room again", () => {
    const { records } = boot();
    const all = Array.from({ length: 64 }, () => records.alloc(64));
    const page = all[0];
    assert.deepEqual(
      all,
      all.map((_, i) => page + 64 * i),
    );
    assert.notEqual(records.alloc(1) - (records.alloc(1) % PAGE_SIZE), page);
    records.free(all[7], 64);
    records.free(all[8], 64);
    assert.equal(records.alloc(100), all[7]);
    records.free(page, 64);
    assert.equal(records.alloc(64), page);
  });

  it("leaves nothing behind when alloc() fails at any step", () => {
    const kernel = boot();
    const { faults, records } = kernel;
    for (const size of [64, 5000]) {
      const before = held(kernel);
      const points = faults.record(() => records.free(records.alloc(size), size));
      assert.deepEqual(points.slice(0, 3), ["kho:record", "mm:alloc", "kho:preserve"]);
      for (const [i, point] of points.entries()) {
        faults.arm(i, (name) => new KernelError("ENOMEM", name, "injected"));
        assert.throws(
          () => records.alloc(size),
          (error) => isKernelError(error, "ENOMEM"),
          point,
        );
        assert.ok(faults.disarm());
        assert.deepEqual(held(kernel), before, point);
      }
    }
    // In a page with room there is still a step that can fail.
    records.alloc(64);
    assert.deepEqual(
      faults.record(() => records.alloc(64)),
      ["kho:record"],
    );
  });

  it("takes the free of what is no record for a bug", () => {
    const { records } = boot();
    const pa = records.alloc(64);
    const next = records.alloc(128);
    assert.throws(() => records.free(next + 64, 64), BugError);
    assert.throws(() => records.free(pa, 128), BugError);
    assert.throws(() => records.free(pa + PAGE_SIZE, 64), BugError);
    records.free(pa, 64);
    assert.throws(() => records.free(pa, 64), BugError);
  });
});

describe("records of the previous kernel", () => {
  /** A page with three records of 64, 100 and 1000 bytes; another record has blocks of its own. */
  function handedOver() {
    const before = boot();
    const cold = before.mm.counts().allocated;
    const shared = [64, 100, 1000].map((size) => ({ pa: before.records.alloc(size), size }));
    const own = { pa: before.records.alloc(5000), size: 5000 };
    for (const { pa, size } of shared) before.memory.fill(pa, size, size & 0xff);
    const kernel = jump(before);
    assert.equal(kernel.mm.counts().allocated, cold);
    return { kernel, shared, own, page: shared[0].pa };
  }

  it("are claimed and released one by one: the page is free with its last", () => {
    const { kernel, shared, own } = handedOver();
    const { incoming, records, kho, mm, memory } = kernel;
    const { allocated } = mm.counts();
    const reserved = mm.counts().reserved;
    for (const { pa, size } of [...shared, own]) incoming.claimRecord(pa, size, `of ${size}`);
    assert.equal(incoming.unclaimedPages(), 0);
    assert.equal(kho.unrestoredPages(), 3);
    records.release(own.pa, own.size);
    assert.equal(kho.unrestoredPages(), 1);
    for (const i of [1, 0]) {
      records.release(shared[i].pa, shared[i].size);
      assert.equal(kho.unrestoredPages(), 1, "the page has records still");
      assert.equal(mm.counts().reserved, reserved - 2);
      assert.equal(memory.load8(shared[2].pa + 999), 1000 & 0xff);
    }
    records.release(shared[2].pa, shared[2].size);
    assert.equal(kho.unrestoredPages(), 0);
    assert.equal(mm.counts().reserved, reserved - 3);
    assert.equal(mm.counts().allocated, allocated);
  });

  it("are released once, with the length that was claimed, and not unclaimed", () => {
    const { kernel, shared, own } = handedOver();
    const { incoming, records, kho } = kernel;
    const einval = (pa: number, size: number) =>
      assert.throws(
        () => records.release(pa, size),
        (error) => isKernelError(error, "EINVAL"),
      );
    einval(shared[0].pa, 64);
    for (const { pa, size } of shared) incoming.claimRecord(pa, size, `of ${size}`);
    einval(shared[1].pa, 64);
    einval(shared[1].pa + 64, 64);
    records.release(shared[1].pa, 100);
    einval(shared[1].pa, 100);
    einval(own.pa, 10_000);
    assert.equal(kho.unrestoredPages(), 3);
  });

  it("are refused when unaligned, beyond their page, not preserved, or not of a single page", () => {
    const { kernel, page, own } = handedOver();
    const claim = (pa: number, size: number) => () => kernel.incoming.claimRecord(pa, size, "f");
    assert.throws(claim(page + 8, 64), refused(/f: .* is not aligned to 64 bytes/));
    assert.throws(claim(-64, 64), refused(/not aligned/));
    assert.throws(claim(Number.NaN, 64), refused(/not aligned/));
    assert.throws(claim(page + 2112, 2048), refused(/is not in one page/));
    assert.throws(claim(64 * MIB, 64), refused(/not in RAM/));
    assert.throws(claim(2 ** 63, 64), refused(/not in RAM/));
    assert.throws(claim(32 * MIB, 64), refused(/not preserved/));
    assert.throws(claim(own.pa, 64), refused(/with order 1, not 0/));
    assert.throws(claim(own.pa, 3000), refused(/with order 1, not 0/));
    assert.throws(claim(page, 5000), refused(/aligned to order 1|with order 0, not 1/));
    claim(page + 2048, 2048)();
  });

  it("are refused when they overlap, or their page is claimed as a whole, either way round", () => {
    const { kernel, shared, page } = handedOver();
    const { incoming } = kernel;
    incoming.claimRecord(shared[1].pa, 100, "first");
    for (const [pa, size] of [
      [shared[1].pa, 64],
      [shared[1].pa + 64, 64],
      [page, 65],
      [page, 2048],
    ])
      assert.throws(
        () => incoming.claimRecord(pa, size, "second"),
        refused(/second: .* is claimed by first already/),
      );
    assert.throws(() => incoming.claim(page, 0, "whole"), refused(/whole: .* claimed by first/));
    incoming.claimRecord(page, 64, "third");
    incoming.startOver();
    incoming.claim(page, 0, "whole");
    assert.throws(
      () => incoming.claimRecord(page, 64, "record"),
      refused(/record: .* claimed by whole already/),
    );
    incoming.startOver();
    incoming.claimRecord(page, 2048, "again");
  });
});
