/**
 * Descriptors to wait for, as poll(2) takes them.
 * @module
 */
import { POLLFD_BYTES } from "./ffi.ts";

/** A descriptor and what to wait for: POLLIN, POLLOUT, or both. */
export type Wanted = readonly [fd: number, events: number];

export class PollSet {
  /** Array of struct pollfd. */
  readonly bytes: Uint8Array;
  readonly #words: DataView;
  readonly #places: ReadonlyMap<number, number>;

  constructor(entries: readonly Wanted[]) {
    this.bytes = new Uint8Array(entries.length * POLLFD_BYTES);
    this.#words = new DataView(this.bytes.buffer);
    this.#places = new Map(entries.map(([fd], i) => [fd, i * POLLFD_BYTES]));
    entries.forEach(([fd, events], i) => {
      this.#words.setInt32(i * POLLFD_BYTES, fd, true);
      this.#words.setInt16(i * POLLFD_BYTES + 4, events, true);
    });
  }

  /** What poll(2) has found: also POLLERR and POLLHUP, which nobody asks for. 0: nothing, or it was not in the set. */
  found(fd: number): number {
    const place = this.#places.get(fd);
    return place === undefined ? 0 : this.#words.getInt16(place + 6, true);
  }
}
