/**
 * A VT-d remapping unit: its registers, and the translation of DMA.
 *
 * Why: the kernel's driver must work on hardware that knows nothing of it, so this unit follows the
 * specification and reads nothing but registers and memory. Its caches are real: what was cached is used until it
 * is invalidated, also after GCMD.SRTP and while translation is off.
 * Source: Intel VT-d specification rev 5.0 §3 (legacy-mode translation), §6 (caches), §7 (faults), §11.4 (registers).
 * CAP.CM and CAP.RWBF: a unit that reports them is as bad as they allow. It caches what is not present and what is wrong (§6.1),
 * and it sees no store to a page that it has read until write buffers are flushed (write-buffer.ts). GCMD.WBF takes until the
 * next read of GSTS; invalidations flush by themselves.
 * Registers: 32-bit accesses, each half of a 64-bit register by itself; a command in a high half starts when
 * that half is written and is done when the write returns. Narrower writes are ignored. Reserved offsets read 0.
 * Not modelled: scalable mode, first stage, interrupt remapping, device-TLBs, protected memory regions.
 * @module
 */
import {
  FAULT_BEYOND_MGAW,
  FAULT_INTERRUPT_ADDRESS,
  FAULT_READ,
  FAULT_WRITE,
} from "../../../abi/vtd/faults.ts";
import {
  CAP_REG,
  CCMD_HIGH_CAIG_SHIFT,
  CCMD_HIGH_CIRG_SHIFT,
  CCMD_HIGH_FM_MASK,
  CCMD_HIGH_ICC,
  CCMD_REG,
  ECAP_REG,
  encodeCap,
  encodeEcap,
  FEADDR_REG,
  FECTL_REG,
  FEDATA_REG,
  FEUADDR_REG,
  FRCD_BYTES,
  FSTS_REG,
  GCMD_QIE,
  GCMD_REG,
  GCMD_SRTP,
  GCMD_TE,
  GCMD_WBF,
  GRANULARITY_DEVICE,
  GRANULARITY_DOMAIN,
  GRANULARITY_GLOBAL,
  GRANULARITY_PAGE,
  GSTS_QIES,
  GSTS_REG,
  GSTS_RTPS,
  GSTS_TES,
  GSTS_WBFS,
  ICS_REG,
  IEADDR_REG,
  IECTL_REG,
  IEDATA_REG,
  IEUADDR_REG,
  IOTLB_HIGH_DID_MASK,
  IOTLB_HIGH_DR,
  IOTLB_HIGH_DW,
  IOTLB_HIGH_IAIG_SHIFT,
  IOTLB_HIGH_IIRG_SHIFT,
  IOTLB_HIGH_IVT,
  IOTLB_OFFSET,
  IQA_REG,
  IQH_REG,
  IQT_REG,
  IVA_LOW_AM_MASK,
  IVA_LOW_IH,
  IVA_OFFSET,
  RTADDR_REG,
  VER_REG,
  VTD_REGISTERS_BYTES,
} from "../../../abi/vtd/registers.ts";
import { tableAddress } from "../../../abi/vtd/root-context.ts";
import { SS_R, SS_W } from "../../../abi/vtd/second-stage.ts";
import type { PhysicalMemory } from "../../machine.ts";
import type { DmaRemapper, InterruptSink, MmioRegion } from "../hardware.ts";
import {
  checkCapabilities,
  DEFAULT_VTD_CAPABILITIES,
  type VtdCapabilities,
} from "./capabilities.ts";
import { ContextCache } from "./context-cache.ts";
import { EventMessage } from "./event-message.ts";
import { FaultLog } from "./fault-log.ts";
import { isInterruptAddress } from "./interrupt-range.ts";
import { InvalidationQueue, type InvalidationTarget } from "./invalidation-queue.ts";
import { Iotlb } from "./iotlb.ts";
import { PagingStructureCache } from "./paging-structure-cache.ts";
import { NO_FAULT, TableWalk } from "./table-walk.ts";
import { WriteBuffer } from "./write-buffer.ts";

/** VER: 1.0, the version that has what this unit has. */
const VERSION = 0x10;

