/**
 * Addresses for BARs and bridge windows: what is free, and how things are packed.
 *
 * Source: the problem of Linux 7.3 drivers/pci/setup-bus.c, solved in the simplest way that wastes little: largest
 *   alignment first
 * @module
 */
import { alignUp } from "../../base/units.ts";
import type { MemoryRange } from "../../machine/machine.ts";

/** Something that needs addresses: a BAR, or all that is below a bridge. */
export interface AddressRequest {
  /** For messages. */
  readonly name: string;
  readonly sizeBytes: number;
  /** A power of two. */
  readonly alignBytes: number;
  /** Called once, with its address. */
  place(address: number): void;
}

/** Free addresses. */
export class AddressSpace {
  #free: MemoryRange[];

  constructor(ranges: readonly MemoryRange[]) {
    this.#free = ranges.filter((r) => r.lengthBytes > 0).sort((a, b) => a.start - b.start);
  }

  /** The lowest free place, or null. */
  alloc(sizeBytes: number, alignBytes: number): number | null {
    for (const { start, lengthBytes } of this.#free) {
      const address = alignUp(start, alignBytes);
      if (address + sizeBytes > start + lengthBytes) continue;
      this.take(address, sizeBytes);
      return address;
    }
    return null;
  }

  /** Whether all of it is free. */
  isFree(start: number, lengthBytes: number): boolean {
    return this.#free.some(
      (r) => start >= r.start && start + lengthBytes <= r.start + r.lengthBytes,
    );
  }

  /** Takes what is free of these addresses. */
  take(start: number, lengthBytes: number): void {
    const end = start + lengthBytes;
    this.#free = this.#free.flatMap((r) => {
      const rangeEnd = r.start + r.lengthBytes;
      if (end <= r.start || start >= rangeEnd) return [r];
      const pieces: MemoryRange[] = [];
      if (start > r.start) pieces.push({ start: r.start, lengthBytes: start - r.start });
      if (end < rangeEnd) pieces.push({ start: end, lengthBytes: rangeEnd - end });
      return pieces;
    });
  }
}

/** Lays requests out behind one another; the whole is a request again, or null when there are none. */
export function pack(requests: readonly AddressRequest[]): AddressRequest | null {
  if (requests.length === 0) return null;
  const sorted = largestAlignmentFirst(requests);
  const offsets: number[] = [];
  let sizeBytes = 0;
  for (const request of sorted) {
    const offset = alignUp(sizeBytes, request.alignBytes);
    offsets.push(offset);
    sizeBytes = offset + request.sizeBytes;
  }
  return {
    name: sorted.map((request) => request.name).join(", "),
    sizeBytes,
    alignBytes: sorted[0].alignBytes,
    place: (address) => {
      for (const [i, request] of sorted.entries()) request.place(address + offsets[i]);
    },
  };
}

/**
 * Places each request in the first of the spaces that has room.
 *
 * @returns those that fit nowhere
 */
export function placeAll(
  requests: readonly AddressRequest[],
  spaces: readonly AddressSpace[],
): AddressRequest[] {
  return largestAlignmentFirst(requests).filter((request) => {
    for (const space of spaces) {
      const address = space.alloc(request.sizeBytes, request.alignBytes);
      if (address === null) continue;
      request.place(address);
      return false;
    }
    return true;
  });
}

function largestAlignmentFirst(requests: readonly AddressRequest[]): AddressRequest[] {
  return [...requests].sort((a, b) => b.alignBytes - a.alignBytes || b.sizeBytes - a.sizeBytes);
}
