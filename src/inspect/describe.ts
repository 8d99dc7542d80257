/**
 * A handover as plain data: what `--json` prints, and what the text is made from.
 *
 * Addresses and tokens are hexadecimal strings, sizes and counts numbers: both survive JSON.
 * @module
 */
import { IOMMU_DOMAIN_RMRR } from "../abi/iommu-luo.ts";
import { MEMFS_NO_NODE } from "../abi/memfs.ts";
import {
  CONTEXT_P,
  CONTEXT_TABLE_ENTRIES,
  contextAddressWidth,
  contextDomainId,
  contextEntryAddress,
  contextTranslationType,
  TT_PASS_THROUGH,
  tableAddress,
} from "../abi/vtd/root-context.ts";
import { SS_R, SS_W } from "../abi/vtd/second-stage.ts";
import { hex, orderBytes } from "../base/units.ts";
import type { DecodedStore } from "../kernel/memfs/decode.ts";
import type { Inode } from "../kernel/memfs/inode.ts";
import { pciName } from "../kernel/pci/function.ts";
import type { FileData, Handover, MappedRun } from "./handover.ts";

export interface RunView {
  readonly iova: string;
  readonly pa: string;
  readonly lengthBytes: number;
  /** "r", "w" or "rw". */
  readonly rights: string;
}

export interface EntryView {
  readonly function: string;
  readonly translation: "second-stage" | "pass-through" | "other";
  readonly domainId: number;
  readonly addressWidth: number;
  readonly table: string;
  /** Slot of the domain of that table; null: it is no table of the record. */
  readonly domain: number | null;
}

export interface FileView {
  readonly token: string;
  readonly compatible: string;
  readonly data: string;
  /** What is known of it; `kind` says which it is. */
  readonly content: ContentView;
}

export interface MemfsEntryView {
  readonly path: string;
  readonly kind: string;
  readonly sizeBytes: number;
  readonly allocatedBytes: number;
  readonly extents: number;
}

/** A file by its kind. */
export type ContentView = ReturnType<typeof describeContent>;

export type HandoverView = ReturnType<typeof describe>;

/** All of it. */
export function describe(handover: Handover) {
  const { info, fdt, fdtPa, fdtFrom, metadata, preserved, scratch, liveUpdate } = handover;
  return {
    image: {
      path: info.path,
      format: info.format,
      ramBytes: info.ramBytes,
      ranges: handover.image.ranges.map(({ start, lengthBytes }) => ({
        start: hex(start),
        end: hex(start + lengthBytes),
      })),
      update: info.note?.update ?? null,
      warnings: info.warnings,
    },
    fdt: {
      address: fdtPa === null ? null : hex(fdtPa),
      foundBy: fdtFrom,
      candidates: handover.candidates.map((c) => ({ ...c, pa: hex(c.pa) })),
      preservedMemoryMap: fdt === null ? null : hex(fdt.memoryMapPa),
      subtrees: (fdt?.subtrees ?? []).map(({ name, pa, sizeBytes }) => ({
        name,
        address: hex(pa),
        sizeBytes,
      })),
    },
    kexec: metadata && { previousRelease: metadata.previousRelease, count: metadata.kexecCount },
    preserved: preserved && {
      bytes: preserved.bytes,
      orders: preserved.byOrder.map(({ order, blocks }) => ({
        order,
        blockBytes: orderBytes(order),
        blocks,
        bytes: blocks * orderBytes(order),
      })),
      nodes: preserved.byNode,
      treePages: preserved.treePages,
      unclaimedBytes: preserved.unclaimedBytes,
    },
    scratch: scratch?.map(({ addr, size }) => ({ address: hex(addr), sizeBytes: size })) ?? null,
    memfs:
      handover.memfs?.stores.map((store) => ({
        name: store.superblock.name,
        address: hex(store.superblockPa),
        node: store.superblock.node === MEMFS_NO_NODE ? null : store.superblock.node,
        limitBytes: store.superblock.limitBytes,
        carveOut: store.carveOut && {
          start: hex(store.carveOut.start),
          lengthBytes: store.carveOut.lengthBytes,
        },
        isChangeUnfinished: store.superblock.commit !== 0 || store.unsettled.length > 0,
        entries: memfsEntries(store),
      })) ?? null,
    liveUpdate: liveUpdate && {
      number: liveUpdate.liveupdateNumber,
      sessions: liveUpdate.sessions.map((session) => ({
        name: session.name,
        files: session.files.map(({ handler, token, data }): FileView => {
          const file = data as FileData;
          return {
            token: hex(token),
            compatible: handler.compatible,
            data: hex(file.word),
            content: describeContent(handover, file),
          };
        }),
      })),
      flbs: liveUpdate.flbs.map(({ flb, count }) => ({ compatible: flb.compatible, files: count })),
    },
    iommu: describeIommu(handover),
    pci:
      handover.pci?.records.map((r) => ({
        function: pciName(r.segment, r.bdf),
        vendorId: hex(r.vendorId),
        deviceId: hex(r.deviceId),
        preservedBy: r.refcount,
        bridgeTo: r.isBridge ? [r.secondaryBus, r.subordinateBus] : null,
        bars: r.bars.map(hex),
      })) ?? null,
    problems: handover.problems.list.map(({ address, field, problem }) => ({
      address: address === null ? null : hex(address),
      field,
      problem,
    })),
    omittedProblems: handover.problems.omitted,
    notes: handover.notes,
  };
}

