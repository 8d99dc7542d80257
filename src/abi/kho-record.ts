/**
 * Records: what parts of the kernel hand over beside pages, each known by its address.
 *
 * Why: a page for every small structure would be most of a handover of many small VMs.
 * Layout: a record of at most 2048 bytes takes a multiple of 64 bytes at a multiple of 64, inside a preserved page of
 * order 0 that it shares with records of any other owners; nothing in the page says where they are, and what no record
 * takes means nothing. A larger record has a preserved block of its own, of the smallest order that holds it.
 * Source: ours; upstream has a page for each structure.
 * @module
 */
import { assert } from "../base/assert.ts";
import { MAX_ORDER, orderBytes } from "../base/units.ts";

/** Alignment of a record in a shared page, and the unit of what it takes. */
export const KHO_RECORD_ALIGN_BYTES = 64;
/** Larger records share no page. */
export const KHO_RECORD_SHARED_MAX_BYTES = 2048;

/**
 * Order of the block that a record has for itself; null when it shares a page.
 *
 * @param lengthBytes - at least 1, at most a block of the largest order
 */
export function khoRecordOrder(lengthBytes: number): number | null {
  assert(lengthBytes > 0 && lengthBytes <= orderBytes(MAX_ORDER), "a record fits into a block");
  if (lengthBytes <= KHO_RECORD_SHARED_MAX_BYTES) return null;
  let order = 0;
  while (orderBytes(order) < lengthBytes) order++;
  return order;
}
