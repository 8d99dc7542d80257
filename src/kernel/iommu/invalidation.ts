/**
 * Getting stale entries out of a unit's caches: what the driver asks for, and by registers.
 *
 * Source: VT-d spec rev 5.0 §6.5.1
 * @module
 */
import {
  CCMD_HIGH_CIRG_SHIFT,
  CCMD_HIGH_ICC,
  CCMD_REG,
  ccmdLow,
  GCMD_QIE,
  GRANULARITY_DEVICE,
  GRANULARITY_DOMAIN,
  GRANULARITY_GLOBAL,
  GRANULARITY_PAGE,
  IOTLB_HIGH_DR,
  IOTLB_HIGH_DW,
  IOTLB_HIGH_IIRG_SHIFT,
  IOTLB_HIGH_IVT,
  IOTLB_OFFSET,
  IVA_OFFSET,
} from "../../abi/vtd/registers.ts";
import type { UnitRegisters } from "./unit-registers.ts";

/**
 * Requests may take effect at any time up to the next `wait`; after it, all of them have, and the DMA that used
 * what they removed has arrived.
 */
export interface Invalidation {
  contextGlobal(): void;
  /** @param did - the one that the entry had before it changed */
  contextDevice(did: number, sourceId: number): void;
  iotlbGlobal(): void;
  iotlbDomain(did: number): void;
  /** @param iova - aligned to 2^`addressMask` pages */
  iotlbPages(did: number, iova: number, addressMask: number): void;
  wait(): void;
}

/** For units without queued invalidation, and before a queue exists. Each request is complete when it returns. */
export class RegisterInvalidation implements Invalidation {
  readonly #registers: UnitRegisters;

  /** Ends queued invalidation if it is on: the registers may be used only without it. */
  constructor(registers: UnitRegisters) {
    this.#registers = registers;
    if (registers.status(GCMD_QIE)) registers.disable(GCMD_QIE);
  }

  contextGlobal(): void {
    this.#context(GRANULARITY_GLOBAL, 0, 0);
  }

  contextDevice(did: number, sourceId: number): void {
    this.#context(GRANULARITY_DEVICE, did, sourceId);
  }

  iotlbGlobal(): void {
    this.#iotlb(GRANULARITY_GLOBAL, 0);
  }

  iotlbDomain(did: number): void {
    this.#iotlb(GRANULARITY_DOMAIN, did);
  }

  iotlbPages(did: number, iova: number, addressMask: number): void {
    const registers = this.#registers;
    registers.write64(registers.ecap.iotlbOffset + IVA_OFFSET, iova + addressMask);
    this.#iotlb(GRANULARITY_PAGE, did);
  }

  wait(): void {}

  #context(granularity: number, did: number, sourceId: number): void {
    const registers = this.#registers;
    registers.write32(CCMD_REG, ccmdLow(did, sourceId));
    registers.write32(CCMD_REG + 4, CCMD_HIGH_ICC | (granularity << CCMD_HIGH_CIRG_SHIFT));
    registers.waitUntil(() => (registers.read32(CCMD_REG + 4) & CCMD_HIGH_ICC) === 0);
  }

  #iotlb(granularity: number, did: number): void {
    const registers = this.#registers;
    const at = registers.ecap.iotlbOffset + IOTLB_OFFSET;
    registers.write32(at, 0);
    registers.write32(
      at + 4,
      IOTLB_HIGH_IVT | (granularity << IOTLB_HIGH_IIRG_SHIFT) | IOTLB_HIGH_DR | IOTLB_HIGH_DW | did,
    );
    registers.waitUntil(() => (registers.read32(at + 4) & IOTLB_HIGH_IVT) === 0);
  }
}
