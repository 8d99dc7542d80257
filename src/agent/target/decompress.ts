/**
 * The compressed kernel of a bzImage, unpacked.
 *
 * Why: what a kernel can restore is written in the kernel itself only. What Node does not unpack is given to the usual
 * program; where there is none, nothing is guessed.
 * Source: Linux 7.3 Documentation/arch/x86/boot.rst (payload_offset), scripts/Makefile.lib (size_append), lib/decompress.c
 * Layout: all formats but gzip, which has it itself, are followed by the unpacked size as a little-endian u32.
 * @module
 */
import { spawnSync } from "node:child_process";
import * as zlib from "node:zlib";

/** Bytes of an unpacked kernel at most. */
const UNPACKED_BYTES_MAX = 256 * 1024 * 1024;
const TIMEOUT_MS = 60_000;
const SIZE_BYTES = 4;

interface Format {
  readonly name: string;
  readonly magic: readonly number[];
  /** Reads from its standard input and writes to its standard output. */
  readonly program: readonly [command: string, ...args: string[]];
  /** Null where this Node cannot. */
  readonly unpack: ((packed: Uint8Array, options: zlib.ZlibOptions) => Uint8Array) | null;
  readonly hasOwnSize: boolean;
}

/** Node has zstd from 22.15 on. */
const { zstdDecompressSync = null } = zlib as {
  zstdDecompressSync?: (packed: Uint8Array, options: zlib.ZlibOptions) => Uint8Array;
};

const FORMATS: readonly Format[] = [
  {
    name: "gzip",
    magic: [0x1f, 0x8b],
    program: ["gzip", "-dc"],
    unpack: zlib.gunzipSync,
    hasOwnSize: true,
  },
  outside("zstd", [0x28, 0xb5, 0x2f, 0xfd], ["zstd", "-dcq"], zstdDecompressSync),
  outside("xz", [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00], ["xz", "-dcq"]),
  outside("lz4", [0x02, 0x21, 0x4c, 0x18], ["lz4", "-dcq"]),
  outside("lzma", [0x5d, 0x00, 0x00], ["xz", "-dcq", "--format=lzma"]),
  outside("bzip2", [0x42, 0x5a, 0x68], ["bzip2", "-dcq"]),
  outside("lzo", [0x89, 0x4c, 0x5a], ["lzop", "-dcq"]),
];

function outside(
  name: string,
  magic: readonly number[],
  program: Format["program"],
  unpack: Format["unpack"] = null,
): Format {
  return { name, magic, program, unpack, hasOwnSize: false };
}

/** The unpacked kernel, or why there is none. */
export type Unpacked = { readonly bytes: Uint8Array } | { readonly reason: string };

/**
 * @param payload - of a bzImage, untrusted
 * @param unpackedBytesMax - what unpacks to more is refused
 */
export function decompress(payload: Uint8Array, unpackedBytesMax = UNPACKED_BYTES_MAX): Unpacked {
  const format = FORMATS.find(({ magic }) => magic.every((byte, i) => payload[i] === byte));
  if (format === undefined) return { reason: "its payload is compressed in an unknown format" };
  const packed = format.hasOwnSize ? payload : payload.subarray(0, payload.length - SIZE_BYTES);
  const unpacked =
    format.unpack === null
      ? runProgram(format, packed, unpackedBytesMax)
      : runHere(format.unpack, format.name, packed, unpackedBytesMax);
  if ("reason" in unpacked || format.hasOwnSize) return unpacked;
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const size = view.getUint32(payload.length - SIZE_BYTES, true);
  if (unpacked.bytes.length === size) return unpacked;
  return { reason: `its payload unpacks to ${unpacked.bytes.length} bytes, not ${size}` };
}

function runHere(
  unpack: NonNullable<Format["unpack"]>,
  name: string,
  packed: Uint8Array,
  maxOutputLength: number,
): Unpacked {
  try {
    return { bytes: unpack(packed, { maxOutputLength }) };
  } catch (error) {
    // Every complaint of zlib about its input has a code of its own: Z_DATA_ERROR, ERR_BUFFER_TOO_LARGE, …
    if (!(error instanceof Error && "code" in error)) throw error;
    return { reason: `its ${name} payload cannot be unpacked: ${error.message}` };
  }
}

function runProgram({ name, program }: Format, packed: Uint8Array, maxBuffer: number): Unpacked {
  const [command, ...args] = program;
  const run = spawnSync(command, args, {
    input: packed,
    maxBuffer,
    timeout: TIMEOUT_MS,
    windowsHide: true,
  });
  if (run.error !== undefined) {
    const isMissing = "code" in run.error && run.error.code === "ENOENT";
    const why = isMissing ? `there is no program ${command} here` : run.error.message;
    return { reason: `its ${name} payload cannot be unpacked: ${why}` };
  }
  if (run.status === 0) return { bytes: run.stdout };
  const complaint = run.stderr.toString().trim().slice(0, 200);
  return { reason: `its ${name} payload cannot be unpacked: ${command}: ${complaint}` };
}
