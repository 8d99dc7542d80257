/**
 * An image that tells which pages of it are read, and of which a byte can be made to read otherwise.
 * @module
 */
import { PAGE_SIZE } from "../../../src/base/units.ts";
import type { ImageInfo, RamImage } from "../../../src/inspect/image/ram-image.ts";
import type { MemoryRange } from "../../../src/machine/machine.ts";

export class WatchedImage implements RamImage {
  readonly info: ImageInfo;
  readonly ranges: readonly MemoryRange[];
  readonly backed: readonly MemoryRange[];
  readonly #image: RamImage;
  readonly #onPage: (pa: number) => void;
  #damagedPa = -1;
  #flipped = 0;

  constructor(image: RamImage, onPage: (pa: number) => void = () => undefined) {
    this.info = image.info;
    this.ranges = image.ranges;
    this.backed = image.backed;
    this.#image = image;
    this.#onPage = onPage;
  }

  /** From here on this byte, and no other, reads with these bits flipped. */
  damage(pa: number, flipped: number): void {
    this.#damagedPa = pa;
    this.#flipped = flipped;
  }

  contains(pa: number, lengthBytes: number): boolean {
    return this.#image.contains(pa, lengthBytes);
  }

  load8(pa: number): number {
    this.#onPage(pa - (pa % PAGE_SIZE));
    return this.#image.load8(pa) ^ (pa === this.#damagedPa ? this.#flipped : 0);
  }

  load16(pa: number): number {
    return this.load8(pa) | (this.load8(pa + 1) << 8);
  }

  load32(pa: number): number {
    if (this.#damagedPa < pa || this.#damagedPa >= pa + 4) {
      this.#onPage(pa - (pa % PAGE_SIZE));
      return this.#image.load32(pa);
    }
    return (this.load16(pa) | (this.load16(pa + 2) << 16)) >>> 0;
  }

  load64(pa: number): number {
    return this.load32(pa + 4) * 2 ** 32 + this.load32(pa);
  }

  loadBig64(pa: number): bigint {
    return (BigInt(this.load32(pa + 4)) << 32n) | BigInt(this.load32(pa));
  }

  read(pa: number, target: Uint8Array): void {
    for (let at = pa - (pa % PAGE_SIZE); at < pa + target.length; at += PAGE_SIZE) this.#onPage(at);
    this.#image.read(pa, target);
    const at = this.#damagedPa - pa;
    if (at >= 0 && at < target.length) target[at] ^= this.#flipped;
  }

  close(): void {
    this.#image.close();
  }
}