/** Counters since the unit was made. */
export interface VtdStatistics {
  /** Requests, also those while translation was off. */
  readonly translations: number;
  /** Requests blocked, recorded or not. */
  readonly faults: number;
  readonly contextHits: number;
  readonly iotlbHits: number;
}

/** What a unit is made of. */
export interface VtdUnitOptions {
  readonly memory: PhysicalMemory;
  /** Physical address of its register page. */
  readonly registerBase: number;
  /** {@link DEFAULT_VTD_CAPABILITIES} if absent. */
  readonly capabilities?: VtdCapabilities;
  /** Where its own interrupts go; if absent they are lost. */
  readonly interrupts?: InterruptSink;
}

export class VtdUnit implements MmioRegion, DmaRemapper, InvalidationTarget {
  readonly base: number;
  readonly lengthBytes = VTD_REGISTERS_BYTES;
  readonly capabilities: VtdCapabilities;
  readonly #cap: readonly [number, number];
  readonly #ecap: readonly [number, number];
  readonly #walk: TableWalk;
  readonly #contexts: ContextCache;
  readonly #iotlb: Iotlb;
  readonly #structures: PagingStructureCache;
  /** With CAP.RWBF. */
  readonly #writeBuffer: WriteBuffer | null;
  readonly #faultEvent: EventMessage;
  readonly #completionEvent: EventMessage;
  readonly #faults: FaultLog;
  readonly #queue: InvalidationQueue;

  #enabled = false;
  #rootLatched = false;
  /** GSTS.WBFS. */
  #isFlushing = false;
  /** The root table that SRTP latched; RTADDR itself may hold another. */
  #rootTable = 0;
  #rtaddrLow = 0;
  #rtaddrHigh = 0;
  #ccmdLow = 0;
  #ccmdHigh = 0;
  #ivaLow = 0;
  #ivaHigh = 0;
  #iotlbHigh = 0;

  #translations = 0;
  #faultCount = 0;
  #contextHits = 0;
  #iotlbHits = 0;

  constructor(options: VtdUnitOptions) {
    const capabilities = options.capabilities ?? DEFAULT_VTD_CAPABILITIES;
    checkCapabilities(capabilities);
    const sink = options.interrupts ?? { raise: () => undefined };
    this.base = options.registerBase;
    this.capabilities = capabilities;
    this.#cap = encodeCap(capabilities.cap);
    this.#ecap = encodeEcap(capabilities.ecap);
    this.#structures = new PagingStructureCache(capabilities.iotlbEntries);
    this.#writeBuffer = capabilities.cap.rwbf ? new WriteBuffer(options.memory) : null;
    this.#walk = new TableWalk(this.#writeBuffer ?? options.memory, capabilities, this.#structures);
    this.#contexts = new ContextCache(capabilities.contextCacheEntries);
    this.#iotlb = new Iotlb(capabilities.iotlbEntries);
    this.#faultEvent = new EventMessage(sink);
    this.#completionEvent = new EventMessage(sink);
    this.#faults = new FaultLog(capabilities.cap.nfr, this.#faultEvent);
    this.#queue = new InvalidationQueue(options.memory, this, this.#faults, this.#completionEvent);
  }

  get statistics(): VtdStatistics {
    return {
      translations: this.#translations,
      faults: this.#faultCount,
      contextHits: this.#contextHits,
      iotlbHits: this.#iotlbHits,
    };
  }

