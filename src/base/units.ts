/** Sizes, pages and alignment. All in bytes and as `number`: exact up to 2^53. @module */

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;
export const TIB = 1024 * GIB;

/** log2 of the base page, as Linux's PAGE_SHIFT on x86-64. */
export const PAGE_SHIFT = 12;
export const PAGE_SIZE = 4096;
/** The largest order of our allocator: 1 GiB. */
export const MAX_ORDER = 18;

/** Bytes of a page of this order (0: 4 KiB, 9: 2 MiB, 18: 1 GiB). */
export function orderBytes(order: number): number {
  // Shifting takes a tenth of the time of a power, and decoders ask this for every block.
  return order <= 30 ? PAGE_SIZE * (1 << order) : PAGE_SIZE * 2 ** order;
}

/** Whether `value` is a multiple of `alignment`; exact for all safe integers. */
export function isAligned(value: number, alignment: number): boolean {
  return value % alignment === 0;
}

/** The largest multiple of `alignment` not above `value`. */
export function alignDown(value: number, alignment: number): number {
  return value - (value % alignment);
}

/** The smallest multiple of `alignment` not below `value`. */
export function alignUp(value: number, alignment: number): number {
  return alignDown(value + alignment - 1, alignment);
}

/** Whether `value` is an integer in 0 .. `last`. Safe on untrusted values of any type. */
export function isIndex(value: unknown, last: number): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= last;
}

/** `0x` and the hexadecimal digits of an address, for messages. */
export function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

/** A size for a person: "512 MiB", "1.5 GiB". */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${units[unit]}`;
}
