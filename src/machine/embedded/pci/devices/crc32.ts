/**
 * The frame check sequence of Ethernet.
 *
 * Source: IEEE Std 802.3 §3.2.9: CRC-32, reflected, polynomial 0xedb88320, sent least significant byte first
 * @module
 */

const TABLE: Readonly<Uint32Array> = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc & 1) !== 0 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  return crc;
});

/** Appends the FCS of `bytes[0 .. lengthBytes)` at `lengthBytes`. */
export function putCrc32(bytes: Uint8Array, lengthBytes: number): void {
  let crc = 0xffffffff;
  for (let i = 0; i < lengthBytes; i++) crc = (crc >>> 8) ^ TABLE[(crc ^ bytes[i]) & 0xff];
  crc = ~crc;
  for (let i = 0; i < 4; i++) bytes[lengthBytes + i] = crc >>> (8 * i);
}
