/**
 * /dev/ttyS0: the machine's serial line as a file, in both directions.
 *
 * As a terminal in canonical mode: a read gives bytes of one line at most, with its newline; what is written goes out
 * line by line. Lines that nobody has read at a kexec are still in the hardware, and the next kernel's.
 * Not modelled: blocking (as with eventfd, a read that finds nothing is EAGAIN), echo, editing, termios.
 * Source: Linux 7.3 drivers/tty/n_tty.c, termios(3)
 * @module
 */
import { decodeUtf8, encodeUtf8 } from "../../abi/struct.ts";
import { KernelError } from "../../base/errno.ts";
import type { Serial } from "../../machine/machine.ts";
import { File } from "./file.ts";

const NEWLINE = 0x0a;

/** The line with what of it has been read or written in part; one for all who open it. */
export class SerialPort {
  readonly #serial: Serial;
  /** Of a line that has been read in part. */
  #input: Uint8Array = new Uint8Array(0);
  /** Of a line that has been written in part. */
  #output: readonly number[] = [];

  constructor(serial: Serial) {
    this.#serial = serial;
  }

  open(): File {
    return new SerialFile(this);
  }

  /** @throws {KernelError} EAGAIN when no line has come */
  read(target: Uint8Array): number {
    if (target.length === 0) return 0;
    if (this.#input.length === 0) {
      const line = this.#serial.readLine();
      if (line === null) throw new KernelError("EAGAIN", "read", "no line has come");
      this.#input = encodeUtf8(`${line}\n`);
    }
    const piece = this.#input.subarray(0, target.length);
    target.set(piece);
    this.#input = this.#input.subarray(piece.length);
    return piece.length;
  }

  /** @throws {KernelError} EINVAL when a line is not UTF-8: nothing of this write goes out */
  write(bytes: Uint8Array): number {
    const written = [...this.#output, ...bytes];
    const lines: string[] = [];
    let start = 0;
    for (let end = written.indexOf(NEWLINE); end >= 0; end = written.indexOf(NEWLINE, start)) {
      const line = decodeUtf8(written.slice(start, end));
      if (line === null) throw new KernelError("EINVAL", "write", "the line is not UTF-8");
      lines.push(line);
      start = end + 1;
    }
    this.#output = written.slice(start);
    for (const line of lines) this.#serial.writeLine(line);
    return bytes.length;
  }
}

class SerialFile extends File {
  readonly kind = "serial";
  readonly #port: SerialPort;

  constructor(port: SerialPort) {
    super();
    this.#port = port;
  }

  override read(target: Uint8Array): number {
    return this.#port.read(target);
  }

  override write(bytes: Uint8Array): number {
    return this.#port.write(bytes);
  }

  protected override release(): void {}
}
