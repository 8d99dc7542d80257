import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { decodeKhoFdt, readKhoFdt } from "../../abi/kho.ts";
import { walkRadixTree } from "../../abi/kho-radix.ts";
import { BugError } from "../../base/assert.ts";
import { type ErrnoCode, isKernelError, KernelError } from "../../base/errno.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { MIB, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import { keptRanges } from "../../machine/embedded/kexec-kept.ts";
import type { KhoBootParameters, MemoryRange } from "../../machine/machine.ts";
import { createSharedRam, Ram } from "../../machine/physical-memory.ts";
import { BuddyAllocator } from "../mm/buddy-allocator.ts";
import { IncomingHandover } from "./incoming-handover.ts";
import { Kho } from "./kho.ts";
import { Scratch } from "./scratch.ts";

const FIRMWARE = {
  memory: [
    { start: 0, lengthBytes: 64 * MIB, node: 0 },
    { start: 128 * MIB, lengthBytes: 64 * MIB, node: 1 },
  ],
  nodeCount: 2,
};

/** Memory that outlives kernels, and what is a kernel's part in a jump. */
class Box {
  readonly memory = new Ram(createSharedRam(FIRMWARE.memory));

  boot(
    kho: KhoBootParameters | null,
    release = "test-1",
    carveOuts: readonly MemoryRange[] = [],
    faults = new FaultInjector(),
  ) {
    const { memory } = this;
    const incoming = kho === null ? null : IncomingHandover.read(memory, kho);
    const scratch = incoming?.scratch ?? Scratch.reserve(FIRMWARE, carveOuts);
    const mm = new BuddyAllocator({
      memory,
      firmware: FIRMWARE,
      scratch: scratch.ranges,
      carveOuts,
      ...(incoming === null ? {} : { reserved: incoming.blocks }),
      faults,
    });
    const booted = mm.counts();
    const makeKho = () => Kho.start({ memory, mm, scratch, incoming, release, faults });
    return { memory, mm, scratch, incoming, faults, booted, makeKho };
  }

  start(kho: KhoBootParameters | null, release?: string, carveOuts?: readonly MemoryRange[]) {
    const kernel = this.boot(kho, release, carveOuts);
    return { ...kernel, kho: kernel.makeKho() };
  }

  /** Loses all that the parameters do not keep, as the machine's kexec does. */
  jump(parameters: KhoBootParameters): KhoBootParameters {
    const kept = keptRanges(this.memory, parameters);
    assert.equal(kept.problem, null);
    const isKept = (pa: number) =>
      kept.ranges.some((range) => pa >= range.start && pa < range.start + range.lengthBytes);
    for (const { start, lengthBytes } of FIRMWARE.memory)
      for (let pa = start; pa < start + lengthBytes; pa += PAGE_SIZE)
        if (this.memory.isTouched(pa) && !isKept(pa)) this.memory.fill(pa, PAGE_SIZE, 0xa5);
    return parameters;
  }

  /** Blocks in the tree that the FDT names. */
  preserved({ fdtAddress, fdtSizeBytes }: KhoBootParameters): Set<string> {
    const blocks = new Set<string>();
    walkRadixTree(this.memory, readKhoFdt(this.memory, fdtAddress, fdtSizeBytes).memoryMapPa, {
      block: (pa, order) => blocks.add(`${pa}:${order}`),
    });
    return blocks;
  }

  bytes(pa: number): Uint8Array {
    const bytes = new Uint8Array(PAGE_SIZE);
    this.memory.read(pa, bytes);
    return bytes;
  }
}

function isErrno(code: ErrnoCode): (error: unknown) => boolean {
  return (error) => isKernelError(error, code);
}

function enomem(point: string): KernelError {
  return new KernelError("ENOMEM", point, "injected");
}

