/**
 * IOMMU domains: the contract between the IOMMU core and its users (iommufd, VFIO).
 *
 * Source: Linux 7.3 include/linux/iommu.h
 * @module
 */
import type { FileLifecycleBound } from "../liveupdate/file-handler.ts";
import type { PciFunction } from "../pci/function.ts";

export const IOMMU_READ = 1;
export const IOMMU_WRITE = 2;

/** Where a device's DMA goes. */
export type IommuDomain = PagingDomain | RestoredDomain | BlockingDomain;

/** All DMA faults. There is one such object. */
export interface BlockingDomain {
  readonly type: "blocking";
}

/** Translations that can be changed. */
export interface PagingDomain {
  readonly type: "paging";
  /** First IOVA past the address width. */
  readonly apertureEnd: number;
  /** Page sizes that the hardware walks, as a sum of powers of two. */
  readonly pageSizes: number;
  /**
   * Maps physical memory. Uses the largest pages that alignment and hardware allow; passes the fault point
   * "iommu:map".
   * @param prot - IOMMU_READ | IOMMU_WRITE, at least one
   * @throws {KernelError} EINVAL unaligned or outside the aperture; EEXIST something is mapped there; ENOMEM;
   *   EBUSY the domain is preserved. After a failure nothing of the range is mapped.
   */
  map(iova: number, pa: number, lengthBytes: number, prot: number): void;
  /**
   * Unmaps and flushes: on return no device can reach the memory any more.
   * @throws {KernelError} EINVAL unaligned or the range would split a page; EBUSY the domain is preserved
   */
  unmap(iova: number, lengthBytes: number): void;
  /** Physical address that a device's access to `iova` reaches, or null. */
  iovaToPhys(iova: number): number | null;
  /** Frees the page tables. No device may be attached. */
  free(): void;
}

/** A domain of the previous kernel: fixed, used until the device moves to an ordinary one. */
export interface RestoredDomain {
  readonly type: "restored";
  /** Its index in the handover: what {@link IommuCore.preserveDomain} returned in the previous kernel. */
  readonly id: number;
  iovaToPhys(iova: number): number | null;
  /** Devices still attached. */
  readonly attachedCount: number;
  /** Frees the page tables. No device may be attached. */
  free(): void;
}

/** Domains and attachments of a handover. */
export interface IncomingDomains {
  /** Asks for the domain of a user with that id: it has found its HWPT. @returns whether there is one */
  askFor(id: number): boolean;
  /** Asks for a function's attachment: the function has found its file. @returns the id of its domain, or null */
  askForDomainOf(segment: number, bdf: number): number | null;
  /** Memory that a domain of a user leads to, by IOVA; neighbours may be contiguous. */
  memoryOf(id: number): Iterable<{
    readonly iova: number;
    readonly pa: number;
    readonly lengthBytes: number;
  }>;
}

/** Registers of a remapping unit, as they are. */
export interface UnitCapabilities {
  /** CAP_REG */
  readonly cap: bigint;
  /** ECAP_REG */
  readonly ecap: bigint;
}

/** The IOMMU core. */
export interface IommuCore {
  /** Whether a remapping unit translates this function's DMA. If not, only no-IOMMU use is possible. */
  isTranslated(pci: PciFunction): boolean;
  /** What the function's remapping unit says that it can do; null when the function is not translated. */
  capabilitiesOf(pci: PciFunction): UnitCapabilities | null;
  /** @throws {KernelError} ENODEV when the function is not translated; ENOMEM */
  allocDomain(pci: PciFunction): PagingDomain;
  /** Where the function's DMA goes now; null when it is not translated. */
  domainOf(pci: PciFunction): IommuDomain | null;
  /**
   * Moves a function to another domain in one atomic step: at every moment its DMA is translated by the
   * old tables or by the new ones.
   *
   * Leaving a restored domain, the new tables are compared first: every translation of the old ones must be
   * there, to the same address, with no fewer rights.
   * @throws {KernelError} EINVAL when a translation would break (the message names the IOVA), or when the
   *   function's unit cannot walk the domain's tables or cannot move to them in one step; EBUSY when the function is
   *   preserved or has an RMRR; ENODEV when it is not translated; ENOMEM; ENOSPC when the unit has no domain id left.
   *   After a failure the old domain is in place.
   */
  attach(pci: PciFunction, domain: PagingDomain): void;
  /**
   * Moves a function behind the blocking domain. Never fails. A function with an RMRR stays where it is, and for one
   * that is not translated there is nothing to do. It must not be preserved.
   */
  block(pci: PciFunction): void;
  /** Memory that must not be mapped at these IOVAs for this function: MSI window, RMRRs. */
  reservedRegions(pci: PciFunction): readonly {
    readonly start: number;
    readonly lengthBytes: number;
    readonly kind: "msi" | "rmrr";
  }[];

  /** Hands over hardware, domains and device attachments. File handlers that preserve any of them name it. */
  readonly flb: FileLifecycleBound;
  /**
   * Keeps a domain's page tables through the next kexec; from here on it cannot be changed. Nests with the
   * FLB {@link flb}, which the caller's file handler must name.
   * @returns its id in the handover
   * @throws {KernelError} ENOMEM; passes the fault point "iommu:preserve-domain"
   */
  preserveDomain(domain: PagingDomain): number;
  /** Undoes it; the domain may be changed again. */
  unpreserveDomain(domain: PagingDomain): void;
  /**
   * Keeps a function's context entry through the next kexec.
   * @throws {KernelError} EINVAL when its domain is not preserved; passes the fault point "iommu:preserve-device"
   */
  preserveDevice(pci: PciFunction): void;
  unpreserveDevice(pci: PciFunction): void;
  /**
   * What {@link flb} has decoded of the previous kernel's handover, for checks before anything is adopted; null when
   * nothing was handed over.
   */
  readonly incoming: IncomingDomains | null;
  /** Restored domain with that id, or null. */
  restoredDomain(id: number): RestoredDomain | null;
  /** Restored domains not freed yet, for leak checks. */
  readonly restoredCount: number;
  /**
   * At reboot(KEXEC), when nothing can fail any more and after the PCI root's `shutdown`: functions that are not
   * preserved go behind the blocking domain.
   */
  shutdown(): void;
}
