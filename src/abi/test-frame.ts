/**
 * The Ethernet frame of our traffic source, which says by itself whether it is whole.
 *
 * Why: a receiver that knows nothing but the frame must be able to tell a lost, doubled, torn or foreign frame from a
 * good one; tens of thousands per second, without allocating.
 * Layout: (Ethernet's fields big-endian, ours little-endian)
 *   0 destination MAC · 6 source MAC · 12 ethertype 0x88b5 (IEEE 802, local experimental) · 14 u16 length of the
 *   whole frame · 16 u32 nic id · 20 u32 sequence low · 24 u32 sequence high · 28 payload · length - 4 u32 checksum
 * The payload is a stream of xorshift32 words seeded by (nic id, sequence); the checksum is FNV-1a's over
 * the 32-bit words before it, then over the bytes that are left.
 * @module
 */

/** IEEE Std 802 local experimental ethertype 1. */
export const TEST_FRAME_ETHERTYPE = 0x88b5;
export const TEST_FRAME_MIN_BYTES = 60;
/** Largest untagged Ethernet frame without its FCS. */
export const TEST_FRAME_MAX_BYTES = 1514;

export const TEST_FRAME_NIC_ID = 16;
export const TEST_FRAME_SEQUENCE = 20;
const LENGTH = 14;
const PAYLOAD = 28;
const CHECKSUM_BYTES = 4;

/** What is wrong with a frame; "" is nothing. */
export type TestFrameDefect = "" | "length" | "ethertype" | "nic" | "checksum" | "payload";

/**
 * Writes a whole frame.
 *
 * @param frame - its length is the frame's: TEST_FRAME_MIN_BYTES to TEST_FRAME_MAX_BYTES
 * @param destination - 6 bytes
 * @param source - 6 bytes
 * @param nicId - 32 bits
 * @param sequence - below 2^53
 */
export function encodeTestFrame(
  frame: Uint8Array,
  destination: Uint8Array,
  source: Uint8Array,
  nicId: number,
  sequence: number,
): void {
  const n = frame.length;
  if (n < TEST_FRAME_MIN_BYTES || n > TEST_FRAME_MAX_BYTES)
    throw new RangeError(`a test frame of ${n} bytes`);
  for (let i = 0; i < 6; i++) {
    frame[i] = destination[i];
    frame[6 + i] = source[i];
  }
  frame[12] = TEST_FRAME_ETHERTYPE >> 8;
  frame[13] = TEST_FRAME_ETHERTYPE & 0xff;
  frame[LENGTH] = n & 0xff;
  frame[LENGTH + 1] = n >> 8;
  put32(frame, TEST_FRAME_NIC_ID, nicId);
  put32(frame, TEST_FRAME_SEQUENCE, sequence % 2 ** 32);
  put32(frame, TEST_FRAME_SEQUENCE + 4, Math.floor(sequence / 2 ** 32));
  let word = payloadSeed(frame);
  for (let i = PAYLOAD; i < n - CHECKSUM_BYTES; i += 4) {
    word = nextWord(word);
    const end = Math.min(4, n - CHECKSUM_BYTES - i);
    for (let b = 0; b < end; b++) frame[i + b] = word >>> (8 * b);
  }
  put32(frame, n - CHECKSUM_BYTES, checksum(frame, n - CHECKSUM_BYTES));
}

/**
 * Checks a received frame. Safe on any bytes.
 *
 * @param bytes - holds the frame from offset `at` on
 * @param lengthBytes - its length as the receiver was told
 * @param nicId - whose frames are expected
 * @returns "" when it is exactly what {@link encodeTestFrame} wrote
 */
export function verifyTestFrame(
  bytes: Uint8Array,
  at: number,
  lengthBytes: number,
  nicId: number,
): TestFrameDefect {
  if (
    lengthBytes < TEST_FRAME_MIN_BYTES ||
    lengthBytes > TEST_FRAME_MAX_BYTES ||
    at + lengthBytes > bytes.length
  )
    return "length";
  const frame =
    at === 0 && lengthBytes === bytes.length ? bytes : bytes.subarray(at, at + lengthBytes);
  if (((frame[12] << 8) | frame[13]) !== TEST_FRAME_ETHERTYPE) return "ethertype";
  if ((frame[LENGTH] | (frame[LENGTH + 1] << 8)) !== lengthBytes) return "length";
  const end = lengthBytes - CHECKSUM_BYTES;
  if (get32(frame, end) !== checksum(frame, end)) return "checksum";
  if (get32(frame, TEST_FRAME_NIC_ID) !== nicId >>> 0) return "nic";
  let word = payloadSeed(frame);
  for (let i = PAYLOAD; i < end; i += 4) {
    word = nextWord(word);
    const length = Math.min(4, end - i);
    for (let b = 0; b < length; b++)
      if (frame[i + b] !== ((word >>> (8 * b)) & 0xff)) return "payload";
  }
  return "";
}

/** The sequence number of a frame that is known to be good. */
export function testFrameSequence(bytes: Uint8Array, at: number): number {
  return (
    get32(bytes, at + TEST_FRAME_SEQUENCE) + get32(bytes, at + TEST_FRAME_SEQUENCE + 4) * 2 ** 32
  );
}

function payloadSeed(frame: Uint8Array): number {
  const mixed =
    Math.imul(get32(frame, TEST_FRAME_NIC_ID) + 1, 0x9e3779b1) ^
    Math.imul(get32(frame, TEST_FRAME_SEQUENCE) + 1, 0x85ebca77) ^
    Math.imul(get32(frame, TEST_FRAME_SEQUENCE + 4) + 1, 0xc2b2ae3d);
  // xorshift stays at zero once there.
  return mixed === 0 ? 1 : mixed;
}

function nextWord(word: number): number {
  let x = word;
  x ^= x << 13;
  x ^= x >>> 17;
  x ^= x << 5;
  return x;
}

function checksum(frame: Uint8Array, end: number): number {
  let hash = 0x811c9dc5;
  const whole = end - (end % 4);
  for (let i = 0; i < whole; i += 4) {
    const word = frame[i] | (frame[i + 1] << 8) | (frame[i + 2] << 16) | (frame[i + 3] << 24);
    hash = Math.imul(hash ^ word, 0x01000193);
  }
  for (let i = whole; i < end; i++) hash = Math.imul(hash ^ frame[i], 0x01000193);
  return hash >>> 0;
}

function put32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

function get32(bytes: Uint8Array, at: number): number {
  return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;
}
