/**
 * Kexec handover: what this kernel keeps for the next one, and what it got from the last.
 *
 * Why the tree is live: everything preserved is marked the moment it is preserved, so that reboot has nothing
 * left to do for it, and nothing that can fail.
 * Source: Linux 7.3 kernel/liveupdate/kexec_handover.c
 * Lifecycle: 1. cold boot: `Scratch.reserve`; kexec boot: `IncomingHandover.read`, whose scratch is kept.
 * 2. the page allocator, without scratch, with the incoming blocks reserved. 3. this class. 4. other parts
 * restore what is theirs. What was the handover's own (FDT, metadata) is freed at once; upstream keeps it.
 * Not modelled: debugfs, the FDT while it is being rewritten (nothing reads it before the jump).
 * @module
 */

import {
  KHO_KEXEC_METADATA,
  KHO_KEXEC_METADATA_VERSION,
  KHO_METADATA_NODE_NAME,
} from "../../abi/kexec-metadata.ts";
import { encodeKhoFdt, KHO_FDT_MAX_BYTES, type KhoSubtree } from "../../abi/kho.ts";
import { ByteWords } from "../../abi/words.ts";
import { assert, BugError } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import type { FaultInjector } from "../../base/fault-injector.ts";
import { withUndo } from "../../base/undo.ts";
import { alignDown, hex, orderBytes, PAGE_SIZE } from "../../base/units.ts";
import type { KhoBootParameters, PhysicalMemory } from "../../machine/machine.ts";
import type { PageAllocator } from "../mm/page-allocator.ts";
import type { KexecHandover } from "./handover.ts";
import type { IncomingHandover } from "./incoming-handover.ts";
import { RadixTree } from "./radix-tree.ts";
import type { Scratch } from "./scratch.ts";

export interface KhoOptions {
  readonly memory: PhysicalMemory;
  /** Made without scratch, and with the incoming blocks reserved. */
  readonly mm: PageAllocator;
  /** Chosen on a cold boot; `incoming.scratch` after a kexec. */
  readonly scratch: Scratch;
  /** Null on a cold boot. */
  readonly incoming: IncomingHandover | null;
  /** Release of this kernel, at most 64 bytes. */
  readonly release: string;
  readonly faults: FaultInjector;
}

/** What this kernel hands over, and where. */
interface Outgoing {
  readonly tree: RadixTree;
  readonly fdtPa: number;
  readonly metadataPa: number;
}

export class Kho implements KexecHandover {
  readonly incoming: IncomingHandover | null;
  readonly kexecCount: number;
  readonly previousRelease: string | null;
  readonly #memory: PhysicalMemory;
  readonly #mm: PageAllocator;
  readonly #faults: FaultInjector;
  readonly #scratch: Scratch;
  readonly #release: string;
  /** Null until {@link begin}. */
  #outgoing: Outgoing | null = null;
  /** Oldest first. */
  #subtrees: readonly KhoSubtree[] = [];
  #preservedBytes = 0;

  /** Allocates and writes nothing: what came in is to be checked first. */
  constructor(options: KhoOptions) {
    const { memory, mm, scratch, incoming, release, faults } = options;
    this.#memory = memory;
    this.#mm = mm;
    this.#scratch = scratch;
    this.#faults = faults;
    this.#release = release;
    this.incoming = incoming;
    this.kexecCount = incoming?.metadata?.kexecCount ?? 0;
    this.previousRelease = incoming?.metadata?.previousRelease ?? null;
  }

  /** Made, and begun at once: for who has nothing to check in between. @throws {KernelError} as {@link begin} */
  static start(options: KhoOptions): Kho {
    const kho = new Kho(options);
    kho.begin();
    return kho;
  }

  /**
   * Makes what this kernel will hand over, and frees what was the incoming handover's own. From here on pages can be
   * preserved. Once, when the whole of the handover was found good: a page that is missing in its tree may be in use
   * by a device, and must not be given out on the way to finding that out.
   *
   * @throws {KernelError} ENOMEM; nothing stays allocated then
   */
  begin(): void {
    assert(this.#outgoing === null, "KHO begins once");
    const mm = this.#mm;
    this.#outgoing = withUndo((undo) => {
      const tree = new RadixTree(this.#memory, mm);
      undo(() => tree.destroy());
      const fdtPa = this.#allocOwn(tree, undo);
      const metadataPa = this.#allocOwn(tree, undo);
      return { tree, fdtPa, metadataPa };
    });
    const { metadataPa } = this.#outgoing;
    this.#writeMetadata(metadataPa);
    this.#scratch.write(this.#memory);
    const subtree = {
      name: KHO_METADATA_NODE_NAME,
      pa: metadataPa,
      sizeBytes: KHO_KEXEC_METADATA.sizeBytes,
    };
    this.#writeFdt([subtree]);
    // All that they said has been copied; kept, they would be lost to this kernel for good.
    for (const pa of this.incoming?.ownPages ?? []) {
      this.restore(pa, 0);
      mm.free(pa, 0);
    }
  }

