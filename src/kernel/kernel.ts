/**
 * The kernel as a whole: its parts, made in the order in which they need one another.
 *
 * After a live update the order is also that of trust: everything that the previous kernel left is decoded and
 * checked (reading only) before any of it is adopted, and nothing that was freed on the way is given out again
 * before the last step that can fail.
 * @module
 */
import { KHO_FDT_COMPATIBLE } from "../abi/kho.ts";
import { MEMFS_COMPATIBLE, MEMFS_SUBTREE } from "../abi/memfs.ts";
import type { FaultInjector } from "../base/fault-injector.ts";
import { PAGE_SIZE } from "../base/units.ts";
import type { Machine } from "../machine/machine.ts";
import type { KernelOptions } from "./command-line.ts";
import { blockAll } from "./iommu/block-all.ts";
import { DmaFaultLog, type DmaFaults } from "./iommu/dma-fault-log.ts";
import { VtdIommu } from "./iommu/vtd-iommu.ts";
import { IommufdFile } from "./iommufd/file.ts";
import { Iommufd } from "./iommufd/iommufd.ts";
import { IommufdFileHandler } from "./iommufd/live-update.ts";
import { bootFilesystem } from "./kexec/boot-filesystem.ts";
import { BOOT_MOUNT, KexecControl } from "./kexec/kexec-control.ts";
import type { IncomingHandover } from "./kho/incoming-handover.ts";
import { Kho } from "./kho/kho.ts";
import { RecordPages } from "./kho/record-pages.ts";
import { Scratch } from "./kho/scratch.ts";
import type { FileHandler } from "./liveupdate/file-handler.ts";
import { LiveUpdate } from "./liveupdate/live-update.ts";
import { type DecodedMemfs, decodeMemfs } from "./memfs/decode.ts";
import { MemfsFileHandler } from "./memfs/file-handler.ts";
import { Memfs } from "./memfs/memfs.ts";
import { BuddyAllocator } from "./mm/buddy-allocator.ts";
import { pciName } from "./pci/function.ts";
import { PciCore } from "./pci/pci.ts";
import { quiesceAll } from "./pci/quiesce.ts";
import { Shmem } from "./shmem/memfd.ts";
import { MemfdHandler } from "./shmem/memfd-handler.ts";
import { VfioPciFileHandler } from "./vfio/live-update.ts";
import { VectorAllocator } from "./vfio/vectors.ts";
import { VfioPci } from "./vfio/vfio-pci.ts";
import { DeviceFilesystem } from "./vfs/device-filesystem.ts";
import { Process } from "./vfs/process.ts";
import { RootFilesystem } from "./vfs/root-filesystem.ts";
import { SerialPort } from "./vfs/serial-file.ts";
import { TextFilesystem } from "./vfs/text-filesystem.ts";
import { Vfs } from "./vfs/vfs.ts";

/** What a kernel is made from. */
export interface KernelParts {
  readonly machine: Machine;
  readonly options: KernelOptions;
  readonly commandLine: string;
  /** uname -r */
  readonly release: string;
  readonly faults: FaultInjector;
  /** What the previous kernel left, read but not used; null on a cold boot or when it was refused. */
  readonly incoming: IncomingHandover | null;
  readonly log: (line: string) => void;
}

/** What is still held, for leak checks: all zero when every process has ended and every file is deleted. */
export interface Leaks {
  /** 4 KiB pages that nothing accounts for, or that the previous kernel preserved and nobody took over. */
  readonly pages: number;
  /** Ranges of memfs files and memfds. */
  readonly pins: number;
  /** Domains of users and of the previous kernel, functions that are attached, domain ids that nobody has. */
  readonly domains: number;
}

export interface HandoverSizes {
  readonly bytes: number;
  readonly guestBytes: number;
}

/** Where the kernel tells about itself: `leaks`, `handover` and `faults`, JSON, one object a file. */
const DEBUG_MOUNT = "/sys/kernel/debug/holdfast";
const VFIO_CLASS = "/sys/class/vfio-dev";
const DIRECTORIES = [
  "/dev",
  "/mnt",
  BOOT_MOUNT,
  "/sys",
  "/sys/class",
  VFIO_CLASS,
  "/sys/kernel",
  "/sys/kernel/debug",
  DEBUG_MOUNT,
];

export class Kernel {
  readonly release: string;
  readonly mm: BuddyAllocator;
  readonly kho: Kho;
  readonly pci: PciCore;
  readonly iommu: VtdIommu;
  readonly shmem: Shmem;
  readonly memfs: Memfs;
  readonly iommufd: Iommufd;
  readonly vfio: VfioPci;
  readonly liveUpdate: LiveUpdate;
  readonly kexec: KexecControl;
  readonly vfs: Vfs;
  readonly #parts: KernelParts;
  readonly #records: RecordPages;
  readonly #dmaFaults: DmaFaultLog;

