/**
 * Which records of shared pages have been claimed, for what reads a handover.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import { KHO_RECORD_ALIGN_BYTES, khoRecordOrder } from "../../abi/kho-record.ts";
import { alignDown, alignUp, hex, isAligned, PAGE_SIZE } from "../../base/units.ts";

interface Claimed {
  readonly pa: number;
  readonly end: number;
  readonly field: string;
}

/**
 * The page that a record of that address and length would lie in.
 *
 * @param pa - untrusted
 * @throws {HandoverError} when it is unaligned or reaches beyond its page
 */
function recordPage(pa: number, lengthBytes: number, field: string): number {
  if (!(pa >= 0) || !isAligned(pa, KHO_RECORD_ALIGN_BYTES))
    throw new HandoverError(field, `${hex(pa)} is not aligned to ${KHO_RECORD_ALIGN_BYTES} bytes`);
  const page = alignDown(pa, PAGE_SIZE);
  if (pa + lengthBytes > page + PAGE_SIZE)
    throw new HandoverError(field, `${hex(pa)}+${hex(lengthBytes)} is not in one page`);
  return page;
}

/** Records by their pages. */
export class RecordClaims {
  readonly #pages = new Map<number, Claimed[]>();

  /**
   * Claims what {@link IncomingMemory.claimRecord} is asked for: a record of a shared page, whose page is claimed with its
   * first record, or a block of its own when it is too large.
   *
   * @param claimBlock - as {@link IncomingMemory.claim}, of whoever keeps the books of blocks
   * @throws {HandoverError} as `claimRecord`
   */
  claim(
    pa: number,
    lengthBytes: number,
    field: string,
    claimBlock: (pa: number, order: number, field: string) => void,
  ): void {
    const order = khoRecordOrder(lengthBytes);
    if (order !== null) {
      claimBlock(pa, order, field);
      return;
    }
    const page = recordPage(pa, lengthBytes, field);
    if (!this.hasPage(page)) claimBlock(page, 0, field);
    this.#add(pa, lengthBytes, field);
  }

  /** Whether records of that page have been claimed. */
  hasPage(page: number): boolean {
    return this.#pages.has(page);
  }

  /**
   * @param pa - of a record that {@link recordPage} has passed
   * @throws {HandoverError} when it overlaps another
   */
  #add(pa: number, lengthBytes: number, field: string): void {
    const page = alignDown(pa, PAGE_SIZE);
    const end = pa + alignUp(lengthBytes, KHO_RECORD_ALIGN_BYTES);
    const claimed = this.#pages.get(page) ?? [];
    const other = claimed.find((one) => one.pa < end && pa < one.end);
    if (other !== undefined)
      throw new HandoverError(field, `${hex(pa)} is claimed by ${other.field} already`);
    claimed.push({ pa, end, field });
    this.#pages.set(page, claimed);
  }

  /**
   * Forgets a record that its owner needs no more.
   * @returns null when there is no such record; else whether it was the last one of its page
   */
  delete(pa: number, lengthBytes: number): { readonly isLast: boolean } | null {
    const page = alignDown(pa, PAGE_SIZE);
    const end = pa + alignUp(lengthBytes, KHO_RECORD_ALIGN_BYTES);
    const claimed = this.#pages.get(page) ?? [];
    const index = claimed.findIndex((one) => one.pa === pa && one.end === end);
    if (index < 0) return null;
    claimed.splice(index, 1);
    if (claimed.length > 0) return { isLast: false };
    this.#pages.delete(page);
    return { isLast: true };
  }

  clear(): void {
    this.#pages.clear();
  }
}
