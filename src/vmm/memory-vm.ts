/**
 * A VM that is memory and nothing else: a guest that writes its pages all the time, and can prove each of them.
 *
 * Why: upstream's kernel (7.3) preserves memfds and nothing else, so this is the VM that it can carry; and what an update
 * must not do to a VM can be told from it to the byte ({@link MemoryPattern}).
 * A page is compared before it is written over: running on hides no damage.
 * Lifecycle: create → step … preserve → pause → (kexec) → restore → step, verify … preserve, and so on; destroy at
 *   the end. Only {@link Host} is used.
 * @module
 */
import { Buffer } from "node:buffer";
import { IOMMU_LUO_COMPATIBLE } from "../abi/iommu-luo.ts";
import { IOMMUFD_LUO_COMPATIBLE } from "../abi/iommufd-luo.ts";
import { MEMFD_LUO_FH_COMPATIBLE } from "../abi/memfd.ts";
import {
  F_ADD_SEALS,
  F_GET_SEALS,
  F_SEAL_GROW,
  F_SEAL_SHRINK,
  MFD_ALLOW_SEALING,
  MFD_CLOEXEC,
  O_CLOEXEC,
  O_RDWR,
} from "../abi/uapi/fs.ts";
import { KernelError } from "../base/errno.ts";
import { withUndo } from "../base/undo.ts";
import { hex, isIndex, PAGE_SIZE } from "../base/units.ts";
import type { Host } from "../host/host.ts";
import * as liveupdate from "../host/liveupdate.ts";
import { MappedMemory } from "../host/mapped-memory.ts";
import { MemfdRecord } from "../host/memfd-record.ts";
import type { FileMapping } from "../kernel/vfs/file.ts";
import {
  DONE,
  type Pending,
  type Resource,
  type ResourceKind,
  type RestoredVm,
} from "./managed-vm.ts";
import { MemoryPattern } from "./memory-pattern.ts";

/** What a VM is made of. */
export interface MemoryVmSpec {
  /** At most 63 bytes: it names the session. */
  readonly name: string;
  /** A multiple of 4 KiB. */
  readonly memoryBytes: number;
  /** 0 .. 2^32 - 1: what the guest writes follows from it. */
  readonly seed: number;
  /** Whether it has an iommufd, as one with assigned devices would. */
  readonly iommufd: boolean;
}

/** A page that is not what it should be. */
export interface Damage {
  /** Where in memory its first wrong byte is. */
  readonly offsetBytes: number;
  readonly expected: number;
  readonly found: number;
}

/** Asks for huge pages behind a mapping before it is touched, where the kernel takes such advice. */
export type HugePageAdvice = (mapping: FileMapping) => void;

const FORMAT = "holdfast-memory-vm-v1";

/** What goes through the jump in the state memfd. */
interface MemoryVmState {
  readonly format: typeof FORMAT;
  readonly spec: MemoryVmSpec;
  /** Pages written when the guest was stopped. */
  readonly writes: number;
}

/** Tokens of a VM's files in its session. */
const TOKEN = { memory: 1n, state: 2n, iommufd: 3n } as const;
const STATE_SLOT_BYTES = PAGE_SIZE;
/** What keeps memory as large as its mapping, and lets devices rely on it. */
const SEALS = F_SEAL_SHRINK | F_SEAL_GROW;
/** Pages written in a step: a quarter of a mebibyte. */
const STEP_PAGES = 64;
/** Pages compared in a call of `verify`. */
const SLICE_PAGES = 4096;
/** Damages that are told one by one; the others are counted. */
const DAMAGES_TOLD = 16;

interface Fds {
  readonly memory: number;
  readonly state: number;
  /** Null: none. */
  readonly iommufd: number | null;
}

