/**
 * Makes a golden handover of a real Linux: `tsx tests/linux/golden/make.ts tests/linux/golden/linux-RELEASE.core.gz`.
 *
 * It has the pages that the inspector reads and no other: the structures, not the contents of files, which read as zero.
 * So every machine can test against a real kernel's bytes, without QEMU. Never run it for a file that exists: what a
 * kernel has left is not edited.
 * @module
 */
import assert from "node:assert/strict";
import { existsSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { readScratch } from "../../../src/abi/kho.ts";
import { PAGE_SIZE } from "../../../src/base/units.ts";
import { readHandover } from "../../../src/inspect/handover.ts";
import { type CorePiece, encodeElfCore } from "../../../src/inspect/image/elf-core.ts";
import { encodeNote } from "../../../src/inspect/image/image-note.ts";
import { openImage } from "../../../src/inspect/image/open-image.ts";
import { khoParameters } from "../our-kernel.ts";
import { RAM_BYTES } from "../rig.ts";
import { ScenarioMachine } from "../scenario-machine.ts";
import { WatchedImage } from "./watched-image.ts";

async function main(): Promise<void> {
  const path = process.argv[2];
  assert(path !== undefined, "usage: tsx tests/linux/golden/make.ts FILE");
  assert(!existsSync(path), `${path} exists, and golden handovers are never made again`);
  const machine = await ScenarioMachine.start("handover");
  try {
    await machine.next("preserved");
    machine.goOn();
    const kho = khoParameters(await machine.jumped());
    const image = openImage(machine.ram);
    const pages = new Set<number>();
    const watched = new WatchedImage(image, (pa) => pages.add(pa));
    readScratch(watched, kho.scratchAddress, kho.scratchSizeBytes);
    const { problems } = readHandover(watched, { fdtPa: kho.fdtAddress });
    assert.deepEqual(problems.list, []);

    const pieces = piecesOf([...pages].sort((a, b) => a - b));
    const memory = [{ start: 0, lengthBytes: RAM_BYTES, node: 0 }];
    const firmware = { memory, rmrrs: [], mmioWindows: [] };
    const { head } = encodeElfCore(pieces, encodeNote({ update: 1, kho, firmware }));
    const bytes = pieces
      .filter(({ isInFile }) => isInFile)
      .map(({ pa, lengthBytes }) => {
        const piece = new Uint8Array(lengthBytes);
        image.read(pa, piece);
        return piece;
      });
    const core = gzipSync(Buffer.concat([head, ...bytes]), { level: 9 });
    writeFileSync(path, core);
    image.close();
    console.log(`${path}: ${core.length} bytes, ${pages.size} pages`);
  } finally {
    machine.close();
  }
}

/** All RAM, of which only these pages are in the file. */
function piecesOf(pages: readonly number[]): CorePiece[] {
  const pieces: CorePiece[] = [];
  let end = 0;
  for (const pa of pages) {
    if (pa > end) pieces.push({ pa: end, lengthBytes: pa - end, isInFile: false });
    pieces.push({ pa, lengthBytes: PAGE_SIZE, isInFile: true });
    end = pa + PAGE_SIZE;
  }
  if (end < RAM_BYTES) pieces.push({ pa: end, lengthBytes: RAM_BYTES - end, isInFile: false });
  return pieces;
}

await main();
