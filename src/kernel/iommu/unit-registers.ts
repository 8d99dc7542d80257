/**
 * Access to the registers of one remapping unit, and the command protocol of GCMD and GSTS.
 *
 * A unit that does not complete a command cannot be trusted to keep devices out of memory: that ends the kernel, as
 * Linux panics ("DMAR hardware is malfunctioning").
 * Source: VT-d spec rev 5.0 §11.4; Linux 7.3 drivers/iommu/intel/iommu.h IOMMU_WAIT_OP
 * @module
 */
import {
  CAP_REG,
  decodeCap,
  decodeEcap,
  ECAP_REG,
  GCMD_REG,
  GCMD_WBF,
  GSTS_REG,
  GSTS_STATE,
  RTADDR_REG,
  type VtdCap,
  type VtdEcap,
} from "../../abi/vtd/registers.ts";
import { assert } from "../../base/assert.ts";
import { hex } from "../../base/units.ts";
import type { Mmio } from "../../machine/machine.ts";

/** Reads of a status register before a unit counts as broken; hardware answers within a few. */
const POLLS_MAX = 1_000_000;

/** One unit's registers. Offsets are those of abi/vtd/registers.ts. */
export class UnitRegisters {
  readonly base: number;
  readonly cap: VtdCap;
  readonly ecap: VtdEcap;
  readonly #mmio: Mmio;

  /** @param base - physical address of the register page */
  constructor(mmio: Mmio, base: number) {
    this.#mmio = mmio;
    this.base = base;
    this.cap = decodeCap(this.read32(CAP_REG), this.read32(CAP_REG + 4));
    this.ecap = decodeEcap(this.read32(ECAP_REG), this.read32(ECAP_REG + 4));
  }

  read32(offset: number): number {
    return this.#mmio.read(this.base + offset, 4);
  }

  write32(offset: number, value: number): void {
    this.#mmio.write(this.base + offset, 4, value >>> 0);
  }

  /** The low half first: exact up to 2^53. */
  read64(offset: number): number {
    const low = this.read32(offset);
    return this.read32(offset + 4) * 2 ** 32 + low;
  }

  /** The low half first, because a command in the high half starts when it is written. */
  write64(offset: number, value: number): void {
    this.write32(offset, value % 2 ** 32);
    this.write32(offset + 4, Math.floor(value / 2 ** 32));
  }

  /** Whether a state bit of GSTS is set. */
  status(bit: number): boolean {
    return (this.read32(GSTS_REG) & bit) !== 0;
  }

  /** Sets a bit of GCMD, keeps all other state, and waits until GSTS shows it. */
  enable(bit: number): void {
    this.write32(GCMD_REG, (this.read32(GSTS_REG) & GSTS_STATE) | bit);
    this.waitUntil(() => this.status(bit));
  }

  /** Clears a bit of GCMD and waits until GSTS shows it. */
  disable(bit: number): void {
    this.write32(GCMD_REG, this.read32(GSTS_REG) & GSTS_STATE & ~bit);
    this.waitUntil(() => !this.status(bit));
  }

  /** Makes earlier stores to tables visible to hardware, where CAP.RWBF says that this is needed (§6.8). */
  flushWriteBuffer(): void {
    if (!this.cap.rwbf) return;
    this.write32(GCMD_REG, (this.read32(GSTS_REG) & GSTS_STATE) | GCMD_WBF);
    this.waitUntil(() => !this.status(GCMD_WBF));
  }

  /** Physical address of the root table in use, with the translation table mode in its low bits (0 in legacy mode). */
  get rootTableAddress(): number {
    return this.read64(RTADDR_REG);
  }

  waitUntil(isDone: () => boolean): void {
    for (let i = 0; i < POLLS_MAX; i++) if (isDone()) return;
    assert(
      false,
      `DMAR hardware at ${hex(this.base)} is malfunctioning: a command does not complete`,
    );
  }
}
