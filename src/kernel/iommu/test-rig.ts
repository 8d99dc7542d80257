/**
 * A machine for the tests of this folder: RAM, modelled remapping units, and kernels that follow one another.
 *
 * The kernel's side is the real allocator, the real KHO and the real driver; the hardware's side is the VT-d model,
 * which reads the same RAM but does not pass the store hook.
 * @module
 */
import { GRANULARITY_GLOBAL } from "../../abi/vtd/registers.ts";
import { BugError } from "../../base/assert.ts";
import { FaultInjector } from "../../base/fault-injector.ts";
import { MIB } from "../../base/units.ts";
import { keptRanges } from "../../machine/embedded/kexec-kept.ts";
import { scribble, scribblePattern } from "../../machine/embedded/kexec-scribble.ts";
import { MmioBus } from "../../machine/embedded/mmio-bus.ts";
import {
  DEFAULT_VTD_CAPABILITIES,
  type VtdCapabilities,
} from "../../machine/embedded/vtd/capabilities.ts";
import { VtdUnit } from "../../machine/embedded/vtd/vtd-unit.ts";
import type { Firmware, KhoBootParameters, Machine, Rmrr } from "../../machine/machine.ts";
import {
  createSharedRam,
  ObservedRam,
  Ram,
  type SharedRam,
} from "../../machine/physical-memory.ts";
import { IncomingHandover } from "../kho/incoming-handover.ts";
import { Kho } from "../kho/kho.ts";
import { Scratch } from "../kho/scratch.ts";
import { BuddyAllocator } from "../mm/buddy-allocator.ts";
import type { PciFunction } from "../pci/function.ts";
import type { DecodedIommu } from "./handover-decoder.ts";
import { VtdIommu } from "./vtd-iommu.ts";

const MEMORY_BYTES = 64 * MIB;
/** RMRRs lie in firmware's part of RAM, which no allocator has. */
const FIRMWARE_BYTES = MIB;
const SCRIBBLE = scribblePattern(1);
const REGISTERS = 0xfed9_0000;
const SCRATCH = { lowmemBytes: 4 * MIB, globalBytes: 4 * MIB, perNodeBytes: 4 * MIB };

export interface RigOptions {
  /** One unit for each segment; default one ordinary unit. */
  readonly units?: readonly VtdCapabilities[];
  readonly rmrrs?: readonly Rmrr[];
}

/** Capabilities with some of CAP and ECAP changed. */
export function capabilities(
  cap: Partial<VtdCapabilities["cap"]>,
  ecap: Partial<VtdCapabilities["ecap"]> = {},
): VtdCapabilities {
  const base = DEFAULT_VTD_CAPABILITIES;
  return { ...base, cap: { ...base.cap, ...cap }, ecap: { ...base.ecap, ...ecap } };
}

/** One kernel's parts. */
export interface TestKernel {
  readonly machine: Machine;
  readonly faults: FaultInjector;
  readonly mm: BuddyAllocator;
  readonly kho: Kho;
  readonly iommu: VtdIommu;
}

export class Rig {
  readonly units: readonly VtdUnit[];
  /** RAM as hardware sees it. */
  readonly ram: Ram;
  readonly firmware: Firmware;
  /** Called before each store of a kernel. */
  beforeStore: (pa: number) => void = () => undefined;
  readonly #shared: SharedRam;
  readonly #mmio: MmioBus;

