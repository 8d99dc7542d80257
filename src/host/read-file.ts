/** Reading a file whole, also one that does not know its size, as in /proc and /sys. @module */
import { O_NONBLOCK, O_RDONLY } from "../abi/uapi/fs.ts";
import { KernelError } from "../base/errno.ts";
import type { Host } from "./host.ts";

/** Bytes read unless told otherwise, at most. */
const BYTES_MAX = 4 * 1024 * 1024;
/** Room at first; of a file that is larger, twice as much each time. */
const ROOM_BYTES = 4096;

/**
 * @param limitBytes - the most that may be in it
 * @throws {KernelError} EFBIG when there is more in it; EINVAL it is no regular file; what open(2) and read(2) throw
 */
export function readBytes(host: Host, path: string, limitBytes = BYTES_MAX): Uint8Array {
  // Opening a FIFO would wait for a writer, and reading a terminal for whoever sits there.
  const fd = host.open(path, O_RDONLY | O_NONBLOCK);
  try {
    if (host.fstat(fd).kind !== "file")
      throw new KernelError("EINVAL", "read", `${path} is no regular file`);
    let room = new Uint8Array(Math.min(ROOM_BYTES, limitBytes + 1));
    let lengthBytes = 0;
    for (;;) {
      const count = host.read(fd, room.subarray(lengthBytes));
      if (count === 0) return room.subarray(0, lengthBytes);
      lengthBytes += count;
      if (lengthBytes > limitBytes)
        throw new KernelError("EFBIG", "read", `${path} has more than ${limitBytes} bytes`);
      if (lengthBytes < room.length) continue;
      const larger = new Uint8Array(Math.min(2 * room.length, limitBytes + 1));
      larger.set(room);
      room = larger;
    }
  } finally {
    host.close(fd);
  }
}

/** As {@link readBytes}, as UTF-8. */
export function readTextFile(host: Host, path: string, limitBytes = BYTES_MAX): string {
  return new TextDecoder().decode(readBytes(host, path, limitBytes));
}
