/**
 * For tests: a remapping unit with RAM, and the stores and register accesses that a driver would make.
 * @module
 */

import { decodeFaultRecord, type FaultRecord, FRCD_W3_F } from "../../../abi/vtd/faults.ts";
import {
  DESCRIPTOR_BYTES,
  type Descriptor,
  storeDescriptor,
} from "../../../abi/vtd/invalidation.ts";
import {
  CCMD_HIGH_CIRG_SHIFT,
  CCMD_HIGH_ICC,
  CCMD_REG,
  ccmdLow,
  FRCD_BYTES,
  GCMD_QIE,
  GCMD_REG,
  GCMD_SRTP,
  GCMD_TE,
  GSTS_REG,
  GSTS_STATE,
  IOTLB_HIGH_IIRG_SHIFT,
  IOTLB_HIGH_IVT,
  IOTLB_OFFSET,
  IQA_REG,
  IQT_REG,
  IVA_OFFSET,
  RTADDR_REG,
} from "../../../abi/vtd/registers.ts";
import {
  AW_48_BIT,
  type ContextFields,
  contextEntry,
  contextEntryAddress,
  type EntryWords,
  rootEntry,
  rootEntryAddress,
  TT_MULTI_LEVEL,
} from "../../../abi/vtd/root-context.ts";
import {
  SS_PS,
  SS_R,
  SS_W,
  ssAddress,
  ssEntryHigh,
  ssEntryLow,
  ssIndex,
  ssIsPresent,
} from "../../../abi/vtd/second-stage.ts";
import { assert } from "../../../base/assert.ts";
import { GIB, MIB, PAGE_SIZE } from "../../../base/units.ts";
import { createSharedRam, Ram } from "../../physical-memory.ts";
import type { VtdCapabilities } from "./capabilities.ts";
import { VtdUnit } from "./vtd-unit.ts";

/** RAM with a hole, the upper part above 4 GiB. */
export const RIG_RAM = [
  { start: 0, lengthBytes: 4 * MIB },
  { start: 5 * GIB, lengthBytes: 4 * MIB },
] as const;
/** An address in the hole. */
export const NOT_RAM = GIB;

export class VtdRig {
  readonly memory = new Ram(createSharedRam(RIG_RAM));
  readonly unit: VtdUnit;
  /** Vectors that the unit has raised. */
  readonly raised: number[] = [];
  readonly rootTable: number;
  readonly #contextTables = new Map<number, number>();
  #nextPage = PAGE_SIZE;
  #nextHighPage: number = RIG_RAM[1].start;
  #queueBase = 0;
  #queueTail = 0;

  constructor(capabilities?: VtdCapabilities) {
    this.unit = new VtdUnit({
      memory: this.memory,
      registerBase: 0xfed90000,
      interrupts: { raise: (vector) => this.raised.push(vector) },
      ...(capabilities === undefined ? {} : { capabilities }),
    });
    this.rootTable = this.page();
  }