  constructor(options: RigOptions = {}) {
    this.#shared = createSharedRam([{ start: 0, lengthBytes: MEMORY_BYTES }]);
    this.ram = new Ram(this.#shared);
    this.units = (options.units ?? [DEFAULT_VTD_CAPABILITIES]).map(
      (unitCapabilities, segment) =>
        new VtdUnit({
          memory: this.ram,
          registerBase: REGISTERS + segment * 0x1000,
          capabilities: unitCapabilities,
        }),
    );
    this.#mmio = new MmioBus(this.units);
    this.firmware = {
      memory: [{ start: FIRMWARE_BYTES, lengthBytes: MEMORY_BYTES - FIRMWARE_BYTES, node: 0 }],
      nodeCount: 1,
      drhds: this.units.map((unit, segment) => ({ segment, registerBase: unit.base })),
      rmrrs: options.rmrrs ?? [],
      ecams: [],
      mmioWindows: [],
    };
  }

  /** A kernel up to the point where an IOMMU can be made: nothing of the IOMMU was touched. */
  boot(parameters: KhoBootParameters | null, superpages = true): TestKernel {
    const memory = new ObservedRam(this.#shared, (pa) => this.beforeStore(pa));
    const faults = new FaultInjector();
    const incoming = parameters === null ? null : IncomingHandover.read(memory, parameters);
    const scratch = incoming?.scratch ?? Scratch.reserve(this.firmware, [], SCRATCH);
    const areas = scratch.areas.map(({ addr, size }) => ({ start: addr, lengthBytes: size }));
    const mm = new BuddyAllocator({
      memory,
      firmware: this.firmware,
      scratch: areas,
      ...(incoming === null ? {} : { reserved: incoming.blocks }),
      faults,
    });
    const kho = Kho.start({ memory, mm, scratch, incoming, release: "test", faults });
    const machine: Machine = {
      memory,
      mmio: this.#mmio,
      firmware: this.firmware,
      get interrupts() {
        return absent();
      },
      get clock() {
        return absent();
      },
      get serial() {
        return absent();
      },
      get kexec() {
        return absent();
      },
      powerOff: absent,
    };
    return {
      machine,
      faults,
      mm,
      kho,
      iommu: new VtdIommu({ machine, mm, kho, faults, superpages }),
    };
  }

  /** A kernel on a cold machine, with its IOMMU started. */
  coldBoot(): TestKernel {
    const kernel = this.boot(null);
    kernel.iommu.start();
    return kernel;
  }

  /** The jump: what `kernel` has not preserved is lost. */
  jump(kernel: TestKernel): KhoBootParameters {
    const parameters = kernel.kho.bootParameters();
    const kept = keptRanges(this.ram, parameters);
    if (kept.problem !== null) throw new BugError(kept.problem);
    scribble(this.ram, this.firmware.memory, kept.ranges, SCRIBBLE);
    return parameters;
  }

  /** Freeze, shutdown, the jump, and a kernel that has adopted the IOMMU. The FLB must be preserved. */
  kexec(kernel: TestKernel, data: bigint): TestKernel & { readonly adopted: DecodedIommu } {
    const frozen = kernel.iommu.flb.freeze?.(data) ?? data;
    kernel.iommu.shutdown();
    const next = this.boot(this.jump(kernel));
    const adopted = adopt(next, frozen);
    next.iommu.start();
    return { ...next, adopted };
  }

  /** Hardware may drop what it has cached at any time: then every walk starts from the root table. */
  dropCaches(): void {
    for (const unit of this.units) {
      unit.invalidateContext(GRANULARITY_GLOBAL, 0, 0, 0);
      unit.invalidateIotlb(GRANULARITY_GLOBAL, 0, 0, 0);
    }
  }

  /** Where DMA of a function arrives, or -1. */
  dma(pci: PciFunction, iova: number, isWrite = true): number {
    return this.units[pci.segment].translate(pci.bdf, iova, isWrite);
  }
}

/** Decodes and adopts a handover, as a boot does. */
export function adopt(kernel: TestKernel, data: bigint): DecodedIommu {
  const { incoming } = kernel.kho;
  if (incoming === null) throw new BugError("a cold boot has nothing to adopt");
  const decoded = kernel.iommu.flb.decode(incoming, data, "flb");
  kernel.iommu.flb.adopt(decoded);
  return decoded;
}

/** A function as far as an IOMMU looks at it. */
export function pciFunction(segment: number, bdf: number): PciFunction {
  return {
    segment,
    bdf,
    vendorId: 0x8086,
    deviceId: 0x10d3,
    classCode: 0x020000,
    isBridge: false,
    parent: null,
    bars: [],
    rawBars: [],
    isIncoming: false,
    capability: absent,
    configRead: absent,
    configWrite: absent,
    setBusMaster: absent,
    reset: absent,
  };
}

function absent(): never {
  throw new BugError("the IOMMU has no use for this");
}
