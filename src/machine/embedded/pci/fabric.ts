/**
 * One PCI segment group: root complex, ECAM, bridges and endpoints, and the routes between them.
 *
 *   kernel ──ECAM──▶ bus/device/function ──▶ config space
 *   kernel ──window──▶ bridges (memory enable, window) ──▶ BAR ──▶ device model
 *   device model ──▶ bus master enables, upwards ──▶ remapping unit ──▶ RAM, or the interrupt controller
 *
 * Lifecycle: built slot by slot, then power on; nothing is plugged or unplugged after that.
 * Invariant: what is reachable depends on registers alone, as they are at that moment.
 * Source: PCI Express Base 5.0 §7.2.2 (ECAM); PCI-to-PCI Bridge 1.2 §4 (routing)
 * @module
 */
import {
  PCI_CFG_SPACE_EXP_SIZE,
  PCI_DEVFNS_PER_BUS,
  PCI_EXP_TYPE_DOWNSTREAM,
  PCI_EXP_TYPE_ROOT_PORT,
  PCI_EXP_TYPE_UPSTREAM,
} from "../../../abi/pci.ts";
import { assert } from "../../../base/assert.ts";
import type { Ecam, MemoryRange } from "../../machine.ts";
import type { MmioRegion } from "../hardware.ts";
import { PciBridge } from "./bridge.ts";
import type { DeviceModelFactory } from "./device-model.ts";
import { type EndpointOptions, PciEndpoint } from "./endpoint.ts";
import type { FabricBus, FabricFunction } from "./fabric-function.ts";
import type { UpstreamPort } from "./requester-dma.ts";

export interface FabricOptions extends UpstreamPort {
  readonly ecam: Ecam;
  /** Physical addresses that the root complex routes to this segment group. */
  readonly windows: readonly MemoryRange[];
}

/** Where a function is plugged in. */
export interface Slot {
  /** The bridge above, or null for the root bus. */
  readonly parent: PciBridge | null;
  /** 0 to 31. */
  readonly device: number;
  /** 0 to 7. */
  readonly function: number;
}

export class PciFabric {
  readonly #options: FabricOptions;
  readonly #root: FabricBus;

  constructor(options: FabricOptions) {
    this.#options = options;
    this.#root = {
      number: options.ecam.startBus,
      forwardsUpstream: true,
      functions: new Map(),
    };
  }

  /** Plugs a device in, in power-on state. */
  addEndpoint(slot: Slot, factory: DeviceModelFactory, options: EndpointOptions = {}): PciEndpoint {
    const bus = slot.parent ?? this.#root;
    const endpoint = new PciEndpoint(bus, devfnOf(slot), this.#options, factory, options);
    plug(bus, endpoint);
    return endpoint;
  }

  /**
   * Puts a bridge in. Its bus numbers are 0: nothing is below yet.
   *
   * @param portType - PCI_EXP_TYPE_*; by default a root port on the root bus, an upstream port on a link, else a downstream
   *   port
   */
  addBridge(slot: Slot, portType = defaultPortType(slot)): PciBridge {
    const bus = slot.parent ?? this.#root;
    const bridge = new PciBridge(bus, devfnOf(slot), portType);
    plug(bus, bridge);
    return bridge;
  }

  /** All functions to their power-on state: bus numbers, BARs and devices. */
  reset(): void {
    for (const child of this.#root.functions.values()) child.reset();
  }

  /** What the segment group puts on the machine's bus: its ECAM window and its memory windows. */
  get regions(): readonly MmioRegion[] {
    return [this.#ecamRegion(), ...this.#options.windows.map((w) => this.#memoryRegion(w))];
  }

  #ecamRegion(): MmioRegion {
    const { base, startBus, lastBus } = this.#options.ecam;
    const busBytes = PCI_DEVFNS_PER_BUS * PCI_CFG_SPACE_EXP_SIZE;
    const find = (offset: number) =>
      this.#route(
        startBus + Math.floor(offset / busBytes),
        Math.floor((offset % busBytes) / PCI_CFG_SPACE_EXP_SIZE),
      );
    return {
      base,
      lengthBytes: (lastBus - startBus + 1) * busBytes,
      read: (offset, size) =>
        find(offset)?.configRead(offset % PCI_CFG_SPACE_EXP_SIZE, size) ?? allOnes(size),
      write: (offset, size, value) =>
        find(offset)?.configWrite(offset % PCI_CFG_SPACE_EXP_SIZE, size, value),
    };
  }

  #memoryRegion(window: MemoryRange): MmioRegion {
    const functions = this.#root.functions;
    return {
      base: window.start,
      lengthBytes: window.lengthBytes,
      read(offset, size) {
        for (const child of functions.values()) {
          const value = child.memoryRead(window.start + offset, size);
          if (value !== null) return value;
        }
        return allOnes(size);
      },
      write(offset, size, value) {
        for (const child of functions.values())
          if (child.memoryWrite(window.start + offset, size, value)) return;
      },
    };
  }

  /** The function that a config access reaches: through bridges, as they are numbered now. */
  #route(bus: number, devfn: number): FabricFunction | null {
    let at = this.#root;
    while (at.number !== bus) {
      let next: FabricBus | null = null;
      for (const child of at.functions.values()) {
        if (!(child instanceof PciBridge && child.leadsTo(bus))) continue;
        // Two bridges that claim one bus answer over one another: nothing useful comes back.
        if (next !== null) return null;
        next = child;
      }
      if (next === null) return null;
      at = next;
    }
    return at.functions.get(devfn) ?? null;
  }
}

function plug(bus: FabricBus, added: FabricFunction): void {
  assert(!bus.functions.has(added.devfn), `slot ${added.devfn >> 3}.${added.devfn & 7} is taken`);
  bus.functions.set(added.devfn, added);
  const zero = bus.functions.get(added.devfn & ~7);
  for (const devfn of bus.functions.keys())
    if (zero !== undefined && devfn !== zero.devfn && (devfn & ~7) === zero.devfn)
      zero.markMultifunction();
}

function defaultPortType({ parent }: Slot): number {
  if (parent === null) return PCI_EXP_TYPE_ROOT_PORT;
  return parent.hasLink ? PCI_EXP_TYPE_UPSTREAM : PCI_EXP_TYPE_DOWNSTREAM;
}

function devfnOf(slot: Slot): number {
  const { parent } = slot;
  assert(parent === null || !parent.hasLink || slot.device === 0, "a link has device 0 alone");
  assert(slot.device >= 0 && slot.device < 32, `device ${slot.device}`);
  assert(slot.function >= 0 && slot.function < 8, `function ${slot.function}`);
  return (slot.device << 3) | slot.function;
}

function allOnes(size: 1 | 2 | 4): number {
  return 2 ** (8 * size) - 1;
}
