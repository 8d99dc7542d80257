/**
 * The hardware of an embedded machine, put together from its description: remapping units, PCI segment groups,
 * devices, traffic, and the bus that leads to their registers.
 *
 * It has no thread and no time of its own: whoever owns it calls `step`, from a loop (live) or by a seed
 * (deterministic). It survives kexec because nobody tells it of one.
 * @module
 */
import { AW_39_BIT } from "../../abi/vtd/root-context.ts";
import { assert } from "../../base/assert.ts";
import type { Firmware, Mmio, PhysicalMemory } from "../machine.ts";
import type { DrhdConfig, MachineConfig, NicConfig, SegmentConfig, SlotConfig } from "./config.ts";
import type { DmaRemapper, InterruptSink, MmioRegion, Stepper } from "./hardware.ts";
import type { HardwareStatistics } from "./hardware-statistics.ts";
import { MmioBus } from "./mmio-bus.ts";
import type { PciBridge } from "./pci/bridge.ts";
import { E1000e } from "./pci/devices/e1000e.ts";
import { Edu } from "./pci/devices/edu.ts";
import { TrafficSource } from "./pci/devices/traffic.ts";
import { CheckingWire } from "./pci/devices/wire.ts";
import type { PciEndpoint } from "./pci/endpoint.ts";
import { PciFabric } from "./pci/fabric.ts";
import { DEFAULT_VTD_CAPABILITIES, type VtdCapabilities } from "./vtd/capabilities.ts";
import { VtdUnit } from "./vtd/vtd-unit.ts";

export interface HardwareOptions {
  readonly config: MachineConfig;
  /** As built from the same description. */
  readonly firmware: Firmware;
  /** RAM as devices reach it. */
  readonly memory: PhysicalMemory;
  readonly interrupts: InterruptSink;
  /** Word 0 is 1 while a kernel exists, 0 while none does. */
  readonly kernelPresent: Int32Array;
  readonly statistics: HardwareStatistics;
}

/** A NIC and what is on its cable. */
export interface Nic {
  readonly name: string;
  readonly device: E1000e;
  /** Takes what the NIC sends. */
  readonly wire: CheckingWire;
  readonly endpoint: PciEndpoint;
}

export class EmbeddedHardware {
  /** Registers, as a kernel reaches them. */
  readonly mmio: Mmio;
  /** Everything that does work on its own. */
  readonly steppers: readonly Stepper[];
  /** By segment; null where a segment has no remapping unit. */
  readonly vtds: readonly (VtdUnit | null)[];
  /** By segment. */
  readonly fabrics: readonly PciFabric[];
  /** In the order of the description, segment by segment; the index is the NIC id in frames and statistics. */
  readonly nics: readonly Nic[];

  constructor(options: HardwareOptions) {
    const regions: MmioRegion[] = [];
    const parts: Parts = { steppers: [], nics: [] };
    const vtds: (VtdUnit | null)[] = [];
    const fabrics: PciFabric[] = [];
    for (const [segment, segmentConfig] of options.config.segments.entries()) {
      const vtd = makeVtd(segment, segmentConfig, options);
      if (vtd !== null) regions.push(vtd);
      vtds.push(vtd);
      const fabric = makeFabric(segment, vtd, options);
      plugIn(fabric, null, segmentConfig.slots, parts, options);
      regions.push(...fabric.regions);
      fabrics.push(fabric);
    }
    this.vtds = vtds;
    this.fabrics = fabrics;
    this.nics = parts.nics;
    this.steppers = parts.steppers;
    this.mmio = new MmioBus(regions);
  }

  /** Lets each device do what is due, in small steps. @returns whether there may be more to do at once */
  step(nowNs: number): boolean {
    let more = false;
    for (const stepper of this.steppers) more = stepper.step(nowNs) || more;
    return more;
  }