  translate(sourceId: number, iova: number, isWrite: boolean): number {
    this.#translations++;
    if (!this.#enabled) return iova;

    const contexts = this.#contexts;
    let context = contexts.lookup(sourceId);
    if (context >= 0) this.#contextHits++;
    else {
      const walk = this.#walk;
      const reason = walk.context(this.#rootTable, sourceId);
      if (reason !== NO_FAULT && !this.capabilities.cap.cm)
        return this.#fault(sourceId, iova, isWrite, reason, walk.faultDisable);
      context = contexts.allocate(sourceId);
      contexts.fault[context] = reason;
      contexts.domainId[context] = walk.domainId;
      contexts.addressLimit[context] = walk.addressLimit;
      contexts.tableAddress[context] = walk.tableAddress;
      contexts.topLevel[context] = walk.topLevel;
      contexts.faultDisable[context] = walk.faultDisable ? 1 : 0;
    }
    const reason = contexts.fault[context];
    if (reason !== NO_FAULT)
      return this.#fault(sourceId, iova, isWrite, reason, contexts.faultDisable[context] !== 0);
    return contexts.topLevel[context] < 0
      ? this.#passThrough(context, sourceId, iova, isWrite)
      : this.#multiLevel(context, sourceId, iova, isWrite);
  }

  #multiLevel(context: number, sourceId: number, iova: number, isWrite: boolean): number {
    const contexts = this.#contexts;
    const iotlb = this.#iotlb;
    const domainId = contexts.domainId[context];
    const faultDisable = contexts.faultDisable[context] !== 0;
    const limit = contexts.addressLimit[context];

    // The limit is checked before the IOTLB, in the walk: domains may be shared by contexts of other widths.
    let slot = iova < limit ? iotlb.lookup(domainId, iova) : -1;
    if (slot >= 0) {
      this.#iotlbHits++;
      const reason = iotlb.fault[slot];
      if (reason !== NO_FAULT) return this.#fault(sourceId, iova, isWrite, reason, faultDisable);
      if ((iotlb.rights[slot] & (isWrite ? SS_W : SS_R)) === 0)
        return this.#fault(
          sourceId,
          iova,
          isWrite,
          isWrite ? FAULT_WRITE : FAULT_READ,
          faultDisable,
        );
    } else {
      const walk = this.#walk;
      const reason = walk.secondStage(
        domainId,
        contexts.tableAddress[context],
        contexts.topLevel[context],
        limit,
        iova,
        isWrite,
      );
      if (reason !== NO_FAULT) {
        if (this.capabilities.cap.cm && reason !== FAULT_BEYOND_MGAW)
          this.#cacheFault(domainId, iova, reason);
        return this.#fault(sourceId, iova, isWrite, reason, faultDisable);
      }
      slot = iotlb.fill(domainId, walk.leafLevel, iova, walk.pageAddress, walk.rights);
    }
    const pa = iova + iotlb.offset[slot];
    if (isInterruptAddress(pa))
      return this.#fault(sourceId, iova, isWrite, FAULT_INTERRUPT_ADDRESS, faultDisable);
    return pa;
  }

  /** A page that is not present is one without rights; what is missing of them is for the request to find. */
  #cacheFault(domainId: number, iova: number, reason: number): void {
    const isRightsFault = reason === FAULT_READ || reason === FAULT_WRITE;
    if (!isRightsFault) this.#iotlb.fillFault(domainId, iova, reason);
    else if (this.#walk.rights === 0) this.#iotlb.fill(domainId, 0, iova, 0, 0);
  }

