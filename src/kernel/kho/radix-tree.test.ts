import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { walkRadixTree } from "../../abi/kho-radix.ts";
import { BugError } from "../../base/assert.ts";
import { isKernelError, KernelError } from "../../base/errno.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { MIB, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import { createSharedRam, ObservedRam, Ram } from "../../machine/physical-memory.ts";
import { BuddyAllocator } from "../mm/buddy-allocator.ts";
import { RadixTree } from "./radix-tree.ts";

const RAM_BYTES = 512 * MIB;

function make(beforeStore: ((pa: number) => void) | null = null) {
  const shared = createSharedRam([{ start: 0, lengthBytes: RAM_BYTES }]);
  const memory = beforeStore === null ? new Ram(shared) : new ObservedRam(shared, beforeStore);
  const faults = new FaultInjector();
  const mm = new BuddyAllocator({
    memory,
    firmware: { memory: [{ start: 0, lengthBytes: RAM_BYTES, node: 0 }], nodeCount: 1 },
    faults,
  });
  return { memory, mm, faults, tree: new RadixTree(memory, mm) };
}

/** What the tree in memory says, read as the next kernel reads it. */
function inMemory(memory: Ram, root: number): Set<string> {
  const blocks = new Set<string>();
  walkRadixTree(memory, root, { block: (pa, order) => blocks.add(`${pa}:${order}`) });
  return blocks;
}

const anyBlock = fc
  .tuple(fc.constantFrom(0, 1, 4, 9, 14), fc.nat(RAM_BYTES / PAGE_SIZE - 1))
  .map(([order, page]) => ({ order, pa: Math.floor(page / 2 ** order) * orderBytes(order) }));

describe("RadixTree", () => {
  it("holds in memory exactly what was added and not deleted, and frees all its nodes", () => {
    fc.assert(
      fc.property(fc.array(anyBlock, { maxLength: 60 }), (blocks) => {
        const { memory, mm, tree } = make();
        const model = new Map<string, (typeof blocks)[number]>();
        for (const block of blocks) {
          const name = `${block.pa}:${block.order}`;
          assert.equal(tree.has(block.pa, block.order), model.has(name));
          if (model.delete(name)) tree.delete(block.pa, block.order);
          else {
            model.set(name, block);
            tree.add(block.pa, block.order);
          }
          assert.equal(tree.has(block.pa, block.order), model.has(name));
        }
        assert.deepEqual([...inMemory(memory, tree.root)].sort(), [...model.keys()].sort());
        assert.equal(mm.counts().allocated, tree.nodeCount);
        for (const { pa, order } of model.values()) tree.delete(pa, order);
        assert.equal(mm.counts().allocated, 1);
        tree.destroy();
        assert.equal(mm.counts().allocated, 0);
      }),
      { numRuns: 60 },
    );
  });

  it("needs five nodes for the first block of an order, and none for its neighbours", () => {
    const { tree } = make();
    tree.add(0x5000, 0);
    assert.equal(tree.nodeCount, 6);
    for (let pa = 0x6000; pa < 128 * MIB; pa += 4 * MIB) tree.add(pa, 0);
    assert.equal(tree.nodeCount, 6);
    tree.add(128 * MIB, 0);
    assert.equal(tree.nodeCount, 7);
  });

  it("add() fails with ENOMEM at each node and leaves nothing behind", () => {
    for (let step = 0; ; step++) {
      const { memory, mm, faults, tree } = make();
      tree.add(0x5000, 0);
      const before = { counts: mm.counts(), blocks: inMemory(memory, tree.root) };
      faults.arm(step, (point) => new KernelError("ENOMEM", point, "injected"));
      try {
        tree.add(2 * MIB, 9);
      } catch (error) {
        if (!isKernelError(error, "ENOMEM")) throw error;
      }
      if (!faults.disarm()) {
        assert.equal(step, 5);
        break;
      }
      assert.deepEqual({ counts: mm.counts(), blocks: inMemory(memory, tree.root) }, before);
      assert.equal(tree.nodeCount, 6);
      tree.add(2 * MIB, 9);
      assert.ok(inMemory(memory, tree.root).has(`${2 * MIB}:9`));
    }
  });

  it("is a valid tree, with the block or without it, whenever the kernel stops", () => {
    class Stop extends Error {}
    const others = [`${0x5000}:0`, `${0x9000}:0`];
    const run = (storesLeft: number, action: (tree: RadixTree) => void, prepare = action) => {
      let left = Number.POSITIVE_INFINITY;
      const { memory, tree } = make(() => {
        if (left-- <= 0) throw new Stop();
      });
      tree.add(0x5000, 0);
      tree.add(0x9000, 0);
      if (prepare !== action) prepare(tree);
      left = storesLeft;
      let stopped = false;
      try {
        action(tree);
      } catch (error) {
        if (!(error instanceof Stop)) throw error;
        stopped = true;
      }
      return { stopped, blocks: inMemory(memory, tree.root) };
    };
    const add = (pa: number, order: number) => (tree: RadixTree) => tree.add(pa, order);
    const remove = (pa: number, order: number) => (tree: RadixTree) => tree.delete(pa, order);
    for (const [pa, order] of [
      [0x6000, 0],
      [2 * MIB, 9],
      [256 * MIB, 0],
    ])
      for (const [action, prepare] of [
        [add(pa, order), undefined],
        [remove(pa, order), add(pa, order)],
      ] as const) {
        let stores = 0;
        for (; ; stores++) {
          const { stopped, blocks } = run(stores, action, prepare);
          const others_ = [...blocks].filter((name) => name !== `${pa}:${order}`);
          assert.deepEqual(others_.sort(), [...others].sort());
          if (!stopped) break;
        }
        assert.ok(stores >= 1, "the action stores something");
      }
  });

  it("is a bug to add a block twice or to delete one that is not there", () => {
    const { tree } = make();
    tree.add(0x4000, 2);
    assert.throws(() => tree.add(0x4000, 2), BugError);
    for (const [pa, order] of [
      [0x4000, 1],
      [0x8000, 2],
      [0x4000, 9],
    ])
      assert.throws(() => tree.delete(pa, order), BugError);
    assert.ok(!tree.has(0x4001, 0) && !tree.has(-0x4000, 2) && !tree.has(Number.NaN, 2));
  });
});
