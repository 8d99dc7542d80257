/**
 * The registers with which a remapping unit raises an interrupt by itself: control, data, address.
 *
 * Why: fault events (FECTL ...) and invalidation completion events (IECTL ...) work alike.
 * Source: Intel VT-d specification rev 5.0 §7.2.1.2 and §11.4, Fault Event and Invalidation Event registers.
 * Not modelled: extended interrupt mode, so the upper address and the upper half of the data are read-only 0.
 * @module
 */
import { EVENT_IM, EVENT_IP } from "../../../abi/vtd/registers.ts";
import type { InterruptSink } from "../hardware.ts";
import { isInterruptAddress } from "./interrupt-range.ts";

export class EventMessage {
  #masked = true;
  #pending = false;
  #data = 0;
  #address = 0;
  readonly #sink: InterruptSink;

  constructor(sink: InterruptSink) {
    this.#sink = sink;
  }

  /** An interrupt condition: sends the message, or keeps it pending while it is masked. */
  raise(): void {
    this.#pending = true;
    this.#deliver();
  }

  /** Software has cleared every status bit that the interrupt was for. */
  withdraw(): void {
    this.#pending = false;
  }

  /** @param index - of the register: 0 control, 1 data, 2 address, 3 upper address */
  read(index: number): number {
    switch (index) {
      case 0:
        return ((this.#masked ? EVENT_IM : 0) | (this.#pending ? EVENT_IP : 0)) >>> 0;
      case 1:
        return this.#data;
      case 2:
        return this.#address;
      default:
        return 0;
    }
  }

  write(index: number, value: number): void {
    switch (index) {
      case 0:
        this.#masked = (value & EVENT_IM) !== 0;
        this.#deliver();
        break;
      case 1:
        this.#data = value & 0xffff;
        break;
      case 2:
        this.#address = (value & ~0b11) >>> 0;
        break;
    }
  }

  #deliver(): void {
    if (this.#masked || !this.#pending) return;
    this.#pending = false;
    // A message to any other address reaches no interrupt controller.
    if (isInterruptAddress(this.#address)) this.#sink.raise(this.#data & 0xff);
  }
}
