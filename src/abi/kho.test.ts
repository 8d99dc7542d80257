import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { encodeFdt, fdtString } from "./fdt.ts";
import { HandoverError } from "./handover-error.ts";
import { decodeKhoFdt, encodeKhoFdt, KHO_SCRATCH, readKhoFdt, readScratch } from "./kho.ts";
import { ByteRam } from "./ram-words.ts";

const MIB = 2 ** 20;
const RAM_BYTES = 32 * MIB;
const KHO = {
  memoryMapPa: 0x5000,
  subtrees: [
    { name: "kexec-metadata", pa: 0x6000, sizeBytes: 73 },
    { name: "LUO", pa: 0x1_7000, sizeBytes: 4096 },
  ],
};

function refuses(action: () => unknown, message: RegExp): void {
  assert.throws(action, (error) => error instanceof HandoverError && message.test(error.message));
}

describe("encodeKhoFdt()", () => {
  it("writes what decodeKhoFdt() reads", () => {
    assert.deepEqual(decodeKhoFdt(encodeKhoFdt(KHO)), KHO);
    const none = { memoryMapPa: 0x5000, subtrees: [] };
    assert.deepEqual(decodeKhoFdt(encodeKhoFdt(none)), none);
  });

  it("writes the bytes that upstream's calls of libfdt lead to", () => {
    const words: number[] = [];
    const push = (...values: number[]) => words.push(...values);
    const text = (s: string) => {
      for (let i = 0; i <= s.length; i += 4) {
        let word = 0;
        for (let j = i; j < i + 4; j++) word = word * 256 + (j < s.length ? s.charCodeAt(j) : 0);
        push(word);
      }
    };
    const nodes = () => {
      push(1, 0); // "/"
      push(3, 7, 21);
      text("kho-v4");
      push(3, 8, 0, 0x00500000, 0); // the root node's address, little endian
      push(1);
      text("LUO");
      push(3, 8, 47, 0x00100000, 0); // blob-size
      push(3, 8, 32, 0x00700100, 0); // preserved-data
      push(2, 2, 9);
    };
    const strings = "preserved-memory-map\0compatible\0preserved-data\0blob-size\0";
    const structBytes = 4 * 27;
    push(0xd00dfeed, 56 + structBytes + strings.length, 56, 56 + structBytes, 40, 17, 16, 0);
    push(strings.length, structBytes, 0, 0, 0, 0);
    nodes();
    const expected = new Uint8Array(4 * words.length + strings.length);
    words.forEach((word, i) => {
      new DataView(expected.buffer).setUint32(4 * i, word);
    });
    expected.set(
      [...strings].map((c) => c.charCodeAt(0)),
      4 * words.length,
    );
    const actual = encodeKhoFdt({ memoryMapPa: 0x5000, subtrees: [KHO.subtrees[1]] });
    assert.deepEqual(actual, expected);
  });

  it("puts the youngest subtree first, as fdt_add_subnode() does", () => {
    const names = String.fromCharCode(...encodeKhoFdt(KHO));
    assert.ok(names.indexOf("LUO") < names.indexOf("kexec-metadata"));
  });
});

describe("decodeKhoFdt()", () => {
  const u64 = (value: number) => Uint8Array.of(value, 0, 0, 0, 0, 0, 0, 0);
  const root = (
    properties: [string, Uint8Array][],
    children: Parameters<typeof encodeFdt>[0]["children"] = [],
  ) => encodeFdt({ name: "", properties: new Map(properties), children });
  const good: [string, Uint8Array][] = [
    ["compatible", fdtString("kho-v4")],
    ["preserved-memory-map", u64(16)],
  ];
  const child = (properties: [string, Uint8Array][]) =>
    root(good, [{ name: "LUO", properties: new Map(properties), children: [] }]);

  it("refuses another or no compatible string", () => {
    for (const text of ["kho-v3", "kho-v5", "kho-v4x", "kho-v", ""])
      refuses(
        () => decodeKhoFdt(root([["compatible", fdtString(text)], good[1]])),
        new RegExp(`fdt:/.compatible: "${text}" is not`),
      );
    refuses(() => decodeKhoFdt(root([good[1]])), /fdt:\/\.compatible: is missing/);
    const unended = fdtString("kho-v4").slice(0, 6);
    refuses(
      () => decodeKhoFdt(root([["compatible", unended], good[1]])),
      /compatible: "kho-v4" without a NUL is not/,
    );
  });

  it("refuses a memory map that is missing or no u64", () => {
    refuses(() => decodeKhoFdt(root([good[0]])), /preserved-memory-map: is missing/);
    refuses(
      () => decodeKhoFdt(root([good[0], ["preserved-memory-map", new Uint8Array(4)]])),
      /preserved-memory-map: has 4 bytes/,
    );
  });

  it("refuses a subtree without its address or size, or with something else", () => {
    refuses(() => decodeKhoFdt(child([["preserved-data", u64(1)]])), /LUO.blob-size: is missing/);
    refuses(() => decodeKhoFdt(child([["blob-size", u64(1)]])), /LUO.preserved-data: is missing/);
    refuses(
      () =>
        decodeKhoFdt(
          child([
            ["preserved-data", u64(1)],
            ["blob-size", u64(1)],
            ["fdt", u64(1)],
          ]),
        ),
      /LUO.fdt: is not known/,
    );
    refuses(() => decodeKhoFdt(root([...good, ["x", u64(1)]])), /fdt:\/.x: is not known/);
    const nested = { name: "x", properties: new Map(), children: [] };
    refuses(
      () =>
        decodeKhoFdt(
          root(good, [
            {
              name: "LUO",
              properties: new Map([
                ["preserved-data", u64(1)],
                ["blob-size", u64(1)],
              ]),
              children: [nested],
            },
          ]),
        ),
      /LUO: has child nodes/,
    );
  });
});