function describeContent(handover: Handover, { content }: FileData) {
  switch (content.kind) {
    case "memfs": {
      const { inode, slot } = content;
      const store = handover.memfs?.stores.find((s) => s.slot === slot);
      return {
        kind: "memfs" as const,
        store: store?.superblock.name ?? null,
        path: store === undefined ? null : pathOf(store, inode),
        sizeBytes: inode.sizeBytes,
        allocatedBytes: allocated(inode),
        extents: inode.extents.length,
      };
    }
    case "memfd": {
      const { position, sizeBytes, seals, folios } = content.memfd;
      let bytes = 0;
      for (let i = 0; i < folios.count; i++) bytes += orderBytes(folios.order[i]);
      return {
        kind: "memfd" as const,
        sizeBytes,
        position,
        seals: sealNames(seals),
        folios: folios.count,
        allocatedBytes: bytes,
      };
    }
    case "iommufd":
      return {
        kind: "iommufd" as const,
        hwpts: content.iommufd.hwpts.map(({ token, domainId, areas }) => ({
          token: token === null ? null : hex(token),
          domain: domainId,
          areas: areas.map((a) => ({
            iova: hex(a.iova),
            lengthBytes: a.length,
            fileToken: hex(a.file_token),
            fileOffset: a.file_offset,
            rights: rightsName(a.prot),
          })),
        })),
      };
    case "vfio": {
      const { device } = content;
      return {
        kind: "vfio" as const,
        function: pciName(device.segment, device.bdf),
        vendorId: hex(device.ser.vendor_id),
        deviceId: hex(device.ser.device_id),
        isNoiommu: device.isNoiommu,
        msiVector: device.ser.msi_vector,
        hasUnreadInterrupt: device.hasUnreadInterrupt,
        iommufdToken: hex(device.iommufdToken),
        hwptIndex: device.hwptIndex,
      };
    }
    default:
      return { kind: "unread" as const };
  }
}

