/**
 * What all open /dev/iommu files share: the IOMMU, and who owns which domain of the previous kernel.
 *
 * Each open file is an {@link IommufdFile} with objects of its own.
 * @module
 */
import { assert } from "../../base/assert.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import type { IommuCore, RestoredDomain } from "../iommu/domain.ts";

export class Iommufd {
  readonly iommu: IommuCore;
  readonly faults: FaultInjector;
  /** Restored domains that a retrieved context owns. */
  readonly #claimed = new Set<RestoredDomain>();
  /** Restored domains that were given up with devices still attached. */
  #unowned: RestoredDomain[] = [];

  constructor(dependencies: { readonly iommu: IommuCore; readonly faults: FaultInjector }) {
    this.iommu = dependencies.iommu;
    this.faults = dependencies.faults;
  }

  /** Makes the caller the owner of a restored domain. Null when there is none with that id, or it has an owner. */
  claimRestored(domainId: number): RestoredDomain | null {
    const domain = this.iommu.restoredDomain(domainId);
    if (domain === null || this.#claimed.has(domain) || this.#unowned.includes(domain)) return null;
    this.#claimed.add(domain);
    return domain;
  }

  /** Undoes {@link claimRestored}. */
  unclaimRestored(domain: RestoredDomain): void {
    this.#claimed.delete(domain);
  }

  /**
   * The owner gives a restored domain up. It is freed at once, or when its last device has been stopped (see
   * {@link freeUnowned}): a device that nobody could retrieve may be finished after its domain's owner.
   */
  freeRestored(domain: RestoredDomain): void {
    assert(this.#claimed.delete(domain), "a restored domain is given up by somebody else");
    this.#unowned.push(domain);
    this.freeUnowned();
  }

  /** Frees the domains without owner that have lost their last device. */
  freeUnowned(): void {
    // The IOMMU core frees what is left when the last session is finished.
    const left = this.#unowned.filter((domain) => this.iommu.restoredDomain(domain.id) === domain);
    this.#unowned = left.filter((domain) => domain.attachedCount > 0);
    for (const domain of left) if (domain.attachedCount === 0) domain.free();
  }
}
