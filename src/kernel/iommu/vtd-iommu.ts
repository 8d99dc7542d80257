/**
 * The IOMMU core on Intel VT-d: every remapping unit of the machine, and which function uses which domain.
 *
 * Everything is blocked but what is attached; functions with RMRRs are attached to those from the start and stay so.
 * Deferred attach: nothing is attached at boot or at probe. What a handover brings keeps its context entry, as the previous
 * kernel wrote it, until the owner of the function attaches it to a domain: the swap. Linux defers in a
 * crash kernel only (drivers/iommu/dma-iommu.c); the pkernfs RFC forces it for live update.
 * Lifecycle:
 *   1. made: reads capabilities
 *   2. after a kexec that handed an IOMMU over, `flb.decode` and `flb.adopt`: tables as they are, translation never off
 *   3. `start`: units that were not adopted come up with everything blocked
 *   4. `shutdown`, after the PCI root's: what is not preserved is blocked
 * Source: VT-d spec rev 5.0; Linux 7.3 drivers/iommu/intel/iommu.c, drivers/iommu/iommu.c
 * @module
 */
import { IOMMU_DOMAIN_RMRR, IOMMU_LUO_COMPATIBLE } from "../../abi/iommu-luo.ts";
import type { FaultRecord } from "../../abi/vtd/faults.ts";
import { CAP_REG, ECAP_REG } from "../../abi/vtd/registers.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { withUndo } from "../../base/undo.ts";
import { hex, PAGE_SIZE } from "../../base/units.ts";
import type { Machine } from "../../machine/machine.ts";
import type { KexecHandover } from "../kho/handover.ts";
import type { FileLifecycleBound } from "../liveupdate/file-handler.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import { type PciFunction, pciName } from "../pci/function.ts";
import { AskedDomains } from "./asked-domains.ts";
import { functionKey } from "./attached-function.ts";
import type { Attachment } from "./attachment.ts";
import { compareTables } from "./compare-tables.ts";
import {
  type BlockingDomain,
  type IncomingDomains,
  IOMMU_READ,
  IOMMU_WRITE,
  type IommuCore,
  type IommuDomain,
  type PagingDomain,
  type RestoredDomain,
  type UnitCapabilities,
} from "./domain.ts";
import { drainFaults } from "./fault-records.ts";
import { type DecodedIommu, HandoverDecoder } from "./handover-decoder.ts";
import { OutgoingHandover } from "./outgoing-handover.ts";
import { RemappingUnit } from "./remapping-unit.ts";
import { RestoredTables } from "./restored-tables.ts";
import { type RmrrFunction, rmrrFunctions } from "./rmrr.ts";
import { SecondStageDomain } from "./second-stage-domain.ts";

/** Writes here are interrupts and never reach translation (VT-d spec §3.14). */
const MSI_WINDOW = { start: 0xfee00000, lengthBytes: 0x100000, kind: "msi" } as const;

const BLOCKING: BlockingDomain = Object.freeze({ type: "blocking" });

/** What the IOMMU is made of and with. */
export interface VtdIommuOptions {
  readonly machine: Machine;
  readonly mm: PageAllocator;
  readonly kho: KexecHandover;
  readonly faults: FaultInjector;
  /** False: new domains are mapped with 4 KiB pages only (intel_iommu=sp_off). What is adopted stays as it is. */
  readonly superpages: boolean;
}

/** A blocked DMA, with the unit that blocked it. */
export interface IommuFault extends FaultRecord {
  /** PCI segment group of the unit. */
  readonly segment: number;
}

/** The {@link IommuCore} of this kernel. */
export class VtdIommu implements IommuCore {
  readonly flb: FileLifecycleBound<DecodedIommu>;
  readonly #machine: Machine;
  readonly #mm: PageAllocator;
  readonly #kho: KexecHandover;
  readonly #faults: FaultInjector;
  readonly #superpages: boolean;
  readonly #units: readonly RemappingUnit[];
  readonly #rmrrs: readonly RmrrFunction[];
  readonly #outgoing: OutgoingHandover;
  readonly #attachments = new Map<number, Attachment>();
  readonly #restored = new Map<number, RestoredTables>();
  #incoming: AskedDomains | null = null;
  #domainCount = 0;
  #faultOverflows = 0;

