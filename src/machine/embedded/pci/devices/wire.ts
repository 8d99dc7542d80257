/**
 * What can be at the other end of a network cable.
 * @module
 */
import { testFrameSequence, verifyTestFrame } from "../../../../abi/test-frame.ts";
import type { E1000e, EthernetWire } from "./e1000e.ts";

/** Takes frames that a guest sends and checks that they are test frames in sequence. */
export class CheckingWire implements EthernetWire {
  readonly #nicId: number;
  #frames = 0;
  #corrupt = 0;
  #outOfSequence = 0;
  #next = 0;

  /** @param nicId - whose test frames are expected */
  constructor(nicId: number) {
    this.#nicId = nicId;
  }

  get frames(): number {
    return this.#frames;
  }
  /** Frames that are not test frames of that NIC, whole. */
  get corrupt(): number {
    return this.#corrupt;
  }
  /** Whole frames whose sequence is not that of the one before plus one. */
  get outOfSequence(): number {
    return this.#outOfSequence;
  }

  transmit(frame: Uint8Array): void {
    this.#frames++;
    if (verifyTestFrame(frame, 0, frame.length, this.#nicId) !== "") {
      this.#corrupt++;
      return;
    }
    const sequence = testFrameSequence(frame, 0);
    if (sequence !== this.#next) this.#outOfSequence++;
    this.#next = sequence + 1;
  }
}

/** A cable to another NIC. Connected after both exist. */
export class Cable implements EthernetWire {
  #peer: E1000e | null = null;
  #lost = 0;

  connect(peer: E1000e): void {
    this.#peer = peer;
  }

  /** Frames that the peer did not take. */
  get lost(): number {
    return this.#lost;
  }

  transmit(frame: Uint8Array): void {
    if (this.#peer?.receive(frame) !== "delivered") this.#lost++;
  }
}
