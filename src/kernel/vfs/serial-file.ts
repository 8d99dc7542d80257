/**
 * /dev/ttyS0: the machine's serial line as a file, in both directions.
 *
 * As a terminal in canonical mode: a read gives bytes of one line at most, with its newline; what is written goes out
 * line by line. Lines that nobody has read at a kexec are still in the hardware, and the next kernel's.
 * Not modelled: blocking (as with eventfd, a read that finds nothing is EAGAIN), echo, editing, termios.
 * Source: Linux 7.3 drivers/tty/n_tty.c, termios(3)
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import type { Serial } from "../../machine/machine.ts";
import { File } from "./file.ts";

/** The line with what of it has been read or written in part; one for all who open it. */
export class SerialPort {
  readonly #serial: Serial;
  readonly #decoder = new TextDecoder();
  #input = new Uint8Array(0);
  #output = "";

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
      this.#input = new TextEncoder().encode(`${line}\n`);
    }
    const piece = this.#input.subarray(0, target.length);
    target.set(piece);
    this.#input = this.#input.subarray(piece.length);
    return piece.length;
  }

  write(bytes: Uint8Array): number {
    // The decoder keeps the first bytes of a character that this write has cut.
    this.#output += this.#decoder.decode(bytes, { stream: true });
    const lines = this.#output.split("\n");
    this.#output = lines.pop() ?? "";
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
