import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { encodeKhoFdt, KHO_SCRATCH } from "../../abi/kho.ts";
import { encodeRadixKey, radixBitmapIndex, radixTableIndex } from "../../abi/kho-radix.ts";
import { MIB, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { KhoBootParameters } from "../machine.ts";
import { createSharedRam, Ram } from "../physical-memory.ts";
import { keptRanges } from "./kexec-kept.ts";

const RAM_BYTES = 64 * MIB;
const FDT = MIB;
const ARRAY = MIB + PAGE_SIZE;
const NODES = 2 * MIB;
const SCRATCH = 4 * MIB;
/** Blocks are preserved from here on. */
const BLOCKS = 8 * MIB;

type Block = readonly [pa: number, order: number];

/** Writes a handover of these blocks. @returns its boot parameters and the number of nodes of its tree */
function handOver(ram: Ram, blocks: readonly Block[]): [KhoBootParameters, number] {
  let nodes = 0;
  const newNode = () => NODES + PAGE_SIZE * nodes++;
  const root = newNode();
  for (const [pa, order] of blocks) {
    const key = encodeRadixKey(pa, order);
    let node = root;
    for (let level = 5; level > 0; level--) {
      const entry = node + 8 * radixTableIndex(key, level);
      if (ram.load64(entry) === 0) ram.store64(entry, newNode());
      node = ram.load64(entry);
    }
    const bit = radixBitmapIndex(key);
    ram.store8(node + (bit >> 3), ram.load8(node + (bit >> 3)) | (1 << (bit & 7)));
  }
  const fdt = encodeKhoFdt({ memoryMapPa: root, subtrees: [] });
  ram.write(FDT, fdt);
  KHO_SCRATCH.write(ram, ARRAY, { addr: SCRATCH, size: 4 * MIB });
  const parameters = {
    fdtAddress: FDT,
    fdtSizeBytes: fdt.length,
    scratchAddress: ARRAY,
    scratchSizeBytes: KHO_SCRATCH.sizeBytes,
  };
  return [parameters, nodes];
}

const newRam = () => new Ram(createSharedRam([{ start: 0, lengthBytes: RAM_BYTES }]));

const block: fc.Arbitrary<Block> = fc
  .tuple(fc.nat({ max: 12 }), fc.nat({ max: (RAM_BYTES - BLOCKS) / PAGE_SIZE - 1 }))
  .map(([order, page]) => {
    const pa = BLOCKS + page * PAGE_SIZE;
    return [pa - (pa % orderBytes(order)), order] as const;
  })
  .filter(([pa, order]) => pa >= BLOCKS && pa + orderBytes(order) <= RAM_BYTES);

describe("keptRanges()", () => {
  it("keeps exactly FDT, nodes, blocks, scratch array and scratch areas", () => {
    fc.assert(
      fc.property(fc.array(block, { maxLength: 30 }), (blocks) => {
        const ram = newRam();
        const [parameters, nodes] = handOver(ram, blocks);
        const expected = new Set<number>();
        const add = (pa: number, lengthBytes: number) => {
          for (let at = pa; at < pa + lengthBytes; at += PAGE_SIZE) expected.add(at);
        };
        add(FDT, 2 * PAGE_SIZE);
        add(NODES, nodes * PAGE_SIZE);
        add(SCRATCH, 4 * MIB);
        for (const [pa, order] of blocks) add(pa, orderBytes(order));

        const { ranges, problem } = keptRanges(ram, parameters);
        assert.equal(problem, null);
        const got = new Set<number>();
        let end = -1;
        for (const { start, lengthBytes } of ranges) {
          assert.ok(start > end, "sorted, and merged where they touch");
          end = start + lengthBytes;
          for (let at = start; at < end; at += PAGE_SIZE) got.add(at);
        }
        assert.deepEqual([...got].sort(), [...expected].sort());
      }),
      { numRuns: 40 },
    );
  });

  it("keeps nothing, without complaint, when nothing is handed over", () => {
    assert.deepEqual(keptRanges(newRam(), null), { ranges: [], problem: null });
  });

  it("names what is wrong and gives no ranges for any nonsense in the parameters", () => {
    const ram = newRam();
    const [good] = handOver(ram, [[BLOCKS, 0]]);
    const nonsense = [-1, 1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, RAM_BYTES, 2 ** 60];
    for (const field of Object.keys(good) as (keyof KhoBootParameters)[]) {
      for (const value of nonsense) {
        const { ranges, problem } = keptRanges(ram, { ...good, [field]: value });
        assert.match(problem ?? "", /handover refused: kho_data|fdt/, `${field} ${value}`);
        assert.deepEqual(ranges, []);
      }
    }
  });

  it("throws for no damage to the handover's bytes", () => {
    const damage = fc.record({
      place: fc.constantFrom(FDT, ARRAY, NODES, NODES + PAGE_SIZE, NODES + 5 * PAGE_SIZE),
      offset: fc.nat({ max: 511 }).map((n) => 8 * n),
      value: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    });
    let refused = 0;
    fc.assert(
      fc.property(fc.array(damage, { minLength: 1, maxLength: 3 }), (all) => {
        const ram = newRam();
        const [parameters] = handOver(ram, [
          [BLOCKS, 0],
          [BLOCKS + 2 * MIB, 9],
        ]);
        for (const { place, offset, value } of all) ram.storeBig64(place + offset, value);
        const { ranges, problem } = keptRanges(ram, parameters);
        if (problem === null) return;
        refused++;
        assert.deepEqual(ranges, []);
      }),
      { numRuns: 300 },
    );
    assert.ok(refused > 50, `only ${refused} of 300 were refused`);
  });
});
