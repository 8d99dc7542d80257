/**
 * The way of a function's requests to memory: bridges, remapping unit, RAM.
 *
 * Why: here is where a device without bus mastering is stopped, where a request becomes interrupt or memory access, and
 * where its address is translated; no device model can go around it.
 * Source: PCI Express Base 5.0 §2.4 (ordering), §6.6; VT-d rev 5.0 §3.14 (interrupt addresses are not translated)
 * Invariants: writes of one function are seen in the order in which it made them; a request is looked at page by page
 *   and stops at the first page that fails.
 * Not modelled: peer-to-peer (an address outside RAM is an unsupported request), interrupt remapping, ATS, PASID.
 * @module
 */
import { MSI_ADDRESS_BASE, MSI_ADDRESS_LAST, MSI_DATA_VECTOR_MASK } from "../../../abi/pci.ts";
import { PAGE_SIZE } from "../../../base/units.ts";
import type { PhysicalMemory } from "../../machine.ts";
import type { DmaPort, DmaRemapper, InterruptSink } from "../hardware.ts";

/** What is above a root bus. */
export interface UpstreamPort {
  readonly memory: PhysicalMemory;
  readonly interrupts: InterruptSink;
  /** The unit that translates this segment group's requests; null: they are physical addresses. */
  readonly remapper: DmaRemapper | null;
}

/** Who makes the requests. */
export interface Requester {
  readonly bdf: number;
  readonly canMaster: boolean;
}

export class RequesterDma implements Pick<DmaPort, "read" | "write"> {
  readonly #upstream: UpstreamPort;
  readonly #requester: Requester;

  constructor(upstream: UpstreamPort, requester: Requester) {
    this.#upstream = upstream;
    this.#requester = requester;
  }

  read(address: number, target: Uint8Array): boolean {
    const { memory } = this.#upstream;
    if (this.#requester.canMaster) {
      let done = 0;
      while (done < target.length) {
        const length = pieceBytes(address + done, target.length - done);
        const pa = isInterrupt(address + done) ? -1 : this.#translate(address + done, false);
        if (!memory.contains(pa, length)) break;
        memory.read(pa, part(target, done, length));
        done += length;
      }
      if (done === target.length) return true;
    }
    // What a failed read returns on PCI.
    target.fill(0xff);
    return false;
  }

  write(address: number, bytes: Uint8Array): boolean {
    if (!this.#requester.canMaster) return false;
    for (let done = 0; done < bytes.length; ) {
      const length = pieceBytes(address + done, bytes.length - done);
      if (isInterrupt(address + done)) {
        if (!this.#interrupt(address, bytes)) return false;
      } else if (!this.#store(address + done, part(bytes, done, length))) return false;
      done += length;
    }
    return true;
  }

  #translate(address: number, isWrite: boolean): number {
    const { remapper } = this.#upstream;
    return remapper === null ? address : remapper.translate(this.#requester.bdf, address, isWrite);
  }

  #store(address: number, bytes: Uint8Array): boolean {
    const { memory } = this.#upstream;
    const pa = this.#translate(address, true);
    if (!memory.contains(pa, bytes.length)) return false;
    // Everything written before must be visible before this is: a driver that sees a status bit reads the rest next.
    memory.fence();
    if (bytes.length === 4 && pa % 4 === 0)
      // In one piece, as a reader that polls this word expects.
      memory.store32(pa, (bytes[0] | (bytes[1] << 8) | (bytes[2] << 16) | (bytes[3] << 24)) >>> 0);
    else memory.write(pa, bytes);
    return true;
  }

  #interrupt(address: number, bytes: Uint8Array): boolean {
    if (bytes.length !== 4 || address % 4 !== 0) return false;
    // The data that the interrupt is about goes first, as any earlier write does.
    this.#upstream.memory.fence();
    this.#upstream.interrupts.raise(bytes[0] & MSI_DATA_VECTOR_MASK);
    return true;
  }
}

function isInterrupt(address: number): boolean {
  return address >= MSI_ADDRESS_BASE && address <= MSI_ADDRESS_LAST;
}

/** Bytes up to the end of the page, at most `left`. */
function pieceBytes(address: number, left: number): number {
  return Math.min(left, PAGE_SIZE - (address % PAGE_SIZE));
}

function part(bytes: Uint8Array, start: number, length: number): Uint8Array {
  return length === bytes.length ? bytes : bytes.subarray(start, start + length);
}
