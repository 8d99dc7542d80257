/**
 * Global state that lives as long as the files that need it, on its way out and on its way in.
 *
 * Lifecycle: preserved with the first file, unpreserved with the last; frozen after all files and written into
 * one page; in the next kernel decoded and adopted at boot, finished with the last file.
 * Why this differs from upstream: there an FLB is fetched when somebody asks for it, and one that nobody asked
 * for is never finished. Here the reference counts come from the handover and are checked against its files.
 * Source: Linux 7.3 kernel/liveupdate/luo_flb.c
 * @module
 */
import {
  LIVEUPDATE_FLB_COMPAT_LENGTH,
  LUO_FLB_HEADER_SER,
  LUO_FLB_MAX,
  LUO_FLB_PGCNT,
  LUO_FLB_SER,
} from "../../abi/luo.ts";
import { encodeUtf8 } from "../../abi/struct.ts";
import { assert } from "../../base/assert.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { withUndo } from "../../base/undo.ts";
import type { PhysicalMemory } from "../../machine/machine.ts";
import type { FileLifecycleBound, FlbDecoder } from "./file-handler.ts";

interface OutgoingFlb {
  readonly flb: FileLifecycleBound;
  data: bigint;
  /** Preserved files that need it, at least 1. */
  count: number;
}

/** An FLB of the previous kernel, decoded. */
export interface IncomingFlb<F extends FlbDecoder = FileLifecycleBound> {
  readonly flb: F;
  readonly data: unknown;
  /** Files not finished yet that need it. */
  count: number;
}

export class FlbRegistry {
  readonly #faults: FaultInjector;
  readonly #registered = new Map<string, FileLifecycleBound>();
  readonly #outgoing = new Map<FileLifecycleBound, OutgoingFlb>();
  readonly #incoming = new Map<FileLifecycleBound, IncomingFlb>();

  constructor(faults: FaultInjector) {
    this.#faults = faults;
  }

  /** Makes an FLB known; again is fine. At most 63, each with its own name. */
  register(flb: FileLifecycleBound): void {
    const known = this.#registered.get(flb.compatible);
    if (known === flb) return;
    assert(known === undefined, `two FLBs are called "${flb.compatible}"`);
    const nameBytes = encodeUtf8(flb.compatible).length;
    assert(
      nameBytes > 0 && nameBytes < LIVEUPDATE_FLB_COMPAT_LENGTH,
      `FLB name "${flb.compatible}" is not of 1 to 47 bytes`,
    );
    assert(this.#registered.size < LUO_FLB_MAX, `more than ${LUO_FLB_MAX} FLBs`);
    this.#registered.set(flb.compatible, flb);
  }

  find(compatible: string): FileLifecycleBound | undefined {
    return this.#registered.get(compatible);
  }

  /**
   * A file that needs these is about to be preserved. The first one preserves the FLB, after the fault point
   * "luo.preserve:flb".
   * @throws {KernelError} of an FLB; none of them is then held
   */
  get(flbs: readonly FileLifecycleBound[]): void {
    withUndo((undo) => {
      for (const flb of flbs) {
        const held = this.#outgoing.get(flb);
        if (held !== undefined) held.count++;
        else {
          this.#faults.point("luo.preserve:flb");
          this.#outgoing.set(flb, { flb, data: flb.preserve(), count: 1 });
        }
        undo(() => this.#putOne(flb));
      }
    });
  }

  /** Undoes {@link get}, last first. */
  put(flbs: readonly FileLifecycleBound[]): void {
    for (let i = flbs.length - 1; i >= 0; i--) this.#putOne(flbs[i]);
  }

  #putOne(flb: FileLifecycleBound): void {
    const held = this.#outgoing.get(flb);
    assert(held !== undefined, `FLB "${flb.compatible}" is not held`);
    if (--held.count > 0) return;
    this.#outgoing.delete(flb);
    flb.unpreserve(held.data);
  }

  /** Names of the FLBs that are preserved now. */
  get outgoing(): readonly string[] {
    return [...this.#outgoing.keys()].map((flb) => flb.compatible);
  }

  /**
   * Last changes, in order of registration; each passes the fault point "luo.freeze:flb".
   * @param undo - gets what undoes each step
   */
  freeze(undo: (step: () => void) => void): void {
    for (const held of this.#inOrder()) {
      this.#faults.point("luo.freeze:flb");
      const { flb, data } = held;
      if (flb.freeze === undefined) continue;
      held.data = flb.freeze(data);
      undo(() => {
        const frozen = held.data;
        held.data = data;
        flb.unfreeze?.(frozen);
      });
    }
  }

  /** Writes what is preserved into the page at `pa`, the count last. Cannot fail. */
  serialise(memory: PhysicalMemory, pa: number): void {
    let count = 0;
    for (const { flb, data, count: files } of this.#inOrder()) {
      LUO_FLB_SER.write(memory, flbEntryPa(pa, count++), {
        name: flb.compatible,
        data,
        count: files,
      });
    }
    LUO_FLB_HEADER_SER.write(memory, pa, { pgcnt: LUO_FLB_PGCNT, count });
  }

  /** Takes back what {@link serialise} wrote. */
  clear(memory: PhysicalMemory, pa: number): void {
    memory.fill(flbEntryPa(pa, 0), LUO_FLB_MAX * LUO_FLB_SER.sizeBytes, 0);
    LUO_FLB_HEADER_SER.write(memory, pa, { pgcnt: LUO_FLB_PGCNT, count: 0 });
  }

  #inOrder(): OutgoingFlb[] {
    const held: OutgoingFlb[] = [];
    for (const flb of this.#registered.values()) {
      const one = this.#outgoing.get(flb);
      if (one !== undefined) held.push(one);
    }
    return held;
  }

  /** Takes over what was decoded, each FLB adopting its state. */
  adopt(incoming: readonly IncomingFlb[]): void {
    for (const one of incoming) {
      this.#incoming.set(one.flb, one);
      one.flb.adopt(one.data);
    }
  }

  /** An incoming file that needs these is finished; the last one finishes the FLB. */
  finish(flbs: readonly FileLifecycleBound[]): void {
    for (let i = flbs.length - 1; i >= 0; i--) {
      const one = this.#incoming.get(flbs[i]);
      assert(one !== undefined, `FLB "${flbs[i].compatible}" was not handed over`);
      if (--one.count > 0) continue;
      this.#incoming.delete(one.flb);
      one.flb.finish(one.data);
    }
  }

  get incomingCount(): number {
    return this.#incoming.size;
  }
}

/** Address of entry `index` in the FLB page at `pa`. */
export function flbEntryPa(pa: number, index: number): number {
  return pa + LUO_FLB_HEADER_SER.sizeBytes + index * LUO_FLB_SER.sizeBytes;
}
