/**
 * Reads and checks what an iommufd of the previous kernel has left: its HWPTs, and the areas of no-IOMMU ones.
 *
 * Why apart from the handler: it needs no kernel around it, so that an inspector reads images by the same code.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import {
  IOMMUFD_AREA_COUNT_MAX,
  IOMMUFD_HWPT_COUNT_MAX,
  IOMMUFD_HWPT_NOIOMMU,
  IOMMUFD_HWPT_UNNAMED,
  type IommufdAreaSer,
  iommufd_area_ser,
  iommufd_hwpt_ser,
  iommufd_ser,
  iommufdSerBytes,
} from "../../abi/iommufd-luo.ts";
import { KHO_RECORD_ALIGN_BYTES } from "../../abi/kho-record.ts";
import { hex, isAligned, PAGE_SIZE } from "../../base/units.ts";
import { type IncomingDomains, IOMMU_READ, IOMMU_WRITE } from "../iommu/domain.ts";
import type { IncomingMemory } from "../kho/incoming.ts";
import type { DecodedSessionView } from "../liveupdate/file-handler.ts";
import { IOVA_END } from "./noiommu-domain.ts";

export interface DecodedHwpt {
  /** Null: it has no name. */
  readonly token: bigint | null;
  /** Null: no-IOMMU. */
  readonly domainId: number | null;
  readonly areas: readonly IommufdAreaSer[];
}

export interface DecodedIommufd {
  readonly pa: number;
  /** Of the record. */
  readonly lengthBytes: number;
  readonly hwpts: readonly DecodedHwpt[];
}

/**
 * @param data - address of the record; untrusted
 * @param field - how to name the place in errors
 * @param domainIds - domains that the handover has named so far: each belongs to one HWPT of one iommufd
 * @throws {HandoverError}
 */
export function decodeIommufd(
  incoming: IncomingMemory,
  data: bigint,
  field: string,
  domainIds: Set<number>,
): DecodedIommufd {
  const name = (member: string) => `${field} ${member}`;
  const pa = Number(data);
  if (!isAligned(pa, KHO_RECORD_ALIGN_BYTES) || !incoming.isPreserved(pa, KHO_RECORD_ALIGN_BYTES))
    throw new HandoverError(name("data"), `${hex(data)} is no preserved record`);
  const header = iommufd_ser.read(incoming.memory, pa);
  if (header.hwpt_count > IOMMUFD_HWPT_COUNT_MAX)
    throw new HandoverError(name("iommufd_ser.hwpt_count"), `${header.hwpt_count} is too many`);
  if (header.area_count > IOMMUFD_AREA_COUNT_MAX)
    throw new HandoverError(name("iommufd_ser.area_count"), `${header.area_count} is too many`);
  const lengthBytes = iommufdSerBytes(header.hwpt_count, header.area_count);
  incoming.claimRecord(pa, lengthBytes, name("data"));

  let at = pa + iommufd_ser.sizeBytes;
  const sers = Array.from({ length: header.hwpt_count }, () => {
    const ser = iommufd_hwpt_ser.read(incoming.memory, at);
    at += iommufd_hwpt_ser.sizeBytes;
    return ser;
  });
  const tokens = new Set<bigint>();
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
  return { pa, lengthBytes, hwpts };
}

/** Checks what it says of other parts. @throws {HandoverError} */
export function checkIommufdLinks(
  { hwpts }: DecodedIommufd,
  session: DecodedSessionView,
  field: string,
  hasDomain: (domainId: number) => boolean,
): void {
  for (const [i, { domainId, areas }] of hwpts.entries()) {
    const hwpt = `${field} iommufd_hwpt_ser[${i}]`;
    if (domainId !== null && !hasDomain(domainId))
      throw new HandoverError(`${hwpt}.domain_id`, `no domain ${domainId} was handed over`);
    for (const [j, area] of areas.entries())
      if (!session.has(area.file_token))
        throw new HandoverError(
          `${hwpt} iommufd_area_ser[${j}].file_token`,
          `the session has no file ${hex(area.file_token)}`,
        );
  }
}

/**
 * Checks that files of the session keep all memory that devices reach by its domains: what lies anywhere else may be given
 * to others while they do, preserved as it may be.
 *
 * @param memoryOf - what a domain leads to, by IOVA
 * @throws {HandoverError}
 */
export function checkIommufdMemory(
  { hwpts }: DecodedIommufd,
  session: DecodedSessionView,
  field: string,
  memoryOf: IncomingDomains["memoryOf"],
): void {
  for (const [i, { domainId }] of hwpts.entries()) {
    if (domainId === null) continue;
    for (const { iova, pa, lengthBytes } of memoryOf(domainId))
      if (!session.keeps(pa, lengthBytes))
        throw new HandoverError(
          `${field} iommufd_hwpt_ser[${i}].domain_id`,
          `iova ${hex(iova)} of domain ${domainId} leads to ${hex(pa)}+${hex(lengthBytes)}, which no file of the session keeps`,
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
