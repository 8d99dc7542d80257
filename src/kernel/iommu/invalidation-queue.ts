/**
 * Queued invalidation: requests in memory, taken by hardware in batches.
 *
 * Why not preserved over a kexec: hardware reads the queue only between a move of IQT and the completion of the wait
 * descriptor, so between requests nothing refers to its page. Every kernel brings its own.
 * Layout: a block of two pages: 256 descriptors, then the word that wait descriptors write.
 * Source: VT-d spec rev 5.0 §6.5.2
 * @module
 */
import { FSTS_ICE, FSTS_IQE, FSTS_ITE } from "../../abi/vtd/faults.ts";
import {
  contextCacheDescriptor,
  DESCRIPTOR_BYTES,
  type Descriptor,
  iotlbDescriptor,
  storeDescriptor,
  waitDescriptor,
} from "../../abi/vtd/invalidation.ts";
import {
  FSTS_REG,
  GCMD_QIE,
  GRANULARITY_DEVICE,
  GRANULARITY_DOMAIN,
  GRANULARITY_GLOBAL,
  GRANULARITY_PAGE,
  IQA_REG,
  IQT_REG,
} from "../../abi/vtd/registers.ts";
import { assert } from "../../base/assert.ts";
import { hex, PAGE_SIZE } from "../../base/units.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import type { Invalidation } from "./invalidation.ts";
import type { UnitRegisters } from "./unit-registers.ts";

const QUEUE_ORDER = 1;
/** Pages that a queue takes: descriptors, and the status word of waits. */
export const QUEUE_PAGES = 2 ** QUEUE_ORDER;
/** One descriptor stays free, since a full queue would look empty, and one is for the wait. */
const BATCH_MAX = PAGE_SIZE / DESCRIPTOR_BYTES - 2;
const ERRORS = FSTS_IQE | FSTS_ITE | FSTS_ICE;

/** The queue of one unit. */
export class InvalidationQueue implements Invalidation {
  readonly #memory: PhysicalMemory;
  readonly #registers: UnitRegisters;
  readonly #queue: number;
  readonly #status: number;
  #tail = 0;
  #pending = 0;
  #sequence = 0;

  /**
   * Takes the unit's queue over: another one must be idle, as the previous kernel leaves it.
   * @throws {KernelError} ENOMEM, before anything was changed
   */
  constructor(memory: PhysicalMemory, mm: PageAllocator, registers: UnitRegisters) {
    this.#memory = memory;
    this.#registers = registers;
    this.#queue = mm.alloc(QUEUE_ORDER);
    this.#status = this.#queue + PAGE_SIZE;
    // The queue may move only while it is off; translation does not depend on it.
    if (registers.status(GCMD_QIE)) registers.disable(GCMD_QIE);
    registers.write32(FSTS_REG, ERRORS);
    registers.write64(IQT_REG, 0);
    registers.write64(IQA_REG, this.#queue);
    registers.enable(GCMD_QIE);
  }

  contextGlobal(): void {
    this.#push(contextCacheDescriptor(GRANULARITY_GLOBAL));
  }

  contextDevice(did: number, sourceId: number): void {
    this.#push(contextCacheDescriptor(GRANULARITY_DEVICE, did, sourceId));
  }

  iotlbGlobal(): void {
    this.#push(iotlbDescriptor(GRANULARITY_GLOBAL));
  }

  iotlbDomain(did: number): void {
    this.#push(iotlbDescriptor(GRANULARITY_DOMAIN, did));
  }

  iotlbPages(did: number, iova: number, addressMask: number): void {
    this.#push(iotlbDescriptor(GRANULARITY_PAGE, did, iova, addressMask));
  }

  wait(): void {
    if (this.#pending === 0) return;
    this.#sequence = (this.#sequence + 1) >>> 0;
    this.#store(waitDescriptor(this.#status, this.#sequence));
    this.#pending = 0;
    // Entries that changed, and the descriptors, must be in memory before hardware is told.
    this.#memory.fence();
    this.#registers.write32(IQT_REG, this.#tail);
    this.#registers.waitUntil(() => {
      if (this.#memory.loadOrdered32(this.#status) === this.#sequence) return true;
      const errors = this.#registers.read32(FSTS_REG) & ERRORS;
      assert(
        errors === 0,
        `DMAR hardware at ${hex(this.#registers.base)} is malfunctioning: invalidation fails, FSTS ${hex(errors)}`,
      );
      return false;
    });
  }

  #push(descriptor: Descriptor): void {
    if (this.#pending === BATCH_MAX) this.wait();
    this.#store(descriptor);
    this.#pending++;
  }

  #store(descriptor: Descriptor): void {
    storeDescriptor(this.#memory, this.#queue + this.#tail, descriptor);
    this.#tail = (this.#tail + DESCRIPTOR_BYTES) % PAGE_SIZE;
  }
}
