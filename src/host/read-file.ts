/** Reading a small file whole. @module */
import type { Host } from "./host.ts";

/** @throws {KernelError} what open(2) and read(2) throw */
export function readTextFile(host: Host, path: string): string {
  const fd = host.open(path, 0);
  try {
    const pieces: Uint8Array[] = [];
    const buffer = new Uint8Array(4096);
    for (;;) {
      const length = host.read(fd, buffer);
      if (length === 0) break;
      pieces.push(buffer.slice(0, length));
    }
    const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
    let at = 0;
    for (const piece of pieces) {
      whole.set(piece, at);
      at += piece.length;
    }
    return new TextDecoder().decode(whole);
  } finally {
    host.close(fd);
  }
}
