/** Every field of every structure that is in use, wrong in turn: refused, and the field named. */
import assert from "node:assert/strict";
import { test } from "node:test";
import {
  MEMFS_BLOCK,
  MEMFS_EXTENT,
  MEMFS_INODE,
  MEMFS_LOG_ENTRY,
  MEMFS_LOG_OFFSET,
  MEMFS_NAME,
  MEMFS_ROOT,
  MEMFS_STORE_SLOTS_OFFSET,
  MEMFS_SUPERBLOCK,
} from "../../abi/memfs.ts";
import type { FieldType, Struct } from "../../abi/struct.ts";
import { O_CREAT, O_RDWR } from "../../abi/uapi/fs.ts";
import { MIB } from "../../base/units.ts";
import { Box, HUGE, listing, PAGE, refusedField, SMALL_CARVE_OUT } from "./test-rig.ts";

const LONG = "l".repeat(200);

/** A store with everything in it, and where its structures lie. */
function build(store: "dynamic" | "carved") {
  const box = new Box();
  const kernel = box.boot(null, store === "carved" ? [SMALL_CARVE_OUT] : []);
  const fs = kernel.memfs.mount(store, "");
  fs.mkdir("/d");
  fs.mkdir("/d/e");
  const file = fs.open("/d/f", O_RDWR | O_CREAT);
  file.fallocate(0, 0, 2 * PAGE);
  file.fallocate(0, HUGE, HUGE);
  const long = fs.open(`/${LONG}`, O_RDWR | O_CREAT);
  long.truncate(PAGE);
  long.mmap(0, PAGE).unmap();
  const orphan = fs.open("/orphan", O_RDWR | O_CREAT);
  orphan.fallocate(0, 0, PAGE);
  fs.unlink("/orphan");
  const found = box.look(kernel).decoded;
  const decoded = found?.stores[0];
  assert.ok(found && decoded);
  const inodeBlock = decoded.inodeBlocks[0].pa;
  const inodePa = (name: string) => {
    for (const inode of decoded.inodes.values())
      if (inode.name === name && !inode.isOrphan) return inodeBlock + 64 * inode.ino;
    throw new Error(`no ${name}`);
  };
  const longInode = [...decoded.inodes.values()].find((i) => i.name === LONG);
  const orphanInode = [...decoded.inodes.values()].find((i) => i.isOrphan);
  const fileInode = [...decoded.inodes.values()].find((i) => i.name === "f");
  assert.ok(longInode && orphanInode && fileInode);
  return {
    box,
    kernel,
    root: found.rootPa,
    superblock: decoded.superblockPa,
    inodeBlock,
    extentBlock: decoded.extentBlocks[0].pa,
    rootInode: inodePa(""),
    directory: inodePa("d"),
    inner: inodePa("e"),
    file: inodePa("f"),
    long: inodePa(LONG),
    orphan: inodeBlock + 64 * orphanInode.ino,
    namePart: inodeBlock + 64 * longInode.nameSlots[0],
    lastNamePart: inodeBlock + 64 * (longInode.nameSlots.at(-1) ?? 0),
    extent: decoded.extentBlocks[0].pa + 32 * fileInode.extents[0].number,
    hugeExtent: decoded.extentBlocks[0].pa + 32 * (fileInode.extents.at(-1)?.number ?? 0),
  };
}

type World = ReturnType<typeof build>;
type Place = Exclude<keyof World, "box" | "kernel">;
type AnyStruct = Struct<Record<string, FieldType<unknown>>>;

/** Wrong values by field; every field of the structure must be here. */
type Cases = Record<string, readonly (number | bigint | string | Uint8Array)[]>;

const BIG = 2 ** 53 - 1;
const U32 = 0xffffffff;
const zeros = (n: number) => new Uint8Array(n);
const bytes = (text: string, n: number) => {
  const target = new Uint8Array(n);
  target.set(new TextEncoder().encode(text));
  return target;
};

