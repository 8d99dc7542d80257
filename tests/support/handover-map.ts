/**
 * Every field of every structure of a handover, with its address: so that a test can make each of them wrong.
 *
 * It follows the structures as one kernel wrote them, from the boot parameters on, by the layouts of `abi` alone; the
 * kernel's decoders have no part in it.
 * @module
 */
import assert from "node:assert/strict";
import { FDT_HEADER } from "../../src/abi/fdt.ts";
import {
  IOMMU_DEVICE_SER,
  IOMMU_DOMAIN_SER,
  IOMMU_LUO_COMPATIBLE,
  IOMMU_SER,
  IOMMU_UNIT_SER,
  iommuRecordAddress,
} from "../../src/abi/iommu-luo.ts";
import {
  IOMMUFD_LUO_COMPATIBLE,
  iommufd_hwpt_ser,
  iommufd_ser,
} from "../../src/abi/iommufd-luo.ts";
import { KHO_KEXEC_METADATA, KHO_METADATA_NODE_NAME } from "../../src/abi/kexec-metadata.ts";
import { KHO_SCRATCH, readKhoFdt } from "../../src/abi/kho.ts";
import { KHO_BLOCK_HEADER_SER } from "../../src/abi/kho-block.ts";
import { walkRadixTree } from "../../src/abi/kho-radix.ts";
import { KHO_VMALLOC } from "../../src/abi/kho-vmalloc.ts";
import {
  LUO_FILE_SER,
  LUO_FLB_HEADER_SER,
  LUO_FLB_SER,
  LUO_KHO_ENTRY_NAME,
  LUO_SER,
  LUO_SESSION_SER,
} from "../../src/abi/luo.ts";
import {
  MEMFD_LUO_FH_COMPATIBLE,
  MEMFD_LUO_FOLIO_SER_BYTES,
  MEMFD_LUO_SER,
} from "../../src/abi/memfd.ts";
import {
  MEMFS_BLOCK,
  MEMFS_EXTENT,
  MEMFS_EXTENT_FREE,
  MEMFS_EXTENT_TABLE,
  MEMFS_FILE_COMPATIBLE,
  MEMFS_INODE,
  MEMFS_INODE_TABLE,
  MEMFS_KIND_FREE,
  MEMFS_KIND_NAME,
  MEMFS_LOG_ENTRY,
  MEMFS_LOG_OFFSET,
  MEMFS_NAME,
  MEMFS_ROOT,
  MEMFS_STORE_SLOTS,
  MEMFS_STORE_SLOTS_OFFSET,
  MEMFS_SUBTREE,
  MEMFS_SUPERBLOCK,
} from "../../src/abi/memfs.ts";
import { PCI_FUNCTION_SER, PCI_LUO_COMPATIBLE, PCI_SER } from "../../src/abi/pci-luo.ts";
import type { FieldType, Struct } from "../../src/abi/struct.ts";
import { VFIO_PCI_LUO_COMPATIBLE, vfio_pci_ser } from "../../src/abi/vfio-luo.ts";
import {
  CONTEXT_TABLE_ENTRIES,
  contextEntryAddress,
  ROOT_TABLE_ENTRIES,
  rootEntryAddress,
  tableAddress,
} from "../../src/abi/vtd/root-context.ts";
import { SS_TABLE_ENTRIES, ssAddress, ssIsLeaf } from "../../src/abi/vtd/second-stage.ts";
import type { KhoBootParameters } from "../../src/machine/machine.ts";
import type { Ram } from "../../src/machine/physical-memory.ts";

/** One field where it lies. */
export interface HandoverField {
  /** Which field of which structure: "luo_session_ser[0].count". */
  readonly name: string;
  /** The same without numbers and addresses: what it may be depends on this alone. */
  readonly kind: string;
  readonly pa: number;
  readonly sizeBytes: number;
  /** A number, little endian; otherwise bytes. */
  readonly isNumber: boolean;
}

type Fields = Record<string, FieldType<unknown>>;

/** Lists all fields of a handover that is whole. */
export function handoverFields(ram: Ram, kho: KhoBootParameters): readonly HandoverField[] {
  return new FieldLister(ram).list(kho);
}

class FieldLister {
  readonly #ram: Ram;
  readonly #fields: HandoverField[] = [];

  constructor(ram: Ram) {
    this.#ram = ram;
  }

