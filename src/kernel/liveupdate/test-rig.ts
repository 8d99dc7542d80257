/**
 * A kernel of nothing but memory, KHO, memfds and live update, for tests: with the real parts, not fakes.
 *
 * `jump()` is a kexec in small: all memory that is neither preserved nor scratch is overwritten, and a new rig
 * starts from the boot parameters alone.
 * @module
 */
import {
  LIVEUPDATE_SESSION_PRESERVE_FD,
  LIVEUPDATE_SESSION_PRESERVE_FD_ARG,
  LIVEUPDATE_SESSION_RETRIEVE_FD,
  LIVEUPDATE_SESSION_RETRIEVE_FD_ARG,
} from "../../abi/uapi/liveupdate.ts";
import { ByteWords } from "../../abi/words.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { MIB } from "../../base/units.ts";
import { keptRanges } from "../../machine/embedded/kexec-kept.ts";
import { scribble, scribblePattern } from "../../machine/embedded/kexec-scribble.ts";
import type { KhoBootParameters } from "../../machine/machine.ts";
import { createSharedRam, Ram } from "../../machine/physical-memory.ts";
import { IncomingHandover } from "../kho/incoming-handover.ts";
import { Kho } from "../kho/kho.ts";
import { Scratch } from "../kho/scratch.ts";
import { BuddyAllocator } from "../mm/buddy-allocator.ts";
import { Shmem } from "../shmem/memfd.ts";
import { MemfdHandler } from "../shmem/memfd-handler.ts";
import { DescriptorTable } from "../vfs/fd-table.ts";
import { File } from "../vfs/file.ts";
import type {
  FileHandler,
  FileLifecycleBound,
  FinishArgs,
  PreserveArgs,
  RetrieveArgs,
} from "./file-handler.ts";
import { LiveUpdate } from "./live-update.ts";

const RAM_BYTES = 64 * MIB;
/** What lost memory holds. */
const PATTERN = scribblePattern(1);
const SCRATCH = { lowmemBytes: 4 * MIB, globalBytes: 0, perNodeBytes: 0 };

/** What a rig is made with. */
export interface RigOptions {
  /** Handlers beside that of memfds, made for each kernel. */
  readonly handlers?: (rig: Rig) => readonly FileHandler[];
  readonly ramBytes?: number;
  readonly fileLimit?: number;
}

export class Rig {
  readonly ram: Ram;
  readonly faults = new FaultInjector();
  readonly mm: BuddyAllocator;
  readonly kho: Kho;
  readonly shmem: Shmem;
  readonly memfds: MemfdHandler;
  readonly luo: LiveUpdate;
  readonly fds: DescriptorTable;
  readonly warnings: string[] = [];
  readonly #options: RigOptions;

  private constructor(ram: Ram, options: RigOptions, kho: KhoBootParameters | null) {
    this.ram = ram;
    this.#options = options;
    const { faults } = this;
    const memory = ram.ranges.map((range) => ({ ...range, node: 0 }));
    const firmware = { memory, nodeCount: 1 };
    const incoming = kho === null ? null : IncomingHandover.read(ram, kho);
    const scratch = incoming?.scratch ?? Scratch.reserve(firmware, [], SCRATCH);
    this.mm = new BuddyAllocator({
      memory: ram,
      firmware,
      scratch: scratch.ranges,
      ...(incoming === null ? {} : { reserved: incoming.blocks }),
      faults,
    });
    const { mm } = this;
    this.kho = Kho.start({ memory: ram, mm, scratch, incoming, release: "rig", faults });
    const pages = { memory: ram, mm, kho: this.kho, faults };
    this.shmem = new Shmem({ memory: ram, mm });
    this.memfds = new MemfdHandler(pages, this.shmem);
    this.luo = new LiveUpdate({ ...pages, warn: (line) => this.warnings.push(line) });
    this.fds = new DescriptorTable(options.fileLimit ?? 4096);
    this.luo.registerHandler(this.memfds);
    for (const handler of options.handlers?.(this) ?? []) this.luo.registerHandler(handler);
  }

  /** A kernel on fresh memory. */
  static cold(options: RigOptions = {}): Rig {
    const lengthBytes = options.ramBytes ?? RAM_BYTES;
    const rig = new Rig(new Ram(createSharedRam([{ start: 0, lengthBytes }])), options, null);
    return rig.boot();
  }

  /** Decodes and adopts. */
  boot(): this {
    this.luo.decode();
    this.luo.adopt();
    return this;
  }

  /** Freezes and jumps; the next kernel has decoded nothing yet. */
  jumpUnbooted(options: RigOptions = this.#options): Rig {
    this.luo.freeze();
    return Rig.enter(this.ram, this.kho.bootParameters(), options);
  }

  /** Freezes, jumps and boots. */
  jump(options: RigOptions = this.#options): Rig {
    return this.jumpUnbooted(options).boot();
  }

  /** The next kernel, from what is in memory. */
  static enter(ram: Ram, parameters: KhoBootParameters, options: RigOptions): Rig {
    const kept = keptRanges(ram, parameters);
    if (kept.problem !== null) throw new Error(kept.problem);
    scribble(ram, ram.ranges, kept.ranges, PATTERN);
    return new Rig(ram, options, parameters);
  }