  preserve(pa: number, order: number): void {
    const bytes = orderBytes(order);
    if (this.#scratch.overlaps(pa, bytes))
      throw new KernelError("EINVAL", "preserve", `${hex(pa)} of order ${order} is in scratch`);
    if (!this.#mm.isCarvedOut(pa) && !this.#mm.isAllocated(pa, order))
      throw new BugError(`preserve of ${hex(pa)}: not an allocated block of order ${order}`);
    this.#faults.point("kho:preserve");
    this.#own.tree.add(pa, order);
    this.#preservedBytes += bytes;
  }

  unpreserve(pa: number, order: number): void {
    this.#own.tree.delete(pa, order);
    this.#preservedBytes -= orderBytes(order);
  }

  isPreserved(pa: number, order: number): boolean {
    return this.#own.tree.has(pa, order);
  }

  addSubtree(name: string, pa: number, sizeBytes: number): void {
    if (this.#subtrees.some((subtree) => subtree.name === name))
      throw new KernelError("EEXIST", "addSubtree", `"${name}" is in the FDT already`);
    this.#faults.point("kho:subtree");
    this.#writeFdt([...this.#subtrees, { name, pa, sizeBytes }]);
  }

  /** Never fails on a name that was added. */
  removeSubtree(name: string): void {
    const rest = this.#subtrees.filter((subtree) => subtree.name !== name);
    assert(rest.length < this.#subtrees.length, `"${name}" is in the FDT`);
    this.#writeFdt(rest);
  }

  incomingSubtree(name: string): { readonly pa: number; readonly sizeBytes: number } | null {
    return this.incoming?.subtree(name) ?? null;
  }

  restore(pa: number, order: number): void {
    if (this.incoming === null || !this.incoming.takeOver(pa, order))
      throw new KernelError(
        "EINVAL",
        "restore",
        `${hex(pa)} of order ${order} is no preserved block, or was restored before`,
      );
    // Memory of a carve-out is its owner's: the allocator has no page of it to adopt.
    if (!this.#mm.isCarvedOut(pa)) this.#mm.adopt(pa, order);
  }

  restoreRecord(pa: number, lengthBytes: number): boolean {
    const released = this.incoming?.releaseRecord(pa, lengthBytes) ?? null;
    if (released === null)
      throw new KernelError(
        "EINVAL",
        "restore",
        `${hex(pa)}+${hex(lengthBytes)} is no claimed record, or was restored before`,
      );
    if (released.isLast) this.restore(alignDown(pa, PAGE_SIZE), 0);
    return released.isLast;
  }

  unrestoredPages(): number {
    return this.incoming?.untakenPages() ?? 0;
  }

  bootParameters(): KhoBootParameters {
    return {
      fdtAddress: this.#own.fdtPa,
      fdtSizeBytes: KHO_FDT_MAX_BYTES,
      scratchAddress: this.#scratch.arrayPa,
      scratchSizeBytes: this.#scratch.arraySizeBytes,
    };
  }

  /** `preservedBytes` without the FDT's and the metadata's page, which `metadataBytes` counts with the tree. */
  sizes(): { readonly preservedBytes: number; readonly metadataBytes: number } {
    return {
      preservedBytes: this.#preservedBytes,
      metadataBytes: (this.#own.tree.nodeCount + 2) * PAGE_SIZE,
    };
  }

  /** A preserved page of the handover's own. */
  #allocOwn(tree: RadixTree, undo: (step: () => void) => void): number {
    const pa = this.#mm.alloc(0);
    undo(() => this.#mm.free(pa, 0));
    tree.add(pa, 0);
    return pa;
  }

  get #own(): Outgoing {
    assert(this.#outgoing !== null, "KHO has begun");
    return this.#outgoing;
  }

  #writeMetadata(pa: number): void {
    const bytes = new Uint8Array(KHO_KEXEC_METADATA.sizeBytes);
    KHO_KEXEC_METADATA.write(new ByteWords(bytes), 0, {
      version: KHO_KEXEC_METADATA_VERSION,
      previous_release: this.#release,
      kexec_count: Math.min(this.kexecCount + 1, 2 ** 32 - 1),
    });
    this.#memory.write(pa, bytes);
  }

  #writeFdt(subtrees: readonly KhoSubtree[]): void {
    const fdt = encodeKhoFdt({ memoryMapPa: this.#own.tree.root, subtrees });
    if (fdt.length > KHO_FDT_MAX_BYTES)
      throw new KernelError("ENOMEM", "addSubtree", `the FDT would need ${fdt.length} bytes`);
    const page = new Uint8Array(KHO_FDT_MAX_BYTES);
    page.set(fdt);
    this.#memory.write(this.#own.fdtPa, page);
    this.#subtrees = subtrees;
  }
}
