/**
 * The address space of an IOAS: which file bytes each IOVA shows, and every domain that follows it.
 *
 * Areas are mapped and unmapped as a whole; all domains have the same areas at all times, so a change that
 * fails in one domain is taken back in the others.
 * Three sets of intervals restrict where areas can be: `reserved` (no area may touch it: device regions,
 * addresses beyond a domain's width), `allowed` (promised by userspace for automatic placement; nothing may
 * become reserved there), and the areas themselves.
 * Source: Linux 7.3 drivers/iommu/iommufd/io_pagetable.c
 * @module
 */
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { withUndo } from "../../base/undo.ts";
import { alignUp, GIB, hex, PAGE_SIZE } from "../../base/units.ts";
import { IOMMU_WRITE, type PagingDomain } from "../iommu/domain.ts";
import { DisjointIntervals, type Interval } from "./disjoint-intervals.ts";
import { IOVA_END, type NoiommuDomain } from "./noiommu-domain.ts";
import type { PinnedPages } from "./pinned-pages.ts";

/** A slice of pinned pages at an IOVA. */
export interface Area extends Interval {
  readonly pages: PinnedPages;
  /** First byte shown, counted from the start of `pages`. */
  readonly startByte: number;
  /** IOMMU_READ | IOMMU_WRITE. */
  readonly prot: number;
}

/** A slice to be mapped. */
export interface PagesSlice {
  readonly pages: PinnedPages;
  readonly startByte: number;
  readonly lengthBytes: number;
}

/** What can follow an address space. */
export type FollowingDomain = PagingDomain | NoiommuDomain;

/** Auto-placed IOVAs are aligned like the memory behind them, up to the largest page that hardware walks. */
const MAX_AUTO_ALIGNMENT = GIB;

export function areaLength(area: Interval): number {
  return area.last - area.start + 1;
}

/** The areas of "iova 0x1000..0x1fff", for messages. */
export function iovaRange(area: Interval): string {
  return `iova ${hex(area.start)}..${hex(area.last)}`;
}

export class IoPageTable {
  readonly #areas = new DisjointIntervals<Area>();
  #allowed = new DisjointIntervals<Interval>();
  /** May overlap one another: each device has its own. */
  #reserved: (Interval & { readonly owner: object })[] = [];
  readonly #domains: FollowingDomain[] = [];
  #iovaAlignment = 1;
  #largePages = true;
  #fixedCount = 0;
  readonly #faults: FaultInjector;

  constructor(faults: FaultInjector) {
    this.#faults = faults;
  }

  get areas(): readonly Area[] {
    return this.#areas.items;
  }

  /** 1 as long as there is no domain and large pages are allowed, then the smallest page of the domains. */
  get iovaAlignment(): number {
    return this.#iovaAlignment;
  }

  /** Whether domains may map areas by pages larger than 4 KiB. */
  get largePages(): boolean {
    return this.#largePages;
  }

