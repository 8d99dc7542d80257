/** An open directory: enough for open(2) with O_DIRECTORY and fstat(2). @module */
import { KernelError } from "../../base/errno.ts";
import { File, type FileStat } from "./file.ts";

export class DirectoryFile extends File {
  readonly kind = "directory";
  readonly #stat: () => FileStat;
  readonly #onRelease: () => void;

  constructor(stat: () => FileStat, onRelease: () => void) {
    super();
    this.#stat = stat;
    this.#onRelease = onRelease;
  }

  override stat(): FileStat {
    return this.#stat();
  }

  override read(): number {
    throw new KernelError("EISDIR", "read", "it is a directory");
  }

  protected override release(): void {
    this.#onRelease();
  }
}
