/**
 * Our root FDT, read by the device tree compiler: other people's program says that the bytes are a device tree.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { describeMissing, FDT_TOOLS } from "../../scripts/linux/tools.ts";
import { openImage } from "../../src/inspect/image/open-image.ts";
import { skipUnless } from "../support/skip.ts";
import { viewHandover } from "./handover-view.ts";
import { handOverOnOurKernel } from "./our-kernel.ts";

const FDT_BYTES = 4096;

describe("our FDT", { skip: skipUnless("dtc", describeMissing(FDT_TOOLS)) }, () => {
  let folder: string;
  let blob: string;
  /** What the source of the tree must be. */
  let expected: string;

  before(() => {
    folder = mkdtempSync(join(tmpdir(), "holdfast-"));
    const path = join(folder, "image");
    handOverOnOurKernel(path);
    const { fdtPa, memoryMapPa, subtrees } = viewHandover(path);
    const image = openImage(path);
    const bytes = new Uint8Array(FDT_BYTES);
    image.read(fdtPa, bytes);
    image.close();
    blob = join(folder, "fdt.dtb");
    writeFileSync(blob, bytes);
    expected = sourceOf(memoryMapPa, subtrees);
  });
  after(() => rmSync(folder, { recursive: true, force: true }));

  test("is decompiled by dtc without complaint, to what it must be", () => {
    const { status, stdout, stderr } = spawnSync("dtc", ["-I", "dtb", "-O", "dts", blob], {
      encoding: "utf8",
    });
    assert.deepEqual({ status, stderr, stdout }, { status: 0, stderr: "", stdout: expected });
  });

  test("is dumped by fdtdump, which finds the same properties", () => {
    const { status, stdout, stderr } = spawnSync("fdtdump", [blob], { encoding: "utf8" });
    assert.equal(status, 0, stderr);
    // It always begins with what it is not meant for.
    const complaints = stderr.split("\n").filter((l) => l !== "" && !l.startsWith("****"));
    assert.deepEqual(complaints, []);
    const words = (text: string) => text.match(/[\w-]+ = .*;/g)?.map(plain);
    assert.deepEqual(words(stdout), words(expected));
  });

  test("is refused by dtc when a token of it is wrong", () => {
    const damaged = join(folder, "damaged.dtb");
    const image = openImage(join(folder, "image"));
    const bytes = new Uint8Array(FDT_BYTES);
    image.read(viewHandover(join(folder, "image")).fdtPa, bytes);
    image.close();
    bytes[new DataView(bytes.buffer).getUint32(8) + 3] = 7;
    writeFileSync(damaged, bytes);
    const { status } = spawnSync("dtc", ["-I", "dtb", "-O", "dts", damaged]);
    assert.notEqual(status, 0);
  });
});

/** In dtc's form: words of 64 bits are little endian, and dtc takes them for big-endian cells. */
function sourceOf(
  memoryMapPa: number,
  subtrees: readonly { readonly name: string; readonly pa: number; readonly bytes: Uint8Array }[],
): string {
  const nodes = subtrees
    .toReversed()
    .map(
      ({ name, pa, bytes }) =>
        `\n\t${name} {\n\t\tblob-size = <${cells(bytes.length)}>;\n` +
        `\t\tpreserved-data = <${cells(pa)}>;\n\t};\n`,
    );
  const head = `\tcompatible = "kho-v4";\n\tpreserved-memory-map = <${cells(memoryMapPa)}>;\n`;
  return `/dts-v1/;\n\n/ {\n${head}${nodes.join("")}};\n`;
}

function cells(value: number): string {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return [0, 4].map((at) => `0x${bytes.readUInt32BE(at).toString(16).padStart(2, "0")}`).join(" ");
}

/** Without leading zeros of numbers, which fdtdump prints and dtc does not. */
function plain(line: string): string {
  return line.replaceAll(/0x0+(?=[0-9a-f])/g, "0x");
}
