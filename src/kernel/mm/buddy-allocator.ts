/**
 * The page allocator: zones of every NUMA node, made at boot from the memory map and the handover.
 *
 * Why: what it manages is decided once: RAM without scratch (the next kernel boots there), without carve-outs (their
 * owner keeps its own books, so that no page of theirs costs anything here) and without the page at address 0,
 * which in every handover format means "none". Making it costs by ranges and preserved blocks, not by pages.
 * Not modelled: zones by address limit (DMA32), per-CPU lists, reclaim.
 * @module
 */

import { HandoverError } from "../../abi/handover-error.ts";
import { assert, BugError } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import {
  alignDown,
  formatBytes,
  hex,
  isAligned,
  isIndex,
  MAX_ORDER,
  orderBytes,
  PAGE_SIZE,
  TIB,
} from "../../base/units.ts";
import type { FirmwareMemory, MemoryRange, PhysicalMemory } from "../../machine/machine.ts";
import type { AllocOptions, PageAllocator, PageCounts } from "./page-allocator.ts";
import { Zone } from "./zone.ts";

/** Blocks, sorted by address and not overlapping: those that the previous kernel preserved. */
export interface BlockList {
  readonly count: number;
  pa(index: number): number;
  order(index: number): number;
}

/** What there is at boot. */
export interface BuddyAllocatorOptions {
  readonly memory: PhysicalMemory;
  /** RAM by node, as firmware tells it. */
  readonly firmware: {
    readonly memory: readonly FirmwareMemory[];
    readonly nodeCount: number;
  };
  /** Areas that no page is ever taken from: KHO's scratch. */
  readonly scratch?: readonly MemoryRange[];
  /** Memory with an owner of its own, from the command line or the handover. */
  readonly carveOuts?: readonly MemoryRange[];
  /** Blocks that stay reserved until they are adopted. Those in carve-outs are passed over. */
  readonly reserved?: BlockList;
  readonly faults: FaultInjector;
}

const ZONE_BYTES = TIB;

/** {@link PageAllocator} over all of a machine's memory. */
export class BuddyAllocator implements PageAllocator {
  readonly #memory: PhysicalMemory;
  readonly #faults: FaultInjector;
  readonly #firmwareMemory: readonly FirmwareMemory[];
  readonly #nodeCount: number;
  readonly #carveOuts: readonly MemoryRange[];
  /** Sorted by address. */
  readonly #zones: Zone[] = [];
  readonly #zonesOfNode: Zone[][] = [];
  #held: { readonly pa: number; readonly order: number }[] | null = null;