  #passThrough(context: number, sourceId: number, iova: number, isWrite: boolean): number {
    if (iova < this.#contexts.addressLimit[context]) return iova;
    return this.#fault(
      sourceId,
      iova,
      isWrite,
      FAULT_BEYOND_MGAW,
      this.#contexts.faultDisable[context] !== 0,
    );
  }

  #fault(
    sourceId: number,
    iova: number,
    isWrite: boolean,
    reason: number,
    faultDisable: boolean,
  ): number {
    this.#faultCount++;
    if (!faultDisable) this.#faults.record(sourceId, iova, isWrite, reason);
    return -1;
  }

  invalidateContext(
    granularity: number,
    domainId: number,
    sourceId: number,
    functionMask: number,
  ): number {
    this.#flushWriteBuffer();
    switch (granularity) {
      case GRANULARITY_GLOBAL:
        this.#contexts.invalidateAll();
        return granularity;
      case GRANULARITY_DOMAIN:
        this.#contexts.invalidateDomain(domainId);
        return granularity;
      case GRANULARITY_DEVICE:
        this.#contexts.invalidateDevice(domainId, sourceId, functionMask);
        return granularity;
      default:
        return 0;
    }
  }

  invalidateIotlb(
    granularity: number,
    domainId: number,
    iova: number,
    addressMask: number,
    leavesTables = false,
  ): number {
    this.#flushWriteBuffer();
    switch (granularity) {
      case GRANULARITY_GLOBAL:
        this.#iotlb.invalidateAll();
        this.#structures.invalidateAll();
        return granularity;
      case GRANULARITY_DOMAIN:
        this.#iotlb.invalidateDomain(domainId);
        this.#structures.invalidateDomain(domainId);
        return granularity;
      case GRANULARITY_PAGE:
        if (!this.capabilities.cap.psi || addressMask > this.capabilities.cap.mamv) return 0;
        this.#iotlb.invalidatePages(domainId, iova, addressMask);
        if (!leavesTables) this.#structures.invalidatePages(domainId, iova, addressMask);
        return granularity;
      default:
        return 0;
    }
  }

  read(offset: number, size: 1 | 2 | 4): number {
    const word = this.#readWord(offset & ~0b11) >>> 0;
    if (size === 4) return word;
    return (word >>> (8 * (offset & 0b11))) & (size === 2 ? 0xffff : 0xff);
  }

  write(offset: number, size: 1 | 2 | 4, value: number): void {
    if (size === 4) this.#writeWord(offset, value >>> 0);
  }

  #readWord(offset: number): number {
    const { cap, ecap } = this.capabilities;
    switch (offset) {
      case VER_REG:
        return VERSION;
      case CAP_REG:
        return this.#cap[0];
      case CAP_REG + 4:
        return this.#cap[1];
      case ECAP_REG:
        return this.#ecap[0];
      case ECAP_REG + 4:
        return this.#ecap[1];
      case GSTS_REG:
        return (
          (this.#finishWriteBufferFlush() ? GSTS_WBFS : 0) |
          (this.#enabled ? GSTS_TES : 0) |
          (this.#rootLatched ? GSTS_RTPS : 0) |
          (this.#queue.isEnabled ? GSTS_QIES : 0)
        );
      case RTADDR_REG:
        return this.#rtaddrLow;
      case RTADDR_REG + 4:
        return this.#rtaddrHigh;
      case CCMD_REG:
        return this.#ccmdLow;
      case CCMD_REG + 4:
        return this.#ccmdHigh;
      case FSTS_REG:
        return this.#faults.status();
      case FECTL_REG:
      case FEDATA_REG:
      case FEADDR_REG:
      case FEUADDR_REG:
        return this.#faultEvent.read((offset - FECTL_REG) / 4);
      case ecap.iotlbOffset + IOTLB_OFFSET + 4:
        return this.#iotlbHigh;
    }
    const record = offset - cap.faultRecordingOffset;
    if (record >= 0 && record < cap.nfr * FRCD_BYTES) return this.#faults.readRecord(record);
    return ecap.qi ? this.#readQueueWord(offset) : 0;
  }

  #readQueueWord(offset: number): number {
    switch (offset) {
      case IQH_REG:
        return this.#queue.head;
      case IQT_REG:
        return this.#queue.tail;
      case IQA_REG:
      case IQA_REG + 4:
        return this.#queue.readAddress(offset !== IQA_REG);
      case ICS_REG:
        return this.#queue.completionStatus;
      case IECTL_REG:
      case IEDATA_REG:
      case IEADDR_REG:
      case IEUADDR_REG:
        return this.#completionEvent.read((offset - IECTL_REG) / 4);
      default:
        return 0;
    }
  }

  #writeWord(offset: number, value: number): void {
    const { cap, ecap } = this.capabilities;
    switch (offset) {
      case GCMD_REG:
        this.#command(value);
        return;
      case RTADDR_REG:
        // Bits 11:0 are reserved without scalable mode.
        this.#rtaddrLow = (value & 0xfffff000) >>> 0;
        return;
      case RTADDR_REG + 4:
        this.#rtaddrHigh = value;
        return;
      case CCMD_REG:
        this.#ccmdLow = value;
        return;
      case CCMD_REG + 4:
        this.#contextCommand(value);
        return;
      case FSTS_REG:
        this.#faults.clearStatus(value);
        // The queue goes on from the descriptor at which it stopped.
        this.#queue.run();
        return;
      case FECTL_REG:
      case FEDATA_REG:
      case FEADDR_REG:
      case FEUADDR_REG:
        this.#faultEvent.write((offset - FECTL_REG) / 4, value);
        return;
      case ecap.iotlbOffset + IVA_OFFSET:
        this.#ivaLow = value;
        return;
      case ecap.iotlbOffset + IVA_OFFSET + 4:
        this.#ivaHigh = value;
        return;
      case ecap.iotlbOffset + IOTLB_OFFSET + 4:
        this.#iotlbCommand(value);
        return;
    }
    const record = offset - cap.faultRecordingOffset;
    if (record >= 0 && record < cap.nfr * FRCD_BYTES) this.#faults.writeRecord(record, value);
    else if (ecap.qi) this.#writeQueueWord(offset, value);
  }

  #writeQueueWord(offset: number, value: number): void {
    switch (offset) {
      case IQT_REG:
        this.#queue.writeTail(value);
        break;
      case IQA_REG:
      case IQA_REG + 4:
        this.#queue.writeAddress(offset !== IQA_REG, value);
        break;
      case ICS_REG:
        this.#queue.clearCompletionStatus(value);
        break;
      case IECTL_REG:
      case IEDATA_REG:
      case IEADDR_REG:
      case IEUADDR_REG:
        this.#completionEvent.write((offset - IECTL_REG) / 4, value);
        break;
    }
  }

  /** GCMD. The root pointer goes first, so that a write of SRTP | TE never translates by the one before. */
  #command(value: number): void {
    if ((value & GCMD_SRTP) !== 0) {
      this.#rootTable = tableAddress(this.#rtaddrLow, this.#rtaddrHigh);
      this.#rootLatched = true;
    }
    if (this.capabilities.ecap.qi) this.#queue.setEnabled((value & GCMD_QIE) !== 0);
    this.#enabled = (value & GCMD_TE) !== 0;
    if ((value & GCMD_WBF) !== 0) this.#isFlushing = this.#writeBuffer !== null;
  }

  /** A flush that GCMD.WBF has started is over after one look at it. @returns whether one was under way */
  #finishWriteBufferFlush(): boolean {
    if (!this.#isFlushing) return false;
    this.#flushWriteBuffer();
    return true;
  }

  #flushWriteBuffer(): void {
    this.#isFlushing = false;
    this.#writeBuffer?.flush();
  }

  /**
   * CCMD, high word. With the queue enabled the registers must not be used (§6.5.1): the request is then
   * ignored, which granularity 0 tells.
   */
  #contextCommand(value: number): void {
    const granularity = (value >>> CCMD_HIGH_CIRG_SHIFT) & 0b11;
    let high = value & (CCMD_HIGH_FM_MASK | (0b11 << CCMD_HIGH_CIRG_SHIFT));
    if ((value & CCMD_HIGH_ICC) === 0) high |= this.#ccmdHigh & (0b11 << CCMD_HIGH_CAIG_SHIFT);
    else if (!this.#queue.isEnabled)
      high |=
        this.invalidateContext(
          granularity,
          this.#ccmdLow & 0xffff,
          this.#ccmdLow >>> 16,
          value & CCMD_HIGH_FM_MASK,
        ) << CCMD_HIGH_CAIG_SHIFT;
    this.#ccmdHigh = high;
  }

  /** IOTLB, high word: as {@link #contextCommand}. */
  #iotlbCommand(value: number): void {
    const granularity = (value >>> IOTLB_HIGH_IIRG_SHIFT) & 0b11;
    let high =
      value &
      (IOTLB_HIGH_DID_MASK | IOTLB_HIGH_DW | IOTLB_HIGH_DR | (0b11 << IOTLB_HIGH_IIRG_SHIFT));
    if ((value & IOTLB_HIGH_IVT) === 0) high |= this.#iotlbHigh & (0b11 << IOTLB_HIGH_IAIG_SHIFT);
    else if (!this.#queue.isEnabled)
      high |=
        this.invalidateIotlb(
          granularity,
          value & IOTLB_HIGH_DID_MASK,
          tableAddress(this.#ivaLow, this.#ivaHigh),
          this.#ivaLow & IVA_LOW_AM_MASK,
          (this.#ivaLow & IVA_LOW_IH) !== 0,
        ) << IOTLB_HIGH_IAIG_SHIFT;
    this.#iotlbHigh = high;
  }
}