describe("Kho before begin()", () => {
  it("has what came in, and has allocated and written nothing", () => {
    const box = new Box();
    const parameters = box.jump(box.start(null).kho.bootParameters());
    const before = new Ram(createSharedRam(FIRMWARE.memory));
    const page = new Uint8Array(PAGE_SIZE);
    const pages = FIRMWARE.memory.flatMap(({ start, lengthBytes }) =>
      Array.from({ length: lengthBytes / PAGE_SIZE }, (_, i) => start + i * PAGE_SIZE).filter(
        (pa) => box.memory.isTouched(pa),
      ),
    );
    for (const pa of pages) {
      box.memory.read(pa, page);
      before.write(pa, page);
    }
    const { memory, mm, scratch, incoming, faults, booted } = box.boot(parameters);
    const kho = new Kho({ memory, mm, scratch, incoming, release: "test-2", faults });
    assert.equal(kho.kexecCount, 1);
    assert.notEqual(kho.incomingSubtree("kexec-metadata"), null);
    assert.deepEqual(mm.counts(), booted);
    const was = new Uint8Array(PAGE_SIZE);
    for (const pa of pages) {
      box.memory.read(pa, page);
      before.read(pa, was);
      assert.deepEqual(page, was, `page ${pa}`);
    }
    assert.throws(() => kho.bootParameters(), BugError);
    kho.begin();
    assert.throws(() => kho.begin(), BugError);
    assert.notEqual(kho.bootParameters().fdtAddress, parameters.fdtAddress);
  });
});

describe("Kho on a cold boot", () => {
  it("has nothing incoming, and hands over its own FDT and metadata", () => {
    const box = new Box();
    const { kho } = box.start(null, "test-1");
    assert.equal(kho.incoming, null);
    assert.equal(kho.kexecCount, 0);
    assert.equal(kho.previousRelease, null);
    assert.equal(kho.unrestoredPages(), 0);
    assert.equal(kho.incomingSubtree("kexec-metadata"), null);
    const parameters = kho.bootParameters();
    const incoming = IncomingHandover.read(box.memory, parameters);
    assert.deepEqual(incoming.metadata, { previousRelease: "test-1", kexecCount: 1 });
    assert.equal(incoming.blocks.count, 2);
    assert.deepEqual(kho.sizes(), { preservedBytes: 0, metadataBytes: 8 * PAGE_SIZE });
  });

  it("fails with ENOMEM at each allocation and leaves nothing allocated", () => {
    let reached = true;
    let steps = 0;
    for (; reached; steps++) {
      const { mm, faults, booted, makeKho } = new Box().boot(null);
      faults.arm(steps, enomem);
      let failed = false;
      try {
        makeKho();
      } catch (error) {
        if (!isKernelError(error, "ENOMEM")) throw error;
        failed = true;
      }
      reached = faults.disarm();
      assert.equal(failed, reached);
      if (failed) assert.deepEqual(mm.counts(), booted);
    }
    // The root, the FDT, five nodes below the root for it, the metadata; then a run without a failure.
    assert.equal(steps, 9);
  });
});