export class MemoryVm implements RestoredVm {
  readonly name: string;
  readonly spec: MemoryVmSpec;
  readonly ownerUid = null;
  readonly #host: Host;
  readonly #fds: Fds;
  readonly #memory: MappedMemory;
  readonly #state: MemfdRecord<MemoryVmState>;
  readonly #pattern: MemoryPattern;
  /** What a page should be. */
  readonly #page = Buffer.alloc(PAGE_SIZE);
  #writes: number;
  /** Pages compared by `verify`, from the first on. */
  #verifiedPages: number;
  readonly #damages: Damage[] = [];
  #damagedPages = 0;
  #running: boolean;
  /** What the session carries; decided by the last `preserve`. */
  #carriesIommufd: boolean;

  private constructor(parts: {
    host: Host;
    spec: MemoryVmSpec;
    fds: Fds;
    memory: MappedMemory;
    state: MemfdRecord<MemoryVmState>;
    writes: number;
    isRestored: boolean;
  }) {
    const { spec } = parts;
    this.name = spec.name;
    this.spec = spec;
    this.#host = parts.host;
    this.#fds = parts.fds;
    this.#memory = parts.memory;
    this.#state = parts.state;
    this.#pattern = new MemoryPattern(spec.seed, spec.memoryBytes / PAGE_SIZE);
    this.#writes = parts.writes;
    this.#verifiedPages = parts.isRestored ? 0 : this.#pattern.pages;
    this.#running = !parts.isRestored;
    this.#carriesIommufd = spec.iommufd;
  }

