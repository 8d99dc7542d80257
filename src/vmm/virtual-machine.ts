/**
 * A virtual machine: its memory file, its IOMMU chain, its assigned device, its guest.
 *
 * The ordinary chain is the one of R1: a mapping of the memory file, an IOAS over the same file, a HWPT on the
 * IOAS, the device attached to it. Guest physical address and IOVA are the same number.
 * Lifecycle: create → step … preserve → pause → (kexec) → restore → step … rebuild → swap, and so on;
 *   destroy at the end. Only {@link Host} is used.
 * @module
 */
import { IOMMU_LUO_COMPATIBLE } from "../abi/iommu-luo.ts";
import { IOMMUFD_LUO_COMPATIBLE } from "../abi/iommufd-luo.ts";
import { MEMFD_LUO_FH_COMPATIBLE } from "../abi/memfd.ts";
import { MEMFS_COMPATIBLE, MEMFS_FILE_COMPATIBLE } from "../abi/memfs.ts";
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from "../abi/pci.ts";
import { PCI_LUO_COMPATIBLE } from "../abi/pci-luo.ts";
import { EFD_NONBLOCK, O_CREAT, O_EXCL, O_RDWR } from "../abi/uapi/fs.ts";
import { VFIO_PCI_CONFIG_REGION_INDEX } from "../abi/uapi/vfio.ts";
import { VFIO_PCI_LUO_COMPATIBLE } from "../abi/vfio-luo.ts";
import { isKernelError, KernelError } from "../base/errno.ts";
import { withUndo } from "../base/undo.ts";
import { alignUp, GIB, PAGE_SIZE } from "../base/units.ts";
import { fiemap } from "../host/fiemap.ts";
import type { Host } from "../host/host.ts";
import * as iommufd from "../host/iommufd.ts";
import * as liveupdate from "../host/liveupdate.ts";
import { MappedMemory } from "../host/mapped-memory.ts";
import { MemfdRecord } from "../host/memfd-record.ts";
import * as vfio from "../host/vfio.ts";
import type { Guest, GuestFactory, GuestMachine } from "./guest.ts";
import { DONE, type Pending, type Resource, type RestoredVm } from "./managed-vm.ts";

/** What a VM is made of. */
export interface VmSpec {
  /** At most 63 bytes: it names the session. */
  readonly name: string;
  /** Path of the memory file, on a memfs. It is created. */
  readonly memoryPath: string;
  /** A multiple of 4 KiB. */
  readonly memoryBytes: number;
  /** Path of the VFIO cdev. */
  readonly devicePath: string;
  /** The device has no IOMMU: its DMA uses physical addresses of pinned memory. */
  readonly noiommu: boolean;
}

/** Tokens of a VM's files in its session. */
const TOKEN = { memory: 1n, state: 2n, iommufd: 3n, device: 4n } as const;
const STATE_SLOT_BYTES = 32 * 1024;
/** Room in a slot for each run of the memory map: three numbers below 2^52 as JSON. */
const RUN_BYTES = 56;
const BAR0 = 0;

/** What goes through the jump in the state memfd. */
interface VmState {
  readonly format: "holdfast-vm-v1";
  readonly spec: VmSpec;
  /** Token of the HWPT that the device is attached to; null without an IOMMU. */
  readonly hwptToken: string | null;
  /** Where the memory lies, to prove that nothing was moved. */
  readonly memoryMap: readonly (readonly [offset: number, physical: number, lengthBytes: number])[];
  /** Hexadecimal; null before the first pause. */
  readonly registers: string | null;
}

/** As on a PC: memory leaves room below 4 GiB for device registers and interrupts, and goes on above. */
const LOW_MEMORY_END = 3 * GIB;
const HIGH_MEMORY_START = 4 * GIB;

/** The ordinary chain behind the device. */
interface Chain {
  readonly ioasId: number;
  /** Null without an IOMMU. */
  readonly hwptId: number | null;
  readonly hwptToken: bigint | null;
}

export class VirtualMachine implements RestoredVm {
  readonly name: string;
  readonly ownerUid = null;
  readonly #host: Host;
  readonly #spec: VmSpec;
  readonly #fds: { memory: number; state: number; iommufd: number; device: number; event: number };
  readonly #memory: MappedMemory;
  readonly #state: MemfdRecord<VmState>;
  readonly #guest: Guest;
  /** The device is still translated by the previous kernel's tables. */
  #onOldTables: boolean;
  #chain: Chain;
  /** Built by `rebuild`, in use from `swap` on. */
  #rebuilt: Chain | null = null;
  #running = true;
  /** Bytes of guest memory that lay elsewhere after the last restoration. */
  #guestBytesMoved = 0;

