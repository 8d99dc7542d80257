/**
 * QEMU's remapping unit and its edu devices by their registers, with no kernel between: for tests of translation.
 * @module
 */
import assert from "node:assert/strict";
import {
  EDU_BUFFER,
  EDU_DMA_CMD,
  EDU_DMA_COUNT,
  EDU_DMA_DST,
  EDU_DMA_RUN,
  EDU_DMA_SRC,
  EDU_DMA_TO_MEMORY,
} from "../../src/abi/edu.ts";
import {
  decodeFaultRecord,
  type FaultRecord,
  FRCD_W3_F,
  FSTS_PFO,
} from "../../src/abi/vtd/faults.ts";
import {
  FRCD_BYTES,
  FSTS_REG,
  GCMD_SRTP,
  GCMD_TE,
  RTADDR_REG,
} from "../../src/abi/vtd/registers.ts";
import { RegisterInvalidation } from "../../src/kernel/iommu/invalidation.ts";
import { UnitRegisters } from "../../src/kernel/iommu/unit-registers.ts";
import type { Mmio } from "../../src/machine/machine.ts";
import type { QtestClient } from "../../src/machine/qemu/qtest.ts";

/** QEMU's arguments with which an edu reaches every address, and takes no time. */
export const EDU_ARGUMENTS = [
  ...["-global", "edu.dma_mask=0xffffffffffffffff"],
  // Virtual time goes to the next timer at once: a transfer takes 100 ms of it.
  ...["-icount", "shift=0,sleep=off"],
] as const;

/** One remapping unit, as a driver sees it. */
export class Unit {
  readonly registers: UnitRegisters;
  readonly #caches: RegisterInvalidation;

  constructor(mmio: Mmio, base: number) {
    this.registers = new UnitRegisters(mmio, base);
    this.#caches = new RegisterInvalidation(this.registers);
  }

  start(rootTable: number): void {
    this.registers.write64(RTADDR_REG, rootTable);
    this.registers.enable(GCMD_SRTP);
    this.flush();
    this.registers.enable(GCMD_TE);
  }

  flush(): void {
    this.#caches.contextGlobal();
    this.#caches.wait();
    this.#caches.iotlbGlobal();
    this.#caches.wait();
  }

  /** The oldest record, which is cleared with all others. */
  takeFault(): FaultRecord | null {
    const { nfr, faultRecordingOffset } = this.registers.cap;
    let first: FaultRecord | null = null;
    for (let i = 0; i < nfr; i++) {
      const at = faultRecordingOffset + i * FRCD_BYTES;
      const words = [0, 4, 8, 12].map((offset) => this.registers.read32(at + offset));
      first ??= decodeFaultRecord(words[0], words[1], words[2], words[3]);
      if ((words[3] & FRCD_W3_F) !== 0) this.registers.write32(at + 12, FRCD_W3_F);
    }
    this.registers.write32(FSTS_REG, FSTS_PFO);
    return first;
  }
}

/** An edu of QEMU's. */
export class Edu {
  readonly sourceId: number;
  readonly #qtest: QtestClient;
  readonly #bar: number;

  constructor(qtest: QtestClient, sourceId: number, bar: number) {
    this.#qtest = qtest;
    this.sourceId = sourceId;
    this.#bar = bar;
  }

  /** Moves 8 bytes between its buffer and a bus address. */
  transfer(address: number, isWrite: boolean): void {
    const qtest = this.#qtest;
    qtest.write64(this.#bar + EDU_DMA_SRC, isWrite ? EDU_BUFFER : address);
    qtest.write64(this.#bar + EDU_DMA_DST, isWrite ? address : EDU_BUFFER);
    qtest.write64(this.#bar + EDU_DMA_COUNT, 8);
    qtest.write64(this.#bar + EDU_DMA_CMD, EDU_DMA_RUN | (isWrite ? EDU_DMA_TO_MEMORY : 0));
    for (let i = 0; (qtest.read(this.#bar + EDU_DMA_CMD, 4) & EDU_DMA_RUN) !== 0; i++)
      assert.ok(i < 100_000, "the transfer ends");
  }
}