const FIELDS: readonly { place: Place; layout: unknown; cases: Cases }[] = [
  {
    place: "root",
    layout: MEMFS_ROOT,
    cases: {
      compatible: ["memfs-v2", "", "memfs-v1x"],
      slotCount: [0, 503, 505, U32],
      reserved: [1],
    },
  },
  {
    place: "superblock",
    layout: MEMFS_SUPERBLOCK,
    cases: {
      magic: [0, 1],
      commit: [66, U32],
      name: [""],
      limitBytes: [1, BIG, 2 ** 52 + PAGE],
      carveOutStart: [PAGE, 2 * MIB, 2 ** 52, BIG],
      carveOutBytes: [PAGE, 2 * MIB, 2 ** 52, BIG],
      inodeBlocks: [0, 1, PAGE, BIG],
      extentBlocks: [1, PAGE, BIG],
      node: [1024, U32 - 1],
      nextGeneration: [0, 2 ** 24, U32],
    },
  },
  {
    place: "inodeBlock",
    layout: MEMFS_BLOCK,
    cases: { magic: [0], index: [2 ** 22, U32, 1], next: [1, PAGE, BIG] },
  },
  {
    place: "extentBlock",
    layout: MEMFS_BLOCK,
    cases: { magic: [0], index: [2 ** 25, U32], next: [1, PAGE, BIG] },
  },
  {
    place: "file",
    layout: MEMFS_INODE,
    cases: {
      kind: [0, 2, 3, 4, 255],
      flags: [1, 2, 255],
      nameBytes: [0, 2, 41, 256, 65535],
      generation: [0, 2 ** 24, U32],
      sizeBytes: [2 ** 52 + 1, BIG],
      parent: [0, 1000, U32],
      nameNext: [1, U32],
      name: [zeros(40), bytes("/", 40), bytes(".", 40), bytes("e", 40), zeros(40).fill(255)],
    },
  },
  {
    place: "inner",
    layout: MEMFS_INODE,
    cases: {
      kind: [3, 4],
      flags: [1, 2],
      nameBytes: [0, 2],
      generation: [0],
      sizeBytes: [1],
      parent: [0, 77],
      nameNext: [1],
      name: [zeros(40), bytes("f", 40)],
    },
  },
  {
    place: "rootInode",
    layout: MEMFS_INODE,
    cases: {
      kind: [0, 1, 3],
      flags: [1],
      nameBytes: [1],
      generation: [0],
      sizeBytes: [1],
      parent: [1, 2],
      nameNext: [2],
      name: [bytes("x", 40)],
    },
  },
  {
    place: "orphan",
    layout: MEMFS_INODE,
    cases: {
      kind: [0, 2, 3],
      flags: [0, 3],
      nameBytes: [1],
      generation: [0],
      sizeBytes: [BIG],
      parent: [1],
      nameNext: [1],
      name: [bytes("x", 40)],
    },
  },
  {
    place: "long",
    layout: MEMFS_INODE,
    cases: {
      kind: [0],
      flags: [1],
      nameBytes: [40, 199, 201, 255],
      generation: [0],
      sizeBytes: [BIG],
      parent: [0],
      nameNext: [0, 1, 40, U32],
      name: [zeros(40), bytes("\0", 40)],
    },
  },
  {
    place: "namePart",
    layout: MEMFS_NAME,
    cases: {
      kind: [0, 1, 2, 4],
      reserved: [1],
      reserved2: [1],
      owner: [0, 1, U32],
      next: [0, 1, U32],
      reserved3: [1],
      text: [zeros(48), bytes("a/b", 48), zeros(48).fill(255)],
    },
  },
  {
    place: "lastNamePart",
    layout: MEMFS_NAME,
    cases: {
      kind: [0],
      reserved: [],
      reserved2: [],
      owner: [U32],
      next: [1, 2],
      reserved3: [],
      text: [zeros(48), zeros(48).fill(0x6c)],
    },
  },
  {
    place: "extent",
    layout: MEMFS_EXTENT,
    cases: {
      state: [4, U32],
      ino: [0, 1, 1000, U32],
      offset: [1, HUGE, 2 ** 52, BIG],
      pa: [0, 1, PAGE, BIG, 2 ** 51],
      order: [1, 9, 17, 19, U32],
      count: [0, U32],
    },
  },
  {
    place: "hugeExtent",
    layout: MEMFS_EXTENT,
    cases: {
      state: [4],
      ino: [0],
      offset: [0, PAGE, 2 ** 52],
      pa: [PAGE, 0],
      order: [0, 18],
      count: [0, 2, 1 << 20],
    },
  },
];

for (const store of ["dynamic", "carved"] as const)
  test(`decodeMemfs() refuses each wrong field of each structure (${store})`, () => {
    const world = build(store);
    const { box, kernel } = world;
    const good = listing(box.look(kernel).decoded);
    let tried = 0;
    for (const { place, layout, cases } of FIELDS) {
      const { fields, offset, name } = layout as AnyStruct;
      assert.deepEqual(Object.keys(cases).sort(), Object.keys(fields).sort(), name);
      for (const [field, wrong] of Object.entries(cases)) {
        const pa = world[place] + offset[field];
        const saved = new Uint8Array(fields[field].sizeBytes);
        box.memory.read(pa, saved);
        for (const value of wrong) {
          // In a carve-out any free block is as good: KHO knows nothing of single ones there.
          if (store === "carved" && place === "hugeExtent" && (value === 0 || value === 2))
            if (field === "order" || field === "count") continue;
          fields[field].write(box.memory, pa, value);
          const refused = refusedField(() => box.look(kernel));
          assert.ok(refused?.includes("memfs"), `${place}.${field} = ${value}: ${refused}`);
          tried++;
        }
        box.memory.write(pa, saved);
      }
    }
    assert.ok(tried > 120);
    assert.deepEqual(listing(box.look(kernel).decoded), good);
  });

