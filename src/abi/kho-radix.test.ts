import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { HandoverError } from "./handover-error.ts";
import {
  encodeRadixKey,
  radixBitmapIndex,
  radixKeyOrder,
  radixKeyPa,
  radixTableIndex,
  walkRadixTree,
} from "./kho-radix.ts";
import { ByteRam } from "./ram-words.ts";

const RAM_PAGES = 1024;

/** A tree built by hand at page 1 onwards: the simplest thing that can be right. */
class HandMadeTree {
  readonly ram = new ByteRam(new Uint8Array(RAM_PAGES * 4096));
  readonly root = 4096;
  #nextPage = 2;

  add(pa: number, order: number): void {
    this.addKey(BigInt(encodeRadixKey(pa, order)));
  }

  /** Indices as the kernel's header draws them, in 64-bit arithmetic. */
  addKey(key: bigint): void {
    let node = this.root;
    for (let level = 5; level > 0; level--) {
      const entry = node + 8 * Number((key >> BigInt(15 + 9 * (level - 1))) & 511n);
      if (this.ram.load64(entry) === 0) this.ram.store64(entry, this.#nextPage++ * 4096);
      node = this.ram.load64(entry);
    }
    const bit = Number(key & 32767n);
    const at = node + (bit >> 3);
    this.ram.store8(at, this.ram.load8(at) | (1 << (bit & 7)));
  }

  blocks(): string[] {
    const blocks: string[] = [];
    walkRadixTree(this.ram, this.root, { block: (pa, order) => blocks.push(`${pa}:${order}`) });
    return blocks;
  }

  nodes(): number {
    let count = 0;
    walkRadixTree(this.ram, this.root, { node: () => count++ });
    return count;
  }

  refuses(field: RegExp): void {
    assert.throws(
      () => this.blocks(),
      (error) => error instanceof HandoverError && field.test(error.message),
    );
  }

  /** The node of a level on the way to a block. */
  nodeOf(pa: number, order: number, level: number): number {
    let node = this.root;
    for (let l = 5; l > level; l--)
      node = this.ram.load64(node + 8 * radixTableIndex(encodeRadixKey(pa, order), l));
    return node;
  }
}

describe("encodeRadixKey()", () => {
  it("agrees with 64-bit arithmetic for all addresses and orders", () => {
    fc.assert(
      fc.property(fc.nat(18), fc.integer({ min: 0, max: 2 ** 40 - 1 }), (order, frame) => {
        const size = 4096 * 2 ** order;
        const pa = Math.floor((frame * 4096) / size) * size;
        const key = encodeRadixKey(pa, order);
        const shift = BigInt(12 + order);
        const expected = (1n << (64n - shift)) | (BigInt(pa) >> shift);
        assert.equal(BigInt(key), expected);
        assert.equal(radixKeyOrder(key), order);
        assert.equal(radixKeyPa(key, order), pa);
        assert.equal(radixBitmapIndex(key), Number(expected & 32767n));
        for (let level = 1; level <= 5; level++)
          assert.equal(
            radixTableIndex(key, level),
            Number((expected >> BigInt(15 + 9 * (level - 1))) & 511n),
          );
      }),
    );
  });

  it("puts the order bit of order 0 at 52", () => {
    assert.equal(encodeRadixKey(0x1000, 0), 2 ** 52 + 1);
    assert.equal(encodeRadixKey(2 ** 30, 18), 2 ** 34 + 1);
  });
});

describe("radixKeyOrder()", () => {
  it("is -1 for the key 0, and right at both ends", () => {
    assert.equal(radixKeyOrder(0), -1);
    assert.equal(radixKeyOrder(1), 52);
    assert.equal(radixKeyOrder(2 ** 31), 21);
    assert.equal(radixKeyOrder(2 ** 32), 20);
    assert.equal(radixKeyOrder(2 ** 53 - 1), 0);
  });
});

describe("walkRadixTree()", () => {
  it("finds every block, and each node once", () => {
    const tree = new HandMadeTree();
    tree.add(0x5000, 0);
    tree.add(0x200000, 9);
    tree.add(0x7000, 0);
    tree.add(0x8000, 3);
    assert.deepEqual(tree.blocks(), ["2097152:9", "32768:3", "20480:0", "28672:0"]);
    // The root; five more for order 0; five for order 9, whose node of level 4 order 3 shares; four for order 3.
    assert.equal(tree.nodes(), 15);
  });

  it("finds nothing in an empty tree", () => {
    assert.deepEqual(new HandMadeTree().blocks(), []);
  });

  it("finds what was added, for any set of blocks", () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.tuple(fc.nat(9), fc.nat(RAM_PAGES - 1)), {
          maxLength: 40,
          selector: ([order, page]) => `${order}:${page >> order}`,
        }),
        (blocks) => {
          const tree = new HandMadeTree();
          const expected = blocks.map(([order, page]) => {
            const pa = (page >> order) * 4096 * 2 ** order;
            tree.add(pa, order);
            return `${pa}:${order}`;
          });
          assert.deepEqual(tree.blocks().sort(), expected.sort());
        },
      ),
      { numRuns: 30 },
    );
  });

  for (const level of [4, 3, 2, 1, 0]) {
    it(`refuses a pointer to a node of level ${level} that is unaligned, not in RAM, or a loop`, () => {
      const make = () => {
        const tree = new HandMadeTree();
        tree.add(0x5000, 0);
        const parent = tree.nodeOf(0x5000, 0, level + 1);
        const index = radixTableIndex(encodeRadixKey(0x5000, 0), level + 1);
        return { tree, entry: parent + 8 * index };
      };
      for (const [value, problem] of [
        [0x2008, /page aligned/],
        [RAM_PAGES * 4096, /not in RAM/],
        [2 ** 52, /not in RAM/],
        [4096, /in the tree already/],
      ] as const) {
        const { tree, entry } = make();
        tree.ram.store64(entry, value);
        tree.refuses(problem);
      }
      const { tree, entry } = make();
      tree.ram.storeBig64(entry, 0xfffffffffffff000n);
      tree.refuses(/kho_radix_node@0x[0-9a-f]+\.table\[\d+\]: .*not in RAM/);
    });
  }

  it("refuses two entries that share a leaf", () => {
    const tree = new HandMadeTree();
    tree.add(0x5000, 0);
    const level1 = tree.nodeOf(0x5000, 0, 1);
    tree.ram.store64(level1 + 8, tree.ram.load64(level1));
    tree.refuses(/in the tree already/);
  });

  it("refuses a root that is unaligned or not in RAM", () => {
    const { ram } = new HandMadeTree();
    for (const root of [4097, -4096, RAM_PAGES * 4096, 2 ** 60, Number.NaN])
      assert.throws(() => walkRadixTree(ram, root, {}), HandoverError, String(root));
  });

  it("refuses a key of more than 53 bits", () => {
    const tree = new HandMadeTree();
    tree.addKey(1n << 53n);
    tree.refuses(/more than 53 bits/);
  });

  it("refuses the key 0", () => {
    const tree = new HandMadeTree();
    tree.addKey(0n);
    tree.refuses(/bitmap\[0\]: is the key 0/);
  });

  it("refuses blocks outside RAM, of absurd orders too", () => {
    for (const key of [(1n << 52n) | BigInt(RAM_PAGES), (1n << 53n) - 1n, 1n, 2n, 1n << 34n]) {
      const tree = new HandMadeTree();
      tree.addKey(key);
      tree.refuses(/kho_radix_leaf@0x[0-9a-f]+\.bitmap\[\d+\]: .*not in RAM/);
    }
  });

  it("ends or refuses, whatever the nodes hold", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(8 * 512 - 1), fc.nat(7), fc.nat(9)), { maxLength: 60 }),
        (entries) => {
          const tree = new HandMadeTree();
          tree.add(0x5000, 0);
          for (const [entry, page, noise] of entries)
            tree.ram.store64(4096 + 8 * entry, page * 4096 + (noise === 0 ? 8 : 0));
          try {
            tree.blocks();
          } catch (error) {
            assert.ok(error instanceof HandoverError, String(error));
          }
        },
      ),
      { numRuns: 300 },
    );
  });
});
