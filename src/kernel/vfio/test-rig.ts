/**
 * A kernel with memory, KHO, memfds, live update, PCI, IOMMU, iommufd and VFIO on modelled hardware, for tests: the
 * real parts, not fakes.
 *
 * Hardware: segment 0 behind a VT-d unit with two devices, one of them below a root port; segment 1 without a
 * remapping unit with one device. The devices do DMA and raise interrupts when a test tells them to.
 * `jump()` is a kexec in small: what is neither preserved nor scratch is overwritten, the hardware goes on, and a new
 * kernel starts from the boot parameters alone.
 * @module
 */
import {
  F_ADD_SEALS,
  F_SEAL_GROW,
  F_SEAL_SEAL,
  F_SEAL_SHRINK,
  MFD_ALLOW_SEALING,
} from "../../abi/uapi/fs.ts";
import type { UserArgument } from "../../abi/uapi/ioctl.ts";
import { ByteWords } from "../../abi/words.ts";
import { assert } from "../../base/assert.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { MIB } from "../../base/units.ts";
import type { DmaPort } from "../../machine/embedded/hardware.ts";
import { createInterruptState, InterruptController } from "../../machine/embedded/interrupts.ts";
import { keptRanges } from "../../machine/embedded/kexec-kept.ts";
import { MmioBus } from "../../machine/embedded/mmio-bus.ts";
import type { DeviceModel } from "../../machine/embedded/pci/device-model.ts";
import type { PciEndpoint } from "../../machine/embedded/pci/endpoint.ts";
import { PciFabric } from "../../machine/embedded/pci/fabric.ts";
import { VtdUnit } from "../../machine/embedded/vtd/vtd-unit.ts";
import { buildAddressMap } from "../../machine/firmware.ts";
import type { KhoBootParameters, Machine, Mmio } from "../../machine/machine.ts";
import { createSharedRam, Ram } from "../../machine/physical-memory.ts";
import { VtdIommu } from "../iommu/vtd-iommu.ts";
import { IommufdFile } from "../iommufd/file.ts";
import { Iommufd } from "../iommufd/iommufd.ts";
import { IommufdFileHandler } from "../iommufd/live-update.ts";
import { IncomingHandover } from "../kho/incoming-handover.ts";
import { Kho } from "../kho/kho.ts";
import { RecordPages } from "../kho/record-pages.ts";
import { Scratch } from "../kho/scratch.ts";
import { LiveUpdate } from "../liveupdate/live-update.ts";
import { BuddyAllocator } from "../mm/buddy-allocator.ts";
import { PciCore } from "../pci/pci.ts";
import { Shmem } from "../shmem/memfd.ts";
import { MemfdHandler } from "../shmem/memfd-handler.ts";
import { Eventfd } from "../vfs/eventfd.ts";
import { DescriptorTable } from "../vfs/fd-table.ts";
import type { VfioDevice } from "./device.ts";
import { VfioPciFileHandler } from "./live-update.ts";
import { VectorAllocator } from "./vectors.ts";
import { VfioPci } from "./vfio-pci.ts";

const RAM_BYTES = 32 * MIB;
const SCRATCH = { lowmemBytes: 4 * MIB, globalBytes: 0, perNodeBytes: 0 };
/** What scribbled memory holds. */
const SCRIBBLE = 0xa5;

/** A device that writes and reads memory at the test's word. BAR 0: 4 KiB of scratch registers. */
export class TestDevice implements DeviceModel {
  readonly identity = {
    vendorId: 0x1234,
    deviceId: 0x5678,
    classCode: 0xff0000,
    revisionId: 1,
    subsystemVendorId: 0,
    subsystemId: 0,
  };
  readonly bars = [
    { index: 0, sizeBytes: 4096, kind: "memory64", isPrefetchable: false },
    { index: 2, sizeBytes: 16, kind: "memory32", isPrefetchable: false },
  ] as const;
  readonly #dma: DmaPort;
  readonly registers = new Uint8Array(4096);
  resets = 0;

  constructor(dma: DmaPort) {
    this.#dma = dma;
  }

  barRead(_bar: number, offset: number, size: 1 | 2 | 4): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 256 + this.registers[offset + i];
    return value;
  }
  barWrite(_bar: number, offset: number, size: 1 | 2 | 4, value: number): void {
    for (let i = 0; i < size; i++) this.registers[offset + i] = value >>> (8 * i);
  }
  reset(): void {
    this.registers.fill(0);
    this.resets++;
  }
  step(): boolean {
    return false;
  }
  nextDueNs(): number {
    return Number.POSITIVE_INFINITY;
  }

  /** Writes a word by DMA. @returns whether it arrived */
  dmaWrite(address: number, value: number): boolean {
    const bytes = new Uint8Array(4);
    new ByteWords(bytes).store32(0, value);
    return this.#dma.write(address, bytes);
  }
  /** Reads a word by DMA; null when it is blocked. */
  dmaRead(address: number): number | null {
    const bytes = new Uint8Array(4);
    return this.#dma.read(address, bytes) ? new ByteWords(bytes).load32(0) : null;
  }
  raiseInterrupt(): void {
    this.#dma.signalMsi();
  }
}

