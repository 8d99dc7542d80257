/**
 * What this kernel will leave of its IOMMU to the next: domains and functions to keep, and the record of them.
 *
 * Lifecycle: begin (first file that needs it), preserve and unpreserve of domains and functions, freeze (writes the
 * record), kexec; or unfreeze; end (last file).
 * All memory is found at begin and preserve, so freeze cannot run out of it. All units are handed over as soon as
 * anything is: they go on translating, and what is not preserved is blocked.
 * @module
 */
import {
  IOMMU_DEVICE_SER,
  IOMMU_DOMAIN_NONE,
  IOMMU_DOMAIN_PAGING,
  IOMMU_DOMAIN_RMRR,
  IOMMU_DOMAIN_SER,
  IOMMU_SER,
  IOMMU_SER_PAGES_MAX,
  IOMMU_UNIT_SER,
  iommuRecordAddress,
  iommuRecordPages,
} from "../../abi/iommu-luo.ts";
import { addressWidthBits } from "../../abi/vtd/root-context.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { withUndo } from "../../base/undo.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { KexecHandover } from "../kho/handover.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import type { Attachment } from "./attachment.ts";
import { levelsAddressWidth, type RemappingUnit } from "./remapping-unit.ts";
import type { SecondStageDomain } from "./second-stage-domain.ts";

/** What it is made of and with. */
export interface OutgoingHandoverOptions {
  readonly memory: PhysicalMemory;
  readonly mm: PageAllocator;
  readonly kho: KexecHandover;
  readonly faults: FaultInjector;
  readonly units: readonly RemappingUnit[];
}

interface Slot {
  readonly domain: SecondStageDomain;
  readonly kind: typeof IOMMU_DOMAIN_PAGING | typeof IOMMU_DOMAIN_RMRR;
}

/** One kernel's outgoing state. */
export class OutgoingHandover {
  readonly #memory: PhysicalMemory;
  readonly #mm: PageAllocator;
  readonly #kho: KexecHandover;
  readonly #faults: FaultInjector;
  readonly #units: readonly RemappingUnit[];
  /** Header page; 0 while nothing is preserved. */
  #header = 0;
  #isFrozen = false;
  readonly #pages: number[] = [];
  readonly #slots: (Slot | null)[] = [];
  readonly #devices = new Set<Attachment>();

  constructor(options: OutgoingHandoverOptions) {
    this.#memory = options.memory;
    this.#mm = options.mm;
    this.#kho = options.kho;
    this.#faults = options.faults;
    this.#units = options.units;
  }

  get isActive(): boolean {
    return this.#header !== 0;
  }

  get isFrozen(): boolean {
    return this.#isFrozen;
  }

  isPreserved(attachment: Attachment): boolean {
    return this.#devices.has(attachment);
  }

