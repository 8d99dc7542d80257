/**
 * Kernel images for tests: a bzImage with as much in it as is looked at.
 * @module
 */
import { gzipSync } from "node:zlib";

/** What is special about an image. */
export interface ImageOptions {
  readonly release?: string;
  /** Lines of its configuration; null for a kernel without IKCONFIG. */
  readonly config?: readonly string[] | null;
  readonly compatibles?: readonly string[];
  readonly isSigned?: boolean;
  readonly commandLineBytesMax?: number;
  /** The whole compressed payload, in place of one made of the above. */
  readonly payload?: Uint8Array;
}

export const LIVE_UPDATE_CONFIG = [
  "CONFIG_KEXEC_HANDOVER=y",
  "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT=y",
  "CONFIG_LIVEUPDATE=y",
  "CONFIG_LIVEUPDATE_MEMFD=y",
] as const;

const SETUP_SECTS = 7;
const SETUP_BYTES = (SETUP_SECTS + 1) * 512;
const VERSION_AT = 0xe00;
const PE_AT = 0x400;
/** Protected-mode code before the payload. */
const CODE_BYTES = 100;

/** A bzImage that can be described, and not booted. */
export function bzImage(options: ImageOptions = {}): Uint8Array {
  const payload = options.payload ?? gzipSync(vmlinux(options));
  const bytes = Buffer.alloc(SETUP_BYTES + CODE_BYTES + payload.length + 32);
  bytes[0x1f1] = SETUP_SECTS;
  bytes.write("HdrS", 0x202, "latin1");
  bytes.writeUInt16LE(0x20f, 0x206);
  bytes.writeUInt16LE(VERSION_AT - 0x200, 0x20e);
  bytes.write(`${options.release ?? "7.3.0"} (root@host) #1 SMP\0`, VERSION_AT, "latin1");
  bytes.writeUInt32LE(options.commandLineBytesMax ?? 2047, 0x238);
  bytes.writeUInt32LE(CODE_BYTES, 0x248);
  bytes.writeUInt32LE(payload.length, 0x24c);
  bytes.set(payload, SETUP_BYTES + CODE_BYTES);
  // The EFI stub: MZ, PE32+, and the fifth data directory, which is the certificate table.
  bytes.write("MZ", 0, "latin1");
  bytes.writeUInt32LE(PE_AT, 0x3c);
  bytes.write("PE\0\0", PE_AT, "latin1");
  bytes.writeUInt16LE(0x20b, PE_AT + 24);
  if (options.isSigned === true) bytes.writeUInt32LE(1480, PE_AT + 24 + 144 + 4);
  return bytes;
}

/** An unpacked kernel. */
export function vmlinux(options: ImageOptions = {}): Uint8Array {
  const { config = LIVE_UPDATE_CONFIG, compatibles = ["kho-v4", "luo-v5", "memfd-v2"] } = options;
  const strings = compatibles.map((compatible) => `\xff\xff${compatible}\0`).join("");
  const pieces = [Buffer.from(`\x7fELF\0\0\0some text, cpu-v9x\0${strings}`, "latin1")];
  if (config !== null)
    pieces.push(Buffer.from("IKCFG_ST"), gzipSync(config.join("\n")), Buffer.from("IKCFG_ED"));
  return Buffer.concat(pieces);
}