function describeIommu(handover: Handover) {
  const { iommu, mapped } = handover;
  if (iommu === null) return null;
  return {
    units: iommu.units.map(({ unit, rootTable, contextTables }) => ({
      registerBase: hex(unit.registerBase),
      segment: unit.segment,
      rootTable: hex(rootTable),
      contextTables: contextTables.map(({ bus, pa }) => ({ bus, address: hex(pa) })),
      entries: contextTables.flatMap(({ bus, pa }) =>
        contextEntries(handover, unit.segment, bus, pa),
      ),
    })),
    domains: iommu.domains.flatMap((domain, id) =>
      domain === null && !mapped.has(id)
        ? []
        : [
            {
              id,
              kind:
                domain === null ? "damaged" : domain.kind === IOMMU_DOMAIN_RMRR ? "rmrr" : "paging",
              topTable: domain === null ? null : hex(domain.top),
              levels: domain?.levels ?? null,
              tablePages: domain?.tables.length ?? null,
              mappedBytes: (mapped.get(id) ?? []).reduce((sum, run) => sum + run.lengthBytes, 0),
              ranges: (mapped.get(id) ?? []).map(describeRun),
            },
          ],
    ),
    devices: iommu.devices.map(({ segment, bdf, did, domain }) => ({
      function: pciName(segment, bdf),
      domain,
      domainId: did,
    })),
  };
}

/** The entries of one context table that are present, as the hardware reads them. */
export function contextEntries(
  { image, iommu }: Handover,
  segment: number,
  bus: number,
  table: number,
): EntryView[] {
  const entries: EntryView[] = [];
  for (let devfn = 0; devfn < CONTEXT_TABLE_ENTRIES; devfn++) {
    const at = contextEntryAddress(table, devfn);
    const w0 = image.load32(at);
    if ((w0 & CONTEXT_P) === 0) continue;
    const w2 = image.load32(at + 8);
    const top = tableAddress(w0, image.load32(at + 4));
    const type = contextTranslationType(w0);
    const domain = iommu?.domains.findIndex((d) => d !== null && d.top === top) ?? -1;
    entries.push({
      function: pciName(segment, (bus << 8) | devfn),
      translation:
        type === 0 ? "second-stage" : type === TT_PASS_THROUGH ? "pass-through" : "other",
      domainId: contextDomainId(w2),
      addressWidth: contextAddressWidth(w2),
      table: hex(top),
      domain: domain < 0 ? null : domain,
    });
  }
  return entries;
}

export function describeRun({ iova, pa, lengthBytes, rights }: MappedRun): RunView {
  return { iova: hex(iova), pa: hex(pa), lengthBytes, rights: rightsName(rights) };
}

/** @param rights - SS_R | SS_W, which IOMMU_READ | IOMMU_WRITE are too */
function rightsName(rights: number): string {
  return `${(rights & SS_R) !== 0 ? "r" : ""}${(rights & SS_W) !== 0 ? "w" : ""}`;
}

const SEALS = ["SEAL", "SHRINK", "GROW", "WRITE", "FUTURE_WRITE", "EXEC"];

function sealNames(seals: number): string[] {
  return SEALS.filter((_, bit) => (seals & (1 << bit)) !== 0);
}

function memfsEntries(store: DecodedStore): MemfsEntryView[] {
  return [...store.inodes.values()]
    .filter(({ ino }) => ino !== 1)
    .map((inode) => ({
      path: pathOf(store, inode),
      kind: inode.kind,
      sizeBytes: inode.sizeBytes,
      allocatedBytes: allocated(inode),
      extents: inode.extents.length,
    }))
    .sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
}

/** "/vm0/ram"; an orphan's inode number, since it has no name. */
export function pathOf(store: DecodedStore, inode: Inode): string {
  if (inode.isOrphan) return `(unlinked inode ${inode.ino})`;
  const names: string[] = [];
  const seen = new Set<Inode>();
  for (let at: Inode | undefined = inode; at !== undefined && !seen.has(at); ) {
    seen.add(at);
    if (at.parent !== 0) names.unshift(at.name);
    at = store.inodes.get(at.parent);
  }
  return `/${names.join("/")}`;
}

function allocated(inode: Inode): number {
  return inode.extents.reduce((sum, { order, count }) => sum + count * orderBytes(order), 0);
}
