/**
 * memfs: guest memory in files that outlive the kernel.
 *
 * All stores of a kernel. A store is what mount(2) names as its source; it is made by the first mount of that name, or
 * at boot from a carve-out, and found again by the name, also after a kexec. An empty dynamic store goes with its
 * last mount.
 * Lifecycle: at boot `decodeMemfs` (before there is an allocator: it tells the carve-outs); `new Memfs`; decoders of
 *   live-update sessions call `claimIncoming`; once the whole handover is found good, `adopt`.
 * Metadata and data are preserved as they are allocated: nothing is left to do at a kexec, and nothing is lost in
 * a panic. Format and commits: src/abi/memfs.ts.
 * @module
 */
import { HandoverError } from "../../abi/handover-error.ts";
import {
  MEMFS_COMPATIBLE,
  MEMFS_EXTENT_TABLE,
  MEMFS_GENERATION_END,
  MEMFS_INO_END,
  MEMFS_INODE_TABLE,
  MEMFS_NO_NODE,
  MEMFS_ROOT,
  MEMFS_ROOT_INO,
  MEMFS_STORE_SLOTS,
  MEMFS_STORE_SLOTS_OFFSET,
  MEMFS_SUBTREE,
  MEMFS_SUPERBLOCK,
  MEMFS_SUPERBLOCK_MAGIC,
} from "../../abi/memfs.ts";
import { assert } from "../../base/assert.ts";
import { KernelError } from "../../base/errno.ts";
import { withUndo } from "../../base/undo.ts";
import { hex, PAGE_SIZE } from "../../base/units.ts";
import type { MemoryRange } from "../../machine/machine.ts";
import type { Filesystem } from "../vfs/filesystem.ts";
import { utf8Length } from "../vfs/user-value.ts";
import { adoptStore, type MemfsServices } from "./adopt.ts";
import { BlockChain } from "./block-chain.ts";
import { CARVE_OUT_ALIGNMENT, type CarveOut, carveOutBlocks } from "./carve-out.ts";
import { extentBytes } from "./change.ts";
import type { DecodedMemfs } from "./decode.ts";
import { encodeInode, type Inode, newInode } from "./inode.ts";
import { MemfsFile } from "./memfs-file.ts";
import { MemfsMount } from "./mount.ts";
import { type MountOptions, parseMountOptions } from "./mount-options.ts";
import { Store } from "./store.ts";
import { CarveOutPages, DynamicPages, type StorePages } from "./store-pages.ts";

/** A file that a live-update session names, in the handover that is being read. */
export interface RetainedFile {
  readonly data: bigint;
  readonly slot: number;
  readonly ino: number;
  readonly generation: number;
  /** Where its bytes lie. */
  readonly memory: readonly MemoryRange[];
}

interface Retention {
  readonly store: Store;
  readonly inode: Inode;
  readonly unpin: () => void;
}

export interface MemfsOptions extends MemfsServices {
  /** NUMA nodes of the machine. */
  readonly nodeCount: number;
  /** What the previous kernel left, checked; null on a cold boot. */
  readonly incoming: DecodedMemfs | null;
}

export class Memfs {
  readonly #services: MemfsServices;
  readonly #nodeCount: number;
  readonly #rootPages: StorePages;
  readonly #stores = new Map<string, Store>();
  /** By what sessions hand over for them. */
  readonly #retained = new Map<bigint, Retention>();
  readonly #claimed = new Map<bigint, RetainedFile>();
  #incoming: DecodedMemfs | null;
  /** 0 while there is no store. */
  #rootPa = 0;

  constructor(options: MemfsOptions) {
    this.#services = options;
    this.#nodeCount = options.nodeCount;
    this.#incoming = options.incoming;
    this.#rootPages = new DynamicPages(options.mm, options.kho, null);
  }