  private constructor(parts: {
    host: Host;
    spec: VmSpec;
    fds: { memory: number; state: number; iommufd: number; device: number; event: number };
    memory: MappedMemory;
    state: MemfdRecord<VmState>;
    guest: Guest;
    onOldTables: boolean;
    chain: Chain;
  }) {
    this.name = parts.spec.name;
    this.#host = parts.host;
    this.#spec = parts.spec;
    this.#fds = parts.fds;
    this.#memory = parts.memory;
    this.#state = parts.state;
    this.#guest = parts.guest;
    this.#onOldTables = parts.onOldTables;
    this.#chain = parts.chain;
  }

  /**
   * Builds a VM and boots its guest.
   * @throws {KernelError} EEXIST when the memory file exists; ENOMEM; EINVAL when the device is in use; whatever the
   *   calls of the chain throw. Nothing is left behind.
   */
  static create(host: Host, spec: VmSpec, boot: GuestFactory): VirtualMachine {
    return withUndo((undo) => {
      const keep = (fd: number) => {
        undo(() => host.close(fd));
        return fd;
      };
      const memoryFd = host.open(spec.memoryPath, O_RDWR | O_CREAT | O_EXCL);
      undo(() => host.unlink(spec.memoryPath));
      keep(memoryFd);
      host.ftruncate(memoryFd, spec.memoryBytes);
      host.fallocate(memoryFd, 0, 0, spec.memoryBytes);
      const memory = new MappedMemory(host.mmap(memoryFd, 0, spec.memoryBytes));
      undo(() => memory.unmap());

      const fds = {
        memory: memoryFd,
        state: keep(host.memfdCreate(`${spec.name}-state`, 0)),
        iommufd: keep(host.open("/dev/iommu", O_RDWR)),
        device: keep(host.open(spec.devicePath, O_RDWR)),
        event: keep(host.eventfd(0, EFD_NONBLOCK)),
      };
      const runs = fiemap(host, memoryFd).length;
      const slotBytes = STATE_SLOT_BYTES + alignUp(runs * RUN_BYTES, PAGE_SIZE);
      const state = MemfdRecord.create<VmState>(host, fds.state, slotBytes, {
        format: "holdfast-vm-v1",
        spec,
        hwptToken: null,
        memoryMap: [],
        registers: null,
      });
      const deviceId = vfio.bindIommufd(host, fds.device, fds.iommufd);
      const chain = buildChain(host, fds, spec, deviceId, 1n);
      vfio.attach(host, fds.device, chain.hwptId ?? chain.ioasId);
      enableDevice(host, fds.device);
      vfio.setMsiEventfd(host, fds.device, fds.event);
      const guest = boot(guestMachine(host, fds, spec, memory, chain), null);
      return new VirtualMachine({
        host,
        spec,
        fds,
        memory,
        state,
        guest,
        onOldTables: false,
        chain,
      });
    });
  }

  /**
   * Takes a VM out of an incoming session: memory, registers and device; its DMA goes on by the previous kernel's
   * translations. Ready for `step`.
   * @throws {KernelError} ENOENT or EIO when the session does not hold a VM; whatever RETRIEVE_FD throws
   */
  static restore(host: Host, session: number, resume: GuestFactory): VirtualMachine {
    return withUndo((undo) => {
      const retrieve = (token: bigint) => {
        const fd = liveupdate.retrieveFd(host, session, token);
        undo(() => host.close(fd));
        return fd;
      };
      const stateFd = retrieve(TOKEN.state);
      const state = MemfdRecord.open<VmState>(host, stateFd);
      const saved = state.read();
      if (saved.format !== "holdfast-vm-v1" || saved.registers === null)
        throw new KernelError("EIO", "restore", `unknown state format ${String(saved.format)}`);
      const spec = saved.spec;
      const memoryFd = retrieve(TOKEN.memory);
      const memory = new MappedMemory(host.mmap(memoryFd, 0, spec.memoryBytes));
      undo(() => memory.unmap());
      const event = host.eventfd(0, EFD_NONBLOCK);
      undo(() => host.close(event));
      const fds = {
        memory: memoryFd,
        state: stateFd,
        iommufd: retrieve(TOKEN.iommufd),
        device: retrieve(TOKEN.device),
        event,
      };
      vfio.setMsiEventfd(host, fds.device, fds.event);
      const hwptToken = saved.hwptToken === null ? null : BigInt(saved.hwptToken);
      // The IOAS of the previous kernel is gone; without an IOMMU the same memory is pinned again by the kernel.
      const chain = { ioasId: 0, hwptId: null, hwptToken };
      const guest = resume(
        guestMachine(host, fds, spec, memory, chain, saved.memoryMap),
        fromHex(saved.registers),
      );
      const vm = new VirtualMachine({
        host,
        spec,
        fds,
        memory,
        state,
        guest,
        onOldTables: true,
        chain,
      });
      vm.#running = false;
      vm.#guestBytesMoved = movedBytes(saved.memoryMap, readMemoryMap(host, memoryFd));
      return vm;
    });
  }