/** What stays when a kernel goes. */
export class TestHardware {
  readonly ram: Ram;
  readonly interrupts = new InterruptController(createInterruptState());
  readonly vtd: VtdUnit;
  /** Segment 0 on the root bus; segment 0 below a root port; segment 1, not translated. */
  readonly devices: readonly TestDevice[];
  readonly endpoints: readonly PciEndpoint[];
  readonly mmio: Mmio;
  readonly firmware: Machine["firmware"];

  constructor() {
    const map = buildAddressMap({
      nodeBytes: [RAM_BYTES],
      segments: [
        { drhd: { addressBits: 48, superpages: true }, slots: [] },
        { drhd: null, slots: [] },
      ],
      installed: [],
    });
    this.firmware = map.firmware;
    this.ram = new Ram(createSharedRam(map.ram));
    const { ram: memory, interrupts } = this;
    const { registerBase } = map.firmware.drhds[0];
    this.vtd = new VtdUnit({ memory, registerBase, interrupts });
    const fabrics = map.firmware.ecams.map(
      (ecam) =>
        new PciFabric({
          ecam,
          windows: map.firmware.mmioWindows.filter(({ segment }) => segment === ecam.segment),
          memory,
          interrupts,
          remapper: ecam.segment === 0 ? this.vtd : null,
        }),
    );
    const port = fabrics[0].addBridge({ parent: null, device: 4, function: 0 });
    const make = (dma: DmaPort) => new TestDevice(dma);
    this.endpoints = [
      fabrics[0].addEndpoint({ parent: null, device: 1, function: 0 }, make),
      fabrics[0].addEndpoint({ parent: port, device: 0, function: 0 }, make),
      fabrics[1].addEndpoint({ parent: null, device: 1, function: 0 }, make),
    ];
    this.devices = this.endpoints.map(({ model }) => {
      assert(model instanceof TestDevice, "an endpoint keeps its model");
      return model;
    });
    this.mmio = new MmioBus([this.vtd, ...fabrics.flatMap((fabric) => fabric.regions)]);
  }
}

export interface TestKernelOptions {
  readonly enableUnsafeNoiommuMode?: boolean;
}

export class TestKernel {
  readonly hardware: TestHardware;
  readonly faults = new FaultInjector();
  readonly mm: BuddyAllocator;
  readonly kho: Kho;
  readonly luo: LiveUpdate;
  readonly pci: PciCore;
  readonly iommu: VtdIommu;
  readonly iommufd: Iommufd;
  readonly vectors: VectorAllocator;
  readonly vfio: VfioPci;
  readonly shmem: Shmem;
  readonly fds = new DescriptorTable(4096);
  readonly #options: TestKernelOptions;

  private constructor(
    hardware: TestHardware,
    parameters: KhoBootParameters | null,
    options: TestKernelOptions,
  ) {
    this.hardware = hardware;
    this.#options = options;
    const { ram: memory, mmio, firmware, interrupts } = hardware;
    const { faults } = this;
    const incoming = parameters === null ? null : IncomingHandover.read(memory, parameters);
    const scratch = incoming?.scratch ?? Scratch.reserve(firmware, [], SCRATCH);
    this.mm = new BuddyAllocator({
      memory,
      firmware,
      scratch: scratch.ranges,
      ...(incoming === null ? {} : { reserved: incoming.blocks }),
      faults,
    });
    const { mm } = this;
    this.kho = Kho.start({ memory, mm, scratch, incoming, release: "rig", faults });
    const { kho } = this;
    const machine: Machine = {
      memory,
      mmio,
      firmware,
      interrupts,
      clock: { nowNs: () => 0 },
      serial: { writeLine: () => {}, readLine: () => null },
      kexec: {
        installed: [],
        load: () => {},
        execute: () => {
          throw new Error("a test jumps by itself");
        },
      },
      powerOff: () => {
        throw new Error("a test ends by itself");
      },
    };
    const pages = { memory, mm, kho, faults };
    const records = new RecordPages(pages);
    this.pci = new PciCore({ machine, records, faults });
    this.iommu = new VtdIommu({ machine, mm, kho, faults, superpages: true });
    this.vectors = new VectorAllocator(interrupts);
    this.vfio = new VfioPci({
      pci: this.pci,
      iommu: this.iommu,
      interrupts,
      mmio,
      vectors: this.vectors,
      faults,
      enableUnsafeNoiommuMode: options.enableUnsafeNoiommuMode ?? true,
    });
    this.iommufd = new Iommufd({ iommu: this.iommu, faults });
    this.shmem = new Shmem({ memory, mm });
    this.luo = new LiveUpdate(pages);
    this.luo.registerHandler(new MemfdHandler(pages, this.shmem));
    const { iommufd, pci, vfio } = this;
    const iommufdHandler = new IommufdFileHandler({ iommufd, memory, records });
    this.luo.registerHandler(iommufdHandler);
    const pciFlb = pci.flb;
    this.luo.registerHandler(
      new VfioPciFileHandler({ vfio, iommufd, iommufdHandler, pci, pciFlb, machine, records }),
    );
  }