  /** Names of all stores. */
  get storeNames(): readonly string[] {
    return [...this.#stores.keys()];
  }

  /** Pinned ranges of files, for leak checks: mappings, DMA, sessions. */
  get pinCount(): number {
    let count = 0;
    for (const store of this.#stores.values()) count += store.pinCount;
    return count;
  }

  /** 4 KiB pages of the page allocator that stores hold, for leak checks and reports. */
  get allocatorPages(): number {
    let pages = this.#rootPa === 0 ? 0 : 1;
    for (const store of this.#stores.values()) pages += store.allocatorPages;
    return pages;
  }

  /** Bytes of memory in files, of all stores. */
  get dataBytes(): number {
    let bytes = 0;
    for (const store of this.#stores.values()) bytes += store.usedBytes;
    return bytes;
  }

  /** Bytes of metadata of all stores. */
  get metadataBytes(): number {
    let bytes = this.#rootPa === 0 ? 0 : PAGE_SIZE;
    for (const store of this.#stores.values()) bytes += store.metadataBytes;
    return bytes;
  }

  /**
   * Takes over what the constructor was given: all of it was checked, nothing of it was used yet.
   * @throws {KernelError} ENOMEM when it cannot be preserved anew; the kernel cannot go on then
   */
  adopt(): void {
    const decoded = this.#incoming;
    this.#incoming = null;
    if (decoded === null) return;
    const { kho } = this.#services;
    kho.restore(decoded.rootPa, 0);
    kho.preserve(decoded.rootPa, 0);
    kho.addSubtree(MEMFS_SUBTREE, decoded.rootPa, PAGE_SIZE);
    this.#rootPa = decoded.rootPa;
    for (const found of decoded.stores) {
      const store = adoptStore(this.#services, found);
      this.#stores.set(store.name, store);
    }
    for (const file of this.#claimed.values()) {
      const store = this.#storeAt(file.slot);
      const inode = store?.find(file.ino, file.generation) ?? null;
      assert(store !== null && inode !== null, "a claimed file is in its store");
      this.#retain(file.data, store, inode);
    }
    this.#claimed.clear();
    for (const store of this.#stores.values()) store.reclaimOrphans();
    this.#dropRootIfUnused();
  }

  /**
   * Makes a store of a range that the allocator leaves alone. On a cold boot only; later kernels find it.
   * @throws {KernelError} EINVAL when the range is not carved out; EEXIST when a store has the name; ENOMEM, ENOSPC
   */
  addCarveOut(carveOut: CarveOut): void {
    const { mm, memory } = this.#services;
    assert(this.#incoming === null, "stores are adopted first");
    if (this.#stores.has(carveOut.name))
      throw new KernelError("EEXIST", "pkernfs=", `there is a store "${carveOut.name}" already`);
    const isCarvedOut =
      memory.contains(carveOut.start, carveOut.lengthBytes) &&
      carveOutBlocks(carveOut).every(({ pa }) => mm.isCarvedOut(pa));
    if (!isCarvedOut || carveOut.lengthBytes % CARVE_OUT_ALIGNMENT !== 0)
      throw new KernelError(
        "EINVAL",
        "pkernfs=",
        `${hex(carveOut.start)} and ${carveOut.lengthBytes} bytes are not carved out`,
      );
    this.#create(carveOut.name, { node: null, limitBytes: 0 }, carveOut);
  }

  /**
   * As mount(2): finds the store of that name, or makes a dynamic one.
   *
   * @param source - the store's name, 1 to 63 bytes
   * @param options - "node=N": all pages from that node; "size=BYTES": most bytes of file memory (K, M, G, T)
   * @throws {KernelError} EINVAL for a bad name or option, or one that differs from the store's; ENOSPC when there are
   *   504 stores; ENOMEM
   */
  mount(source: string, options: string): Filesystem {
    assert(this.#incoming === null, "stores are adopted first");
    const given = parseMountOptions(options, this.#nodeCount);
    const nameBytes = utf8Length(source);
    if (nameBytes < 1 || nameBytes > 63 || source.includes("\0"))
      throw new KernelError("EINVAL", "mount", "a store's name has 1 to 63 bytes");
    const existing = this.#stores.get(source);
    if (existing !== undefined) checkSameOptions(existing, given);
    const store =
      existing ??
      this.#create(source, { node: given.node ?? null, limitBytes: given.limitBytes ?? 0 }, null);
    return new MemfsMount(this.#services.memory, store, () => this.#destroyIfUnused(store));
  }

  // -- live-update sessions ---------------------------------------------------------------------------

  /**
   * A session relies on a file from here on: it is pinned as a whole, and its size is fixed.
   * @returns what identifies the file to the next kernel
   * @throws {KernelError} EBUSY when a session relies on it already, or one of the previous kernel still does
   */
  retain(file: MemfsFile): bigint {
    const { inode, store } = file;
    const data = encodeRetained(store.slot, inode.generation, inode.ino);
    if (inode.isRetained)
      throw new KernelError("EBUSY", "preserve", `"${inode.name}" is in a session already`);
    this.#retain(data, store, inode);
    return data;
  }

  /** Undoes {@link retain}; or ends what an incoming session relied on. */
  release(data: bigint): void {
    const retention = this.#retained.get(data);
    assert(retention !== undefined, "a file is retained before it is released");
    this.#retained.delete(data);
    retention.inode.isRetained = false;
    retention.unpin();
  }

  /**
   * A session in the handover names a file: checked before anything is used.
   * @throws {HandoverError} when there is no such file, or another session names it too
   */
  claimIncoming(data: bigint, field: string): RetainedFile {
    const { inode, ...retained } = findRetained(this.#incoming, data, field);
    if (this.#claimed.has(data))
      throw new HandoverError(field, `file ${hex(data)} is in a session already`);
    const memory = inode.extents.map((extent) => ({
      start: extent.pa,
      lengthBytes: extentBytes(extent),
    }));
    const file = { data, ...retained, memory };
    this.#claimed.set(data, file);
    return file;
  }

  /** Opens a file that an incoming session relies on. */
  openRetained(data: bigint): MemfsFile {
    const retention = this.#retained.get(data);
    assert(retention !== undefined, "the file is retained until its session is finished");
    const { store, inode } = retention;
    return new MemfsFile(this.#services.memory, store, inode, () => {});
  }

  // -- how ---------------------------------------------------------------------------------------------

  #retain(data: bigint, store: Store, inode: Inode): void {
    inode.isRetained = true;
    const unpin = store.pin(inode, 0, Number.POSITIVE_INFINITY);
    this.#retained.set(data, { store, inode, unpin });
  }

  #storeAt(slot: number): Store | null {
    for (const store of this.#stores.values()) if (store.slot === slot) return store;
    return null;
  }

  #create(name: string, options: MountOptions, range: MemoryRange | null): Store {
    const { memory, kho, mm, faults } = this.#services;
    return withUndo((undo) => {
      this.#makeRoot();
      undo(() => this.#dropRootIfUnused());
      const slot = this.#freeSlot();
      if (range !== null)
        for (const { pa, order } of carveOutBlocks(range)) {
          kho.preserve(pa, order);
          undo(() => kho.unpreserve(pa, order));
        }
      const pages =
        range === null
          ? new DynamicPages(mm, kho, options.node)
          : new CarveOutPages(memory, range, faults, []);
      const superblockPa = pages.alloc(0);
      undo(() => pages.free(superblockPa, 0));
      MEMFS_SUPERBLOCK.write(memory, superblockPa, {
        magic: MEMFS_SUPERBLOCK_MAGIC,
        commit: 0,
        name,
        limitBytes: options.limitBytes,
        carveOutStart: range?.start ?? 0,
        carveOutBytes: range?.lengthBytes ?? 0,
        inodeBlocks: 0,
        extentBlocks: 0,
        node: options.node ?? MEMFS_NO_NODE,
        nextGeneration: 2,
      });
      const { offset } = MEMFS_SUPERBLOCK;
      const chain = (table: typeof MEMFS_INODE_TABLE | typeof MEMFS_EXTENT_TABLE, head: number) =>
        new BlockChain(memory, pages, table, superblockPa + head, []);
      const inodeTable = chain(MEMFS_INODE_TABLE, offset.inodeBlocks);
      const root = newInode({
        ino: inodeTable.allocSlot(),
        kind: "directory",
        generation: 1,
        sizeBytes: 0,
        name: "",
        nameSlots: [],
        parent: 0,
        isOrphan: false,
      });
      assert(root.ino === MEMFS_ROOT_INO, "the first slot is the root's");
      for (const { number, bytes } of encodeInode(root))
        memory.write(inodeTable.slotPa(number), bytes);
      // The store is whole before the root page names it.
      memory.fence();
      this.#setSlot(slot, superblockPa);
      const store = new Store({
        name,
        slot,
        memory,
        superblockPa,
        pages,
        inodeTable,
        extentTable: chain(MEMFS_EXTENT_TABLE, offset.extentBlocks),
        limitBytes: options.limitBytes,
        node: options.node,
        isCarveOut: range !== null,
        nextGeneration: 2,
        inodes: [root],
      });
      this.#stores.set(name, store);
      return store;
    });
  }

  #destroyIfUnused(store: Store): void {
    if (store.mountCount > 0 || store.isCarveOut || !store.isEmpty) return;
    // Nothing names the store before its pages go.
    this.#setSlot(store.slot, 0);
    this.#stores.delete(store.name);
    store.release();
    this.#dropRootIfUnused();
  }

  #makeRoot(): void {
    if (this.#rootPa !== 0) return;
    const { memory, kho } = this.#services;
    this.#rootPa = withUndo((undo) => {
      const pa = this.#rootPages.alloc(0);
      undo(() => this.#rootPages.free(pa, 0));
      MEMFS_ROOT.write(memory, pa, {
        compatible: MEMFS_COMPATIBLE,
        slotCount: MEMFS_STORE_SLOTS,
        reserved: 0,
      });
      memory.fence();
      kho.addSubtree(MEMFS_SUBTREE, pa, PAGE_SIZE);
      return pa;
    });
  }

  #dropRootIfUnused(): void {
    if (this.#rootPa === 0 || this.#stores.size > 0) return;
    this.#services.kho.removeSubtree(MEMFS_SUBTREE);
    this.#rootPages.free(this.#rootPa, 0);
    this.#rootPa = 0;
  }

  #freeSlot(): number {
    const taken = new Set([...this.#stores.values()].map((s) => s.slot));
    for (let slot = 0; slot < MEMFS_STORE_SLOTS; slot++) if (!taken.has(slot)) return slot;
    throw new KernelError("ENOSPC", "mount", `there are ${MEMFS_STORE_SLOTS} stores already`);
  }

  #setSlot(slot: number, pa: number): void {
    const at = this.#rootPa + MEMFS_STORE_SLOTS_OFFSET + 8 * slot;
    this.#services.memory.exchange64(at, pa % 2 ** 32, Math.floor(pa / 2 ** 32));
  }
}

function checkSameOptions(store: Store, given: Partial<MountOptions>): void {
  if (given.node !== undefined && given.node !== store.node)
    throw new KernelError("EINVAL", "mount", `store "${store.name}" is not on node ${given.node}`);
  if (given.limitBytes !== undefined && given.limitBytes !== store.limitBytes)
    throw new KernelError(
      "EINVAL",
      "mount",
      `store "${store.name}" has the limit ${store.limitBytes}`,
    );
}

/** slot:12 generation:24 ino:28 */
function encodeRetained(slot: number, generation: number, ino: number): bigint {
  return (BigInt(slot) << 52n) | (BigInt(generation) << 28n) | BigInt(ino);
}

/**
 * The file of a store that was handed over that a session names.
 * @throws {HandoverError} when there is none
 */
export function findRetained(
  memfs: DecodedMemfs | null,
  data: bigint,
  field: string,
): { slot: number; generation: number; ino: number; inode: Inode } {
  const retained = decodeRetained(data);
  const store = memfs?.stores.find((s) => s.slot === retained.slot);
  const inode = store?.inodes.get(retained.ino);
  if (inode?.kind !== "file" || inode.generation !== retained.generation)
    throw new HandoverError(field, `memfs has no file ${hex(data)}`);
  return { ...retained, inode };
}

function decodeRetained(data: bigint): { slot: number; generation: number; ino: number } {
  return {
    slot: Number(data >> 52n),
    generation: Number((data >> 28n) & BigInt(MEMFS_GENERATION_END - 1)),
    ino: Number(data & BigInt(MEMFS_INO_END - 1)),
  };
}
