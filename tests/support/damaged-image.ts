/** An image file of which bytes can be made wrong and right again. @module */
import { closeSync, fstatSync, openSync, readSync, writeSync } from "node:fs";
import { readElfCore } from "../../src/inspect/image/elf-core.ts";
import type { Segment } from "../../src/inspect/image/ram-image.ts";

export class DamagedImage {
  readonly path: string;
  readonly #fd: number;
  readonly #segments: readonly Segment[];

  /** @param path - of a whole ELF core */
  constructor(path: string) {
    this.path = path;
    this.#fd = openSync(path, "r+");
    this.#segments = readElfCore(this.#fd, fstatSync(this.#fd).size).segments;
  }

  /** Has `look` look at the image with other bytes at a physical address. */
  with<T>(pa: number, bytes: Uint8Array, look: () => T): T {
    const offset = this.#offset(pa, bytes.length);
    const old = new Uint8Array(bytes.length);
    readSync(this.#fd, old, 0, old.length, offset);
    writeSync(this.#fd, bytes, 0, bytes.length, offset);
    try {
      return look();
    } finally {
      writeSync(this.#fd, old, 0, old.length, offset);
    }
  }

  close(): void {
    closeSync(this.#fd);
  }

  #offset(pa: number, lengthBytes: number): number {
    const segment = this.#segments.find(
      (s) => pa >= s.pa && pa + lengthBytes <= s.pa + s.fileBytes,
    );
    if (segment === undefined) throw new Error(`0x${pa.toString(16)} is not in the file`);
    return segment.fileOffset + pa - segment.pa;
  }
}