  /** A kernel on new hardware. */
  static cold(options: TestKernelOptions = {}): TestKernel {
    const kernel = new TestKernel(new TestHardware(), null, options);
    kernel.boot();
    return kernel;
  }

  /** Decodes, adopts, and takes the devices. @throws {HandoverError} */
  boot(): void {
    this.luo.decode();
    this.luo.adopt();
    this.pci.enumerate();
    this.iommu.start();
    this.vfio.probe();
  }

  /** Freezes and ends this kernel. @returns what the next one is told */
  end(): KhoBootParameters {
    this.luo.freeze();
    this.pci.shutdown();
    this.iommu.shutdown();
    const { ram } = this.hardware;
    const parameters = this.kho.bootParameters();
    const kept = keptRanges(ram, parameters);
    assert(kept.problem === null, "the handover can be read");
    let at = 0;
    for (const range of ram.ranges) {
      at = range.start;
      for (const { start, lengthBytes } of kept.ranges) {
        if (start >= range.start + range.lengthBytes || start + lengthBytes <= at) continue;
        if (start > at) ram.fill(at, start - at, SCRIBBLE);
        at = start + lengthBytes;
      }
      const end = range.start + range.lengthBytes;
      if (at < end) ram.fill(at, end - at, SCRIBBLE);
    }
    return parameters;
  }

  /** The next kernel; it has decoded nothing yet. */
  static enter(
    hardware: TestHardware,
    parameters: KhoBootParameters,
    options: TestKernelOptions = {},
  ): TestKernel {
    return new TestKernel(hardware, parameters, options);
  }

  jumpUnbooted(options: TestKernelOptions = this.#options): TestKernel {
    return TestKernel.enter(this.hardware, this.end(), options);
  }

  jump(options: TestKernelOptions = this.#options): TestKernel {
    const next = this.jumpUnbooted(options);
    next.boot();
    return next;
  }

  /** All that a leak would change. */
  usage(): unknown {
    return {
      pages: this.mm.counts(),
      kho: this.kho.sizes(),
      luo: this.luo.counts(),
      domains: this.iommu.domainCount,
      domainIds: this.iommu.domainIdCount,
      restored: this.iommu.restoredCount,
      vectors: this.vectors.usedCount,
      unrestored: this.kho.unrestoredPages(),
    };
  }

  // A process.

  openIommufd(): number {
    return this.fds.install(new IommufdFile(this.iommufd));
  }

  /** @param index - of {@link TestHardware.devices} */
  device(index: number): VfioDevice {
    const [segment, model] = [index === 2 ? 1 : 0, this.hardware.devices[index]];
    const found = this.vfio.devices.find(
      (device) => device.pci.segment === segment && this.#modelOf(device) === model,
    );
    assert(found !== undefined, `device ${index} was probed`);
    return found;
  }

  #modelOf(device: VfioDevice): TestDevice {
    const index = device.pci.segment === 1 ? 2 : device.pci.parent === null ? 0 : 1;
    return this.hardware.devices[index];
  }

  openDevice(index: number): number {
    return this.fds.install(this.vfio.open(this.device(index)));
  }

  eventfd(): number {
    return this.fds.install(new Eventfd(0, 0));
  }

  /** A memfd of zeros that can be mapped, sealed as a live update needs it. */
  memory(lengthBytes: number, isSealed = true): number {
    const file = this.shmem.memfdCreate("ram", MFD_ALLOW_SEALING);
    file.truncate(lengthBytes);
    if (isSealed) file.fcntl(F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_GROW | F_SEAL_SHRINK);
    return this.fds.install(file);
  }

  close(...fds: readonly number[]): void {
    for (const fd of fds) this.fds.remove(fd).put();
  }

  /** The system calls that src/host's callers need. */
  readonly host = {
    ioctl: (fd: number, request: number, argument: UserArgument): number =>
      this.fds.get(fd).ioctl(request, argument, this.fds),
    pread: (fd: number, target: Uint8Array, offset: number): number =>
      this.fds.get(fd).pread(target, offset),
    pwrite: (fd: number, bytes: Uint8Array, offset: number): number =>
      this.fds.get(fd).pwrite(bytes, offset),
  };

  /** Bytes of a file, as a process that maps it sees them: a word. */
  loadMapped(fd: number, offset: number): number {
    const mapping = this.fds.get(fd).mmap(offset - (offset % 4096), 4096);
    const word = new ByteWords(mapping.pieces[0].bytes).load32(offset % 4096);
    mapping.unmap();
    return word;
  }

  /** An eventfd's counter, or 0. */
  takeEvents(fd: number): number {
    const file = this.fds.get(fd);
    assert(file instanceof Eventfd, "an eventfd");
    if (!file.isReadable) return 0;
    const bytes = new Uint8Array(8);
    file.read(bytes);
    return new ByteWords(bytes).load32(0);
  }
}