  /** When something has to be done next, if no register is written until then; Infinity for never. */
  nextDueNs(): number {
    let dueNs = Number.POSITIVE_INFINITY;
    for (const stepper of this.steppers) dueNs = Math.min(dueNs, stepper.nextDueNs());
    return dueNs;
  }
}

interface Parts {
  readonly steppers: Stepper[];
  readonly nics: Nic[];
}

function makeVtd(
  segment: number,
  { drhd }: SegmentConfig,
  { firmware, memory, interrupts }: HardwareOptions,
): VtdUnit | null {
  if (drhd === null) return null;
  const table = firmware.drhds.find((entry) => entry.segment === segment);
  assert(table !== undefined, `firmware describes the remapping unit of segment ${segment}`);
  const { registerBase } = table;
  return new VtdUnit({ memory, registerBase, capabilities: capabilitiesOf(drhd), interrupts });
}

function capabilitiesOf({ addressBits, superpages }: DrhdConfig): VtdCapabilities {
  const { cap } = DEFAULT_VTD_CAPABILITIES;
  const sagaw = addressBits === 48 ? cap.sagaw : 1 << AW_39_BIT;
  return {
    ...DEFAULT_VTD_CAPABILITIES,
    cap: { ...cap, sagaw, mgaw: addressBits, sllps: superpages ? cap.sllps : 0 },
  };
}

function makeFabric(
  segment: number,
  vtd: VtdUnit | null,
  { firmware, memory, interrupts, statistics }: HardwareOptions,
): PciFabric {
  const ecam = firmware.ecams.find((entry) => entry.segment === segment);
  assert(ecam !== undefined, `firmware describes the ECAM of segment ${segment}`);
  const windows = firmware.mmioWindows.filter((window) => window.segment === segment);
  const remapper: DmaRemapper | null = vtd && {
    translate(sourceId, iova, isWrite) {
      const pa = vtd.translate(sourceId, iova, isWrite);
      if (pa < 0) statistics.countDmaFault(segment);
      return pa;
    },
  };
  return new PciFabric({ ecam, windows, memory, interrupts, remapper });
}

function plugIn(
  fabric: PciFabric,
  parent: PciBridge | null,
  slots: readonly SlotConfig[],
  parts: Parts,
  options: HardwareOptions,
): void {
  for (const slot of slots) {
    const at = { parent, device: slot.device, function: slot.function };
    switch (slot.model) {
      case "root-port":
        plugIn(fabric, fabric.addBridge(at), slot.children, parts, options);
        break;
      case "edu":
        parts.steppers.push(fabric.addEndpoint(at, (dma) => new Edu(dma)).model);
        break;
      case "e1000e":
        plugInNic(fabric, at, slot, parts, options);
        break;
    }
  }
}

function plugInNic(
  fabric: PciFabric,
  at: Parameters<PciFabric["addEndpoint"]>[0],
  { name, framesPerSecond, transmitFramesPerSecond }: NicConfig,
  parts: Parts,
  { kernelPresent, statistics }: HardwareOptions,
): void {
  const nicId = parts.nics.length;
  const stats = statistics.traffic;
  const wire = new CheckingWire({
    nicId,
    stats,
    kernelPresent,
    ...(transmitFramesPerSecond !== undefined && { framesPerSecond: transmitFramesPerSecond }),
  });
  // Locally administered, QEMU's prefix.
  const macAddress = Uint8Array.of(0x52, 0x54, 0x00, 0x48, 0x46, nicId);
  const endpoint = fabric.addEndpoint(at, (dma) => new E1000e(dma, { macAddress, wire }));
  const device = endpoint.model;
  assert(device instanceof E1000e, "an endpoint keeps the model that was made for it");
  parts.steppers.push(device);
  if (framesPerSecond > 0) {
    parts.steppers.push(
      new TrafficSource(device, { nicId, framesPerSecond, stats, kernelPresent }),
    );
  }
  parts.nics.push({ name, device, wire, endpoint });
}