  list(kho: KhoBootParameters): readonly HandoverField[] {
    const fdt = readKhoFdt(this.#ram, kho.fdtAddress, kho.fdtSizeBytes);
    for (let i = 0; i * KHO_SCRATCH.sizeBytes < kho.scratchSizeBytes; i++)
      this.#struct(
        `kho_scratch[${i}]`,
        KHO_SCRATCH,
        kho.scratchAddress + i * KHO_SCRATCH.sizeBytes,
      );
    this.#fdt(kho.fdtAddress);
    this.#radixTree(fdt.memoryMapPa);
    for (const { name, pa } of fdt.subtrees) {
      if (name === KHO_METADATA_NODE_NAME) this.#struct("kexec_metadata", KHO_KEXEC_METADATA, pa);
      else if (name === MEMFS_SUBTREE) this.#memfs(pa);
      else if (name === LUO_KHO_ENTRY_NAME) this.#luo(pa);
      else assert.fail(`this test does not know subtree "${name}"`);
    }
    return this.#fields;
  }

  #add(name: string, pa: number, sizeBytes: number, isNumber = true): void {
    const kind = name.replace(/\[[^\]]*\]|@[0-9a-f]+/g, "");
    this.#fields.push({ name, kind, pa, sizeBytes, isNumber });
  }

  #struct<F extends Fields>(name: string, layout: Struct<F>, pa: number): void {
    for (const key of Object.keys(layout.fields)) {
      const { sizeBytes } = layout.fields[key];
      const isNumber = sizeBytes <= 8 && (sizeBytes & (sizeBytes - 1)) === 0;
      this.#add(`${name}.${key}`, pa + layout.offset[key], sizeBytes, isNumber);
    }
  }

  #fdt(pa: number): void {
    const word = (at: number) => {
      let value = 0;
      for (let i = 0; i < 4; i++) value = value * 256 + this.#ram.load8(pa + at + i);
      return value;
    };
    for (const [name, offset] of Object.entries(FDT_HEADER))
      this.#add(`fdt_header.${name}`, pa + offset, 4);
    const structure = word(FDT_HEADER.off_dt_struct);
    for (let at = 0; at < word(FDT_HEADER.size_dt_struct); at += 4)
      this.#add(`fdt_struct[${at}]`, pa + structure + at, 4);
    const strings = word(FDT_HEADER.off_dt_strings);
    for (let at = 0; at < word(FDT_HEADER.size_dt_strings); at += 4)
      this.#add(`fdt_strings[${at}]`, pa + strings + at, 4);
  }

  #radixTree(root: number): void {
    walkRadixTree(this.#ram, root, {
      node: (pa, level) => {
        const [entries, bytes, name] =
          level > 0 ? [512, 8, "kho_radix_node"] : [1024, 4, "kho_radix_leaf"];
        this.#used(
          `${name}@${pa.toString(16)}.${level > 0 ? "table" : "bitmap"}`,
          pa,
          entries,
          bytes,
        );
      },
    });
  }

  /** The words of an array that are not 0, and one that is. */
  #used(name: string, pa: number, entries: number, bytes: 4 | 8 | number): void {
    let zeros = 0;
    for (let i = 0; i < entries; i++) {
      const at = pa + i * bytes;
      const isZero = this.#ram.load32(at) === 0 && (bytes === 4 || this.#ram.load32(at + 4) === 0);
      if (isZero && zeros++ > 0) continue;
      this.#add(`${name}[${i}]`, at, bytes);
    }
  }

  #luo(pa: number): void {
    const ram = this.#ram;
    this.#struct("luo_ser", LUO_SER, pa);
    const { flbs_pa, sessions_pa } = LUO_SER.read(ram, pa);
    this.#struct("luo_flb_header_ser", LUO_FLB_HEADER_SER, flbs_pa);
    const { count } = LUO_FLB_HEADER_SER.read(ram, flbs_pa);
    for (let i = 0; i < count; i++) {
      const at = flbs_pa + LUO_FLB_HEADER_SER.sizeBytes + i * LUO_FLB_SER.sizeBytes;
      this.#struct(`luo_flb_ser[${i}]`, LUO_FLB_SER, at);
      const { name, data } = LUO_FLB_SER.read(ram, at);
      if (name === IOMMU_LUO_COMPATIBLE) this.#iommu(Number(data));
      else if (name === PCI_LUO_COMPATIBLE) this.#pci(Number(data));
      else assert.fail(`this test does not know FLB "${name}"`);
    }
    this.#blocks("luo_session", sessions_pa, LUO_SESSION_SER, (session, name) => {
      const { files } = LUO_SESSION_SER.read(ram, session);
      this.#blocks(`${name}.luo_file`, files, LUO_FILE_SER, (file, fileName) =>
        this.#file(fileName, LUO_FILE_SER.read(ram, file)),
      );
    });
  }

  #blocks<F extends Fields>(
    name: string,
    head: number,
    layout: Struct<F>,
    visit: (entry: number, name: string) => void,
  ): void {
    let number = 0;
    for (let block = head, b = 0; block !== 0; b++) {
      this.#struct(`${name}_blocks[${b}]`, KHO_BLOCK_HEADER_SER, block);
      const { next, count } = KHO_BLOCK_HEADER_SER.read(this.#ram, block);
      for (let i = 0; i < count; i++) {
        const entry = block + KHO_BLOCK_HEADER_SER.sizeBytes + i * layout.sizeBytes;
        const entryName = `${name}[${number++}]`;
        this.#struct(`${entryName}_ser`, layout, entry);
        visit(entry, entryName);
      }
      block = next;
    }
  }

  #file(name: string, { compatible, data }: { compatible: string | null; data: bigint }): void {
    const pa = Number(data);
    if (compatible === MEMFD_LUO_FH_COMPATIBLE) this.#memfd(name, pa);
    else if (compatible === IOMMUFD_LUO_COMPATIBLE) {
      this.#struct(`${name} iommufd_ser`, iommufd_ser, pa);
      const { hwpt_count } = iommufd_ser.read(this.#ram, pa);
      for (let i = 0; i < hwpt_count; i++)
        this.#struct(
          `${name} iommufd_hwpt_ser[${i}]`,
          iommufd_hwpt_ser,
          pa + iommufd_ser.sizeBytes + i * iommufd_hwpt_ser.sizeBytes,
        );
    } else if (compatible === VFIO_PCI_LUO_COMPATIBLE)
      this.#struct(`${name} vfio_pci_ser`, vfio_pci_ser, pa);
    else assert.equal(compatible, MEMFS_FILE_COMPATIBLE, "this test knows all handlers");
  }

  #memfd(name: string, pa: number): void {
    const ram = this.#ram;
    const ser = `${name} memfd_luo_ser`;
    const { folios, ...others } = MEMFD_LUO_SER.fields;
    for (const [key, { sizeBytes }] of Object.entries(others)) {
      const offset = MEMFD_LUO_SER.offset[key as keyof typeof others];
      this.#add(`${ser}.${key}`, pa + offset, sizeBytes);
    }
    const array = pa + MEMFD_LUO_SER.offset.folios;
    assert.equal(folios.sizeBytes, KHO_VMALLOC.sizeBytes);
    this.#struct(`${ser}.folios`, KHO_VMALLOC, array);
    const pages: number[] = [];
    for (let chunk = KHO_VMALLOC.read(ram, array).first; chunk !== 0; ) {
      this.#add(`${name} kho_vmalloc_chunk.next`, chunk, 8);
      this.#used(`${name} kho_vmalloc_chunk.phys`, chunk + 8, 511, 8);
      for (let i = 0; i < 511 && ram.load64(chunk + 8 + 8 * i) !== 0; i++)
        pages.push(ram.load64(chunk + 8 + 8 * i));
      chunk = ram.load64(chunk);
    }
    const { nr_folios } = MEMFD_LUO_SER.read(ram, pa);
    // The first ones and the last: the others are like them.
    for (let i = 0; i < nr_folios; i += i < 2 || i === nr_folios - 2 ? 1 : nr_folios - 4) {
      const offset = i * MEMFD_LUO_FOLIO_SER_BYTES;
      const at = pages[Math.floor(offset / 4096)] + (offset % 4096);
      this.#add(`${name} memfd_luo_folio_ser[${i}].pfn_flags`, at, 8);
      this.#add(`${name} memfd_luo_folio_ser[${i}].index`, at + 8, 8);
    }
  }

  #iommu(header: number): void {
    const ram = this.#ram;
    this.#struct("iommu_ser", IOMMU_SER, header);
    const ser = IOMMU_SER.read(ram, header);
    const pages = Array.from({ length: ser.page_count }, (_, i) => {
      const at = header + IOMMU_SER.sizeBytes + 8 * i;
      this.#add(`iommu_ser.pages[${i}]`, at, 8);
      return ram.load64(at);
    });
    const record = (i: number) => iommuRecordAddress(header, pages, i);
    for (let i = 0; i < ser.domain_count; i++) {
      const at = record(ser.unit_count + i);
      this.#struct(`iommu_domain_ser[${i}]`, IOMMU_DOMAIN_SER, at);
      const { kind, top_table, levels } = IOMMU_DOMAIN_SER.read(ram, at);
      if (kind !== 0) this.#pageTable(top_table, levels - 1);
    }
    for (let i = 0; i < ser.device_count; i++)
      this.#struct(
        `iommu_device_ser[${i}]`,
        IOMMU_DEVICE_SER,
        record(ser.unit_count + ser.domain_count + i),
      );
    for (let i = 0; i < ser.unit_count; i++) {
      this.#struct(`iommu_unit_ser[${i}]`, IOMMU_UNIT_SER, record(i));
      this.#rootTable(IOMMU_UNIT_SER.read(ram, record(i)).root_table);
    }
  }

  #pageTable(table: number, level: number): void {
    const name = `ss_table@${table.toString(16)} level ${level}`;
    this.#used(name, table, SS_TABLE_ENTRIES, 8);
    if (level === 0) return;
    for (let i = 0; i < SS_TABLE_ENTRIES; i++) {
      const low = this.#ram.load32(table + 8 * i);
      if (low === 0 || ssIsLeaf(low, level)) continue;
      this.#pageTable(ssAddress(low, this.#ram.load32(table + 8 * i + 4)), level - 1);
    }
  }

  #rootTable(root: number): void {
    let absent = 0;
    for (let bus = 0; bus < ROOT_TABLE_ENTRIES; bus++) {
      const at = rootEntryAddress(root, bus << 8);
      const isPresent = this.#ram.load32(at) !== 0;
      if (!isPresent && absent++ > 0) continue;
      for (const half of [0, 8]) this.#add(`root_entry[${bus}] word ${half}`, at + half, 8);
      if (isPresent)
        this.#contextTable(tableAddress(this.#ram.load32(at), this.#ram.load32(at + 4)));
    }
  }

  #contextTable(table: number): void {
    let absent = 0;
    for (let devfn = 0; devfn < CONTEXT_TABLE_ENTRIES; devfn++) {
      const at = contextEntryAddress(table, devfn);
      if (this.#ram.load32(at) === 0 && absent++ > 0) continue;
      for (const half of [0, 8])
        this.#add(`context_entry@${table.toString(16)}[${devfn}] word ${half}`, at + half, 8);
    }
  }

  #pci(pa: number): void {
    this.#struct("pci_ser", PCI_SER, pa);
    const { count } = PCI_SER.read(this.#ram, pa);
    for (let i = 0; i < count; i++) {
      const at = pa + PCI_SER.sizeBytes + i * PCI_FUNCTION_SER.sizeBytes;
      const { refcount } = PCI_FUNCTION_SER.read(this.#ram, at);
      const name = refcount > 0 ? "pci_function_ser" : "unpreserved pci_function_ser";
      this.#struct(`${name}[${i}]`, PCI_FUNCTION_SER, at);
    }
  }

  #memfs(root: number): void {
    const ram = this.#ram;
    this.#struct("memfs_root", MEMFS_ROOT, root);
    this.#used("memfs_root.slot", root + MEMFS_STORE_SLOTS_OFFSET, MEMFS_STORE_SLOTS, 8);
    for (let slot = 0; slot < MEMFS_STORE_SLOTS; slot++) {
      const superblock = ram.load64(root + MEMFS_STORE_SLOTS_OFFSET + 8 * slot);
      if (superblock === 0) continue;
      this.#struct(`memfs_superblock[${slot}]`, MEMFS_SUPERBLOCK, superblock);
      this.#struct(`memfs_log_entry[${slot}]`, MEMFS_LOG_ENTRY, superblock + MEMFS_LOG_OFFSET);
      const { inodeBlocks, extentBlocks } = MEMFS_SUPERBLOCK.read(ram, superblock);
      this.#memfsTable("memfs_inode", inodeBlocks, MEMFS_INODE_TABLE, (at, number) => {
        const kind = ram.load8(at);
        if (kind === MEMFS_KIND_NAME) this.#struct(`memfs_name[${number}]`, MEMFS_NAME, at);
        else {
          const free = kind === MEMFS_KIND_FREE ? "free " : "";
          this.#struct(`${free}memfs_inode[${number}]`, MEMFS_INODE, at);
        }
        return kind === MEMFS_KIND_FREE;
      });
      this.#memfsTable("memfs_extent", extentBlocks, MEMFS_EXTENT_TABLE, (at, number) => {
        const isFree = ram.load32(at) === MEMFS_EXTENT_FREE;
        this.#struct(`${isFree ? "free " : ""}memfs_extent[${number}]`, MEMFS_EXTENT, at);
        return isFree;
      });
    }
  }

  /** All slots up to the first free one, which is shown too. */
  #memfsTable(
    name: string,
    head: number,
    table: typeof MEMFS_INODE_TABLE | typeof MEMFS_EXTENT_TABLE,
    visit: (pa: number, number: number) => boolean,
  ): void {
    for (let block = head; block !== 0; block = MEMFS_BLOCK.read(this.#ram, block).next) {
      this.#struct(`${name}_block`, MEMFS_BLOCK, block);
      const { index } = MEMFS_BLOCK.read(this.#ram, block);
      for (let slot = 1; slot < table.slotsEnd; slot++)
        if (visit(block + slot * table.slotBytes, index * table.slotsEnd + slot)) break;
    }
  }
}
