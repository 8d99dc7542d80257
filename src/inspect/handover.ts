/**
 * A handover as an image holds it: every part decoded by the kernel's own decoders, each apart from the others.
 *
 * A part that breaks a rule is named among the problems, and the rest is read all the same. Nothing here throws on what
 * an image holds; what is allocated is bounded by the preserved blocks, the cache of the image, and fixed limits.
 * @module
 */
import { HandoverError } from "../abi/handover-error.ts";
import {
  IOMMU_LUO_COMPATIBLE,
  IOMMU_SER,
  IOMMU_UNIT_SER,
  iommuRecordAddress,
  iommuRecordPages,
} from "../abi/iommu-luo.ts";
import { IOMMUFD_LUO_COMPATIBLE } from "../abi/iommufd-luo.ts";
import {
  type KexecMetadata,
  KHO_KEXEC_METADATA,
  KHO_METADATA_NODE_NAME,
  readKexecMetadata,
} from "../abi/kexec-metadata.ts";
import { decodeKhoFdt, type KhoFdt, type KhoScratch, readScratch } from "../abi/kho.ts";
import { LUO_KHO_ENTRY_NAME, LUO_SER } from "../abi/luo.ts";
import { MEMFD_LUO_FH_COMPATIBLE, MEMFD_LUO_SER } from "../abi/memfd.ts";
import { MEMFS_FILE_COMPATIBLE, MEMFS_ROOT, MEMFS_SUBTREE } from "../abi/memfs.ts";
import { PCI_LUO_COMPATIBLE } from "../abi/pci-luo.ts";
import { VFIO_PCI_LUO_COMPATIBLE, vfio_pci_ser } from "../abi/vfio-luo.ts";
import { ByteWords } from "../abi/words.ts";
import { hex, orderBytes, PAGE_SIZE } from "../base/units.ts";
import { AskedDomains } from "../kernel/iommu/asked-domains.ts";
import {
  type DecodedIommu,
  type HandedOverUnit,
  HandoverDecoder,
} from "../kernel/iommu/handover-decoder.ts";
import { rmrrFunctions } from "../kernel/iommu/rmrr.ts";
import {
  checkIommufdLinks,
  checkIommufdMemory,
  type DecodedIommufd,
  decodeIommufd,
} from "../kernel/iommufd/handed-over.ts";
import { apart, type IncomingMemory, type Place } from "../kernel/kho/incoming.ts";
import { checkOverlaps, readPreservedTree } from "../kernel/kho/preserved-blocks.ts";
import { Scratch } from "../kernel/kho/scratch.ts";
import type { FileDecoder, FlbDecoder } from "../kernel/liveupdate/file-handler.ts";
import { type DecodedLiveUpdate, decodeLiveUpdate } from "../kernel/liveupdate/luo-decoder.ts";
import { extentBytes } from "../kernel/memfs/change.ts";
import { type DecodedMemfs, decodeMemfs } from "../kernel/memfs/decode.ts";
import type { Inode } from "../kernel/memfs/inode.ts";
import { findRetained } from "../kernel/memfs/memfs.ts";
import { AskedFunctions } from "../kernel/pci/asked-functions.ts";
import { pciName } from "../kernel/pci/function.ts";
import { decodeFunctions, type HandedOverPci } from "../kernel/pci/handed-over.ts";
import { type DecodedMemfd, decodeMemfd, memoryForDma } from "../kernel/shmem/memfd-decoder.ts";
import {
  checkVfioLinks,
  type DecodedVfioDevice,
  decodeVfioDevice,
} from "../kernel/vfio/handed-over.ts";
import {
  chooseFdt,
  examineFdt,
  type FdtCandidate,
  fdtBytes,
  type OnProgress,
  searchFdts,
} from "./find-fdt.ts";
import type { ImageInfo, RamImage } from "./image/ram-image.ts";
import { ImageMemory } from "./image-memory.ts";
import { Problems } from "./problems.ts";

