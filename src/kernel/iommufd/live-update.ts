/**
 * iommufd in a live update: marked HWPTs survive, everything else is built again by userspace.
 *
 * Before the jump: every area under a marked HWPT must lie in a file of the same session, so that its memory is
 * still there afterwards; then the IOASes and page tables are fixed.
 * After it: a retrieved iommufd holds the previous kernel's HWPTs by token, without IOAS. Devices use them as
 * before; when each has moved to a new HWPT, the session can be finished and the old ones are freed.
 * Source: Linux list, iommufd live update series v1-v5; requirements R4, R16, R20, R21
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import {
  IOMMUFD_AREA_COUNT_MAX,
  IOMMUFD_HWPT_COUNT_MAX,
  IOMMUFD_HWPT_NOIOMMU,
  IOMMUFD_HWPT_UNNAMED,
  IOMMUFD_LUO_COMPATIBLE,
  type IommufdAreaSer,
  iommufd_area_ser,
  iommufd_hwpt_ser,
  iommufd_ser,
  iommufdSerBytes,
} from "../../abi/iommufd-luo.ts";
import { F_GET_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK } from "../../abi/uapi/fs.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { hex, isAligned, MAX_ORDER, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import { IOMMU_READ, IOMMU_WRITE, type RestoredDomain } from "../iommu/domain.ts";
import type { KexecHandover } from "../kho/handover.ts";
import type { IncomingMemory } from "../kho/incoming.ts";
import type {
  DecodedSessionView,
  FileHandler,
  FileLifecycleBound,
  FinishArgs,
  PreserveArgs,
  RetrieveArgs,
  SessionView,
} from "../liveupdate/file-handler.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import type { File } from "../vfs/file.ts";
import { IommufdFile } from "./file.ts";
import { type Area, areaLength, iovaRange } from "./io-pagetable.ts";
import type { Iommufd } from "./iommufd.ts";
import { IOVA_END } from "./noiommu-domain.ts";
import type { PagingHwpt } from "./objects.ts";
import { PinnedPages } from "./pinned-pages.ts";
import { RestoredNoiommu } from "./restored-noiommu.ts";

const PRESERVE = "LIVEUPDATE_SESSION_PRESERVE_FD";
const RETRIEVE = "LIVEUPDATE_SESSION_RETRIEVE_FD";
/** Without these a memfd could lose memory that the page tables name. */
const NEEDED_SEALS = F_SEAL_SEAL | F_SEAL_GROW | F_SEAL_SHRINK;

interface DecodedHwpt {
  /** Null: it has no name. */
  readonly token: bigint | null;
  /** Null: no-IOMMU. */
  readonly domainId: number | null;
  readonly areas: readonly IommufdAreaSer[];
}

export interface DecodedIommufd {
  readonly pa: number;
  readonly order: number;
  readonly hwpts: readonly DecodedHwpt[];
}

export class IommufdFileHandler implements FileHandler<DecodedIommufd> {
  readonly compatible = IOMMUFD_LUO_COMPATIBLE;
  readonly flbs: readonly FileLifecycleBound[];
  readonly #iommufd: Iommufd;
  readonly #memory: PhysicalMemory;
  readonly #mm: PageAllocator;
  readonly #kho: KexecHandover;
  /** What each preserved file holds: the block and the domains that were preserved for it. */
  readonly #outgoing = new Map<IommufdFile, { order: number; hwpts: readonly PagingHwpt[] }>();

  /** Domains that one handover has named so far: each belongs to one HWPT of one iommufd. */
  readonly #decodedDomains = new WeakMap<IncomingMemory, Set<number>>();

  constructor(dependencies: {
    readonly iommufd: Iommufd;
    readonly memory: PhysicalMemory;
    readonly mm: PageAllocator;
    readonly kho: KexecHandover;
  }) {
    this.#iommufd = dependencies.iommufd;
    this.#memory = dependencies.memory;
    this.#mm = dependencies.mm;
    this.#kho = dependencies.kho;
    this.flbs = [dependencies.iommufd.iommu.flb];
  }

  canPreserve(file: File): boolean {
    return file instanceof IommufdFile;
  }

