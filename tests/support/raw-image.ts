/** Writes a machine's RAM as QEMU's memory-backend-file would have it: raw, sparse, without a note. @module */
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { MIB } from "../../src/base/units.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";

/** @param ram - in one range from 0 on */
export function saveRawImage(path: string, ram: Ram): void {
  const [{ lengthBytes }] = ram.ranges;
  const fd = openSync(path, "w");
  ftruncateSync(fd, lengthBytes);
  const piece = new Uint8Array(2 * MIB);
  for (let pa = ram.nextTouched(0); pa < lengthBytes; pa = ram.nextTouched(pa + piece.length)) {
    ram.read(pa, piece);
    writeSync(fd, piece, 0, piece.length, pa);
  }
  closeSync(fd);
}