/** What a file of a session is. */
export type FileContent =
  | { readonly kind: "memfs"; readonly inode: Inode; readonly slot: number }
  | { readonly kind: "memfd"; readonly memfd: DecodedMemfd }
  | { readonly kind: "iommufd"; readonly iommufd: DecodedIommufd }
  | { readonly kind: "vfio"; readonly device: DecodedVfioDevice }
  /** Its format is not known, or it breaks a rule. */
  | { readonly kind: "unread" };

/** What a handler has decoded: its word, and what it leads to. */
export interface FileData {
  readonly word: bigint;
  readonly content: FileContent;
}

/** A run of what a domain maps: contiguous in IOVA and in memory, with the same rights. */
export interface MappedRun {
  readonly iova: number;
  readonly pa: number;
  lengthBytes: number;
  /** SS_R | SS_W */
  readonly rights: number;
}

/** A unit as its record says. */
export interface ImageUnit extends HandedOverUnit {
  readonly registerBase: number;
}

export type ImageIommu = DecodedIommu<ImageUnit>;
export type ImageLiveUpdate = DecodedLiveUpdate<FileDecoder, FlbDecoder>;

export interface Preserved {
  /** Blocks by order; orders without any are left out. */
  readonly byOrder: readonly { readonly order: number; readonly blocks: number }[];
  /** By NUMA node, where firmware's table is known. */
  readonly byNode: readonly { readonly node: number; readonly bytes: number }[] | null;
  readonly bytes: number;
  /** Pages of the tree itself. */
  readonly treePages: number;
  /** Bytes in blocks that nothing which was read names. */
  readonly unclaimedBytes: number;
}

/** All that an image tells. */
export interface Handover {
  readonly image: RamImage;
  readonly info: ImageInfo;
  /** What a search has found; one when the address was told. */
  readonly candidates: readonly FdtCandidate[];
  /** The FDT that was read. */
  readonly fdtPa: number | null;
  /** How its address is known. */
  readonly fdtFrom: "option" | "note" | "search";
  readonly fdt: KhoFdt | null;
  readonly metadata: KexecMetadata | null;
  readonly preserved: Preserved | null;
  /** Null: nobody says where it is. */
  readonly scratch: readonly KhoScratch[] | null;
  readonly liveUpdate: ImageLiveUpdate | null;
  readonly memfs: DecodedMemfs | null;
  readonly iommu: ImageIommu | null;
  /** What each domain maps, by its slot. */
  readonly mapped: ReadonlyMap<number, readonly MappedRun[]>;
  readonly pci: HandedOverPci | null;
  readonly problems: Problems;
  /** What is worth knowing and breaks no rule. */
  readonly notes: readonly string[];
}

export interface ReadOptions {
  /** Where the FDT is; null: as the image's note says, else it is searched for. */
  readonly fdtPa: number | null;
  readonly onProgress?: OnProgress;
}

/** Runs of all domains together; more is no table that is worth showing. */
const RUNS_MAX = 1 << 20;
const ALL_PAGE_SIZES = 0x4020_1000;

/** Reads all of it. */
export function readHandover(image: RamImage, options: ReadOptions): Handover {
  return new HandoverReader(image).read(options);
}

class HandoverReader {
  readonly #image: RamImage;
  readonly #problems = new Problems();
  readonly #notes: string[] = [];
  readonly #mapped = new Map<number, MappedRun[]>();
  #runs = 0;
  #memory: ImageMemory | null = null;
  #memfs: DecodedMemfs | null = null;
  #iommu: ImageIommu | null = null;
  #pci: HandedOverPci | null = null;
  #askedDomains: AskedDomains | null = null;
  #askedFunctions: AskedFunctions | null = null;
  /** Whether a file could not be read: it may be the one that would have asked. */
  #hasUnread = false;
  /** Indices of blocks that lie in no one node's memory. */
  #blocksOutside: readonly number[] = [];

  constructor(image: RamImage) {
    this.#image = image;
  }