  /**
   * @throws {KernelError} EINVAL an area under a marked HWPT is not backed by a file of this session, or by a memfd
   *   that is not sealed against changes of its size (the message names the IOVAs); E2BIG too many HWPTs or areas;
   *   ENOMEM
   */
  preserve({ file, session }: PreserveArgs): bigint {
    assert(file instanceof IommufdFile, "not an iommufd");
    const hwpts = file.context.hwptsToPreserve();
    for (const hwpt of hwpts) checkAreas(hwpt, session);
    return withUndo((undo) => {
      file.context.beginPreserved(hwpts);
      undo(() => file.context.endPreserved());
      const domainIds = hwpts.map((hwpt) => {
        const { domain } = hwpt;
        if (domain.type === "noiommu") return 0;
        const id = this.#iommufd.iommu.preserveDomain(domain);
        undo(() => this.#iommufd.iommu.unpreserveDomain(domain));
        return id;
      });
      const areaCount = hwpts.reduce((sum, hwpt) => sum + serialisedAreas(hwpt).length, 0);
      if (hwpts.length > IOMMUFD_HWPT_COUNT_MAX || areaCount > IOMMUFD_AREA_COUNT_MAX)
        throw new KernelError("E2BIG", PRESERVE, `${hwpts.length} HWPTs, ${areaCount} areas`);
      const order = orderFor(hwpts.length, areaCount);
      const pa = this.#mm.alloc(order);
      undo(() => this.#mm.free(pa, order));
      this.#write(pa, hwpts, domainIds, session);
      this.#kho.preserve(pa, order);
      undo(() => this.#kho.unpreserve(pa, order));
      this.#iommufd.faults.point("iommufd.preserve:done");
      this.#outgoing.set(file, { order, hwpts });
      return BigInt(pa);
    });
  }

  unpreserve({ file, data }: PreserveArgs & { readonly data: bigint }): void {
    assert(file instanceof IommufdFile, "not an iommufd");
    const held = this.#outgoing.get(file);
    assert(held !== undefined, "an iommufd that is not preserved is unpreserved");
    this.#outgoing.delete(file);
    this.#kho.unpreserve(Number(data), held.order);
    this.#mm.free(Number(data), held.order);
    for (const { domain } of held.hwpts.toReversed())
      if (domain.type === "paging") this.#iommufd.iommu.unpreserveDomain(domain);
    file.context.endPreserved();
  }

  #write(
    pa: number,
    hwpts: readonly PagingHwpt[],
    domainIds: readonly number[],
    session: SessionView,
  ): void {
    const words = this.#memory;
    let areaCount = 0;
    let at = pa + iommufd_ser.sizeBytes + hwpts.length * iommufd_hwpt_ser.sizeBytes;
    hwpts.forEach((hwpt, i) => {
      const areas = serialisedAreas(hwpt);
      const isNoiommu = hwpt.domain.type === "noiommu";
      assert(isNoiommu || hwpt.token !== null, "an unmarked HWPT is handed over");
      iommufd_hwpt_ser.write(words, pa + iommufd_ser.sizeBytes + i * iommufd_hwpt_ser.sizeBytes, {
        token: hwpt.token ?? 0n,
        flags:
          (isNoiommu ? IOMMUFD_HWPT_NOIOMMU : 0) | (hwpt.token === null ? IOMMUFD_HWPT_UNNAMED : 0),
        domain_id: domainIds[i],
        area_count: areas.length,
        reserved: 0,
      });
      for (const area of areas) {
        const token = session.tokenOf(area.pages.file);
        assert(token !== null, "an area's file has left its session");
        iommufd_area_ser.write(words, at, {
          iova: area.start,
          length: areaLength(area),
          file_token: token,
          file_offset: area.pages.fileOffset + area.startByte,
          prot: area.prot,
          reserved: 0,
        });
        at += iommufd_area_ser.sizeBytes;
      }
      areaCount += areas.length;
    });
    iommufd_ser.write(words, pa, { hwpt_count: hwpts.length, area_count: areaCount });
  }

  decode(incoming: IncomingMemory, data: bigint, field: string): DecodedIommufd {
    const name = (member: string) => `${field} ${member}`;
    const pa = Number(data);
    if (!isAligned(pa, PAGE_SIZE) || !incoming.isPreserved(pa, PAGE_SIZE))
      throw new HandoverError(name("data"), `${hex(data)} is no preserved page`);
    const header = iommufd_ser.read(incoming.memory, pa);
    if (header.hwpt_count > IOMMUFD_HWPT_COUNT_MAX)
      throw new HandoverError(name("iommufd_ser.hwpt_count"), `${header.hwpt_count} is too many`);
    if (header.area_count > IOMMUFD_AREA_COUNT_MAX)
      throw new HandoverError(name("iommufd_ser.area_count"), `${header.area_count} is too many`);
    const order = orderFor(header.hwpt_count, header.area_count);
    incoming.claim(pa, order, name("data"));

    let at = pa + iommufd_ser.sizeBytes;
    const sers = Array.from({ length: header.hwpt_count }, () => {
      const ser = iommufd_hwpt_ser.read(incoming.memory, at);
      at += iommufd_hwpt_ser.sizeBytes;
      return ser;
    });
    const tokens = new Set<bigint>();
    const domainIds = this.#decodedDomains.get(incoming) ?? new Set<number>();
    this.#decodedDomains.set(incoming, domainIds);
    let areasLeft = header.area_count;
    const hwpts = sers.map((ser, i): DecodedHwpt => {
      const member = (m: string) => name(`iommufd_hwpt_ser[${i}].${m}`);
      const isNoiommu = (ser.flags & IOMMUFD_HWPT_NOIOMMU) !== 0;
      const isUnnamed = (ser.flags & IOMMUFD_HWPT_UNNAMED) !== 0;
      if (isUnnamed ? ser.token !== 0n : tokens.has(ser.token))
        throw new HandoverError(member("token"), `${hex(ser.token)} is not this HWPT's alone`);
      if (!isUnnamed) tokens.add(ser.token);
      if (
        (ser.flags & ~(IOMMUFD_HWPT_NOIOMMU | IOMMUFD_HWPT_UNNAMED)) !== 0 ||
        (isUnnamed && !isNoiommu)
      )
        throw new HandoverError(member("flags"), `${hex(ser.flags)} is not known`);
      if (ser.reserved !== 0) throw new HandoverError(member("reserved"), "is not 0");
      if (isNoiommu ? ser.domain_id !== 0 : domainIds.has(ser.domain_id))
        throw new HandoverError(member("domain_id"), `${ser.domain_id} is not this HWPT's alone`);
      if (!isNoiommu) domainIds.add(ser.domain_id);
      if (ser.area_count > areasLeft || (!isNoiommu && ser.area_count > 0))
        throw new HandoverError(member("area_count"), `${ser.area_count} is too many`);
      areasLeft -= ser.area_count;
      let previousEnd = 0;
      const areas = Array.from({ length: ser.area_count }, (_, j) => {
        const area = iommufd_area_ser.read(incoming.memory, at);
        at += iommufd_area_ser.sizeBytes;
        previousEnd = checkArea(area, previousEnd, (m) =>
          name(`iommufd_hwpt_ser[${i}] iommufd_area_ser[${j}].${m}`),
        );
        return area;
      });
      return {
        token: isUnnamed ? null : ser.token,
        domainId: isNoiommu ? null : ser.domain_id,
        areas,
      };
    });
    if (areasLeft > 0)
      throw new HandoverError(name("iommufd_ser.area_count"), `${areasLeft} areas have no HWPT`);
    return { pa, order, hwpts };
  }

  checkLinks({ hwpts }: DecodedIommufd, session: DecodedSessionView, field: string): void {
    const { incoming } = this.#iommufd.iommu;
    for (const [i, { domainId, areas }] of hwpts.entries()) {
      const hwpt = `${field} iommufd_hwpt_ser[${i}]`;
      if (domainId !== null && incoming?.has(domainId) !== true)
        throw new HandoverError(`${hwpt}.domain_id`, `no domain ${domainId} was handed over`);
      for (const [j, area] of areas.entries())
        if (!session.has(area.file_token))
          throw new HandoverError(
            `${hwpt} iommufd_area_ser[${j}].file_token`,
            `the session has no file ${hex(area.file_token)}`,
          );
    }
  }

  /** @throws {KernelError} EINVAL when a domain is not in the handover, or a file does not hold an area; ENOMEM */
  retrieve({ session, data }: RetrieveArgs<DecodedIommufd>): File {
    return withUndo((undo) => {
      const file = new IommufdFile(this.#iommufd);
      undo(() => file.put());
      undo(() => file.context.forgetRestored());
      for (const [index, { token, domainId, areas }] of data.hwpts.entries()) {
        this.#iommufd.faults.point("iommufd.retrieve:hwpt");
        if (domainId !== null) {
          const domain = this.#claim(domainId);
          undo(() => this.#iommufd.unclaimRestored(domain));
          file.context.addRestored(index, token, domain);
        } else {
          const pinned = areas.map((area) => {
            const one = pinAgain(area, session);
            undo(() => one.pages.put());
            return one;
          });
          file.context.addRestored(index, token, new RestoredNoiommu(pinned));
        }
      }
      return file;
    });
  }

  canFinish({ file }: FinishArgs<DecodedIommufd>): boolean {
    return !(file instanceof IommufdFile) || !file.context.usesRestored;
  }

  finish({ data, file }: FinishArgs<DecodedIommufd>): void {
    if (file instanceof IommufdFile) file.context.freeRestored();
    else
      for (const { domainId } of data.hwpts) {
        const domain = domainId === null ? null : this.#iommufd.claimRestored(domainId);
        if (domain !== null) this.#iommufd.freeRestored(domain);
      }
    this.#kho.restore(data.pa, data.order);
    this.#mm.free(data.pa, data.order);
  }

  #claim(domainId: number): RestoredDomain {
    const domain = this.#iommufd.claimRestored(domainId);
    if (domain === null)
      throw new KernelError("EINVAL", RETRIEVE, `no domain ${domainId} was handed over for it`);
    return domain;
  }
}

/** Areas that are handed over: those of translated HWPTs are in their page tables. */
function serialisedAreas(hwpt: PagingHwpt): readonly Area[] {
  return hwpt.domain.type === "noiommu" ? hwpt.ioas.table.areas : [];
}

function checkAreas(hwpt: PagingHwpt, session: SessionView): void {
  for (const area of hwpt.ioas.table.areas) {
    const { file } = area.pages;
    if (!session.contains(file))
      throw new KernelError(
        "EINVAL",
        PRESERVE,
        `${iovaRange(area)} under hwpt ${hwpt.id} is backed by a ${file.kind} that is not preserved in session "${session.name}"`,
      );
    if (file.kind === "memfd" && (file.fcntl(F_GET_SEALS, 0) & NEEDED_SEALS) !== NEEDED_SEALS)
      throw new KernelError(
        "EINVAL",
        PRESERVE,
        `${iovaRange(area)} under hwpt ${hwpt.id} is backed by a memfd without F_SEAL_SEAL, F_SEAL_GROW, F_SEAL_SHRINK`,
      );
  }
}

/** @returns the end of the area */
function checkArea(
  area: IommufdAreaSer,
  previousEnd: number,
  name: (member: string) => string,
): number {
  if (!isAligned(area.iova, PAGE_SIZE) || area.iova < previousEnd || area.iova >= IOVA_END)
    throw new HandoverError(name("iova"), `${hex(area.iova)} is unaligned, out of order or range`);
  if (!isAligned(area.length, PAGE_SIZE) || area.length === 0 || area.length > IOVA_END - area.iova)
    throw new HandoverError(name("length"), `${hex(area.length)} is unaligned or out of range`);
  if (!isAligned(area.file_offset, PAGE_SIZE) || area.file_offset > IOVA_END)
    throw new HandoverError(name("file_offset"), `${hex(area.file_offset)} is not valid`);
  if (area.prot === 0 || (area.prot & ~(IOMMU_READ | IOMMU_WRITE)) !== 0)
    throw new HandoverError(name("prot"), `${area.prot} is not known`);
  if (area.reserved !== 0) throw new HandoverError(name("reserved"), "is not 0");
  return area.iova + area.length;
}

function pinAgain(ser: IommufdAreaSer, session: SessionView): Area {
  const file = session.incomingFile(ser.file_token);
  const isWritable = (ser.prot & IOMMU_WRITE) !== 0;
  const pages = new PinnedPages(file, ser.file_offset, ser.length, isWritable);
  return { start: ser.iova, last: ser.iova + ser.length - 1, pages, startByte: 0, prot: ser.prot };
}

/** The smallest order whose block holds so many. */
function orderFor(hwptCount: number, areaCount: number): number {
  const bytes = iommufdSerBytes(hwptCount, areaCount);
  let order = 0;
  while (orderBytes(order) < bytes) order++;
  assert(order <= MAX_ORDER, "the bounds of the counts are too high");
  return order;
}
