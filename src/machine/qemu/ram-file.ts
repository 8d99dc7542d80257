/**
 * RAM that QEMU and this process share: a file in memory without a name, mapped by both.
 *
 * Why WebAssembly memory: Node gives no SharedArrayBuffer over foreign memory, but the buffer of a shared WebAssembly
 * memory is page aligned and mapped on its own, so the file can be mapped over it. All threads that are given the
 * buffer then see the file's pages, with no copy and with the `Atomics` that any RAM has.
 * Why all of it counts as stored to: devices store to it without telling, so nothing may be taken to be zero.
 * Invariant: nothing is left behind, however processes end: the file goes with its last descriptor and mapping.
 * @module
 */
import { closeSync, ftruncateSync } from "node:fs";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { formatBytes, GIB } from "../../base/units.ts";
import type { MemoryRange } from "../machine.ts";
import { createSharedRam, Ram, type SharedRam } from "../physical-memory.ts";
import type { Libc } from "./libc.ts";

const WASM_PAGE_BYTES = 64 * 1024;
const TOUCH_BYTES = 2 * 1024 * 1024;
const HIGH_START = 4 * GIB;

/** The types of Node's own library leave it out. */
declare const WebAssembly: {
  Memory: new (size: {
    readonly initial: number;
    readonly maximum: number;
    readonly shared: true;
  }) => { readonly buffer: SharedArrayBuffer };
};

export class RamFile {
  readonly shared: SharedRam;
  /** For QEMU: it maps all of the file, and RAM above 4 GiB follows that below without a gap. */
  readonly fd: number;
  readonly lengthBytes: number;
  readonly #libc: Libc;
  readonly #ranges: readonly MemoryRange[];

  /** @throws {KernelError} ENOMEM when there is not so much memory or address space */
  constructor(libc: Libc, ranges: readonly MemoryRange[]) {
    this.#libc = libc;
    this.#ranges = ranges;
    this.lengthBytes = ranges.reduce((sum, range) => sum + range.lengthBytes, 0);
    this.fd = libc.memfdCreate("holdfast-ram");
    try {
      ftruncateSync(this.fd, this.lengthBytes);
      this.shared = createSharedRam(ranges, (start, lengthBytes) => {
        const window = wasmMemory(lengthBytes);
        libc.mapOver(new Uint8Array(window), this.fd, this.#fileOffset(start));
        return window;
      });
    } catch (error) {
      closeSync(this.fd);
      throw error;
    }
    new Uint8Array(this.shared.touched).fill(1);
  }

  /** The same memory; what neither QEMU nor this process has ever stored to counts as untouched, as of now. */
  ramAsBacked(): Ram {
    const touched = new SharedArrayBuffer(this.shared.touched.byteLength);
    const flags = new Uint8Array(touched);
    for (const { start, lengthBytes } of this.#ranges) {
      const from = this.#fileOffset(start);
      const end = from + lengthBytes;
      for (let at = this.#libc.seekData(this.fd, from); at < end; ) {
        const hole = Math.min(end, this.#libc.seekHole(this.fd, at));
        const first = Math.floor((start + at - from) / TOUCH_BYTES);
        flags.fill(1, first, Math.ceil((start + hole - from) / TOUCH_BYTES));
        at = this.#libc.seekData(this.fd, hole);
      }
    }
    return new Ram({ ...this.shared, touched });
  }

  /** Gives the descriptor back; what is mapped stays until all threads have let it go. */
  close(): void {
    closeSync(this.fd);
  }

  #fileOffset(pa: number): number {
    const low = this.#ranges.filter((r) => r.start < HIGH_START);
    const lowBytes = low.reduce((sum, r) => sum + r.lengthBytes, 0);
    return pa < HIGH_START ? pa : lowBytes + pa - HIGH_START;
  }
}

function wasmMemory(lengthBytes: number): SharedArrayBuffer {
  assert(lengthBytes % WASM_PAGE_BYTES === 0, "windows are whole pages of WebAssembly");
  const pages = lengthBytes / WASM_PAGE_BYTES;
  try {
    return new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true }).buffer;
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    throw new KernelError(
      "ENOMEM",
      "power on",
      `no address space for ${formatBytes(lengthBytes)}`,
      {
        cause,
      },
    );
  }
}