  read(options: ReadOptions): Handover {
    const { fdtPa, fdtFrom, candidates } = this.#findFdt(options);
    const fdt = fdtPa === null ? null : this.#readFdt(fdtPa);
    const scratch = this.#readScratch();
    const preserved =
      fdt === null || fdtPa === null ? null : this.#readPreserved(fdt, fdtPa, scratch);
    const memory = this.#memory;
    let metadata: KexecMetadata | null = null;
    let liveUpdate: ImageLiveUpdate | null = null;
    if (fdt !== null && fdtPa !== null && memory !== null) {
      this.#part(fdtPa, () => memory.claim(fdtPa, 0, "kho_data.fdt_addr"));
      metadata = this.#part(fdtPa, () => this.#readMetadata(memory, fdt)) ?? null;
      this.#memfs = this.#part(fdtPa, () => this.#readMemfs(memory, fdt)) ?? null;
      liveUpdate = this.#part(fdtPa, () => this.#readLiveUpdate(memory, fdt)) ?? null;
      this.#checkNodes(memory);
      this.#noteUnknown(fdt);
    }
    const unclaimedBytes = preserved === null ? 0 : (memory?.unclaimedPages ?? 0) * PAGE_SIZE;
    return {
      image: this.#image,
      info: this.#image.info,
      candidates,
      fdtPa,
      fdtFrom,
      fdt,
      metadata,
      preserved: preserved === null ? null : { ...preserved, unclaimedBytes },
      scratch: scratch?.areas ?? null,
      liveUpdate,
      memfs: this.#memfs,
      iommu: this.#iommu,
      mapped: this.#mapped,
      pci: this.#pci,
      problems: this.#problems,
      notes: this.#notes,
    };
  }

