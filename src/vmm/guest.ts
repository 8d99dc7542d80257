/**
 * What a VMM runs: the third of the four boundaries (docs/architecture.md).
 *
 * Invariant: all state that a guest can see is its RAM plus what `save` returns. A guest that was saved in one
 * kernel and restored in the next cannot tell, but by the clock.
 * @module
 */
import type { MappedMemory } from "../host/mapped-memory.ts";

/** A virtual machine's processor with the software that it runs. */
export interface Guest {
  /** Runs for a short while. @returns whether it found work; if not, the VMM may sleep until an interrupt */
  step(): boolean;
  /** The registers: everything but RAM. Small and of fixed size. */
  save(): Uint8Array;
  /** Checks what it has kept in memory from end to end. @returns what is wrong, empty if nothing is */
  audit(): readonly string[];
  /** Asks the guest to come to rest: what it has handed to its devices is done, and they stop. `step` until it is. */
  shutDown(): void;
  /** It was asked to, and has come to rest. */
  readonly isAtRest: boolean;
  readonly counters: GuestCounters;
  /** The number that its NIC's frames carry. */
  readonly nicId: number;
}

export interface GuestCounters {
  /** Frames found in memory. */
  readonly received: number;
  /** Sequence numbers that were skipped. */
  readonly lost: number;
  /** Frames whose header, payload or checksum was wrong. */
  readonly corrupt: number;
  /** Frames handed to the NIC to send. */
  readonly transmitted: number;
  /** Words of other memory written and found intact again. */
  readonly dirtied: number;
}

/** What a guest is given to run on. */
export interface GuestMachine {
  /** RAM, by offset: as a guest sees it after its own address translation, without the hole below 4 GiB. */
  readonly memory: MappedMemory;
  /** Registers of the assigned device: BAR 0. */
  readonly device: DeviceRegisters;
  /**
   * The address by which the device reaches a part of RAM: the guest physical address behind an IOMMU, the host's
   * physical address without one.
   * @param lengthBytes - must be contiguous there
   */
  dmaAddress(offset: number, lengthBytes: number): number;
}

export interface DeviceRegisters {
  read32(offset: number): number;
  write32(offset: number, value: number): void;
}

/** Makes guests of one kind. `registers` is what `save` returned, or null to boot from the beginning. */
export type GuestFactory = (machine: GuestMachine, registers: Uint8Array | null) => Guest;