  get guest(): Guest {
    return this.#guest;
  }

  get memoryBytes(): number {
    return this.#spec.memoryBytes;
  }

  get devicePath(): string {
    return this.#spec.devicePath;
  }

  /** Guest memory whose physical place was another before the last live update: a copy by definition. */
  get guestBytesMoved(): number {
    return this.#guestBytesMoved;
  }

  step(): boolean {
    if (!this.#running) return false;
    this.#drainEvents();
    return this.#guest.step();
  }

  resources(): readonly Resource[] {
    const { spec, chain } = { spec: this.#spec, chain: this.#chain };
    const unfinished = this.#rebuilt === null ? null : "the rebuilt IOAS is not in use yet";
    return [
      {
        kind: "memory",
        label: spec.memoryPath,
        bytes: spec.memoryBytes,
        compatibles: [MEMFS_FILE_COMPATIBLE, MEMFS_COMPATIBLE],
        blocker: null,
        essential: true,
      },
      {
        kind: "state",
        label: `${spec.name}-state`,
        bytes: this.#host.fstat(this.#fds.state).sizeBytes,
        compatibles: [MEMFD_LUO_FH_COMPATIBLE],
        blocker: null,
        essential: true,
      },
      {
        kind: "iommufd",
        label: spec.noiommu ? "without IOMMU" : `HWPT token ${chain.hwptToken}`,
        bytes: 0,
        compatibles: [IOMMUFD_LUO_COMPATIBLE, IOMMU_LUO_COMPATIBLE],
        blocker: this.#onOldTables ? "still on the previous kernel's translations" : unfinished,
        essential: true,
      },
      {
        kind: "device",
        label: spec.devicePath,
        bytes: 0,
        compatibles: [VFIO_PCI_LUO_COMPATIBLE, PCI_LUO_COMPATIBLE, IOMMU_LUO_COMPATIBLE],
        blocker: null,
        essential: true,
      },
    ];
  }

  preserve(session: number): Pending {
    const host = this.#host;
    // The order is that of need: a HWPT wants its memory in the session, a device its iommufd.
    liveupdate.preserveFd(host, session, this.#fds.memory, TOKEN.memory);
    liveupdate.preserveFd(host, session, this.#fds.state, TOKEN.state);
    liveupdate.preserveFd(host, session, this.#fds.iommufd, TOKEN.iommufd);
    liveupdate.preserveFd(host, session, this.#fds.device, TOKEN.device);
    return DONE;
  }

  unpreserve(): void {
    // Closing the session has undone everything; nothing of a VM changes when it is preserved.
  }

  pause(): Pending {
    this.#running = false;
    this.#state.write({
      format: "holdfast-vm-v1",
      spec: this.#spec,
      hwptToken: this.#chain.hwptToken === null ? null : String(this.#chain.hwptToken),
      memoryMap: readMemoryMap(this.#host, this.#fds.memory),
      registers: toHex(this.#guest.save()),
    });
    return DONE;
  }

  resume(): void {
    this.#running = true;
  }

  rebuild(): void {
    if (this.#rebuilt !== null) return;
    const token = this.#chain.hwptToken === null ? 1n : this.#chain.hwptToken + 1n;
    const deviceId = vfio.deviceId(this.#host, this.#fds.device);
    this.#rebuilt = buildChain(this.#host, this.#fds, this.#spec, deviceId, token);
  }

  swap(): void {
    if (this.#rebuilt === null) return;
    vfio.attach(this.#host, this.#fds.device, this.#rebuilt.hwptId ?? this.#rebuilt.ioasId);
    this.#chain = this.#rebuilt;
    this.#rebuilt = null;
    this.#onOldTables = false;
  }

  /** Stops for good and frees everything, the memory file too. The guest must be at rest. */
  destroy(): void {
    const host = this.#host;
    this.#running = false;
    host.close(this.#fds.device);
    host.close(this.#fds.iommufd);
    host.close(this.#fds.event);
    this.#memory.unmap();
    host.close(this.#fds.state);
    host.close(this.#fds.memory);
    host.unlink(this.#spec.memoryPath);
  }

  #drainEvents(): void {
    try {
      this.#host.read(this.#fds.event, new Uint8Array(8));
    } catch (error) {
      if (!isKernelError(error, "EAGAIN")) throw error;
    }
  }
}

/** What a guest's firmware does: memory decoding and bus mastering on. */
function enableDevice(host: Host, device: number): void {
  const config = vfio.openRegion(host, device, VFIO_PCI_CONFIG_REGION_INDEX);
  const command = config.read32(PCI_COMMAND) & 0xffff;
  // The upper half is the status register, whose bits are cleared by writing ones.
  config.write32(PCI_COMMAND, command | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

type Fds = { readonly memory: number; readonly iommufd: number; readonly device: number };

/** An IOAS over the memory file and, behind an IOMMU, a HWPT on it that is marked to be preserved. */
function buildChain(host: Host, fds: Fds, spec: VmSpec, deviceId: number, token: bigint): Chain {
  return withUndo((undo) => {
    const ioasId = iommufd.ioasAlloc(host, fds.iommufd);
    undo(() => iommufd.destroy(host, fds.iommufd, ioasId));
    for (const { offset, gpa, lengthBytes } of guestMemoryMap(spec.memoryBytes))
      iommufd.ioasMapFile(host, fds.iommufd, {
        ioasId,
        fileFd: fds.memory,
        start: offset,
        lengthBytes,
        iova: gpa,
        writable: true,
      });
    if (spec.noiommu) return { ioasId, hwptId: null, hwptToken: null };
    const hwptId = iommufd.hwptAlloc(host, fds.iommufd, { deviceId, ptId: ioasId });
    undo(() => iommufd.destroy(host, fds.iommufd, hwptId));
    iommufd.hwptMarkPreserve(host, fds.iommufd, hwptId, token);
    return { ioasId, hwptId, hwptToken: token };
  });
}

/** Which part of the memory file is at which guest physical address. */
function guestMemoryMap(memoryBytes: number) {
  const low = { offset: 0, gpa: 0, lengthBytes: Math.min(memoryBytes, LOW_MEMORY_END) };
  if (memoryBytes <= LOW_MEMORY_END) return [low];
  const lengthBytes = memoryBytes - LOW_MEMORY_END;
  return [low, { offset: LOW_MEMORY_END, gpa: HIGH_MEMORY_START, lengthBytes }];
}

function guestMachine(
  host: Host,
  fds: Fds,
  spec: VmSpec,
  memory: MappedMemory,
  chain: Chain,
  memoryMap?: VmState["memoryMap"],
): GuestMachine {
  const bar = vfio.openRegion(host, fds.device, BAR0);
  return {
    memory,
    device: bar,
    dmaAddress(offset, lengthBytes) {
      if (offset < LOW_MEMORY_END && offset + lengthBytes > LOW_MEMORY_END)
        throw new KernelError(
          "EINVAL",
          "dma",
          "memory is not contiguous around the hole below 4 GiB",
        );
      const gpa = offset < LOW_MEMORY_END ? offset : offset + HIGH_MEMORY_START - LOW_MEMORY_END;
      if (!spec.noiommu) return gpa;
      if (memoryMap !== undefined) return physicalOf(memoryMap, offset, lengthBytes);
      const found = iommufd.noiommuGetPa(host, fds.iommufd, chain.ioasId, gpa);
      if (found.lengthBytes < lengthBytes)
        throw new KernelError("EINVAL", "dma", `only ${found.lengthBytes} bytes are contiguous`);
      return found.physical;
    },
  };
}

/** Where the file lies in physical memory, merged where it is contiguous. */
function readMemoryMap(host: Host, fd: number): VmState["memoryMap"] {
  return fiemap(host, fd).map((extent) => [
    extent.offsetBytes,
    extent.physical,
    extent.lengthBytes,
  ]);
}

/** Bytes of the file that do not lie where they lay. */
function movedBytes(before: VmState["memoryMap"], after: VmState["memoryMap"]): number {
  // Both are in order, and this is in the blackout: one pass over both.
  let moved = 0;
  let first = 0;
  for (const [offset, physical, lengthBytes] of before) {
    const end = offset + lengthBytes;
    let same = 0;
    while (first < after.length && after[first][0] + after[first][2] <= offset) first++;
    for (let i = first; i < after.length && after[i][0] < end; i++) {
      const [o, p, l] = after[i];
      if (p - o === physical - offset) same += Math.min(end, o + l) - Math.max(offset, o);
    }
    moved += lengthBytes - same;
  }
  return moved;
}

function physicalOf(map: VmState["memoryMap"], offset: number, lengthBytes: number): number {
  for (const [start, physical, length] of map) {
    if (offset >= start && offset + lengthBytes <= start + length) return physical + offset - start;
  }
  throw new KernelError("EINVAL", "dma", `offset ${offset} is not contiguous for ${lengthBytes}`);
}

function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function fromHex(text: string): Uint8Array {
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}
