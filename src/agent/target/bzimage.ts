/**
 * The header of a Linux bzImage: release, longest command line, where the compressed kernel lies, whether it is signed.
 *
 * Source: Linux 7.3 Documentation/arch/x86/boot.rst; PE/COFF specification, "Optional Header Data Directories"
 * Layout: boot sector and setup code, `setup_sects` + 1 sectors of 512 bytes; then protected-mode code, with the payload
 *   in it. An EFI stub makes the same file a PE executable, which is what signatures are made of.
 * Not modelled: images of other processors (arm64's Image has no such header).
 * @module
 */
import { KernelError } from "../../base/errno.ts";

const SECTOR_BYTES = 512;
const SETUP_SECTS = 0x1f1;
const HEADER_MAGIC = 0x202;
const VERSION = 0x206;
const KERNEL_VERSION = 0x20e;
const CMDLINE_SIZE = 0x238;
const PAYLOAD_OFFSET = 0x248;
const PAYLOAD_LENGTH = 0x24c;
const HEADER_END = 0x268;
/** Boot protocol that has the payload's place: Linux 2.6.26. */
const PROTOCOL_MIN = 0x0208;
const RELEASE_BYTES_MAX = 64;

const PE_OFFSET = 0x3c;
const COFF_BYTES = 24;
const PE32_PLUS = 0x20b;
/** Offset in the optional header of the fifth data directory, the certificate table, by its magic. */
const CERTIFICATE_TABLE = { pe32: 128, pe32Plus: 144 } as const;

export interface BzImage {
  /** uname -r; 1 to 64 bytes. */
  readonly release: string;
  /** Bytes of a command line at most. */
  readonly commandLineBytesMax: number;
  /** The kernel itself, compressed. */
  readonly payload: Uint8Array;
  /** It carries a PE certificate table. Whether that is good is for the kernel to say when it loads the image. */
  readonly isSigned: boolean;
}

/**
 * @param name - of the file, for messages
 * @returns null when it has no boot header: it is something else
 * @throws {KernelError} EINVAL when the header is one, and wrong or too old
 */
export function decodeBzImage(bytes: Uint8Array, name: string): BzImage | null {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < HEADER_END || latin1(bytes, HEADER_MAGIC, 4) !== "HdrS") return null;
  const wrong = (what: string) => new KernelError("EINVAL", "preflight", `${name}: ${what}`);
  const protocol = view.getUint16(VERSION, true);
  if (protocol < PROTOCOL_MIN)
    throw wrong(`boot protocol 0x${protocol.toString(16)} is older than 0x208`);
  const setupBytes = ((view.getUint8(SETUP_SECTS) || 4) + 1) * SECTOR_BYTES;

  const versionAt = view.getUint16(KERNEL_VERSION, true) + 0x200;
  if (versionAt === 0x200 || versionAt >= Math.min(setupBytes, bytes.length))
    throw wrong("it has no version string");
  const release = /^[!-~]+/.exec(latin1(bytes, versionAt, RELEASE_BYTES_MAX + 1))?.[0] ?? "";
  if (release === "" || release.length > RELEASE_BYTES_MAX)
    throw wrong("its version string does not begin with a release of 1 to 64 characters");

  const payloadAt = setupBytes + view.getUint32(PAYLOAD_OFFSET, true);
  const payloadBytes = view.getUint32(PAYLOAD_LENGTH, true);
  if (payloadBytes === 0 || payloadAt + payloadBytes > bytes.length)
    throw wrong(
      `its payload of ${payloadBytes} bytes at ${payloadAt} is not within its ${bytes.length} bytes: it is cut off`,
    );
  return {
    release,
    commandLineBytesMax: view.getUint32(CMDLINE_SIZE, true),
    payload: bytes.subarray(payloadAt, payloadAt + payloadBytes),
    isSigned: certificateBytes(view, bytes) > 0,
  };
}

/** Size of the PE certificate table; 0 when it has none or is no PE executable. */
function certificateBytes(view: DataView, bytes: Uint8Array): number {
  if (latin1(bytes, 0, 2) !== "MZ") return 0;
  const coffAt = view.getUint32(PE_OFFSET, true);
  const optionalAt = coffAt + COFF_BYTES;
  if (optionalAt + CERTIFICATE_TABLE.pe32Plus + 8 > bytes.length) return 0;
  if (latin1(bytes, coffAt, 4) !== "PE\0\0") return 0;
  const isPlus = view.getUint16(optionalAt, true) === PE32_PLUS;
  const tableAt = optionalAt + (isPlus ? CERTIFICATE_TABLE.pe32Plus : CERTIFICATE_TABLE.pe32);
  return view.getUint32(tableAt + 4, true);
}

function latin1(bytes: Uint8Array, at: number, length: number): string {
  return String.fromCharCode(...bytes.subarray(at, at + length));
}