  /**
   * @throws {KernelError} EINVAL when a carve-out is empty, not page aligned, not RAM, or overlaps another,
   *   scratch or the page at address 0
   * @throws {HandoverError} when a reserved block lies neither in a carve-out nor in the memory of one node
   */
  constructor(options: BuddyAllocatorOptions) {
    const { memory, firmware, scratch = [], carveOuts = [], reserved, faults } = options;
    this.#memory = memory;
    this.#faults = faults;
    this.#firmwareMemory = firmware.memory;
    this.#nodeCount = firmware.nodeCount;
    this.#carveOuts = sortRanges(carveOuts);

    const zeroPage = { start: 0, lengthBytes: PAGE_SIZE };
    const taken = sortRanges([zeroPage, ...scratch.filter((area) => area.lengthBytes > 0)]);
    checkCarveOuts(this.#carveOuts, taken, memory);
    const holes = sortRanges([...taken, ...this.#carveOuts]);
    for (let node = 0; node < firmware.nodeCount; node++) this.#zonesOfNode.push([]);
    for (const range of sortRanges(firmware.memory)) {
      for (const piece of subtract(range, holes)) this.#addZones(range.node, piece);
    }
    this.#fill(reserved ?? { count: 0, pa: () => 0, order: () => 0 });
  }

  alloc(order: number, options: AllocOptions = {}): number {
    assert(isIndex(order, MAX_ORDER), () => `alloc of order ${order}`);
    const node = options.node ?? 0;
    assert(isIndex(node, this.#nodeCount - 1), () => `alloc on node ${node}`);
    this.#faults.point("mm:alloc");
    const tries = options.thisNode === true ? 1 : this.#nodeCount;
    for (let i = 0; i < tries; i++) {
      const zone = this.#bestZone((node + i) % this.#nodeCount, order);
      if (zone === null) continue;
      const pa = zone.alloc(order);
      if (options.zero !== false) this.#memory.fill(pa, orderBytes(order), 0);
      return pa;
    }
    const where = options.thisNode === true ? `node ${node}` : "any node";
    const { free } = this.counts(options.thisNode === true ? node : undefined);
    throw new KernelError(
      "ENOMEM",
      "alloc",
      `no ${formatBytes(orderBytes(order))} block on ${where}, ${formatBytes(free * PAGE_SIZE)} free`,
    );
  }

  free(pa: number, order: number): void {
    const zone = this.#zoneOfBlock(pa, order, "free");
    if (this.#held === null) {
      zone.free(pa, order);
      return;
    }
    assert(
      zone.isAllocated(pa, order),
      () => `free of ${hex(pa)}: not an allocated block of that order`,
    );
    this.#held.push({ pa, order });
  }

  /**
   * From here to {@link releaseFrees} nothing that is freed is given out again. A boot holds frees until it cannot fail
   * any more: what it has read of a handover and freed is then still there for another attempt.
   */
  holdFrees(): void {
    assert(this.#held === null, "frees are held already");
    this.#held = [];
  }

  /** Frees all that was held back. */
  releaseFrees(): void {
    const held = this.#held;
    assert(held !== null, "frees are held");
    this.#held = null;
    for (const { pa, order } of held) this.free(pa, order);
  }

  adopt(pa: number, order: number): void {
    this.#zoneOfBlock(pa, order, "adopt").adopt(pa, order);
  }

  isAllocated(pa: number, order: number): boolean {
    const zone = this.#zoneAt(pa);
    return zone !== null && isIndex(order, MAX_ORDER) && isAligned(pa, PAGE_SIZE)
      ? zone.isAllocated(pa, order)
      : false;
  }

  isCarvedOut(pa: number): boolean {
    return this.#carveOuts.some((range) => inRange(pa, range));
  }

  nodeOf(pa: number): number {
    const range = this.#firmwareMemory.find((candidate) => inRange(pa, candidate));
    assert(range !== undefined, `${hex(pa)} is in RAM`);
    return range.node;
  }

  counts(node?: number): PageCounts {
    let total = 0;
    let free = 0;
    let reserved = 0;
    for (const zone of node === undefined ? this.#zones : this.#zonesOfNode[node]) {
      total += zone.totalPages;
      free += zone.freePages;
      reserved += zone.reservedPages;
    }
    return { total, free, allocated: total - free - reserved, reserved };
  }

  /** Bytes of this allocator's own books when every page of them is touched; most never are. */
  metadataBytes(): number {
    return this.#zones.reduce((sum, zone) => sum + zone.metadataBytes, 0);
  }

  #addZones(node: number, { start, lengthBytes }: MemoryRange): void {
    const end = start + lengthBytes;
    for (let at = start; at < end; ) {
      const zoneEnd = Math.min(end, alignDown(at, ZONE_BYTES) + ZONE_BYTES);
      const zone = new Zone(node, at, zoneEnd);
      this.#zones.push(zone);
      this.#zonesOfNode[node].push(zone);
      at = zoneEnd;
    }
  }

  /** Gives zones their reserved blocks, and what lies between these as free memory. */
  #fill(reserved: BlockList): void {
    let index = 0;
    const refuse = (i: number): never => {
      throw new HandoverError(
        "preserved-memory-map",
        `block ${hex(reserved.pa(i))} of order ${reserved.order(i)} is not in the memory of one node`,
      );
    };
    for (const zone of this.#zones) {
      let at = zone.start;
      for (; index < reserved.count && reserved.pa(index) < zone.end; index++) {
        const pa = reserved.pa(index);
        const end = pa + orderBytes(reserved.order(index));
        if (pa < zone.start) {
          if (!this.#coversCarvedOut(pa, end)) refuse(index);
          continue;
        }
        if (end > zone.end) refuse(index);
        if (pa > at) zone.addFree(at, pa);
        zone.addReserved(pa, reserved.order(index));
        at = end;
      }
      if (at < zone.end) zone.addFree(at, zone.end);
    }
    for (; index < reserved.count; index++) {
      const pa = reserved.pa(index);
      if (!this.#coversCarvedOut(pa, pa + orderBytes(reserved.order(index)))) refuse(index);
    }
  }

  #coversCarvedOut(start: number, end: number): boolean {
    return this.#carveOuts.some((c) => start >= c.start && end <= c.start + c.lengthBytes);
  }

  /** The zone whose free block fits best; the lowest of equal ones. */
  #bestZone(node: number, order: number): Zone | null {
    let best: Zone | null = null;
    let bestOrder = MAX_ORDER + 1;
    for (const zone of this.#zonesOfNode[node]) {
      const zoneOrder = zone.bestOrder(order);
      if (zoneOrder >= 0 && zoneOrder < bestOrder) {
        best = zone;
        bestOrder = zoneOrder;
      }
    }
    return best;
  }

  #zoneOfBlock(pa: number, order: number, op: string): Zone {
    assert(isIndex(order, MAX_ORDER), () => `${op} with order ${order}`);
    assert(
      isAligned(pa, orderBytes(order)),
      () => `${op} of ${hex(pa)}: not aligned to order ${order}`,
    );
    const zone = this.#zoneAt(pa);
    if (zone === null) throw new BugError(`${op} of ${hex(pa)}: not memory of this allocator`);
    return zone;
  }

  #zoneAt(pa: number): Zone | null {
    let low = 0;
    let high = this.#zones.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#zones[middle].end <= pa) low = middle + 1;
      else high = middle;
    }
    const zone = this.#zones[low];
    return zone !== undefined && pa >= zone.start && pa < zone.end ? zone : null;
  }
}

function inRange(pa: number, range: MemoryRange): boolean {
  return pa >= range.start && pa < range.start + range.lengthBytes;
}

function sortRanges<R extends MemoryRange>(ranges: readonly R[]): readonly R[] {
  return [...ranges].sort((a, b) => a.start - b.start);
}

function checkCarveOuts(
  carveOuts: readonly MemoryRange[],
  taken: readonly MemoryRange[],
  memory: PhysicalMemory,
): void {
  carveOuts.forEach((range, index) => {
    const { start, lengthBytes } = range;
    const refuse = (problem: string): never => {
      const where = `${hex(start)}+${formatBytes(lengthBytes)}`;
      throw new KernelError("EINVAL", "carve-out", `${where} ${problem}`);
    };
    if (lengthBytes <= 0) refuse("is empty");
    if (!isAligned(start, PAGE_SIZE) || !isAligned(lengthBytes, PAGE_SIZE))
      refuse("is not page aligned");
    if (!memory.contains(start, lengthBytes)) refuse("is not all RAM");
    const others = [...taken, ...carveOuts.slice(0, index)];
    const other = others.find(
      (o) => o.start < start + lengthBytes && start < o.start + o.lengthBytes,
    );
    if (other !== undefined) refuse(`overlaps ${hex(other.start)}, which is in use`);
  });
}

/** What is left of `range` without `holes`, which are sorted. */
function subtract(range: MemoryRange, holes: readonly MemoryRange[]): MemoryRange[] {
  const pieces: MemoryRange[] = [];
  const end = range.start + range.lengthBytes;
  let at = range.start;
  for (const hole of holes) {
    if (hole.start >= end) break;
    if (hole.start > at) pieces.push({ start: at, lengthBytes: hole.start - at });
    at = Math.max(at, hole.start + hole.lengthBytes);
  }
  if (at < end) pieces.push({ start: at, lengthBytes: end - at });
  return pieces;
}