  /**
   * Keeps all units, and the functions that must never be blocked with their domains.
   * @returns physical address of the header
   * @throws {KernelError} ENOMEM; nothing is kept then
   */
  begin(rmrrs: Iterable<Attachment>): number {
    assert(!this.isActive, "the IOMMU's handover has begun already");
    return withUndo((undo) => {
      this.#faults.point("iommu:preserve-units");
      undo(() => this.#releasePages());
      this.#header = this.#newPage();
      this.#reserveRecords(0);
      for (const unit of this.#units) {
        unit.preserve();
        undo(() => unit.unpreserve());
      }
      for (const attachment of rmrrs) {
        const { domain } = attachment;
        assert(domain.type === "paging", "RMRRs are in a domain of this kernel");
        this.#addSlot(domain, IOMMU_DOMAIN_RMRR);
        undo(() => this.#removeSlot(domain));
        this.#reserveRecords(1);
        this.#devices.add(attachment);
        undo(() => this.#devices.delete(attachment));
      }
      return this.#header;
    });
  }

  /** Undoes {@link begin}. All others must have undone theirs. */
  end(): void {
    assert(this.isActive && !this.#isFrozen, "the IOMMU's handover is not open");
    for (const attachment of this.#devices) {
      assert(attachment.domain.type === "paging", "RMRRs are in a domain of this kernel");
      this.#devices.delete(attachment);
      this.#removeSlot(attachment.domain);
    }
    assert(this.#slots.length === 0, "domains are still preserved");
    for (const unit of this.#units) unit.unpreserve();
    this.#releasePages();
  }

  /** As {@link IommuCore.preserveDomain}. */
  preserveDomain(domain: SecondStageDomain): number {
    assert(this.isActive && !this.#isFrozen, "the FLB lives while domains are preserved");
    this.#faults.point("iommu:preserve-domain");
    const id = this.#addSlot(domain, IOMMU_DOMAIN_PAGING);
    domain.fix("preserved for the next kernel");
    return id;
  }

  unpreserveDomain(domain: SecondStageDomain): void {
    for (const attachment of this.#devices)
      assert(attachment.domain !== domain, "a function of the domain is still preserved");
    this.#removeSlot(domain);
    domain.unfix();
  }

  /** As {@link IommuCore.preserveDevice}. */
  preserveDevice(attachment: Attachment): void {
    assert(!this.#devices.has(attachment), "the function is preserved already");
    if (!this.#slots.some((slot) => slot?.domain === attachment.domain))
      throw new KernelError("EINVAL", "preserve device", "its domain is not preserved");
    this.#faults.point("iommu:preserve-device");
    this.#reserveRecords(1);
    this.#devices.add(attachment);
  }

  unpreserveDevice(attachment: Attachment): void {
    assert(this.#devices.delete(attachment), "the function is not preserved");
  }

  /** Writes the record. Nothing may change until {@link unfreeze}. */
  freeze(): void {
    assert(this.isActive && !this.#isFrozen, "the IOMMU's handover is not open");
    this.#faults.point("iommu:freeze");
    const memory = this.#memory;
    IOMMU_SER.write(memory, this.#header, {
      unit_count: this.#units.length,
      domain_count: this.#slots.length,
      device_count: this.#devices.size,
      // All of them, also those that are not needed any more: what is not listed nobody would free.
      page_count: this.#pages.length,
    });
    for (let i = 0; i < this.#pages.length; i++)
      memory.store64(this.#header + IOMMU_SER.sizeBytes + 8 * i, this.#pages[i]);
    let index = 0;
    for (const unit of this.#units) {
      IOMMU_UNIT_SER.write(memory, this.#recordAddress(index++), {
        register_base: unit.registers.base,
        root_table: unit.rootTable,
        segment: unit.segment,
        reserved: 0,
        reserved2: 0,
      });
    }
    for (const slot of this.#slots) {
      IOMMU_DOMAIN_SER.write(memory, this.#recordAddress(index++), {
        top_table: slot?.domain.table.top ?? 0,
        kind: slot?.kind ?? IOMMU_DOMAIN_NONE,
        levels: slot?.domain.levels ?? 0,
        address_width: slot === null ? 0 : addressWidthBits(levelsAddressWidth(slot.domain.levels)),
        table_count: slot?.domain.table.tableCount ?? 0,
        reserved: 0,
      });
    }
    for (const attachment of this.#devices) {
      IOMMU_DEVICE_SER.write(memory, this.#recordAddress(index++), {
        unit: this.#units.indexOf(attachment.unit),
        domain: this.#slots.findIndex((slot) => slot?.domain === attachment.domain),
        segment: attachment.segment,
        bdf: attachment.bdf,
        did: attachment.did,
        reserved: 0,
        reserved2: 0,
      });
    }
    this.#isFrozen = true;
  }

  unfreeze(): void {
    assert(this.#isFrozen, "the IOMMU's handover is not frozen");
    this.#isFrozen = false;
  }

  /** Keeps a domain's tables: their number of steps, not that of what they map. */
  #addSlot(domain: SecondStageDomain, kind: Slot["kind"]): number {
    assert(!this.#slots.some((slot) => slot?.domain === domain), "a domain is preserved once");
    return withUndo((undo) => {
      let free = this.#slots.indexOf(null);
      if (free < 0) {
        this.#reserveRecords(1);
        free = this.#slots.length;
      }
      let kept = 0;
      undo(() => {
        domain.table.forEachTable((table) => {
          if (kept-- > 0) this.#kho.unpreserve(table, 0);
        });
      });
      domain.table.forEachTable((table) => {
        this.#kho.preserve(table, 0);
        kept++;
      });
      this.#slots[free] = { domain, kind };
      return free;
    });
  }

  #removeSlot(domain: SecondStageDomain): void {
    const index = this.#slots.findIndex((slot) => slot?.domain === domain);
    assert(index >= 0, "the domain is not preserved");
    domain.table.forEachTable((table) => this.#kho.unpreserve(table, 0));
    this.#slots[index] = null;
    while (this.#slots.at(-1) === null) this.#slots.pop();
  }

  #pagesNeeded(more: number): number {
    const records = this.#units.length + this.#slots.length + this.#devices.size + more;
    return iommuRecordPages(records);
  }

  /**
   * Finds room for more records. Pages stay until the end.
   * @throws {KernelError} ENOMEM; ENOSPC when the header is full
   */
  #reserveRecords(more: number): void {
    while (this.#pages.length < this.#pagesNeeded(more)) {
      if (this.#pages.length === IOMMU_SER_PAGES_MAX)
        throw new KernelError("ENOSPC", "preserve", "the IOMMU's handover is full");
      this.#pages.push(this.#newPage());
    }
  }

  #recordAddress(index: number): number {
    return iommuRecordAddress(this.#header, this.#pages, index);
  }

  #newPage(): number {
    return withUndo((undo) => {
      const page = this.#mm.alloc(0);
      undo(() => this.#mm.free(page, 0));
      this.#kho.preserve(page, 0);
      return page;
    });
  }

  #releasePages(): void {
    const pages = this.#header === 0 ? this.#pages : [...this.#pages, this.#header];
    for (const page of pages) {
      this.#kho.unpreserve(page, 0);
      this.#mm.free(page, 0);
    }
    this.#pages.length = 0;
    this.#header = 0;
  }
}