describe("readKhoFdt()", () => {
  const make = (kho = KHO) => {
    const bytes = new Uint8Array(RAM_BYTES);
    bytes.set(encodeKhoFdt(kho), 0x9000);
    return new ByteRam(bytes);
  };

  it("reads a page in RAM", () => {
    assert.deepEqual(readKhoFdt(make(), 0x9000, 4096), KHO);
  });

  it("refuses an FDT that is unaligned, not in RAM, or larger than a page", () => {
    for (const pa of [0x9004, -4096, RAM_BYTES, 2 ** 60, Number.NaN, 0.5])
      refuses(() => readKhoFdt(make(), pa, 4096), /kho_data.fdt_addr/);
    for (const size of [0, -1, 4097, 2 ** 40, Number.NaN, 1.5])
      refuses(() => readKhoFdt(make(), 0x9000, size), /kho_data.fdt_size/);
    refuses(() => readKhoFdt(make(), 0x9000, 100), /fdt_header.totalsize/);
  });

  it("refuses addresses outside RAM", () => {
    refuses(
      () => readKhoFdt(make({ ...KHO, memoryMapPa: RAM_BYTES }), 0x9000, 4096),
      /fdt:\/.preserved-memory-map/,
    );
    const subtree = (pa: number, sizeBytes: number) =>
      make({ ...KHO, subtrees: [{ name: "LUO", pa, sizeBytes }] });
    refuses(() => readKhoFdt(subtree(RAM_BYTES, 1), 0x9000, 4096), /fdt:\/LUO.preserved-data/);
    refuses(() => readKhoFdt(subtree(0, RAM_BYTES + 1), 0x9000, 4096), /fdt:\/LUO.blob-size/);
    refuses(() => readKhoFdt(subtree(0, 0), 0x9000, 4096), /fdt:\/LUO.blob-size: is 0/);
  });
});

describe("readScratch()", () => {
  const make = (areas: { addr: number; size: number }[]) => {
    const ram = new ByteRam(new Uint8Array(RAM_BYTES));
    areas.forEach((area, i) => {
      KHO_SCRATCH.write(ram, 0x2000 + i * KHO_SCRATCH.sizeBytes, area);
    });
    return ram;
  };
  const AREAS = [
    { addr: 4 * MIB, size: 4 * MIB },
    { addr: 0, size: 0 },
    { addr: 16 * MIB, size: 8 * MIB },
  ];

  it("reads the areas, empty ones too", () => {
    assert.deepEqual(readScratch(make(AREAS), 0x2000, 48), AREAS);
  });

  it("refuses an array of a wrong size or at a wrong place", () => {
    for (const size of [0, 8, 47, -16, Number.NaN, 16 * 1027])
      refuses(() => readScratch(make(AREAS), 0x2000, size), /kho_data.scratch_size/);
    for (const pa of [0x2004, -8, RAM_BYTES, RAM_BYTES - 16, Number.NaN])
      refuses(() => readScratch(make(AREAS), pa, 48), /kho_data.scratch_addr/);
  });

  it("refuses each field of each area when it is wrong", () => {
    const bad = {
      addr: [4096, 16 * MIB + 8, RAM_BYTES, 2 ** 52],
      size: [1, 4096, 64 * MIB, 2 ** 52],
    };
    for (const index of [0, 2])
      for (const field of Object.keys(KHO_SCRATCH.fields) as ("addr" | "size")[])
        for (const value of bad[field]) {
          const areas = AREAS.map((area) => ({ ...area }));
          areas[index][field] = value;
          refuses(
            () => readScratch(make(areas), 0x2000, 48),
            new RegExp(`: kho_scratch\\[${index}\\]\\.${field}: `),
          );
        }
  });

  it("gives an empty area no address, whatever upstream has written there", () => {
    for (const addr of [1, 8 * MIB, 2 ** 52, 2 ** 63]) {
      const ram = make(AREAS);
      ram.storeBig64(0x2000 + KHO_SCRATCH.sizeBytes, BigInt(addr));
      assert.deepEqual(readScratch(ram, 0x2000, 48), AREAS);
    }
  });

  it("refuses areas that overlap, and no memory at all", () => {
    refuses(
      () => readScratch(make([AREAS[0], { addr: 0, size: 8 * MIB }]), 0x2000, 32),
      /kho_scratch\[1\].addr: overlaps kho_scratch\[0\]/,
    );
    refuses(() => readScratch(make([{ addr: 0, size: 0 }]), 0x2000, 16), /no area has any memory/);
  });
});
