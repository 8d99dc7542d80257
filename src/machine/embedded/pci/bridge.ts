/**
 * A PCI Express root port, and any other PCI-to-PCI bridge: type 1 header, bus numbers, windows.
 *
 * Source: PCI-to-PCI Bridge Architecture 1.2 §3.2, §4; PCI Express Base 5.0 §7.5.1.3
 * Not modelled: I/O windows (read as 0: not implemented), VGA forwarding, BARs of the bridge itself, ACS, hot plug.
 * @module
 */
import {
  type BridgeWindow,
  decodeMemoryWindow,
  decodePrefetchableWindow,
  PCI_BRIDGE_CONTROL,
  PCI_BRIDGE_CTL_BUS_RESET,
  PCI_CAPABILITY_LIST,
  PCI_CLASS_REVISION,
  PCI_DEVICE_ID,
  PCI_EXP_TYPE_DOWNSTREAM,
  PCI_EXP_TYPE_ROOT_PORT,
  PCI_HEADER_TYPE,
  PCI_HEADER_TYPE_BRIDGE,
  PCI_INTERRUPT_LINE,
  PCI_MEMORY_BASE,
  PCI_PREF_BASE_UPPER32,
  PCI_PREF_LIMIT_UPPER32,
  PCI_PREF_MEMORY_BASE,
  PCI_PREF_RANGE_TYPE_64,
  PCI_PRIMARY_BUS,
  PCI_SECONDARY_BUS,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_SUBORDINATE_BUS,
  PCI_VENDOR_ID,
} from "../../../abi/pci.ts";
import { EXP_CAPABILITY, type FabricBus, FabricFunction } from "./fabric-function.ts";

/** QEMU's pcie-root-port: vendor Red Hat. */
const ROOT_PORT_VENDOR = 0x1b36;
const ROOT_PORT_DEVICE = 0x000c;
const CLASS_PCI_BRIDGE = 0x060400;

export class PciBridge extends FabricFunction implements FabricBus {
  /** What is on the bus below. */
  readonly functions = new Map<number, FabricFunction>();
  #memory: BridgeWindow | null = null;
  #prefetchable: BridgeWindow | null = null;

  readonly #portType: number;

  /** @param portType - PCI_EXP_TYPE_* of a bridge */
  constructor(bus: FabricBus, devfn: number, portType: number) {
    super(bus, devfn);
    this.#portType = portType;
    const config = this.config;
    config.define(PCI_VENDOR_ID, 2, ROOT_PORT_VENDOR);
    config.define(PCI_DEVICE_ID, 2, ROOT_PORT_DEVICE);
    config.define(PCI_STATUS, 2, PCI_STATUS_CAP_LIST);
    config.define(PCI_CLASS_REVISION, 4, CLASS_PCI_BRIDGE << 8);
    config.define(PCI_HEADER_TYPE, 1, PCI_HEADER_TYPE_BRIDGE);
    config.define(PCI_PRIMARY_BUS, 1, 0, 0xff);
    config.define(PCI_SECONDARY_BUS, 1, 0, 0xff);
    config.define(PCI_SUBORDINATE_BUS, 1, 0, 0xff);
    config.define(PCI_MEMORY_BASE, 4, 0, 0xfff0fff0);
    const is64 = PCI_PREF_RANGE_TYPE_64 | (PCI_PREF_RANGE_TYPE_64 << 16);
    config.define(PCI_PREF_MEMORY_BASE, 4, is64, 0xfff0fff0);
    config.define(PCI_PREF_BASE_UPPER32, 4, 0, 0xffffffff);
    config.define(PCI_PREF_LIMIT_UPPER32, 4, 0, 0xffffffff);
    config.define(PCI_CAPABILITY_LIST, 1, EXP_CAPABILITY);
    config.define(PCI_INTERRUPT_LINE, 1, 0, 0xff);
    config.define(PCI_BRIDGE_CONTROL, 2, 0, PCI_BRIDGE_CTL_BUS_RESET);
    this.defineExpress(portType, 0);
    this.#update();
  }

  /** Whether the bus below is a link: with the device at its other end, whose number is 0. */
  get hasLink(): boolean {
    return this.#portType === PCI_EXP_TYPE_ROOT_PORT || this.#portType === PCI_EXP_TYPE_DOWNSTREAM;
  }

  /** Number of the bus below. */
  get number(): number {
    return this.config.read(PCI_SECONDARY_BUS, 1);
  }

  get forwardsUpstream(): boolean {
    return this.busMaster && this.bus.forwardsUpstream;
  }

  /** Whether config accesses to this bus go through here. Bus 0 is never below a bridge. */
  leadsTo(bus: number): boolean {
    const secondary = this.number;
    return secondary !== 0 && secondary <= bus && bus <= this.config.read(PCI_SUBORDINATE_BUS, 1);
  }

  override configWrite(offset: number, size: 1 | 2 | 4, value: number): void {
    const wasInReset = this.#inReset;
    this.config.write(offset, size, value);
    this.#update();
    if (this.#inReset && !wasInReset) this.#resetBelow();
  }

  override memoryRead(address: number, size: 1 | 2 | 4): number | null {
    if (!this.#forwards(address)) return null;
    for (const child of this.functions.values()) {
      const value = child.memoryRead(address, size);
      if (value !== null) return value;
    }
    return null;
  }

  override memoryWrite(address: number, size: 1 | 2 | 4, value: number): boolean {
    if (!this.#forwards(address)) return false;
    for (const child of this.functions.values())
      if (child.memoryWrite(address, size, value)) return true;
    return false;
  }

  override reset(): void {
    this.config.reset();
    this.#update();
    this.#resetBelow();
  }

  get #inReset(): boolean {
    return (this.config.read(PCI_BRIDGE_CONTROL, 2) & PCI_BRIDGE_CTL_BUS_RESET) !== 0;
  }

  #resetBelow(): void {
    for (const child of this.functions.values()) child.reset();
  }

  #forwards(address: number): boolean {
    return (
      this.memoryEnabled && (covers(this.#memory, address) || covers(this.#prefetchable, address))
    );
  }

  #update(): void {
    const config = this.config;
    this.#memory = decodeMemoryWindow(config.read(PCI_MEMORY_BASE, 4));
    this.#prefetchable = decodePrefetchableWindow(
      config.read(PCI_PREF_MEMORY_BASE, 4),
      config.read(PCI_PREF_BASE_UPPER32, 4),
      config.read(PCI_PREF_LIMIT_UPPER32, 4),
    );
  }
}

function covers(window: BridgeWindow | null, address: number): boolean {
  return window !== null && window.start <= address && address <= window.last;
}
