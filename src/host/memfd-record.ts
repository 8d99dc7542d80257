/**
 * A JSON record kept in a memfd of fixed size, for userspace state that goes through a live update.
 *
 * Why: PRESERVE_FD freezes a memfd's size but not its content, so the record is written in place up to the
 * jump, and a stop in the middle of a write must leave the one before it.
 * Layout: two slots, each `{u32 magic, u32 generation, u32 lengthBytes, u32 checksum, UTF-8 JSON}`; the newest
 *   slot whose checksum holds counts, so that a torn write is never seen.
 * @module
 */
import { encodeUtf8 } from "../abi/struct.ts";
import { ByteWords } from "../abi/words.ts";
import { KernelError } from "../base/errno.ts";
import type { Host } from "./host.ts";

const MAGIC = 0x48464a31;
const HEADER_BYTES = 16;
/** Bytes of a record at most, whatever a memfd out of another kernel says. */
const RECORD_BYTES_MAX = 64 * 1024 * 1024;

/** A record of type T in the memfd `fd`; the descriptor is the caller's. */
export class MemfdRecord<T> {
  readonly #host: Host;
  readonly #fd: number;
  readonly #slotBytes: number;
  #generation = 0;

  private constructor(host: Host, fd: number, slotBytes: number) {
    this.#host = host;
    this.#fd = fd;
    this.#slotBytes = slotBytes;
  }

  /**
   * Makes the memfd's room.
   * @param slotBytes - the most that one record may take
   */
  static create<T>(host: Host, fd: number, slotBytes: number, first: T): MemfdRecord<T> {
    host.ftruncate(fd, 2 * slotBytes);
    host.fallocate(fd, 0, 0, 2 * slotBytes);
    const record = new MemfdRecord<T>(host, fd, slotBytes);
    record.write(first);
    return record;
  }

  /**
   * Opens a record that was preserved.
   * @throws {KernelError} EIO when neither slot holds a record: the file is not one or it is damaged
   */
  static open<T>(host: Host, fd: number): MemfdRecord<T> {
    const record = new MemfdRecord<T>(host, fd, Math.floor(host.fstat(fd).sizeBytes / 2));
    record.#generation = record.#newest().generation;
    return record;
  }

  /** The newest record. @throws {KernelError} EIO as {@link open} */
  read(): T {
    return this.#newest().value as T;
  }

  /** Replaces the record. @throws {KernelError} EFBIG when it is too large for its slot */
  write(value: T): void {
    const text = encodeUtf8(JSON.stringify(value));
    const lengthBytes = HEADER_BYTES + text.length;
    const roomBytes = Math.min(this.#slotBytes, RECORD_BYTES_MAX);
    if (lengthBytes > roomBytes)
      throw new KernelError("EFBIG", "record", `${lengthBytes} bytes exceed ${roomBytes}`);
    const generation = this.#generation + 1;
    const header = new Uint8Array(HEADER_BYTES);
    const words = new ByteWords(header);
    words.store32(0, MAGIC);
    words.store32(4, generation);
    words.store32(8, text.length);
    words.store32(12, checksum(text));
    const at = this.#slotBytes * (generation % 2);
    // The text first: a header without its text fails the checksum, and the other slot still counts.
    this.#host.pwrite(this.#fd, text, at + HEADER_BYTES);
    this.#host.pwrite(this.#fd, header, at);
    this.#generation = generation;
  }

  #newest(): Slot {
    const slots = [this.#readSlot(0), this.#readSlot(1)].filter((slot) => slot !== null);
    slots.sort((a, b) => b.generation - a.generation);
    if (slots.length === 0)
      throw new KernelError("EIO", "record", "the memfd holds no intact record");
    return slots[0];
  }

  /** Null when it holds no intact record. */
  #readSlot(index: number): Slot | null {
    const at = this.#slotBytes * index;
    const header = new Uint8Array(HEADER_BYTES);
    if (this.#host.pread(this.#fd, header, at) !== HEADER_BYTES) return null;
    const words = new ByteWords(header);
    const lengthBytes = words.load32(8);
    const roomBytes = Math.min(this.#slotBytes, RECORD_BYTES_MAX) - HEADER_BYTES;
    if (words.load32(0) !== MAGIC || lengthBytes > roomBytes) return null;
    const text = new Uint8Array(lengthBytes);
    if (this.#host.pread(this.#fd, text, at + HEADER_BYTES) !== lengthBytes) return null;
    if (checksum(text) !== words.load32(12)) return null;
    const value = parseJson(new TextDecoder().decode(text));
    return value === undefined ? null : { generation: words.load32(4), value };
  }
}

interface Slot {
  readonly generation: number;
  readonly value: unknown;
}

/** Undefined when it is no JSON. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/** FNV-1a, 32 bits. */
function checksum(bytes: Uint8Array): number {
  let hash = 0x811c9dc5;
  for (const byte of bytes) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}
