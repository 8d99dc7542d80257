import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import fc from "fast-check";
import { decodeFdt, encodeFdt, FDT_HEADER, type FdtNode, fdtString } from "./fdt.ts";
import { HandoverError } from "./handover-error.ts";

const SAMPLE: FdtNode = {
  name: "",
  properties: new Map([
    ["compatible", fdtString("kho-v4")],
    ["odd", Uint8Array.of(1, 2, 3, 4, 5)],
    ["empty", new Uint8Array(0)],
  ]),
  children: [
    { name: "LUO", properties: new Map([["odd", Uint8Array.of(9)]]), children: [] },
    {
      name: "memfs",
      properties: new Map(),
      children: [{ name: "inner@1", properties: new Map(), children: [] }],
    },
  ],
};

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Offset of the first structure word with that value. */
function findWord(bytes: Uint8Array, value: number): number {
  for (let at = view(bytes).getUint32(FDT_HEADER.off_dt_struct); at < bytes.length; at += 4)
    if (view(bytes).getUint32(at) === value) return at;
  throw new Error(`no word ${value}`);
}

function refusesField(bytes: Uint8Array, field: RegExp): void {
  assert.throws(
    () => decodeFdt(bytes),
    (error) => error instanceof HandoverError && field.test(error.message),
  );
}