describe("Kho.preserve()", () => {
  it("keeps blocks of any order, and their bytes, through a jump", () => {
    const box = new Box();
    const first = box.start(null);
    const blocks = [0, 0, 3, 9, 12].map((order, index) => {
      const pa = first.mm.alloc(order, { node: index % 2 });
      first.memory.fill(pa, orderBytes(order), 0x40 + index);
      first.kho.preserve(pa, order);
      assert.ok(first.kho.isPreserved(pa, order) && !first.kho.isPreserved(pa, order + 1));
      return { pa, order };
    });
    const lost = first.mm.alloc(0);
    first.memory.store32(lost, 0x12345678);

    const next = box.start(box.jump(first.kho.bootParameters()));
    assert.notEqual(next.memory.load32(lost), 0x12345678);
    const pages = blocks.reduce((sum, { order }) => sum + 2 ** order, 0);
    assert.equal(next.kho.unrestoredPages(), pages);
    assert.equal(next.mm.counts().reserved, pages);
    blocks.forEach(({ pa, order }, index) => {
      assert.ok(next.incoming?.isPreserved(pa, orderBytes(order)));
      assert.throws(() => next.kho.restore(pa, order + 1), isErrno("EINVAL"));
      next.kho.restore(pa, order);
      assert.throws(() => next.kho.restore(pa, order), isErrno("EINVAL"));
      assert.ok(next.mm.isAllocated(pa, order));
      for (const at of [0, orderBytes(order) - 1])
        assert.equal(next.memory.load8(pa + at), 0x40 + index);
      assert.ok(!next.kho.isPreserved(pa, order), "restored is not preserved again");
      next.mm.free(pa, order);
    });
    assert.equal(next.kho.unrestoredPages(), 0);
    assert.throws(() => next.kho.restore(lost, 0), isErrno("EINVAL"));
  });

  it("fails with EINVAL in scratch, and is a bug for what is not allocated as one block", () => {
    const { kho, mm, scratch } = new Box().start(null);
    for (const { addr, size } of scratch.areas)
      for (const pa of [addr, addr + size - PAGE_SIZE])
        assert.throws(() => kho.preserve(pa, 0), isErrno("EINVAL"));
    const pa = mm.alloc(2);
    for (const [bad, order] of [
      [pa, 1],
      [pa + PAGE_SIZE, 0],
      [pa + 16, 2],
      [64 * MIB, 0],
    ])
      assert.throws(() => kho.preserve(bad, order), BugError);
    kho.preserve(pa, 2);
    assert.throws(() => kho.preserve(pa, 2), BugError);
    kho.unpreserve(pa, 2);
    assert.throws(() => kho.unpreserve(pa, 2), BugError);
  });

  it("fails with ENOMEM at each step and changes nothing", () => {
    const box = new Box();
    const { kho, mm, faults } = box.start(null);
    const pa = mm.alloc(9);
    const points = faults.record(() => kho.preserve(pa, 9));
    assert.deepEqual(points, ["kho:preserve", ...Array(5).fill("mm:alloc")]);
    kho.unpreserve(pa, 9);
    const before = { counts: mm.counts(), sizes: kho.sizes() };
    const tree = box.preserved(kho.bootParameters());
    for (let step = 0; step < points.length; step++) {
      faults.arm(step, enomem);
      assert.throws(() => kho.preserve(pa, 9), isErrno("ENOMEM"));
      assert.ok(faults.disarm());
      assert.deepEqual({ counts: mm.counts(), sizes: kho.sizes() }, before);
      assert.deepEqual(box.preserved(kho.bootParameters()), tree);
      assert.ok(!kho.isPreserved(pa, 9));
    }
    kho.preserve(pa, 9);
  });

  it("fails with ENOMEM when memory really ends", () => {
    const { kho, mm } = new Box().start(null);
    const pa = mm.alloc(9);
    for (let order = 14; order >= 0; order--)
      while (mm.counts().free >= 2 ** order) {
        try {
          mm.alloc(order, { zero: false });
        } catch (error) {
          if (!isKernelError(error, "ENOMEM")) throw error;
          break;
        }
      }
    const before = mm.counts();
    assert.equal(before.free, 0);
    assert.throws(() => kho.preserve(pa, 9), isErrno("ENOMEM"));
    assert.deepEqual(mm.counts(), before);
  });

  it("then unpreserve() leaves memory as it was", () => {
    const { kho, mm } = new Box().start(null);
    const blocks = [0, 5, 9, 9].map((order) => ({ pa: mm.alloc(order), order }));
    const before = { counts: mm.counts(), sizes: kho.sizes() };
    for (const { pa, order } of blocks) kho.preserve(pa, order);
    assert.equal(kho.sizes().preservedBytes, (1 + 32 + 512 + 512) * PAGE_SIZE);
    for (const { pa, order } of blocks) kho.unpreserve(pa, order);
    assert.deepEqual({ counts: mm.counts(), sizes: kho.sizes() }, before);
  });
});

describe("Kho with carve-outs", () => {
  it("keeps and restores their blocks without a page of the allocator's", () => {
    const box = new Box();
    const carveOuts = [{ start: 32 * MIB, lengthBytes: 8 * MIB }];
    const first = box.start(null, "test-1", carveOuts);
    const allocated = first.mm.counts().allocated;
    for (let pa = 32 * MIB; pa < 40 * MIB; pa += 2 * MIB) first.kho.preserve(pa, 9);
    first.memory.store32(39 * MIB, 0xcafe);
    // Five nodes of the tree for the new order, and nothing else.
    assert.equal(first.mm.counts().allocated, allocated + 5);

    const next = box.start(box.jump(first.kho.bootParameters()), "test-1", carveOuts);
    assert.equal(next.memory.load32(39 * MIB), 0xcafe);
    const counts = next.mm.counts();
    assert.equal(counts.reserved, 0);
    assert.equal(next.kho.unrestoredPages(), 2048);
    for (let pa = 32 * MIB; pa < 40 * MIB; pa += 2 * MIB) next.kho.restore(pa, 9);
    assert.deepEqual(next.mm.counts(), counts);
    assert.throws(() => next.kho.restore(32 * MIB, 9), isErrno("EINVAL"));
  });
});