test("decodeMemfs() refuses a wrong blob, a slot that is no page, and a store named twice", () => {
  const { box, kernel, root, superblock } = build("dynamic");
  const slots = root + MEMFS_STORE_SLOTS_OFFSET;
  for (const value of [1, PAGE, superblock + 8, BIG, superblock, root]) {
    box.memory.store64(slots + 8, value);
    assert.ok(refusedField(() => box.look(kernel))?.includes("memfs"), `slot ${value}`);
  }
  box.memory.store64(slots + 8, 0);
  kernel.memfs.mount("second", "");
  box.memory.write(
    box.memory.load64(slots + 8) + MEMFS_SUPERBLOCK.offset.name,
    bytes("dynamic", 64),
  );
  assert.equal(
    refusedField(() => box.look(kernel)),
    "memfs_store[1].name",
  );
});

test("decodeMemfs() refuses cyclic chains, cycles of directories, and memory in two files", () => {
  const world = build("dynamic");
  const { box, kernel } = world;
  const attempt = (pa: number, value: number) => {
    const saved = box.memory.load64(pa);
    box.memory.store64(pa, value);
    const refused = refusedField(() => box.look(kernel));
    box.memory.store64(pa, saved);
    return refused;
  };
  const next = MEMFS_BLOCK.offset.next;
  assert.match(attempt(world.inodeBlock + next, world.inodeBlock) ?? "", /inodeBlocks\[0\]\.next/);
  assert.match(attempt(world.extentBlock + next, world.inodeBlock) ?? "", /extentBlocks\[0\]/);
  const ino = (pa: number) => (pa - world.inodeBlock) / 64;
  box.memory.store32(world.directory + MEMFS_INODE.offset.parent, ino(world.inner));
  assert.match(refusedField(() => box.look(kernel)) ?? "", /\.parent$/);
  box.memory.store32(world.directory + MEMFS_INODE.offset.parent, 1);
  const pa = box.memory.load64(world.extent + MEMFS_EXTENT.offset.pa);
  assert.match(attempt(world.extent + MEMFS_EXTENT.offset.pa, pa + PAGE) ?? "", /extent/);
  box.look(kernel);
});

test("decodeMemfs() refuses each wrong field of the log of a change that is not finished", () => {
  const { box, kernel, superblock } = build("dynamic");
  const fs = kernel.memfs.mount("dynamic", "");
  // Stopped right after the commit: the next store is the first of the copy.
  const stop = new Error("stopped");
  box.beforeStore = (pa) => {
    if (box.memory.load32(superblock + MEMFS_SUPERBLOCK.offset.commit) !== 0 && pa !== superblock)
      throw stop;
  };
  assert.throws(() => fs.rename("/d/f", "/g"), stop);
  box.beforeStore = null;
  assert.ok(listing(box.look(kernel).decoded).some((line) => line.includes("dynamic:/g file")));
  const entry = superblock + MEMFS_LOG_OFFSET;
  const cases: Record<keyof typeof MEMFS_LOG_ENTRY.fields, readonly number[]> = {
    number: [0, 64, 1 << 20, U32],
    table: [0, 3, 65535],
    word: [8, 65535],
    low: [U32],
    high: [U32],
  };
  let refusals = 0;
  for (const [field, wrong] of Object.entries(cases) as [keyof typeof cases, number[]][]) {
    const pa = entry + MEMFS_LOG_ENTRY.offset[field];
    const saved = new Uint8Array(MEMFS_LOG_ENTRY.fields[field].sizeBytes);
    box.memory.read(pa, saved);
    for (const value of wrong) {
      MEMFS_LOG_ENTRY.fields[field].write(box.memory, pa, value);
      assert.ok(refusedField(() => box.look(kernel))?.includes("memfs"), `${field} = ${value}`);
      refusals++;
    }
    box.memory.write(pa, saved);
  }
  assert.equal(refusals, 11);
  const next = box.jump(kernel);
  assert.deepEqual([...next.memfs.mount("dynamic", "").readdir("/")].sort(), ["d", "g", LONG]);
});