  #findFdt({ fdtPa, onProgress }: ReadOptions) {
    const { note } = this.#image.info;
    const told = fdtPa ?? note?.kho.fdtAddress ?? null;
    const candidates =
      told === null
        ? searchFdts(this.#image, onProgress)
        : [examineFdt(this.#image, told)].filter((found) => found !== null);
    const chosen = told ?? chooseFdt(candidates)?.pa ?? null;
    if (chosen === null)
      this.#problems.add({ address: null, field: "fdt", problem: "no KHO FDT is in the image" });
    const fdtFrom = fdtPa !== null ? "option" : note !== null ? "note" : "search";
    return { fdtPa: chosen, fdtFrom, candidates } as const;
  }

  /** Does a part; what is wrong with it is noted. */
  #part<T>(pa: number, part: () => T): T | null {
    try {
      return part();
    } catch (error) {
      if (!(error instanceof HandoverError)) throw error;
      this.#problems.addError(error, { pa });
      return null;
    }
  }

  #readFdt(pa: number): KhoFdt | null {
    return this.#part(pa, () => {
      const bytes = fdtBytes(this.#image, pa);
      if (bytes === null) throw new HandoverError("kho_data.fdt_addr", `${hex(pa)} is no FDT`);
      const fdt = decodeKhoFdt(bytes);
      for (const { name, pa: blob, sizeBytes } of fdt.subtrees)
        this.#part(pa, () => {
          if (sizeBytes < 1) throw new HandoverError(`fdt:/${name}.blob-size`, "is 0");
          if (!this.#image.contains(blob, sizeBytes))
            throw new HandoverError(
              `fdt:/${name}.preserved-data`,
              `${hex(blob)} + ${hex(sizeBytes)} is not in RAM`,
            );
        });
      return fdt;
    });
  }

  #readScratch(): Scratch | null {
    const { note } = this.#image.info;
    if (note === null) return null;
    const { scratchAddress, scratchSizeBytes } = note.kho;
    return this.#part(
      scratchAddress,
      () => new Scratch(readScratch(this.#image, scratchAddress, scratchSizeBytes)),
    );
  }

  #readPreserved(
    fdt: KhoFdt,
    fdtPa: number,
    scratch: Scratch | null,
  ): Omit<Preserved, "unclaimedBytes"> {
    const onBroken = (error: HandoverError, pa: number) => this.#problems.addError(error, { pa });
    const { blocks, nodes } = readPreservedTree(this.#image, fdt.memoryMapPa, onBroken);
    checkOverlaps(blocks, nodes, scratch, onBroken);
    // KHO preserves its own FDT: a tree without it is another's, or what is left of one.
    const isTreeLost = blocks.find(fdtPa) < 0;
    if (isTreeLost)
      this.#problems.add({
        address: fdt.memoryMapPa,
        field: "preserved-memory-map",
        problem: `the FDT's own page ${hex(fdtPa)} is not in the tree: what is preserved is not known`,
      });
    this.#memory = new ImageMemory(this.#image, blocks, isTreeLost, this.#problems);
    const byOrder = new Map<number, number>();
    const nodesBytes = new Map<number, number>();
    const memory = this.#image.info.note?.firmware.memory ?? null;
    const outside: number[] = [];
    let bytes = 0;
    for (let i = 0; i < blocks.count; i++) {
      const order = blocks.order(i);
      const pa = blocks.pa(i);
      bytes += orderBytes(order);
      byOrder.set(order, (byOrder.get(order) ?? 0) + 1);
      if (memory === null) continue;
      const of = memory.find(
        (m) => pa >= m.start && pa + orderBytes(order) <= m.start + m.lengthBytes,
      );
      if (of !== undefined)
        nodesBytes.set(of.node, (nodesBytes.get(of.node) ?? 0) + orderBytes(order));
      else outside.push(i);
    }
    this.#blocksOutside = outside;
    return {
      byOrder: sorted(byOrder).map(([order, count]) => ({ order, blocks: count })),
      byNode: memory && sorted(nodesBytes).map(([node, sum]) => ({ node, bytes: sum })),
      bytes,
      treePages: nodes.length,
    };
  }

  #readMetadata(memory: ImageMemory, fdt: KhoFdt): KexecMetadata | null {
    const subtree = fdt.subtrees.find(({ name }) => name === KHO_METADATA_NODE_NAME);
    if (subtree === undefined) return null;
    const field = `fdt:/${KHO_METADATA_NODE_NAME}`;
    if (subtree.sizeBytes > PAGE_SIZE)
      throw new HandoverError(`${field}.blob-size`, `${subtree.sizeBytes} exceeds a page`);
    memory.claim(subtree.pa, 0, `${field}.preserved-data`);
    const bytes = new Uint8Array(subtree.sizeBytes);
    this.#image.read(subtree.pa, bytes);
    return (
      apart(memory, { pa: subtree.pa, struct: KHO_KEXEC_METADATA }, () =>
        readKexecMetadata(new ByteWords(bytes), subtree.sizeBytes),
      ) ?? null
    );
  }

  #readMemfs(memory: ImageMemory, fdt: KhoFdt): DecodedMemfs | null {
    const subtree = fdt.subtrees.find(({ name }) => name === MEMFS_SUBTREE);
    if (subtree === undefined) return null;
    const field = `fdt:/${MEMFS_SUBTREE}`;
    return apart(memory, { pa: subtree.pa, struct: MEMFS_ROOT }, () =>
      decodeMemfs(memory, subtree.pa, subtree.sizeBytes, field),
    );
  }

  #readLiveUpdate(memory: ImageMemory, fdt: KhoFdt): ImageLiveUpdate | null {
    const blob = fdt.subtrees.find(({ name }) => name === LUO_KHO_ENTRY_NAME);
    if (blob === undefined) return null;
    const formats = this.#formats();
    return apart(memory, { pa: blob.pa, struct: LUO_SER }, () =>
      decodeLiveUpdate(
        memory,
        blob,
        { byCompatible: formats.file },
        { find: (name) => formats.flb(name) },
      ),
    );
  }

  /** Decoders of all formats that this release knows; one that it does not know is named by its own. */
  #formats() {
    const iommu: FlbDecoder = {
      compatible: IOMMU_LUO_COMPATIBLE,
      decode: (memory, data, field) => this.#decodeIommu(memory, data, field),
      checkAsked: (_data, field) => {
        if (!this.#hasUnread) this.#askedDomains?.check(field);
      },
    };
    const pci: FlbDecoder = {
      compatible: PCI_LUO_COMPATIBLE,
      decode: (memory, data, field) => this.#decodePci(memory, data, field),
      checkAsked: (_data, field) => {
        if (!this.#hasUnread) this.#askedFunctions?.check(field);
      },
    };
    const iommufds = this.#iommufdDecoder(iommu);
    const files = new Map<string, FileDecoder>();
    for (const decoder of [
      this.#memfsDecoder(),
      this.#memfdDecoder(),
      iommufds,
      this.#vfioDecoder(iommu, pci, iommufds),
    ] as readonly FileDecoder[])
      files.set(decoder.compatible, decoder);
    const flbs = new Map([iommu, pci].map((flb) => [flb.compatible, flb]));
    return {
      file: (name: string): FileDecoder => files.get(name) ?? this.#unknownFile(files, name),
      flb: (name: string): FlbDecoder => flbs.get(name) ?? unknownFlb(flbs, name),
    };
  }

  /** Keeps the word where what it leads to cannot be read. @param place - of what it leads to */
  #withWord(
    memory: IncomingMemory,
    word: bigint,
    place: Place,
    decode: () => FileContent,
  ): FileData {
    const content = apart(memory, place, decode);
    if (content === null) this.#hasUnread = true;
    return { word, content: content ?? { kind: "unread" } };
  }

  #memfsDecoder(): FileDecoder<FileData> {
    const claimed = new Set<bigint>();
    return {
      compatible: MEMFS_FILE_COMPATIBLE,
      flbs: [],
      decode: (memory, word, field) =>
        this.#withWord(memory, word, { pa: this.#memfs?.rootPa ?? 0 }, () => {
          const { slot, inode } = findRetained(this.#memfs, word, field);
          if (claimed.has(word))
            throw new HandoverError(field, `file ${hex(word)} is in a session already`);
          claimed.add(word);
          return { kind: "memfs", slot, inode };
        }),
      memoryOf: ({ content }) =>
        content.kind === "memfs"
          ? content.inode.extents.map((e) => ({ start: e.pa, lengthBytes: extentBytes(e) }))
          : [],
    };
  }

  #memfdDecoder(): FileDecoder<FileData> {
    return {
      compatible: MEMFD_LUO_FH_COMPATIBLE,
      flbs: [],
      decode: (memory, word, field) =>
        this.#withWord(memory, word, { pa: Number(word), struct: MEMFD_LUO_SER }, () => ({
          kind: "memfd",
          memfd: decodeMemfd(memory, word, field),
        })),
      memoryOf: ({ content }) => (content.kind === "memfd" ? memoryForDma(content.memfd) : []),
    };
  }

  #unknownFile(known: Map<string, FileDecoder>, compatible: string): FileDecoder {
    const decoder: FileDecoder<FileData> = {
      compatible,
      flbs: [],
      decode: (memory, word, field) =>
        this.#withWord(memory, word, { pa: 0 }, () => {
          throw new HandoverError(
            `${field} luo_file_ser.compatible`,
            `"${compatible}" is not known to this release`,
          );
        }),
    };
    known.set(compatible, decoder as FileDecoder);
    return decoder as FileDecoder;
  }

  #iommufdDecoder(iommu: FlbDecoder): FileDecoder<FileData> {
    const domainIds = new Set<number>();
    return {
      compatible: IOMMUFD_LUO_COMPATIBLE,
      flbs: [iommu],
      decode: (memory, word, field) =>
        this.#withWord(memory, word, { pa: Number(word) }, () => ({
          kind: "iommufd",
          iommufd: decodeIommufd(memory, word, field, domainIds),
        })),
      checkLinks: ({ content }, session, field) => {
        const asked = this.#askedDomains;
        if (content.kind !== "iommufd" || asked === null) return;
        const { iommufd } = content;
        checkIommufdLinks(iommufd, session, field, (id) => asked.askFor(id) || this.#isUnread(id));
        checkIommufdMemory(iommufd, session, field, (id) => this.#mapped.get(id) ?? []);
      },
    };
  }

  #vfioDecoder(
    iommu: FlbDecoder,
    pci: FlbDecoder,
    iommufds: FileDecoder<FileData>,
  ): FileDecoder<FileData> {
    const decoded: DecodedVfioDevice[] = [];
    return {
      compatible: VFIO_PCI_LUO_COMPATIBLE,
      flbs: [pci, iommu],
      decode: (memory, word, field) =>
        this.#withWord(memory, word, { pa: Number(word), struct: vfio_pci_ser }, () => {
          const device = decodeVfioDevice(memory, word, field);
          this.#checkDevice(device, decoded, field);
          decoded.push(device);
          return { kind: "vfio", device };
        }),
      checkLinks: ({ content }, session, field) => {
        if (content.kind !== "vfio") return;
        const { device } = content;
        const { segment, bdf } = device;
        if (this.#askedFunctions?.askFor(segment, bdf) === false)
          throw new HandoverError(
            `${field} vfio_pci_ser.bdf`,
            `the PCI core has not preserved ${pciName(segment, bdf)}`,
          );
        const asked = this.#askedDomains;
        if (asked === null) return;
        const attached = asked.askForDomainOf(segment, bdf) ?? this.#unreadDomainOf(segment, bdf);
        const fileOf = (token: bigint) =>
          session.dataOf(token, iommufds as FileDecoder) as FileData | null;
        const view = {
          ...session,
          dataOf: (token: bigint) => {
            const content = fileOf(token)?.content;
            return content?.kind === "iommufd" ? content.iommufd : null;
          },
        };
        const isUnread = fileOf(device.iommufdToken)?.content.kind === "unread";
        if (!isUnread) checkVfioLinks(device, view, field, iommufds as FileDecoder, attached);
      },
    };
  }

  /** What the PCI core's record must say of it, and what no other device may say. */
  #checkDevice(
    { segment, bdf, ser }: DecodedVfioDevice,
    others: readonly DecodedVfioDevice[],
    field: string,
  ): void {
    const name = (member: string) => `${field} vfio_pci_ser.${member}`;
    if (others.some((other) => other.segment === segment && other.bdf === bdf))
      throw new HandoverError(name("bdf"), "the function is named twice");
    if (ser.msi_vector !== 0 && others.some((other) => other.ser.msi_vector === ser.msi_vector))
      throw new HandoverError(name("msi_vector"), `${ser.msi_vector} is another device's too`);
    if (this.#pci === null) return;
    const record = this.#pci.records.find((r) => r.segment === segment && r.bdf === bdf);
    if (record === undefined) return;
    if (record.vendorId !== ser.vendor_id)
      throw new HandoverError(name("vendor_id"), `the PCI core says ${hex(record.vendorId)}`);
    if (record.deviceId !== ser.device_id)
      throw new HandoverError(name("device_id"), `the PCI core says ${hex(record.deviceId)}`);
  }

  #decodePci(memory: IncomingMemory, data: bigint, field: string): HandedOverPci | null {
    const { note } = this.#image.info;
    this.#pci = apart(memory, { pa: Number(data) }, () =>
      decodeFunctions(memory, data, field, null, note?.firmware.mmioWindows ?? null),
    );
    this.#askedFunctions = this.#pci && new AskedFunctions(this.#pci.records);
    return this.#pci;
  }

  /** Whether a slot's tables could not be read: what names it is then right as far as one can tell. */
  #isUnread(id: number): boolean {
    return this.#iommu?.domains[id] === null && this.#mapped.has(id);
  }

  #unreadDomainOf(segment: number, bdf: number): number | null {
    const device = this.#iommu?.devices.find((d) => d.segment === segment && d.bdf === bdf);
    return device !== undefined && this.#isUnread(device.domain) ? device.domain : null;
  }

  #decodeIommu(memory: IncomingMemory, data: bigint, field: string): ImageIommu | null {
    this.#iommu = apart(memory, { pa: Number(data), struct: IOMMU_SER }, () => {
      const units = this.#unitsOf(memory, Number(data));
      const rmrrs = this.#image.info.note?.firmware.rmrrs ?? null;
      const decoder = new HandoverDecoder<ImageUnit>(
        memory,
        field,
        units,
        rmrrs && rmrrFunctions(rmrrs).filter((r) => units.some((u) => u.segment === r.segment)),
        (slot, iova, pa, lengthBytes, rights) =>
          this.#addRun(slot, { iova, pa, lengthBytes, rights }),
      );
      return decoder.decode(data);
    });
    this.#askedDomains = this.#iommu && new AskedDomains(this.#image, this.#iommu);
    return this.#iommu;
  }

  /** The units that the record names: an image has no registers to compare them with. */
  #unitsOf(memory: IncomingMemory, header: number): ImageUnit[] {
    if (!this.#image.contains(header, PAGE_SIZE))
      throw new HandoverError("iommu_ser", `${hex(header)} is not in RAM`);
    const { unit_count, page_count } = IOMMU_SER.read(memory.memory, header);
    const units: ImageUnit[] = [];
    const firstPage = page_count === 0 ? [] : [memory.memory.load64(header + IOMMU_SER.sizeBytes)];
    for (let i = 0; i < unit_count && iommuRecordPages(i + 1) <= firstPage.length; i++) {
      const at = iommuRecordAddress(header, firstPage, i);
      if (!this.#image.contains(at, IOMMU_UNIT_SER.sizeBytes)) break;
      const ser = IOMMU_UNIT_SER.read(memory.memory, at);
      units.push({
        segment: ser.segment,
        registerBase: ser.register_base,
        registers: null,
        dids: { end: 1 << 16 },
        pageSizes: ALL_PAGE_SIZES,
        supportsLevels: (levels) => levels === 3 || levels === 4,
      });
    }
    return units;
  }

  #addRun(slot: number, run: MappedRun): void {
    const runs = this.#mapped.get(slot) ?? [];
    this.#mapped.set(slot, runs);
    const last = runs.at(-1);
    if (
      last !== undefined &&
      last.iova + last.lengthBytes === run.iova &&
      last.pa + last.lengthBytes === run.pa &&
      last.rights === run.rights
    )
      last.lengthBytes += run.lengthBytes;
    else if (this.#runs++ < RUNS_MAX) runs.push(run);
    else if (this.#runs === RUNS_MAX + 1)
      this.#notes.push(`domains map more than ${RUNS_MAX} runs: those above are left out`);
  }

  /** A kernel's allocator takes a block as reserved that lies in one node's memory, or in a carve-out. */
  #checkNodes({ blocks }: ImageMemory): void {
    const carveOuts = this.#memfs?.carveOuts ?? [];
    for (const i of this.#blocksOutside) {
      const pa = blocks.pa(i);
      const isIn = carveOuts.some((c) => pa >= c.start && blocks.end(i) <= c.start + c.lengthBytes);
      if (!isIn)
        this.#problems.add({
          address: pa,
          field: "preserved-memory-map",
          problem: `block ${hex(pa)} of order ${blocks.order(i)} is not in the memory of one node`,
        });
    }
  }

  #noteUnknown(fdt: KhoFdt): void {
    const known = [KHO_METADATA_NODE_NAME, MEMFS_SUBTREE, LUO_KHO_ENTRY_NAME];
    for (const { name, pa, sizeBytes } of fdt.subtrees)
      if (!known.includes(name))
        this.#notes.push(
          `subtree "${name}" (${sizeBytes} bytes at ${hex(pa)}) is of a kind that is not known here`,
        );
  }
}

function unknownFlb(known: Map<string, FlbDecoder>, compatible: string): FlbDecoder {
  const decoder: FlbDecoder = {
    compatible,
    decode: (memory, _data, field) =>
      apart(memory, { pa: 0 }, () => {
        throw new HandoverError(field, `"${compatible}" is not known to this release`);
      }),
  };
  known.set(compatible, decoder);
  return decoder;
}

function sorted(map: ReadonlyMap<number, number>): [number, number][] {
  return [...map].sort(([a], [b]) => a - b);
}