  /**
   * Boots. After a failure nothing of the handover is lost: `incoming.startOver()`, and another attempt may follow.
   *
   * @throws {HandoverError} when the handover breaks a rule; nothing of it was used
   * @throws {KernelError} ENOMEM; EINVAL a carve-out that is not RAM
   */
  constructor(parts: KernelParts) {
    const { machine, options, incoming, faults, release, log } = parts;
    const { memory } = machine;
    this.#parts = parts;
    this.release = release;

    const decodedMemfs = decodeIncomingMemfs(incoming);
    // Where carve-outs are is known from the handover alone; the command line counts on a cold boot.
    const carveOuts = incoming === null ? options.carveOuts : (decodedMemfs?.carveOuts ?? []);
    const scratch = incoming?.scratch ?? Scratch.reserve(machine.firmware, carveOuts);
    const mm = new BuddyAllocator({
      memory,
      firmware: machine.firmware,
      scratch: scratch.ranges,
      carveOuts,
      ...(incoming === null ? {} : { reserved: incoming.blocks }),
      faults,
    });
    this.mm = mm;
    mm.holdFrees();
    const kho = new Kho({ memory, mm, scratch, incoming, release, faults });
    this.kho = kho;
    this.#records = new RecordPages({ memory, mm, kho, faults });
    this.pci = new PciCore({ machine, records: this.#records, faults });
    this.iommu = new VtdIommu({ machine, mm, kho, faults, superpages: options.superpages });
    this.#dmaFaults = new DmaFaultLog(this.iommu, log);
    this.shmem = new Shmem({ memory, mm });
    const { nodeCount } = machine.firmware;
    this.memfs = new Memfs({ memory, mm, kho, faults, nodeCount, incoming: decodedMemfs });
    this.iommufd = new Iommufd({ iommu: this.iommu, faults });
    this.vfio = new VfioPci({
      pci: this.pci,
      iommu: this.iommu,
      interrupts: machine.interrupts,
      mmio: machine.mmio,
      vectors: new VectorAllocator(machine.interrupts),
      faults,
      enableUnsafeNoiommuMode: options.noiommu,
    });
    this.liveUpdate = new LiveUpdate({ memory, mm, kho, faults, warn: log });
    for (const handler of this.#fileHandlers()) this.liveUpdate.registerHandler(handler);
    this.liveUpdate.decode();
    if (incoming !== null && incoming.unclaimedPages() > 0)
      log(
        `kho: ${incoming.unclaimedPages()} preserved pages belong to nothing that this kernel knows`,
      );

    // Everything was found good. From here on it is used, and the first page is given out.
    faults.point("boot:adopt");
    // On a cold boot, and when no translation was handed over: whatever devices do, it is not to go on.
    if (this.iommu.incoming === null) this.#stopWhatRuns();
    else
      for (const name of this.pci.quiesceOthers())
        log(`pci: ${name} is not preserved, but could do DMA; it is stopped`);
    kho.begin();
    this.memfs.adopt();
    this.liveUpdate.adopt();
    this.pci.enumerate();
    for (const warning of this.pci.warnings) log(`pci: ${warning}`);
    this.iommu.start();
    if (incoming === null)
      for (const carveOut of options.carveOuts) this.memfs.addCarveOut(carveOut);
    const devices = new DeviceFilesystem();
    this.#registerDevices(devices);
    this.kexec = new KexecControl({
      machine,
      kho,
      liveUpdate: this.liveUpdate,
      requirements: () => this.#requirements(),
      pci: this.pci,
      iommu: this.iommu,
      faults,
    });
    this.vfs = new Vfs(new RootFilesystem(DIRECTORIES));
    this.vfs.mount(DEBUG_MOUNT, () => new TextFilesystem("debugfs", this.#debugFiles()));
    this.vfs.mount("/dev", () => devices);
    this.vfs.mount(BOOT_MOUNT, () => bootFilesystem(machine.kexec.installed));
    this.#mountSysfs();
    faults.point("boot:done");
    // Last: an attempt to boot that fails must not swallow them.
    this.#dmaFaults.drainAtBoot();
    mm.releaseFrees();
  }

  /**
   * A new process of userspace.
   *
   * @param options - `fileLimit`: its RLIMIT_NOFILE, at most 65536; default 1024
   */
  spawn(options: { readonly fileLimit?: number } = {}): Process {
    const { machine, commandLine, release } = this.#parts;
    return new Process({
      vfs: this.vfs,
      filesystems: new Map([
        ["memfs", (source: string, options: string) => this.memfs.mount(source, options)],
      ]),
      memfdCreate: (name, flags) => this.shmem.memfdCreate(name, flags),
      kexecFileLoad: (image, line) => this.kexec.fileLoad(image, line),
      kexecUnload: () => this.kexec.unload(),
      reboot: (command) => {
        this.#dmaFaults.drain();
        return this.kexec.reboot(command);
      },
      onSleep: () => this.vfio.deliverInterrupts(),
      clock: machine.clock,
      interrupts: machine.interrupts,
      serial: machine.serial,
      release,
      commandLine,
      ...options,
    });
  }

  /** What nothing accounts for. Meant for the end, when userspace is gone: live files and domains count too. */
  leaks(): Leaks {
    const { mm, kho, memfs, shmem, iommu, liveUpdate } = this;
    const accounted =
      kho.sizes().metadataBytes / PAGE_SIZE +
      memfs.allocatorPages +
      iommu.ownPages +
      liveUpdate.ownPages;
    return {
      pages: mm.counts().allocated - accounted + kho.unrestoredPages(),
      pins: memfs.pinCount + shmem.pinCount,
      domains:
        iommu.domainCount + iommu.restoredCount + iommu.attachedCount + iommu.strayDomainIdCount,
    };
  }

  /** What a kexec would hand over now: bytes beside guest memory, and guest memory. */
  handover(): HandoverSizes {
    const { preservedBytes, metadataBytes } = this.kho.sizes();
    const guestBytes = this.memfs.dataBytes;
    return { bytes: preservedBytes - guestBytes + metadataBytes, guestBytes };
  }

  /** Blocked DMA since boot; what the units have recorded until now is among it. */
  dmaFaults(): DmaFaults {
    this.#dmaFaults.drain();
    return this.#dmaFaults.counts();
  }

  #debugFiles(): ReadonlyMap<string, () => string> {
    return new Map([
      ["faults", () => `${JSON.stringify(this.dmaFaults())}\n`],
      ["leaks", () => `${JSON.stringify(this.leaks())}\n`],
      ["handover", () => `${JSON.stringify(this.handover())}\n`],
    ]);
  }

  #fileHandlers(): readonly FileHandler[] {
    const { mm, kho, iommufd, vfio, pci } = this;
    const { machine, faults } = this.#parts;
    const { memory } = machine;
    const records = this.#records;
    const iommufdHandler = new IommufdFileHandler({ iommufd, memory, records });
    const pciFlb = pci.flb;
    return [
      new MemfsFileHandler(this.memfs),
      new MemfdHandler({ memory, mm, kho, faults }, this.shmem),
      iommufdHandler,
      new VfioPciFileHandler({ vfio, iommufd, iommufdHandler, pci, pciFlb, machine, records }),
    ] as readonly FileHandler[];
  }

  /**
   * On a boot that takes no translation over devices may still be at work: a handover was refused or lacks them, or the
   * last kernel has crashed. No page may be given to anyone before they are stopped.
   */
  #stopWhatRuns(): void {
    const { machine } = this.#parts;
    quiesceAll(machine);
    const emptyRootTable = this.mm.alloc(0);
    blockAll(machine, emptyRootTable);
    // Held back until the units have root tables of this kernel.
    this.mm.free(emptyRootTable, 0);
  }

  #registerDevices(devices: DeviceFilesystem): void {
    devices.register("iommu", () => new IommufdFile(this.iommufd));
    const serialPort = new SerialPort(this.#parts.machine.serial);
    devices.register("ttyS0", () => serialPort.open());
    if (this.#parts.options.liveUpdate)
      devices.register("liveupdate", () => this.liveUpdate.openDevice());
    for (const device of this.vfio.probe())
      devices.register(device.node, () => this.vfio.open(device));
  }

  /** /sys/class/vfio-dev/NAME/device: what a VMM needs to choose a device without opening it. */
  #mountSysfs(): void {
    for (const { node, pci } of this.vfio.devices) {
      const path = `${VFIO_CLASS}/${node.slice(node.lastIndexOf("/") + 1)}`;
      const id = (value: number, digits: number) =>
        `0x${value.toString(16).padStart(digits, "0")}\n`;
      const files = new Map([
        ["vendor", () => id(pci.vendorId, 4)],
        ["device", () => id(pci.deviceId, 4)],
        ["class", () => id(pci.classCode, 6)],
        ["uevent", () => `PCI_SLOT_NAME=${pciName(pci.segment, pci.bdf)}\n`],
      ]);
      this.vfs.mkdir(path);
      this.vfs.mkdir(`${path}/device`);
      this.vfs.mount(`${path}/device`, () => new TextFilesystem("sysfs", files));
    }
  }

  *#requirements() {
    yield* this.liveUpdate.requirements();
    for (const name of this.memfs.storeNames) {
      const neededBy = `memfs store "${name}"`;
      yield { compatible: KHO_FDT_COMPATIBLE, neededBy };
      yield { compatible: MEMFS_COMPATIBLE, neededBy };
    }
  }
}

function decodeIncomingMemfs(incoming: IncomingHandover | null): DecodedMemfs | null {
  const subtree = incoming?.subtree(MEMFS_SUBTREE) ?? null;
  if (incoming === null || subtree === null) return null;
  return decodeMemfs(incoming, subtree.pa, subtree.sizeBytes, `fdt:/${MEMFS_SUBTREE}`);
}