describe("encodeFdt()", () => {
  it("writes what decodeFdt() reads", () => {
    assert.deepEqual(decodeFdt(encodeFdt(SAMPLE)), SAMPLE);
  });

  it("lays the blocks out as libfdt does: header, reservations, structure, strings", () => {
    const bytes = encodeFdt(SAMPLE, ["odd"]);
    const header = view(bytes);
    assert.equal(header.getUint32(FDT_HEADER.magic), 0xd00dfeed);
    assert.equal(header.getUint32(FDT_HEADER.totalsize), bytes.length);
    assert.equal(header.getUint32(FDT_HEADER.version), 17);
    assert.equal(header.getUint32(FDT_HEADER.last_comp_version), 16);
    assert.equal(header.getUint32(FDT_HEADER.off_mem_rsvmap), 40);
    assert.equal(header.getUint32(FDT_HEADER.off_dt_struct), 56);
    const strings = header.getUint32(FDT_HEADER.off_dt_strings);
    assert.equal(strings, 56 + header.getUint32(FDT_HEADER.size_dt_struct));
    const text = String.fromCharCode(...bytes.subarray(strings));
    assert.equal(text, "odd\0compatible\0empty\0");
  });

  it("writes what dtc reads", (t) => {
    const probe = spawnSync("dtc", ["--version"]);
    if (probe.error) return t.skip("no dtc here: apt-get install device-tree-compiler");
    const folder = mkdtempSync(join(tmpdir(), "holdfast-fdt-"));
    try {
      const file = join(folder, "sample.dtb");
      writeFileSync(file, encodeFdt(SAMPLE));
      const dtc = spawnSync("dtc", ["-q", "-I", "dtb", "-O", "dts", file], { encoding: "utf8" });
      assert.equal(dtc.status, 0, dtc.stderr);
      assert.equal(
        dtc.stdout.replaceAll(/\s+/g, " ").trim(),
        '/dts-v1/; / { compatible = "kho-v4"; odd = [01 02 03 04 05]; empty; LUO { odd = [09]; }; memfs { inner@1 { }; }; };',
      );
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe("decodeFdt()", () => {
  it("accepts bytes after the tree", () => {
    const page = new Uint8Array(4096).fill(0xff);
    page.set(encodeFdt(SAMPLE));
    assert.deepEqual(decodeFdt(page), SAMPLE);
  });

  it("skips NOP tokens", () => {
    const bytes = encodeFdt({
      name: "",
      properties: new Map([["a", fdtString("xyz")]]),
      children: [],
    });
    // The property becomes four NOPs: token, length, name offset, value.
    const at = findWord(bytes, 3);
    for (let i = 0; i < 4; i++) view(bytes).setUint32(at + 4 * i, 4);
    assert.equal(decodeFdt(bytes).properties.size, 0);
  });

  const badHeaders: [keyof typeof FDT_HEADER, number[]][] = [
    ["magic", [0, 0xedfe0dd0]],
    ["totalsize", [0, 39, 4097, 0xffffffff]],
    ["off_dt_struct", [0, 36, 58, 0xfffffffc]],
    ["off_dt_strings", [0, 60, 0xffffffff]],
    ["off_mem_rsvmap", [0, 36, 44, 0xfffffff8]],
    ["version", [0, 16]],
    ["last_comp_version", [18, 0xffffffff]],
    ["size_dt_strings", [0, 4096, 0xffffffff]],
    ["size_dt_struct", [0, 3, 4, 0xfffffffc]],
  ];
  for (const [name, values] of badHeaders)
    it(`refuses a header whose ${name} is wrong`, () => {
      for (const value of values) {
        const bytes = encodeFdt(SAMPLE);
        view(bytes).setUint32(FDT_HEADER[name], value);
        assert.throws(() => decodeFdt(bytes), HandoverError, `${name} = ${value}`);
      }
    });

  it("names the header word that it refuses", () => {
    for (const name of ["magic", "totalsize", "version", "off_mem_rsvmap"] as const) {
      const bytes = encodeFdt(SAMPLE);
      view(bytes).setUint32(FDT_HEADER[name], 4);
      refusesField(bytes, new RegExp(`fdt_header\\.${name}`));
    }
  });

  it("refuses a tree that ends anywhere too early", () => {
    const bytes = encodeFdt(SAMPLE);
    for (let length = 0; length < bytes.length; length++)
      assert.throws(() => decodeFdt(bytes.slice(0, length)), HandoverError, `${length} bytes`);
  });

  it("refuses unknown tokens, a missing END_NODE and a missing END", () => {
    for (const [token, replacement] of [
      [2, 7],
      [2, 1],
      [9, 2],
      [1, 2],
      [9, 4],
    ]) {
      const bytes = encodeFdt(SAMPLE);
      view(bytes).setUint32(findWord(bytes, token), replacement);
      refusesField(bytes, /^handover refused: fdt/);
    }
  });

  it("refuses a property that is longer than the structure, or whose name is outside the strings", () => {
    for (const offset of [4, 8]) {
      const bytes = encodeFdt(SAMPLE);
      view(bytes).setUint32(findWord(bytes, 3) + offset, 0xfffffff0);
      refusesField(bytes, /fdt:\//);
    }
  });

  it("refuses a property name without end", () => {
    const bytes = encodeFdt({
      name: "",
      properties: new Map([["ab", new Uint8Array(0)]]),
      children: [],
    });
    bytes[bytes.length - 1] = 0x63;
    refusesField(bytes, /without end/);
  });

  it("refuses two nodes or two properties of one name", () => {
    const twin = (name: string): FdtNode => ({ name, properties: new Map(), children: [] });
    refusesField(
      encodeFdt({ name: "", properties: new Map(), children: [twin("x"), twin("x")] }),
      /two nodes "x"/,
    );
    const bytes = encodeFdt({
      name: "",
      properties: new Map([
        ["a", new Uint8Array(0)],
        ["b", new Uint8Array(0)],
      ]),
      children: [],
    });
    view(bytes).setUint32(findWord(bytes, 3) + 12 + 8, 0);
    refusesField(bytes, /two properties "a"/);
  });

  it("refuses a property after a child node", () => {
    const bytes = encodeFdt({
      name: "",
      properties: new Map([["a", new Uint8Array(0)]]),
      children: [{ name: "n", properties: new Map(), children: [] }],
    });
    // | PROP, 0, 0 | BEGIN_NODE "n" END_NODE |  becomes  | BEGIN_NODE "n" END_NODE | PROP, 0, 0 |
    const at = findWord(bytes, 3);
    const words = Array.from({ length: 6 }, (_, i) => view(bytes).getUint32(at + 4 * i));
    [...words.slice(3), ...words.slice(0, 3)].forEach((word, i) => {
      view(bytes).setUint32(at + 4 * i, word);
    });
    refusesField(bytes, /after a child node/);
  });

  it("refuses nodes that are nested too deeply", () => {
    let node: FdtNode = { name: "n", properties: new Map(), children: [] };
    for (let i = 0; i < 14; i++) node = { name: "n", properties: new Map(), children: [node] };
    const tree = (child: FdtNode) => ({ name: "", properties: new Map(), children: [child] });
    assert.equal(decodeFdt(encodeFdt(tree(node))).children.length, 1);
    const deeper = { name: "n", properties: new Map(), children: [node] };
    refusesField(encodeFdt(tree(deeper)), /deeper than 16/);
  });

  it("either returns a tree or refuses, whatever bytes are changed", () => {
    const sample = encodeFdt(SAMPLE);
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(sample.length - 1), fc.nat(255)), { minLength: 1, maxLength: 4 }),
        (changes) => {
          const bytes = sample.slice();
          for (const [at, value] of changes) bytes[at] = value;
          try {
            decodeFdt(bytes);
          } catch (error) {
            assert.ok(error instanceof HandoverError, String(error));
          }
        },
      ),
      { numRuns: 2000 },
    );
  });
});