  /** A zeroed page, by turns below and above 4 GiB. */
  page(): number {
    this.#nextPage += PAGE_SIZE;
    if ((this.#nextPage / PAGE_SIZE) % 2 === 0) return this.#nextPage;
    this.#nextHighPage += PAGE_SIZE;
    return this.#nextHighPage;
  }

  get32(offset: number): number {
    return this.unit.read(offset, 4);
  }

  set32(offset: number, value: number): void {
    this.unit.write(offset, 4, value >>> 0);
  }

  set64(offset: number, value: number): void {
    this.set32(offset, value % 2 ** 32);
    this.set32(offset + 4, Math.floor(value / 2 ** 32));
  }

  /** GCMD as a driver writes it: the state from GSTS with one change. */
  command(set: number, clear = 0): void {
    this.set32(GCMD_REG, ((this.get32(GSTS_REG) & GSTS_STATE) | set) & ~clear);
  }

  /** Sets the root table and switches translation on. */
  enable(rootTable = this.rootTable): void {
    this.set64(RTADDR_REG, rootTable);
    this.command(GCMD_SRTP);
    this.flushContexts(1);
    this.flushIotlb(1);
    this.command(GCMD_TE);
  }

  /** Stores four words of an entry, the one with the present bit last. */
  store(pa: number, words: readonly number[]): void {
    for (let i = words.length - 1; i >= 0; i--) this.memory.store32(pa + 4 * i, words[i] >>> 0);
  }

  /** Stores a context entry, with a context table if there is none; a list is stored as it is. @returns its address */
  setContext(sourceId: number, entry: Partial<ContextFields> | EntryWords): number {
    const bus = sourceId >>> 8;
    const table = this.#contextTables.get(bus) ?? this.page();
    this.#contextTables.set(bus, table);
    this.store(rootEntryAddress(this.rootTable, sourceId), rootEntry(table));
    const at = contextEntryAddress(table, sourceId);
    const defaults = {
      translationType: TT_MULTI_LEVEL,
      addressWidth: AW_48_BIT,
      domainId: 1,
      secondStageTable: 0,
    };
    this.store(
      at,
      Array.isArray(entry) ? entry : contextEntry({ ...defaults, ...(entry as ContextFields) }),
    );
    return at;
  }

  /** Maps one page, of the size of `level`. @returns the address of the leaf entry */
  map(
    top: number,
    topLevel: number,
    iova: number,
    pa: number,
    level = 0,
    bits = SS_R | SS_W,
  ): number {
    let table = top;
    for (let l = topLevel; ; l--) {
      const at = table + 8 * ssIndex(iova, l);
      if (l === level) {
        this.store(at, [ssEntryLow(pa, bits | (level > 0 ? SS_PS : 0)), ssEntryHigh(pa)]);
        return at;
      }
      if (!ssIsPresent(this.memory.load32(at))) {
        const next = this.page();
        this.store(at, [ssEntryLow(next, SS_R | SS_W), ssEntryHigh(next)]);
      }
      table = ssAddress(this.memory.load32(at), this.memory.load32(at + 4));
    }
  }

  /** A domain with one mapping, translation on. @returns top table and address of the leaf entry */
  simple(sourceId: number, iova: number, pa: number, domainId = 1): { top: number; leaf: number } {
    const top = this.page();
    const leaf = this.map(top, 3, iova, pa);
    this.setContext(sourceId, { secondStageTable: top, domainId });
    this.enable();
    return { top, leaf };
  }

  /** Context-cache invalidation by CCMD. @returns the granularity done */
  flushContexts(granularity: number, domainId = 0, sourceId = 0, functionMask = 0): number {
    this.set32(CCMD_REG, ccmdLow(domainId, sourceId));
    this.set32(CCMD_REG + 4, CCMD_HIGH_ICC | (granularity << CCMD_HIGH_CIRG_SHIFT) | functionMask);
    const high = this.get32(CCMD_REG + 4);
    assert((high & CCMD_HIGH_ICC) === 0, "ICC is cleared when the command is done");
    return (high >>> 27) & 0b11;
  }

  /** IOTLB invalidation by the IOTLB register. @returns the granularity done */
  flushIotlb(granularity: number, domainId = 0, iova = 0, addressMask = 0): number {
    const base = this.unit.capabilities.ecap.iotlbOffset;
    this.set64(base + IVA_OFFSET, iova + addressMask);
    this.set32(
      base + IOTLB_OFFSET + 4,
      IOTLB_HIGH_IVT | (granularity << IOTLB_HIGH_IIRG_SHIFT) | domainId,
    );
    const high = this.get32(base + IOTLB_OFFSET + 4);
    assert((high & IOTLB_HIGH_IVT) === 0, "IVT is cleared when the command is done");
    return (high >>> 25) & 0b11;
  }

  /** Sets up a queue of one page and enables it. @returns its address */
  startQueue(): number {
    this.#queueBase = this.page();
    this.#queueTail = 0;
    this.set64(IQA_REG, this.#queueBase);
    this.command(GCMD_QIE);
    return this.#queueBase;
  }

  /** Puts descriptors into the queue and moves its tail past them. */
  submit(...descriptors: Descriptor[]): void {
    for (const descriptor of descriptors) {
      storeDescriptor(this.memory, this.#queueBase + this.#queueTail, descriptor);
      this.#queueTail = (this.#queueTail + DESCRIPTOR_BYTES) % PAGE_SIZE;
    }
    this.set32(IQT_REG, this.#queueTail);
  }

  /** Takes the recorded faults, in the order of the records, and clears them. */
  takeFaults(): FaultRecord[] {
    const { faultRecordingOffset, nfr } = this.unit.capabilities.cap;
    const faults: FaultRecord[] = [];
    for (let i = 0; i < nfr; i++) {
      const at = faultRecordingOffset + i * FRCD_BYTES;
      const fault = decodeFaultRecord(
        this.get32(at),
        this.get32(at + 4),
        this.get32(at + 8),
        this.get32(at + 12),
      );
      if (fault === null) continue;
      faults.push(fault);
      this.set32(at + 12, FRCD_W3_F);
    }
    return faults;
  }

  /** Tries one access: its translation as "0x..", or the fault reason that was recorded for it. */
  outcome(sourceId: number, iova: number, isWrite = false): string | number {
    const result = this.signedOutcome(sourceId, iova, isWrite);
    return result < 0 ? -result : `0x${result.toString(16)}`;
  }

  /** Tries one access: its translation, or the fault reason that was recorded for it, negative. */
  signedOutcome(sourceId: number, iova: number, isWrite: boolean): number {
    const pa = this.unit.translate(sourceId, iova, isWrite);
    const faults = this.takeFaults();
    if (pa !== -1) {
      assert(faults.length === 0, "no fault without a blocked request");
      return pa;
    }
    assert(
      faults.length === 1 &&
        faults[0].sourceId === sourceId &&
        faults[0].isWrite === isWrite &&
        faults[0].address === Math.floor(iova / PAGE_SIZE) * PAGE_SIZE,
      `one record of the blocked request: ${JSON.stringify(faults)}`,
    );
    return -faults[0].reason;
  }
}
