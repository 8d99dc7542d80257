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
import { F_GET_SEALS } from "../../abi/uapi/fs.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import { IOMMU_WRITE, type RestoredDomain } from "../iommu/domain.ts";
import type { IncomingMemory } from "../kho/incoming.ts";
import type { RecordPages } from "../kho/record-pages.ts";
import type {
  DecodedSessionView,
  FileHandler,
  FileLifecycleBound,
  FinishArgs,
  PreserveArgs,
  RetrieveArgs,
  SessionView,
} from "../liveupdate/file-handler.ts";
import { SEALS_FOR_DMA } from "../shmem/shmem-inode.ts";
import type { File } from "../vfs/file.ts";
import { IommufdFile } from "./file.ts";
import {
  checkIommufdLinks,
  checkIommufdMemory,
  type DecodedIommufd,
  decodeIommufd,
} from "./handed-over.ts";
import { type Area, areaLength, iovaRange } from "./io-pagetable.ts";
import type { Iommufd } from "./iommufd.ts";
import type { PagingHwpt } from "./objects.ts";
import { PinnedPages } from "./pinned-pages.ts";
import { RestoredNoiommu } from "./restored-noiommu.ts";

const PRESERVE = "LIVEUPDATE_SESSION_PRESERVE_FD";
const RETRIEVE = "LIVEUPDATE_SESSION_RETRIEVE_FD";

export class IommufdFileHandler implements FileHandler<DecodedIommufd> {
  readonly compatible = IOMMUFD_LUO_COMPATIBLE;
  readonly flbs: readonly FileLifecycleBound[];
  readonly #iommufd: Iommufd;
  readonly #memory: PhysicalMemory;
  readonly #records: RecordPages;
  /** What each preserved file holds: the length of its record, and the HWPTs that were preserved with it. */
  readonly #outgoing = new Map<
    IommufdFile,
    { lengthBytes: number; hwpts: readonly PagingHwpt[] }
  >();

  /** Domains that one handover has named so far: each belongs to one HWPT of one iommufd. */
  readonly #decodedDomains = new WeakMap<IncomingMemory, Set<number>>();

  constructor(dependencies: {
    readonly iommufd: Iommufd;
    readonly memory: PhysicalMemory;
    readonly records: RecordPages;
  }) {
    this.#iommufd = dependencies.iommufd;
    this.#memory = dependencies.memory;
    this.#records = dependencies.records;
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
      const lengthBytes = iommufdSerBytes(hwpts.length, areaCount);
      const pa = this.#records.alloc(lengthBytes);
      undo(() => this.#records.free(pa, lengthBytes));
      this.#write(pa, hwpts, domainIds, session);
      this.#iommufd.faults.point("iommufd.preserve:done");
      this.#outgoing.set(file, { lengthBytes, hwpts });
      return BigInt(pa);
    });
  }

  unpreserve({ file, data }: PreserveArgs & { readonly data: bigint }): void {
    assert(file instanceof IommufdFile, "not an iommufd");
    const held = this.#outgoing.get(file);
    assert(held !== undefined, "an iommufd that is not preserved is unpreserved");
    this.#outgoing.delete(file);
    this.#records.free(Number(data), held.lengthBytes);
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
    const domainIds = this.#decodedDomains.get(incoming) ?? new Set<number>();
    this.#decodedDomains.set(incoming, domainIds);
    return decodeIommufd(incoming, data, field, domainIds);
  }

  checkLinks(data: DecodedIommufd, session: DecodedSessionView, field: string): void {
    const { incoming } = this.#iommufd.iommu;
    checkIommufdLinks(data, session, field, (domainId) => incoming?.askFor(domainId) === true);
    checkIommufdMemory(data, session, field, (domainId) => incoming?.memoryOf(domainId) ?? []);
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
    this.#records.release(data.pa, data.lengthBytes);
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
    if (file.kind === "memfd" && (file.fcntl(F_GET_SEALS, 0) & SEALS_FOR_DMA) !== SEALS_FOR_DMA)
      throw new KernelError(
        "EINVAL",
        PRESERVE,
        `${iovaRange(area)} under hwpt ${hwpt.id} is backed by a memfd without F_SEAL_SEAL, F_SEAL_GROW, F_SEAL_SHRINK`,
      );
  }
}

function pinAgain(ser: IommufdAreaSer, session: SessionView): Area {
  const file = session.incomingFile(ser.file_token);
  const isWritable = (ser.prot & IOMMU_WRITE) !== 0;
  const pages = new PinnedPages(file, ser.file_offset, ser.length, isWritable);
  return { start: ser.iova, last: ser.iova + ser.length - 1, pages, startByte: 0, prot: ser.prot };
}