  /**
   * Allows or forbids pages larger than 4 KiB to what is mapped from here on.
   *
   * @throws {KernelError} EINVAL when they are forbidden and a domain has areas mapped; EADDRINUSE when an area is not
   *   whole pages; EBUSY preserved
   */
  setLargePages(largePages: boolean, op: string): void {
    this.checkChangeable(op);
    if (largePages === this.#largePages) return;
    if (!largePages) {
      if (this.#domains.length > 0 && this.areas.length > 0)
        throw new KernelError("EINVAL", op, "areas are mapped already, perhaps by large pages");
      this.#checkAligned(PAGE_SIZE, op);
    }
    this.#largePages = largePages;
    this.#iovaAlignment = this.#calculateAlignment();
  }

  /** Whether the memory behind it is used by physical address. */
  get hasNoiommuDomain(): boolean {
    return this.#domains.some((domain) => domain.type === "noiommu");
  }

  /** From here on no area may come or go, until as many calls of {@link unfix}: a live update has it. */
  fix(): void {
    this.#fixedCount++;
  }
  unfix(): void {
    assert(this.#fixedCount > 0, "unfix of an address space that is not fixed");
    this.#fixedCount--;
  }

  /** @throws {KernelError} EBUSY while it is preserved for a live update */
  checkChangeable(op: string): void {
    if (this.#fixedCount > 0)
      throw new KernelError("EBUSY", op, "the IOAS is preserved for a live update");
  }

  /**
   * Maps slices one after the other from `iova` on, or where there is room (null), into every domain. The
   * areas take over the caller's references on the pages when it succeeds.
   *
   * @returns the IOVA
   * @throws {KernelError} EINVAL unaligned, empty, or on reserved IOVAs; EEXIST an area is there; EOVERFLOW past
   *   the end of the IOVAs; ENOSPC no room; EPERM writing to pages that were pinned for reading; EBUSY preserved;
   *   what a domain's map throws
   */
  map(slices: readonly PagesSlice[], iova: number | null, prot: number, op: string): number {
    let lengthBytes = 0;
    for (const slice of slices) lengthBytes += slice.lengthBytes;
    const [first] = slices;
    const start = this.place(first.pages.fileOffset + first.startByte, lengthBytes, iova, op);
    const areas: Area[] = [];
    let at = start;
    for (const slice of slices) {
      if ((prot & IOMMU_WRITE) !== 0 && !slice.pages.writable)
        throw new KernelError("EPERM", op, "the pages were mapped without WRITEABLE");
      if ((slice.startByte % PAGE_SIZE) % this.#iovaAlignment !== 0)
        throw new KernelError(
          "EINVAL",
          op,
          `the file offset is not a multiple of ${this.#iovaAlignment}`,
        );
      const { pages, startByte } = slice;
      areas.push({ start: at, last: at + slice.lengthBytes - 1, pages, startByte, prot });
      at += slice.lengthBytes;
    }
    withUndo((undo) => {
      for (const area of areas) {
        for (const domain of this.#domains) {
          this.#fill(domain, area);
          undo(() => domain.unmap(area.start, areaLength(area)));
        }
        this.#faults.point("iommufd:insert-area");
        this.#areas.insert(area);
        undo(() => this.#areas.remove(area));
      }
    });
    return start;
  }

  /**
   * Where a mapping would go, if nothing else stood against it: to be asked before memory is pinned for it.
   *
   * @param fileOffset - of the first byte that it shows
   * @param iova - null: where there is room
   * @throws {KernelError} as `map`
   */
  place(fileOffset: number, lengthBytes: number, iova: number | null, op: string): number {
    this.checkChangeable(op);
    if (lengthBytes === 0 || lengthBytes % this.#iovaAlignment !== 0)
      throw new KernelError(
        "EINVAL",
        op,
        `length ${hex(lengthBytes)} is not a multiple of ${this.#iovaAlignment}`,
      );
    if (iova === null) return this.#allocIova(fileOffset, lengthBytes, op);
    this.#checkIova(iova, lengthBytes, op);
    return iova;
  }

  /**
   * Unmaps all areas within a range, from every domain, and drops their pages. On return no device reaches
   * them any more.
   *
   * @returns bytes unmapped; 0 when there was no area
   * @throws {KernelError} ENOENT when an area lies only partly in the range; EBUSY preserved. Differs from Linux:
   *   nothing is unmapped then, where Linux has unmapped the areas before that one.
   */
  unmap(start: number, last: number, op: string): number {
    this.checkChangeable(op);
    const areas = this.#areas.within(start, last);
    for (const area of areas)
      if (area.start < start || area.last > last)
        throw new KernelError("ENOENT", op, `${iovaRange(area)} is not wholly in the range`);
    let unmapped = 0;
    for (const area of areas) {
      for (const domain of this.#domains) domain.unmap(area.start, areaLength(area));
      this.#areas.remove(area);
      // Only after every domain's flush may the memory go.
      area.pages.put();
      unmapped += areaLength(area);
    }
    return unmapped;
  }

  /**
   * The slices behind a range, for a copy; each with a reference for the caller.
   *
   * @throws {KernelError} ENOENT when some of the range is not mapped; EINVAL empty; EOVERFLOW
   */
  slices(iova: number, lengthBytes: number, op: string): PagesSlice[] {
    const last = this.#lastIova(iova, lengthBytes, op);
    const slices: PagesSlice[] = [];
    let at = iova;
    for (const area of this.#areas.within(iova, last)) {
      if (area.start > at) break;
      const end = Math.min(area.last, last) + 1;
      slices.push({
        pages: area.pages,
        startByte: area.startByte + (at - area.start),
        lengthBytes: end - at,
      });
      at = end;
    }
    if (at <= last) throw new KernelError("ENOENT", op, `iova ${hex(at)} is not mapped`);
    for (const slice of slices) slice.pages.get();
    return slices;
  }

  /**
   * Physical address behind an IOVA, and the contiguous bytes from it on within its area.
   *
   * @returns null when nothing is mapped there
   */
  physicalAt(
    iova: number,
    limitBytes: number,
  ): { pa: number; lengthBytes: number; prot: number } | null {
    const area = this.#areas.first(iova, iova);
    if (area === null) return null;
    const limit = Math.min(limitBytes, area.last - iova + 1);
    const run = area.pages.contiguousFrom(area.startByte + (iova - area.start), limit);
    return { ...run, prot: area.prot };
  }

  /** IOVAs that are not reserved, as closed ranges in order. */
  usableRanges(): Interval[] {
    return holes(this.#reserved, 0, IOVA_END - 1);
  }

  /**
   * Replaces the ranges for automatic placement; none means everywhere.
   *
   * @throws {KernelError} EINVAL when two ranges overlap or one has no two addresses; EADDRINUSE when one is
   *   reserved; EBUSY preserved
   */
  allow(ranges: readonly Interval[], op: string): void {
    this.checkChangeable(op);
    const allowed = new DisjointIntervals<Interval>();
    for (const range of ranges) {
      if (range.start >= range.last || allowed.first(range.start, range.last) !== null)
        throw new KernelError("EINVAL", op, `${iovaRange(range)} is empty or given twice`);
      allowed.insert(range);
    }
    for (const range of ranges)
      if (overlapping(this.#reserved, range.start, range.last) !== null)
        throw new KernelError("EADDRINUSE", op, `${iovaRange(range)} is partly reserved`);
    this.#allowed = allowed;
  }

  /**
   * Takes IOVAs out of use for as long as `owner` needs it.
   *
   * @throws {KernelError} EADDRINUSE when an area or an allowed range lies there
   */
  reserve(start: number, last: number, owner: object, op: string): void {
    this.#faults.point("iommufd:reserve");
    const used = this.#areas.first(start, last) ?? this.#allowed.first(start, last);
    if (used !== null)
      throw new KernelError(
        "EADDRINUSE",
        op,
        `${iovaRange(used)} is in use, and the device cannot have ${iovaRange({ start, last })} there`,
      );
    this.#reserved.push({ start, last, owner });
  }

  /** Drops all that `owner` reserved. */
  unreserve(owner: object): void {
    this.#reserved = this.#reserved.filter((reserved) => reserved.owner !== owner);
  }

  /**
   * Maps all areas into a domain, which follows from here on.
   *
   * @throws {KernelError} EINVAL when its smallest page is above 4 KiB; EADDRINUSE when an area is unaligned for it
   *   or beyond its address width; what the domain's map throws. The domain is empty then.
   */
  addDomain(domain: FollowingDomain, op: string): void {
    const alignment = Math.max(smallestPage(domain), this.#iovaAlignment);
    if (alignment > PAGE_SIZE)
      throw new KernelError("EINVAL", op, `the smallest page is ${hex(alignment)} bytes`);
    this.#checkAligned(alignment, op);
    withUndo((undo) => {
      undo(() => this.unreserve(domain));
      if (domain.apertureEnd < IOVA_END) this.reserve(domain.apertureEnd, IOVA_END - 1, domain, op);
      for (const area of this.#areas.items) {
        this.#fill(domain, area);
        undo(() => domain.unmap(area.start, areaLength(area)));
      }
    });
    this.#iovaAlignment = alignment;
    this.#domains.push(domain);
  }

  /** The domain follows no more; it is empty. */
  removeDomain(domain: FollowingDomain): void {
    const at = this.#domains.indexOf(domain);
    assert(at >= 0, "the domain does not follow this address space");
    this.#domains.splice(at, 1);
    for (const area of this.#areas.items) domain.unmap(area.start, areaLength(area));
    this.unreserve(domain);
    this.#iovaAlignment = this.#calculateAlignment();
  }

  /** Drops all areas; no domain may follow any more. */
  destroy(): void {
    assert(this.#domains.length === 0, "an address space goes before its domains");
    assert(this.#reserved.length === 0, "an address space goes before its devices");
    for (const area of this.#areas.within(0, IOVA_END - 1)) {
      this.#areas.remove(area);
      area.pages.put();
    }
  }

  /** Maps one area into one domain, all of it or nothing. */
  #fill(domain: FollowingDomain, area: Area): void {
    if (domain.type === "noiommu") return;
    const stepBytes = this.#largePages ? Number.POSITIVE_INFINITY : PAGE_SIZE;
    withUndo((undo) => {
      let end = area.start;
      undo(() => {
        if (end > area.start) domain.unmap(area.start, end - area.start);
      });
      area.pages.forEachRun(area.startByte, areaLength(area), (_byte, pa, lengthBytes) => {
        for (let done = 0; done < lengthBytes; done += stepBytes) {
          const pieceBytes = Math.min(lengthBytes, stepBytes);
          domain.map(end, pa + done, pieceBytes, area.prot);
          end += pieceBytes;
        }
      });
    });
  }

  /** As {@link iovaAlignment}. */
  #calculateAlignment(): number {
    return Math.max(this.#largePages ? 1 : PAGE_SIZE, ...this.#domains.map(smallestPage));
  }

  /** @throws {KernelError} EADDRINUSE when an area is not aligned so */
  #checkAligned(alignment: number, op: string): void {
    for (const area of this.#areas.items)
      if (
        area.start % alignment !== 0 ||
        areaLength(area) % alignment !== 0 ||
        (area.startByte % PAGE_SIZE) % alignment !== 0
      )
        throw new KernelError("EADDRINUSE", op, `${iovaRange(area)} is not aligned to pages`);
  }

  #lastIova(iova: number, lengthBytes: number, op: string): number {
    if (lengthBytes === 0) throw new KernelError("EINVAL", op, "the length is 0");
    if (lengthBytes > IOVA_END || iova > IOVA_END - lengthBytes)
      throw new KernelError(
        "EOVERFLOW",
        op,
        `${hex(lengthBytes)} bytes at iova ${hex(iova)} go past ${hex(IOVA_END)}`,
      );
    return iova + lengthBytes - 1;
  }

  #checkIova(iova: number, lengthBytes: number, op: string): void {
    if (iova % this.#iovaAlignment !== 0)
      throw new KernelError(
        "EINVAL",
        op,
        `iova ${hex(iova)} is not a multiple of ${this.#iovaAlignment}`,
      );
    const last = this.#lastIova(iova, lengthBytes, op);
    const reserved = overlapping(this.#reserved, iova, last);
    if (reserved !== null)
      throw new KernelError("EINVAL", op, `${iovaRange(reserved)} is reserved`);
    const area = this.#areas.first(iova, last);
    if (area !== null) throw new KernelError("EEXIST", op, `${iovaRange(area)} is mapped`);
  }

  /**
   * Finds room in the allowed ranges. Never IOVA 0: drivers take it for "none". Keeps the alignment of the
   * file offset, so that large pages of the file can be large pages of the domain.
   */
  #allocIova(offset: number, lengthBytes: number, op: string): number {
    if (lengthBytes >= IOVA_END / 2)
      throw new KernelError("EOVERFLOW", op, `length ${hex(lengthBytes)} exceeds every IOVA range`);
    let alignment = 1;
    while (
      alignment < lengthBytes &&
      alignment < MAX_AUTO_ALIGNMENT &&
      offset % (2 * alignment) === 0
    )
      alignment *= 2;
    if (alignment < this.#iovaAlignment)
      throw new KernelError("EINVAL", op, `file offset ${hex(offset)} is not aligned to pages`);
    const inPage = offset % PAGE_SIZE;
    const low = PAGE_SIZE;
    const high = IOVA_END - PAGE_SIZE;
    const allowed =
      this.#allowed.items.length > 0 ? this.#allowed.items : [{ start: 0, last: high }];
    const used: Interval[] = [...this.#reserved, ...this.#areas.items];
    for (const range of allowed)
      for (const hole of holes(used, Math.max(range.start, low), Math.min(range.last, high))) {
        const start = alignUp(hole.start, Math.max(alignment, PAGE_SIZE)) + inPage;
        if (start < hole.last && hole.last - start >= lengthBytes - 1) return start;
      }
    throw new KernelError("ENOSPC", op, `no room for ${hex(lengthBytes)} bytes of IOVAs`);
  }
}

/** The smallest page that a domain maps, in bytes. */
function smallestPage({ pageSizes }: FollowingDomain): number {
  let size = 1;
  while (Math.floor(pageSizes / size) % 2 === 0) size *= 2;
  return size;
}

function overlapping<T extends Interval>(
  items: readonly T[],
  start: number,
  last: number,
): T | null {
  return items.find((item) => item.start <= last && item.last >= start) ?? null;
}

/** The gaps that intervals, which may overlap and are in no order, leave in `start` .. `last`. */
function holes(used: readonly Interval[], start: number, last: number): Interval[] {
  const sorted = [...used].sort((a, b) => a.start - b.start);
  const gaps: Interval[] = [];
  let at = start;
  for (const item of sorted) {
    if (item.last < at) continue;
    if (item.start > last) break;
    if (item.start > at) gaps.push({ start: at, last: item.start - 1 });
    at = item.last + 1;
  }
  if (at <= last) gaps.push({ start: at, last });
  return gaps;
}