  /** All that a leak would change. */
  usage(): unknown {
    return {
      pages: this.mm.counts(),
      kho: this.kho.sizes(),
      unrestored: this.kho.unrestoredPages(),
      luo: this.luo.counts(),
    };
  }

  /** Opens /dev/liveupdate. @returns its descriptor */
  openDevice(): number {
    return this.fds.install(this.luo.openDevice());
  }

  close(fd: number): void {
    this.fds.remove(fd).put();
  }

  /** ioctl(2), as the callers of src/host want it. */
  readonly ioctl = (
    fd: number,
    request: number,
    argument: { readonly bytes: Uint8Array },
  ): number => this.fds.get(fd).ioctl(request, argument, this.fds);
}

/** Preserves a file by the ioctl of its session, which takes over the file's reference. */
export function preserveFile(rig: Rig, session: File, file: File, token: bigint): void {
  const layout = LIVEUPDATE_SESSION_PRESERVE_FD_ARG;
  const bytes = new Uint8Array(layout.sizeBytes);
  const fd = rig.fds.install(file);
  layout.write(new ByteWords(bytes), 0, { size: bytes.length, fd, token });
  session.ioctl(LIVEUPDATE_SESSION_PRESERVE_FD, { bytes }, rig.fds);
}

/** Retrieves a file by the ioctl of its session. */
export function retrieveFile(rig: Rig, session: File, token: bigint): File {
  const layout = LIVEUPDATE_SESSION_RETRIEVE_FD_ARG;
  const bytes = new Uint8Array(layout.sizeBytes);
  layout.write(new ByteWords(bytes), 0, { size: bytes.length, fd: -1, token });
  session.ioctl(LIVEUPDATE_SESSION_RETRIEVE_FD, { bytes }, rig.fds);
  return rig.fds.get(layout.read(new ByteWords(bytes), 0).fd);
}

/** A file with a number for a state. */
export class ToyFile extends File {
  readonly kind = "toy";
  readonly id: number;
  isReleased = false;

  constructor(id: number) {
    super();
    this.id = id;
  }

  protected override release(): void {
    this.isReleased = true;
  }
}

/** Hands the number over as it is, and records every call. */
export class ToyHandler implements FileHandler<number> {
  readonly compatible: string;
  readonly flbs: readonly FileLifecycleBound[];
  readonly calls: string[];
  /** What `canFinish` says. */
  mayFinish = true;

  constructor(
    calls: string[] = [],
    flbs: readonly FileLifecycleBound[] = [],
    compatible = "toy-v1",
  ) {
    this.calls = calls;
    this.flbs = flbs;
    this.compatible = compatible;
  }

  canPreserve(file: File): boolean {
    return file instanceof ToyFile;
  }
  preserve({ file }: PreserveArgs): bigint {
    this.calls.push(`preserve ${(file as ToyFile).id}`);
    return BigInt((file as ToyFile).id);
  }
  unpreserve({ file, data }: PreserveArgs & { readonly data: bigint }): void {
    this.calls.push(`unpreserve ${(file as ToyFile).id} ${data}`);
  }
  freeze({ file, data }: PreserveArgs & { readonly data: bigint }): bigint {
    this.calls.push(`freeze ${(file as ToyFile).id}`);
    return data + 1000n;
  }
  unfreeze({ file, data }: PreserveArgs & { readonly data: bigint }): void {
    this.calls.push(`unfreeze ${(file as ToyFile).id} ${data}`);
  }
  decode(_incoming: unknown, data: bigint): number {
    return Number(data - 1000n);
  }
  retrieve({ data }: RetrieveArgs<number>): File {
    this.calls.push(`retrieve ${data}`);
    return new ToyFile(data);
  }
  canFinish(): boolean {
    return this.mayFinish;
  }
  finish({ data, file }: FinishArgs<number>): void {
    this.calls.push(`finish ${data}${file === null ? " discarded" : ""}`);
  }
}

/** Global state that is a number, and records every call. */
export class ToyFlb implements FileLifecycleBound<bigint> {
  readonly compatible: string;
  readonly calls: string[];

  constructor(calls: string[], compatible = "toy-flb-v1") {
    this.calls = calls;
    this.compatible = compatible;
  }

  #note(what: string): void {
    this.calls.push(`${this.compatible} ${what}`);
  }
  preserve(): bigint {
    this.#note("preserve");
    return 7n;
  }
  unpreserve(data: bigint): void {
    this.#note(`unpreserve ${data}`);
  }
  freeze(data: bigint): bigint {
    this.#note("freeze");
    return data + 1n;
  }
  unfreeze(data: bigint): void {
    this.#note(`unfreeze ${data}`);
  }
  decode(_incoming: unknown, data: bigint): bigint {
    this.#note(`decode ${data}`);
    return data;
  }
  adopt(data: bigint): void {
    this.#note(`adopt ${data}`);
  }
  finish(data: bigint): void {
    this.#note(`finish ${data}`);
  }
}
