/** Reading a file whole, also one that does not know its size, as in /proc and /sys. @module */
import { KernelError } from "../base/errno.ts";
import type { Host } from "./host.ts";

/** Bytes read unless told otherwise, at most. */
const BYTES_MAX = 4 * 1024 * 1024;
/** Bytes asked for at first; of a file that is larger, twice as many each time. */
const PIECE_BYTES = { first: 4096, max: 1024 * 1024 } as const;

/**
 * @param limitBytes - the most that may be in it
 * @throws {KernelError} EFBIG when there is more in it; what open(2) and read(2) throw
 */
export function readBytes(host: Host, path: string, limitBytes = BYTES_MAX): Uint8Array {
  const fd = host.open(path, 0);
  try {
    const pieces: Uint8Array[] = [];
    let buffer = new Uint8Array(PIECE_BYTES.first);
    let lengthBytes = 0;
    for (;;) {
      const count = host.read(fd, buffer);
      if (count === 0) break;
      lengthBytes += count;
      if (lengthBytes > limitBytes)
        throw new KernelError("EFBIG", "read", `${path} has more than ${limitBytes} bytes`);
      pieces.push(buffer.subarray(0, count));
      buffer = new Uint8Array(Math.min(2 * buffer.length, PIECE_BYTES.max));
    }
    const whole = new Uint8Array(lengthBytes);
    let at = 0;
    for (const piece of pieces) {
      whole.set(piece, at);
      at += piece.length;
    }
    return whole;
  } finally {
    host.close(fd);
  }
}

/** As {@link readBytes}, as UTF-8. */
export function readTextFile(host: Host, path: string, limitBytes = BYTES_MAX): string {
  return new TextDecoder().decode(readBytes(host, path, limitBytes));
}
