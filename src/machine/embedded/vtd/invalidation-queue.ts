/**
 * The invalidation queue: a ring of descriptors in memory, read from head to tail.
 *
 * Source: Intel VT-d specification rev 5.0 §6.5.2, §11.4 (IQH, IQT, IQA, ICS).
 * Lifecycle: IQA is written (head and tail become 0), GCMD.QIE starts the queue, each write of IQT runs all
 * descriptors up to it at once. A bad descriptor sets FSTS.IQE: head stays at it, and the queue goes on from
 * there when software has cleared IQE.
 * Not modelled: 256-bit descriptors, device-TLB and interrupt-entry descriptors (their types are invalid
 * here, as ECAP.DT and ECAP.IR are 0), and time: a wait descriptor never waits, so fences need nothing.
 * @module
 */
import {
  CONTEXT_CACHE_RESERVED,
  DESCRIPTOR_BYTES,
  DESCRIPTOR_CONTEXT_CACHE,
  DESCRIPTOR_DID_SHIFT,
  DESCRIPTOR_G_SHIFT,
  DESCRIPTOR_IOTLB,
  DESCRIPTOR_WAIT,
  type Descriptor,
  descriptorType,
  IOTLB_RESERVED,
  loadDescriptor,
  WAIT_IF,
  WAIT_RESERVED,
  WAIT_SW,
} from "../../../abi/vtd/invalidation.ts";
import {
  ICS_IWC,
  IQ_OFFSET_MASK,
  IQA_LOW_QS_MASK,
  IVA_LOW_AM_MASK,
  IVA_LOW_IH,
} from "../../../abi/vtd/registers.ts";
import { tableAddress } from "../../../abi/vtd/root-context.ts";
import type { PhysicalMemory } from "../../machine.ts";
import type { EventMessage } from "./event-message.ts";
import type { FaultLog } from "./fault-log.ts";

/** What the queue, and the registers of the same purpose, can order. Each returns the granularity done, 0 for a bad request. */
export interface InvalidationTarget {
  invalidateContext(
    granularity: number,
    domainId: number,
    sourceId: number,
    functionMask: number,
  ): number;
  /** @param leavesTables - IH: no entry that names a table has changed */
  invalidateIotlb(
    granularity: number,
    domainId: number,
    iova: number,
    addressMask: number,
    leavesTables: boolean,
  ): number;
}

export class InvalidationQueue {
  readonly #memory: PhysicalMemory;
  readonly #target: InvalidationTarget;
  readonly #faults: FaultLog;
  readonly #completion: EventMessage;
  #enabled = false;
  #addressLow = 0;
  #addressHigh = 0;
  #head = 0;
  #tail = 0;
  #completionStatus = 0;

  constructor(
    memory: PhysicalMemory,
    target: InvalidationTarget,
    faults: FaultLog,
    completion: EventMessage,
  ) {
    this.#memory = memory;
    this.#target = target;
    this.#faults = faults;
    this.#completion = completion;
  }

  /** GSTS.QIES. */
  get isEnabled(): boolean {
    return this.#enabled;
  }

  /** GCMD.QIE. Switching it on or off resets the head; what is between head and tail when it goes on is run. */
  setEnabled(enabled: boolean): void {
    if (enabled === this.#enabled) return;
    this.#enabled = enabled;
    this.#head = 0;
    this.run();
  }

  /** IQH, low word. */
  get head(): number {
    return this.#head;
  }

  /** IQT, low word. */
  get tail(): number {
    return this.#tail;
  }

  writeTail(value: number): void {
    this.#tail = value & IQ_OFFSET_MASK;
    this.run();
  }

  /** IQA. @param high - whether the high word */
  readAddress(high: boolean): number {
    return high ? this.#addressHigh : this.#addressLow;
  }

  /** Writes one word of IQA. While the queue is enabled the register is not writable. */
  writeAddress(high: boolean, value: number): void {
    if (this.#enabled) return;
    if (high) this.#addressHigh = value;
    else this.#addressLow = (value & (0xfffff000 | IQA_LOW_QS_MASK)) >>> 0;
    this.#head = 0;
    this.#tail = 0;
  }

  /** ICS. */
  get completionStatus(): number {
    return this.#completionStatus;
  }

  /** Writes ICS: ones clear. */
  clearCompletionStatus(value: number): void {
    this.#completionStatus &= ~(value & ICS_IWC);
    if (this.#completionStatus === 0) this.#completion.withdraw();
  }

  /** Runs descriptors until head meets tail, or one is bad. */
  run(): void {
    if (!this.#enabled || this.#faults.isQueueStopped) return;
    const base = tableAddress(this.#addressLow, this.#addressHigh);
    const sizeBytes = 4096 * 2 ** (this.#addressLow & IQA_LOW_QS_MASK);
    if (this.#tail >= sizeBytes) {
      this.#faults.queueError();
      return;
    }
    while (this.#head !== this.#tail) {
      const at = base + this.#head;
      if (
        !this.#memory.contains(at, DESCRIPTOR_BYTES) ||
        !this.#execute(loadDescriptor(this.#memory, at))
      ) {
        this.#faults.queueError();
        return;
      }
      this.#head = (this.#head + DESCRIPTOR_BYTES) % sizeBytes;
    }
  }

  /** @returns whether the descriptor was valid; one that is not has done nothing */
  #execute(descriptor: Descriptor): boolean {
    const [w0, w1, w2, w3] = descriptor;
    const granularity = (w0 >>> DESCRIPTOR_G_SHIFT) & 0b11;
    const domainId = w0 >>> DESCRIPTOR_DID_SHIFT;
    switch (descriptorType(w0)) {
      case DESCRIPTOR_CONTEXT_CACHE:
        return (
          !hasReserved(descriptor, CONTEXT_CACHE_RESERVED) &&
          this.#target.invalidateContext(granularity, domainId, w1 & 0xffff, (w1 >>> 16) & 0b11) !==
            0
        );
      case DESCRIPTOR_IOTLB:
        return (
          !hasReserved(descriptor, IOTLB_RESERVED) &&
          this.#target.invalidateIotlb(
            granularity,
            domainId,
            tableAddress(w2, w3),
            w2 & IVA_LOW_AM_MASK,
            (w2 & IVA_LOW_IH) !== 0,
          ) !== 0
        );
      case DESCRIPTOR_WAIT: {
        if (hasReserved(descriptor, WAIT_RESERVED)) return false;
        const statusAddress = w3 * 2 ** 32 + w2;
        // A write to no memory is lost, as on the bus.
        if ((w0 & WAIT_SW) !== 0 && this.#memory.contains(statusAddress, 4))
          this.#memory.store32(statusAddress, w1);
        if ((w0 & WAIT_IF) !== 0) this.#complete();
        return true;
      }
      default:
        return false;
    }
  }

  #complete(): void {
    if (this.#completionStatus !== 0) return;
    this.#completionStatus = ICS_IWC;
    this.#completion.raise();
  }
}

function hasReserved(descriptor: Descriptor, reserved: readonly number[]): boolean {
  let bits = 0;
  for (let i = 0; i < 4; i++) bits |= descriptor[i] & reserved[i];
  return bits !== 0;
}