  /**
   * Makes a VM and boots its guest, which fills all of its memory.
   *
   * @param advise - null: pages as they come, all allocated before the first is touched
   * @throws {KernelError} EINVAL when the spec is out of its ranges; ENOMEM, ENOSPC no memory; ENOENT, EACCES,
   *   EBUSY of /dev/iommu. Nothing is left behind.
   */
  static create(host: Host, spec: MemoryVmSpec, advise: HugePageAdvice | null = null): MemoryVm {
    checkSpec(spec, "EINVAL", "create");
    return withUndo((undo) => {
      const keep = (fd: number) => {
        undo(() => host.close(fd));
        return fd;
      };
      const memoryFd = keep(host.memfdCreate(spec.name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
      host.ftruncate(memoryFd, spec.memoryBytes);
      // Without advice all memory is there, or ENOMEM is told, before the guest runs. With it the first touch decides
      // about the size of a page, which fallocate(2) would take away.
      if (advise === null) host.fallocate(memoryFd, 0, 0, spec.memoryBytes);
      host.fcntl(memoryFd, F_ADD_SEALS, SEALS);
      const mapping = host.mmap(memoryFd, 0, spec.memoryBytes);
      undo(() => mapping.unmap());
      advise?.(mapping);
      const stateFd = keep(host.memfdCreate(`${spec.name}-state`, MFD_CLOEXEC | MFD_ALLOW_SEALING));
      const state = MemfdRecord.create<MemoryVmState>(host, stateFd, STATE_SLOT_BYTES, {
        format: FORMAT,
        spec,
        writes: 0,
      });
      const iommufd = spec.iommufd ? keep(host.open("/dev/iommu", O_RDWR | O_CLOEXEC)) : null;
      const vm = new MemoryVm({
        host,
        spec,
        fds: { memory: memoryFd, state: stateFd, iommufd },
        memory: new MappedMemory(mapping),
        state,
        writes: 0,
        isRestored: false,
      });
      for (let page = 0; page < vm.#pattern.pages; page++) vm.#writePage(page, 0);
      return vm;
    });
  }

  /**
   * Takes a VM out of an incoming session: stopped, and nothing of its memory compared yet.
   *
   * @param name - what the VM must be called
   * @throws {KernelError} ENOENT when the session does not hold such a VM; EIO when what it holds is not one (the message says
   *   what is wrong); whatever RETRIEVE_FD throws. Nothing is left open.
   */
  static restore(
    host: Host,
    session: number,
    name: string,
    advise: HugePageAdvice | null = null,
  ): MemoryVm {
    return withUndo((undo) => {
      const retrieve = (token: bigint) => {
        const fd = liveupdate.retrieveFd(host, session, token);
        undo(() => host.close(fd));
        return fd;
      };
      const stateFd = retrieve(TOKEN.state);
      const state = MemfdRecord.open<unknown>(host, stateFd) as MemfdRecord<MemoryVmState>;
      const { spec, writes } = decodeState(state.read());
      if (spec.name !== name)
        throw new KernelError("EIO", "restore", `the session of "${name}" holds "${spec.name}"`);
      const memoryFd = retrieve(TOKEN.memory);
      const { sizeBytes } = host.fstat(memoryFd);
      if (sizeBytes !== spec.memoryBytes)
        throw new KernelError(
          "EIO",
          "restore",
          `memory of "${name}" has ${sizeBytes} bytes instead of ${spec.memoryBytes}`,
        );
      const seals = host.fcntl(memoryFd, F_GET_SEALS, 0);
      if (seals !== SEALS)
        throw new KernelError(
          "EIO",
          "restore",
          `memory of "${name}" has seals ${hex(seals)} instead of ${hex(SEALS)}`,
        );
      const iommufd = spec.iommufd ? retrieve(TOKEN.iommufd) : null;
      const mapping = host.mmap(memoryFd, 0, spec.memoryBytes);
      undo(() => mapping.unmap());
      advise?.(mapping);
      return new MemoryVm({
        host,
        spec,
        fds: { memory: memoryFd, state: stateFd, iommufd },
        memory: new MappedMemory(mapping),
        state,
        writes,
        isRestored: true,
      });
    });
  }

  /** Pages written since the guest booted. */
  get writes(): number {
    return this.#writes;
  }

  /** Whether the guest runs. */
  get isRunning(): boolean {
    return this.#running;
  }

  /** Bytes compared since the restoration, or since {@link beginVerification}: all of memory once {@link verify} has come to the end. */
  get verifiedBytes(): number {
    return this.#verifiedPages * PAGE_SIZE;
  }

  /** What is wrong in memory, as far as it was compared: the first of it. */
  get damages(): readonly Damage[] {
    return this.#damages;
  }

  /** Pages that were found damaged. */
  get damagedPages(): number {
    return this.#damagedPages;
  }

  /** Writes a quarter of a mebibyte, each page compared first. */
  step(): boolean {
    if (!this.#running) return false;
    for (let i = 0; i < STEP_PAGES; i++) {
      const page = this.#pattern.pageOfWrite(this.#writes);
      const round = this.#pattern.roundOf(page, this.#writes);
      this.#comparePage(page, round);
      this.#writePage(page, round + 1);
      this.#writes++;
    }
    return true;
  }

  /** Has {@link verify} begin anew. */
  beginVerification(): void {
    this.#verifiedPages = 0;
  }

  /** Compares the next 16 MiB with what they should be; the guest may run between calls. @returns whether there is more */
  verify(): boolean {
    const end = Math.min(this.#verifiedPages + SLICE_PAGES, this.#pattern.pages);
    for (let page = this.#verifiedPages; page < end; page++)
      this.#comparePage(page, this.#pattern.roundOf(page, this.#writes));
    this.#verifiedPages = end;
    return end < this.#pattern.pages;
  }

  resources(): readonly Resource[] {
    return memoryVmResources(this.spec);
  }

  /** @throws {KernelError} EINVAL when it is to go on without its memory or state */
  preserve(session: number, without: readonly ResourceKind[]): Pending {
    const host = this.#host;
    for (const kind of without)
      if (kind === "memory" || kind === "state")
        throw new KernelError("EINVAL", "preserve", `a VM cannot go on without its ${kind}`);
    liveupdate.preserveFd(host, session, this.#fds.memory, TOKEN.memory);
    liveupdate.preserveFd(host, session, this.#fds.state, TOKEN.state);
    this.#carriesIommufd = this.#fds.iommufd !== null && !without.includes("iommufd");
    if (this.#fds.iommufd !== null && this.#carriesIommufd)
      liveupdate.preserveFd(host, session, this.#fds.iommufd, TOKEN.iommufd);
    return DONE;
  }

  unpreserve(): void {
    // Closing the session has undone everything; nothing of a VM changes when it is preserved.
  }

  pause(): Pending {
    this.#running = false;
    this.#state.write({
      format: FORMAT,
      spec: { ...this.spec, iommufd: this.#carriesIommufd },
      writes: this.#writes,
    });
    return DONE;
  }

  resume(): void {
    this.#running = true;
  }

  rebuild(): void {
    // Nothing is mapped for a device.
  }

  swap(): void {
    // There is no device to move.
  }

  /** Stops for good and frees everything. */
  destroy(): void {
    this.#running = false;
    this.#memory.unmap();
    const { memory, state, iommufd } = this.#fds;
    for (const fd of [memory, state]) this.#host.close(fd);
    if (iommufd !== null) this.#host.close(iommufd);
  }

  #writePage(page: number, round: number): void {
    this.#pattern.fill(this.#page, page, round);
    this.#memory.write(page * PAGE_SIZE, this.#page);
  }

  #comparePage(page: number, round: number): void {
    this.#pattern.fill(this.#page, page, round);
    const found = this.#memory.bytes(page * PAGE_SIZE, PAGE_SIZE);
    if (this.#page.equals(found)) return;
    this.#damagedPages++;
    if (this.#damages.length === DAMAGES_TOLD) return;
    const at = found.findIndex((byte, i) => byte !== this.#page[i]);
    this.#damages.push({
      offsetBytes: page * PAGE_SIZE + at,
      expected: this.#page[at],
      found: found[at],
    });
  }
}

/** What a VM like this consists of, also before it is made. */
export function memoryVmResources({ name, memoryBytes, iommufd }: MemoryVmSpec): Resource[] {
  const memfd = { compatibles: [MEMFD_LUO_FH_COMPATIBLE], blocker: null, essential: true };
  const resources: Resource[] = [
    { kind: "memory", label: `memfd ${name}`, bytes: memoryBytes, ...memfd },
    { kind: "state", label: `memfd ${name}-state`, bytes: 2 * STATE_SLOT_BYTES, ...memfd },
  ];
  if (iommufd)
    resources.push({
      kind: "iommufd",
      label: "/dev/iommu",
      bytes: 0,
      compatibles: [IOMMUFD_LUO_COMPATIBLE, IOMMU_LUO_COMPATIBLE],
      blocker: null,
      essential: false,
    });
  return resources;
}

/** Checks a spec, which may come from a previous kernel. @throws {KernelError} `code`, naming the field */
function checkSpec(spec: MemoryVmSpec, code: "EINVAL" | "EIO", op: string): void {
  const wrong = (field: string, value: unknown, wanted: string) =>
    new KernelError(code, op, `${field} ${String(value)}: must be ${wanted}`);
  const { name, memoryBytes, seed, iommufd } = spec;
  if (typeof name !== "string" || name === "") throw wrong("name", name, "1 to 63 bytes");
  const isSize = isIndex(memoryBytes, Number.MAX_SAFE_INTEGER) && memoryBytes % PAGE_SIZE === 0;
  if (!isSize || memoryBytes === 0) throw wrong("memoryBytes", memoryBytes, "a multiple of 4 KiB");
  if (!isIndex(seed, 2 ** 32 - 1)) throw wrong("seed", seed, "0 to 4294967295");
  if (typeof iommufd !== "boolean") throw wrong("iommufd", iommufd, "true or false");
}

/** @throws {KernelError} EIO naming what is wrong */
function decodeState(value: unknown): MemoryVmState {
  const state = (
    typeof value === "object" && value !== null ? value : {}
  ) as Partial<MemoryVmState>;
  if (state.format !== FORMAT)
    throw new KernelError("EIO", "restore", `unknown state format ${String(state.format)}`);
  const { name, memoryBytes, seed, iommufd } = state.spec ?? ({} as Partial<MemoryVmSpec>);
  const spec = { name, memoryBytes, seed, iommufd } as MemoryVmSpec;
  checkSpec(spec, "EIO", "restore");
  if (!isIndex(state.writes, Number.MAX_SAFE_INTEGER))
    throw new KernelError("EIO", "restore", `writes ${String(state.writes)}: must be a count`);
  return { format: FORMAT, spec, writes: state.writes };
}