  constructor(options: VtdIommuOptions) {
    const { machine, mm, kho, faults } = options;
    this.#machine = machine;
    this.#mm = mm;
    this.#kho = kho;
    this.#faults = faults;
    this.#superpages = options.superpages;
    this.#units = machine.firmware.drhds.map(
      (drhd) => new RemappingUnit({ machine, mm, kho, drhd }),
    );
    this.#rmrrs = rmrrFunctions(machine.firmware.rmrrs).filter(
      ({ segment }) => this.#unitOf(segment) !== null,
    );
    this.#outgoing = new OutgoingHandover({
      memory: machine.memory,
      mm,
      kho,
      faults,
      units: this.#units,
    });
    this.flb = {
      compatible: IOMMU_LUO_COMPATIBLE,
      preserve: () => BigInt(this.#outgoing.begin(this.#rmrrAttachments())),
      unpreserve: () => this.#outgoing.end(),
      freeze: (data) => {
        this.#outgoing.freeze();
        return data;
      },
      unfreeze: () => this.#outgoing.unfreeze(),
      decode: (incoming, data, field) => {
        const decoder = new HandoverDecoder(incoming, field, this.#units, this.#rmrrs);
        const decoded = decoder.decode(data);
        this.#incoming = new AskedDomains(incoming.memory, decoded);
        return decoded;
      },
      checkAsked: (_decoded, field) => this.#incoming?.check(field),
      adopt: (data) => this.#adopt(data),
      finish: () => this.#finishRestored(),
    };
  }

  /**
   * Brings up all units that were not adopted: everything is blocked, but for RMRRs, and translation is on.
   * @throws {KernelError} ENOMEM; units before the one that failed are up
   */
  start(): void {
    for (const unit of this.#units) {
      if (unit.isStarted) continue;
      withUndo((undo) => {
        unit.startCold(() => {
          for (const rmrr of this.#rmrrs) {
            if (rmrr.segment !== unit.segment) continue;
            const attachment = this.#attachRmrr(unit, rmrr);
            undo(() => this.#forgetRmrr(attachment));
          }
        });
      });
    }
  }

  /** Pages that the core holds for itself: units' tables and queues, and the domains of RMRRs. */
  get ownPages(): number {
    let pages = 0;
    for (const unit of this.#units) pages += unit.pageCount;
    for (const { domain } of this.#rmrrAttachments())
      if (domain.type === "paging") pages += domain.table.tableCount;
    return pages;
  }

  /** Functions that are attached, those with RMRRs aside. */
  get attachedCount(): number {
    return this.#attachments.size - [...this.#rmrrAttachments()].length;
  }

  /** Domains of users that were not freed yet, for leak checks. */
  get domainCount(): number {
    return this.#domainCount;
  }

  /** Domain ids in use on all units, for leak checks: one for each function that is not blocked. */
  get domainIdCount(): number {
    return this.#units.reduce((sum, unit) => sum + unit.dids.count, 0);
  }

  /** Domain ids in use that no function has, those with RMRRs included: a leak. */
  get strayDomainIdCount(): number {
    let attached = 0;
    for (const { unit, did } of this.#attachments.values()) if (unit.dids.isUsed(did)) attached++;
    return this.domainIdCount - attached;
  }

  /** How often {@link readFaults} found that a unit had lost faults. */
  get faultOverflows(): number {
    return this.#faultOverflows;
  }

  /** Takes all recorded faults, oldest first for each unit; those of the time before this kernel too. */
  readFaults(): readonly IommuFault[] {
    const faults: IommuFault[] = [];
    for (const { registers, segment } of this.#units)
      if (drainFaults(registers, (fault) => faults.push({ ...fault, segment })))
        this.#faultOverflows++;
    return faults;
  }

  isTranslated(pci: PciFunction): boolean {
    return this.#unitOf(pci.segment) !== null;
  }

  capabilitiesOf(pci: PciFunction): UnitCapabilities | null {
    const registers = this.#unitOf(pci.segment)?.registers;
    if (registers === undefined) return null;
    const word64 = (offset: number) =>
      (BigInt(registers.read32(offset + 4)) << 32n) | BigInt(registers.read32(offset));
    return { cap: word64(CAP_REG), ecap: word64(ECAP_REG) };
  }

  allocDomain(pci: PciFunction): PagingDomain {
    const unit = this.#unitOf(pci.segment);
    if (unit === null)
      throw new KernelError("ENODEV", "alloc domain", `${name(pci)} is not translated`);
    const domain = new SecondStageDomain({
      memory: this.#machine.memory,
      mm: this.#mm,
      faults: this.#faults,
      unit,
      // The function can move from where it is now only to tables of the same width.
      levels: this.#attachmentOf(pci)?.levels ?? unit.defaultLevels,
      pageSizes: this.#pageSizesOf(unit),
      onFree: () => {
        this.#domainCount--;
      },
    });
    this.#domainCount++;
    return domain;
  }

  domainOf(pci: PciFunction): IommuDomain | null {
    if (!this.isTranslated(pci)) return null;
    return this.#attachmentOf(pci)?.domain ?? BLOCKING;
  }

  attach(pci: PciFunction, domain: PagingDomain): void {
    assert(domain instanceof SecondStageDomain, "a domain of another core");
    const unit = this.#unitOf(pci.segment);
    if (unit === null) throw new KernelError("ENODEV", "attach", `${name(pci)} is not translated`);
    if (this.#rmrrOf(pci) !== null)
      throw new KernelError("EBUSY", "attach", `${name(pci)} has reserved memory regions`);
    const attachment = this.#attachmentOf(pci);
    if (attachment !== null && this.#outgoing.isPreserved(attachment))
      throw new KernelError("EBUSY", "attach", `${name(pci)} is preserved for the next kernel`);
    if (
      !unit.supportsLevels(domain.levels) ||
      domain.apertureEnd > unit.apertureEnd(domain.levels) ||
      (domain.pageSizes & ~unit.pageSizes) !== 0
    )
      throw new KernelError(
        "EINVAL",
        "attach",
        `the unit of ${name(pci)} cannot walk the domain's tables`,
      );
    if (attachment === null) this.#attachBlocked(unit, pci, domain);
    else if (attachment.domain !== domain) this.#replace(attachment, domain);
  }

  /** As the contract says; for a function that is not translated or has RMRRs there is nothing to do. */
  block(pci: PciFunction): void {
    const attachment = this.#attachmentOf(pci);
    if (attachment === null || this.#rmrrOf(pci) !== null) return;
    assert(!this.#outgoing.isPreserved(attachment), `${name(pci)} is preserved`);
    this.#detach(attachment);
  }

  reservedRegions(pci: PciFunction): ReturnType<IommuCore["reservedRegions"]> {
    const ranges = this.#rmrrOf(pci)?.ranges ?? [];
    return [MSI_WINDOW, ...ranges.map((range) => ({ ...range, kind: "rmrr" as const }))];
  }

  preserveDomain(domain: PagingDomain): number {
    assert(domain instanceof SecondStageDomain, "a domain of another core");
    return this.#outgoing.preserveDomain(domain);
  }

  unpreserveDomain(domain: PagingDomain): void {
    assert(domain instanceof SecondStageDomain, "a domain of another core");
    this.#outgoing.unpreserveDomain(domain);
  }

  preserveDevice(pci: PciFunction): void {
    const attachment = this.#attachmentOf(pci);
    if (attachment === null)
      throw new KernelError("EINVAL", "preserve device", `${name(pci)} is in no domain`);
    if (this.#rmrrOf(pci) !== null)
      throw new KernelError("EINVAL", "preserve device", `${name(pci)} has its RMRRs' domain`);
    this.#outgoing.preserveDevice(attachment);
  }

  unpreserveDevice(pci: PciFunction): void {
    const attachment = this.#attachmentOf(pci);
    assert(attachment !== null, `${name(pci)} is in no domain`);
    this.#outgoing.unpreserveDevice(attachment);
  }

  get incoming(): IncomingDomains | null {
    return this.#incoming;
  }

  restoredDomain(id: number): RestoredDomain | null {
    return this.#restored.get(id) ?? null;
  }

  get restoredCount(): number {
    return this.#restored.size;
  }

  /**
   * As the contract says, and after the PCI root's `shutdown`: with nothing handed over, translation goes off because
   * its tables will be gone, and only the missing bus mastering keeps devices quiet then (as in Linux).
   */
  shutdown(): void {
    assert(this.#outgoing.isActive === this.#outgoing.isFrozen, "shutdown without freeze");
    for (const attachment of [...this.#attachments.values()])
      if (!this.#outgoing.isPreserved(attachment) && this.#rmrrOf(attachment) === null)
        this.#detach(attachment);
    for (const unit of this.#units) {
      if (this.#outgoing.isActive) unit.stopQueue();
      else unit.disableTranslation();
    }
  }

  #attachBlocked(unit: RemappingUnit, pci: PciFunction, domain: SecondStageDomain): void {
    withUndo((undo) => {
      const did = unit.dids.alloc();
      undo(() => unit.dids.free(did));
      this.#faults.point("iommu:attach");
      unit.setEntry(pci.bdf, domain.table.top, domain.levels, did);
      this.#addAttachment(unit, pci, did, domain);
    });
  }

  #replace(attachment: Attachment, domain: SecondStageDomain): void {
    const { unit, bdf, did, levels, domain: old } = attachment;
    if (levels !== domain.levels)
      throw new KernelError(
        "EINVAL",
        "attach",
        `${name(attachment)} has tables of ${levels} levels; others cannot replace them in one step`,
      );
    if (old.type === "restored") {
      const broken = compareTables(old, domain.table);
      if (broken !== null)
        throw new KernelError(
          "EINVAL",
          "attach",
          `${name(attachment)} may be using iova ${hex(broken.iova)}, which ${broken.problem} in the new domain`,
        );
    }
    this.#faults.point("iommu:attach");
    unit.switchEntry(bdf, domain.table.top, did);
    old.attachments.delete(attachment);
    domain.attachments.add(attachment);
    attachment.domain = domain;
  }

  #detach(attachment: Attachment): void {
    const { unit, segment, bdf, did, domain } = attachment;
    unit.clearEntry(bdf, did);
    unit.dids.free(did);
    domain.attachments.delete(attachment);
    this.#attachments.delete(functionKey(segment, bdf));
  }

  #addAttachment(
    unit: RemappingUnit,
    { segment, bdf }: { readonly segment: number; readonly bdf: number },
    did: number,
    domain: Attachment["domain"],
  ): Attachment {
    const attachment: Attachment = { unit, segment, bdf, did, levels: domain.levels, domain };
    domain.attachments.add(attachment);
    this.#attachments.set(functionKey(segment, bdf), attachment);
    return attachment;
  }

  /** Gives a function with RMRRs its fixed domain. The unit is not translating yet, or blocks everything. */
  #attachRmrr(unit: RemappingUnit, rmrr: RmrrFunction): Attachment {
    return withUndo((undo) => {
      const domain = this.#newRmrrDomain(unit, unit.defaultLevels);
      undo(() => domain.table.free());
      for (const { start, lengthBytes } of rmrr.ranges)
        domain.map(start, start, lengthBytes, IOMMU_READ | IOMMU_WRITE);
      const did = unit.dids.alloc();
      undo(() => unit.dids.free(did));
      unit.setEntry(rmrr.bdf, domain.table.top, domain.levels, did);
      domain.fix("a function's reserved memory regions");
      return this.#addAttachment(unit, rmrr, did, domain);
    });
  }

  /** Undoes {@link #attachRmrr} when its unit does not come up. */
  #forgetRmrr({ unit, segment, bdf, did, domain }: Attachment): void {
    assert(domain.type === "paging", "RMRRs are in a domain of this kernel");
    this.#attachments.delete(functionKey(segment, bdf));
    unit.dids.free(did);
    domain.table.free();
  }

  #newRmrrDomain(
    unit: RemappingUnit,
    levels: number,
    existing?: { readonly top: number; readonly tableCount: number },
  ): SecondStageDomain {
    return new SecondStageDomain({
      memory: this.#machine.memory,
      mm: this.#mm,
      faults: this.#faults,
      unit,
      levels,
      pageSizes: this.#pageSizesOf(unit),
      onFree: () => undefined,
      ...(existing === undefined ? {} : { existing }),
    });
  }

  #pageSizesOf(unit: RemappingUnit): number {
    return this.#superpages ? unit.pageSizes : PAGE_SIZE;
  }

  /** Takes over what was found good. Writes no entry; frees the record. */
  #adopt(data: DecodedIommu): void {
    for (const pa of data.pages) {
      this.#kho.restore(pa, 0);
      this.#mm.free(pa, 0);
    }
    for (const { unit, rootTable, contextTables } of data.units) {
      this.#kho.restore(rootTable, 0);
      for (const { pa } of contextTables) this.#kho.restore(pa, 0);
      unit.adopt({ rootTable, contextTables });
    }
    for (const [id, domain] of data.domains.entries()) {
      if (domain === null) continue;
      for (const pa of domain.tables) this.#kho.restore(pa, 0);
      if (domain.kind === IOMMU_DOMAIN_RMRR) continue;
      this.#restored.set(
        id,
        new RestoredTables({
          memory: this.#machine.memory,
          mm: this.#mm,
          id,
          top: domain.top,
          levels: domain.levels,
          onFree: () => this.#restored.delete(id),
        }),
      );
    }
    for (const device of data.devices) {
      device.unit.dids.reserve(device.did);
      const domain = this.#restored.get(device.domain) ?? this.#adoptRmrrDomain(data, device);
      this.#addAttachment(device.unit, device, device.did, domain);
    }
  }

  #adoptRmrrDomain(data: DecodedIommu, device: DecodedIommu["devices"][number]): SecondStageDomain {
    const found = data.domains[device.domain];
    assert(found !== null && found.kind === IOMMU_DOMAIN_RMRR, "the decoder has checked domains");
    const domain = this.#newRmrrDomain(device.unit, found.levels, {
      top: found.top,
      tableCount: found.tables.length,
    });
    domain.fix("a function's reserved memory regions");
    return domain;
  }

  /** Nobody comes any more for what is left of the previous kernel. */
  #finishRestored(): void {
    for (const domain of [...this.#restored.values()]) {
      for (const attachment of [...this.#attachments.values()])
        if (attachment.domain === domain) this.#detach(attachment);
      domain.free();
    }
  }

  #unitOf(segment: number): RemappingUnit | null {
    return this.#units.find((unit) => unit.segment === segment) ?? null;
  }

  #attachmentOf(pci: PciFunction): Attachment | null {
    return this.#attachments.get(functionKey(pci.segment, pci.bdf)) ?? null;
  }

  #rmrrOf(pci: { readonly segment: number; readonly bdf: number }): RmrrFunction | null {
    return this.#rmrrs.find((r) => r.segment === pci.segment && r.bdf === pci.bdf) ?? null;
  }

  *#rmrrAttachments(): Iterable<Attachment> {
    for (const attachment of this.#attachments.values())
      if (this.#rmrrOf(attachment) !== null) yield attachment;
  }
}

function name({ segment, bdf }: { readonly segment: number; readonly bdf: number }): string {
  return pciName(segment, bdf);
}