describe("Kho.addSubtree()", () => {
  it("names blobs for the next kernel, until they are removed", () => {
    const box = new Box();
    const { kho, mm } = box.start(null);
    const fdt = box.bytes(kho.bootParameters().fdtAddress);
    const pa = mm.alloc(0);
    kho.preserve(pa, 0);
    kho.addSubtree("LUO", pa, 100);
    kho.addSubtree("memfs", pa, 200);
    const next = box.start(kho.bootParameters());
    assert.deepEqual(next.kho.incomingSubtree("LUO"), { name: "LUO", pa, sizeBytes: 100 });
    assert.equal(next.kho.incomingSubtree("nothing"), null);
    kho.removeSubtree("LUO");
    kho.removeSubtree("memfs");
    assert.deepEqual(box.bytes(kho.bootParameters().fdtAddress), fdt);
    assert.throws(() => kho.removeSubtree("LUO"), BugError);
  });

  it("fails with EEXIST when the name is taken, with ENOMEM when the FDT is full; nothing changes", () => {
    const box = new Box();
    const { kho, mm } = box.start(null);
    const fdt = () => box.bytes(kho.bootParameters().fdtAddress);
    kho.addSubtree("LUO", 0x1000, 1);
    let before = fdt();
    assert.throws(() => kho.addSubtree("LUO", 0x2000, 1), isErrno("EEXIST"));
    assert.throws(() => kho.addSubtree("kexec-metadata", 0x2000, 1), isErrno("EEXIST"));
    assert.deepEqual(fdt(), before);
    const counts = mm.counts();
    assert.throws(() => {
      for (let i = 0; i < 1000; i++) {
        before = fdt();
        kho.addSubtree(`subtree-${i}`, 0x1000, 1);
      }
    }, isErrno("ENOMEM"));
    assert.deepEqual(fdt(), before);
    assert.deepEqual(mm.counts(), counts);
    assert.ok(decodeKhoFdt(fdt()).subtrees.length > 40);
    kho.removeSubtree("subtree-0");
    kho.addSubtree("subtree-x", 0x1000, 1);
  });

  it("passes the fault point kho:subtree before anything is changed", () => {
    const box = new Box();
    const { kho, faults } = box.start(null);
    const fdt = () => box.bytes(kho.bootParameters().fdtAddress);
    const before = fdt();
    assert.deepEqual(
      faults.record(() => kho.addSubtree("LUO", 0x1000, 1)),
      ["kho:subtree"],
    );
    kho.removeSubtree("LUO");
    faults.arm(0, enomem);
    assert.throws(() => kho.addSubtree("LUO", 0x1000, 1), isErrno("ENOMEM"));
    assert.ok(faults.disarm());
    assert.deepEqual(fdt(), before);
  });
});

describe("Kho through many jumps", () => {
  it("keeps scratch, counts kexecs, and neither leaks nor grows", () => {
    const box = new Box();
    let kernel = box.start(null, "test-0");
    const { scratch, booted } = kernel;
    const blocks = [0, 0, 9, 4].map((order) => ({ pa: kernel.mm.alloc(order), order }));
    for (const [index, { pa }] of blocks.entries()) kernel.memory.store32(pa, index + 1);
    for (const { pa, order } of blocks) kernel.kho.preserve(pa, order);
    const steady = { counts: kernel.mm.counts(), sizes: kernel.kho.sizes() };

    for (let jump = 1; jump <= 50; jump++) {
      kernel = box.start(box.jump(kernel.kho.bootParameters()), `test-${jump}`);
      assert.equal(kernel.kho.kexecCount, jump);
      assert.equal(kernel.kho.previousRelease, `test-${jump - 1}`);
      assert.deepEqual(kernel.scratch.areas, scratch.areas);
      for (const [index, { pa, order }] of blocks.entries()) {
        assert.equal(kernel.memory.load32(pa), index + 1);
        kernel.kho.restore(pa, order);
        kernel.kho.preserve(pa, order);
      }
      assert.equal(kernel.kho.unrestoredPages(), 0);
      assert.deepEqual({ counts: kernel.mm.counts(), sizes: kernel.kho.sizes() }, steady);
    }
    for (const { pa, order } of blocks) {
      kernel.kho.unpreserve(pa, order);
      kernel.mm.free(pa, order);
    }
    const own = kernel.kho.sizes().metadataBytes / PAGE_SIZE;
    assert.deepEqual(kernel.mm.counts(), { ...booted, free: booted.free - own, allocated: own });
  });

  it("does not lose blocks that nobody restores: they stay reserved in this kernel", () => {
    const box = new Box();
    const first = box.start(null);
    const pa = first.mm.alloc(9);
    first.kho.preserve(pa, 9);
    const next = box.start(box.jump(first.kho.bootParameters()));
    assert.equal(next.mm.counts().reserved, 512);
    for (let i = 0; i < 10; i++) assert.notEqual(next.mm.alloc(9, { zero: false }), pa);
  });
});
