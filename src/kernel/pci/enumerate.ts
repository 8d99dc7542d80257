/**
 * Enumeration after a cold boot: bus numbers depth first, sizes of BARs, addresses, windows of bridges.
 *
 * Why: nothing that a previous kernel or firmware has set up is in use, so all of it is set up afresh: the only time
 * when that is allowed.
 * Lifecycle: for each function: memory decoding and bus mastering off; number; size; place; write; memory decoding on.
 *   Bus mastering stays off until a driver wants it.
 * Source: PCI Express Base 5.0 §7.5.1.3; Linux 7.3 drivers/pci/{probe,setup-bus}.c
 * Not modelled: I/O windows, spare buses and windows for hot plug, SR-IOV, resizable BARs.
 * @module
 */
import {
  type BridgeWindow,
  busOf,
  encodeWindow,
  PCI_BRIDGE_WINDOW_ALIGN,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_MEMORY_BASE,
  PCI_PREF_BASE_UPPER32,
  PCI_PREF_LIMIT_UPPER32,
  PCI_PREF_MEMORY_BASE,
  PCI_PRIMARY_BUS,
} from "../../abi/pci.ts";
import { alignUp, formatBytes } from "../../base/units.ts";
import type { Ecam, Firmware, MemoryRange } from "../../machine/machine.ts";
import { type AddressRequest, AddressSpace, pack, placeAll } from "./address-space.ts";
import { type BarShape, barShapes, probeBarSizes, writeBar } from "./base-address.ts";
import type { ConfigAccess } from "./config-access.ts";
import { PciDevice } from "./device.ts";
import { functionsOnBus } from "./scan.ts";

/** Which window of a bridge something goes through. */
type WindowKind = "memory" | "prefetchable";

/** What a scan of the hardware finds. */
export interface Enumeration {
  /** Bridges before what is below them. */
  readonly devices: readonly PciDevice[];
  /** What could not be set up, for the log. */
  readonly warnings: readonly string[];
}

/** Sets up all segment groups. */
export function enumerate(access: ConfigAccess, firmware: Firmware): Enumeration {
  const devices: PciDevice[] = [];
  const warnings: string[] = [];
  for (const ecam of firmware.ecams) {
    const found = new BusNumbering(access, ecam, warnings).run();
    for (const device of found) size(access, device);
    const windows = firmware.mmioWindows.filter((w) => w.segment === ecam.segment);
    assign(access, found, windows, warnings);
    // Bridges first, so that what is below is reachable as soon as it decodes.
    for (const device of found) enable(device);
    devices.push(...found);
  }
  return { devices, warnings };
}

class BusNumbering {
  readonly #access: ConfigAccess;
  readonly #ecam: Ecam;
  readonly #warnings: string[];
  readonly #devices: PciDevice[] = [];
  #nextBus: number;

  constructor(access: ConfigAccess, ecam: Ecam, warnings: string[]) {
    this.#access = access;
    this.#ecam = ecam;
    this.#warnings = warnings;
    this.#nextBus = ecam.startBus + 1;
  }

  run(): PciDevice[] {
    this.#scan(this.#ecam.startBus, null);
    return this.#devices;
  }

  #scan(bus: number, parent: PciDevice | null): void {
    const found = functionsOnBus(this.#access, this.#ecam.segment, bus, parent).map(
      (one) => new PciDevice(this.#access, one, parent),
    );
    for (const device of found) {
      // An address may change only where nobody decodes it, and a bus number only where nobody does DMA.
      device.changeCommand(0, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
      // All bridges of a bus are closed before one is opened: two must not lead to the same bus.
      if (device.isBridge) writeBusNumbers(device, 0, 0, 0);
    }
    for (const device of found) {
      this.#devices.push(device);
      if (device.isBridge) this.#scanBelow(device);
    }
  }

  #scanBelow(bridge: PciDevice): void {
    if (this.#nextBus > this.#ecam.lastBus) {
      this.#warnings.push(`${bridge.name}: no bus number left; what is below is not used`);
      return;
    }
    const secondary = this.#nextBus++;
    const primary = busOf(bridge.bdf);
    writeBusNumbers(bridge, primary, secondary, this.#ecam.lastBus);
    this.#scan(secondary, bridge);
    writeBusNumbers(bridge, primary, secondary, this.#nextBus - 1);
  }
}

function writeBusNumbers(
  bridge: PciDevice,
  primary: number,
  secondary: number,
  subordinate: number,
): void {
  const latency = bridge.configRead(PCI_PRIMARY_BUS, 4) & 0xff000000;
  // One store, so that the bridge never claims a range made of old and new numbers.
  const numbers = (latency | (subordinate << 16) | (secondary << 8) | primary) >>> 0;
  bridge.configWrite(PCI_PRIMARY_BUS, 4, numbers);
}

function size(access: ConfigAccess, device: PciDevice): void {
  const { segment, bdf, isBridge } = device;
  const raw = device.barRegisters();
  device.shapes = barShapes(raw, probeBarSizes(access, segment, bdf, isBridge));
}

/** Gives addresses to all BARs of a segment group, and windows to its bridges. */
function assign(
  access: ConfigAccess,
  devices: readonly PciDevice[],
  windows: readonly MemoryRange[],
  warnings: string[],
): void {
  // A BAR keeps address 0 until it gets one: what fits nowhere must not decode where it was.
  for (const device of devices)
    for (const shape of device.shapes) writeBar(access, device.segment, device.bdf, shape, 0);
  for (const device of devices) if (device.isBridge) closeWindows(device);
  const low = new AddressSpace(windows.filter((w) => w.start + w.lengthBytes <= 2 ** 32));
  const high = new AddressSpace(windows.filter((w) => w.start >= 2 ** 32));
  const unplaced = [
    ...placeAll(requestsOnBus(access, devices, null, "prefetchable"), [high, low]),
    ...placeAll(requestsOnBus(access, devices, null, "memory"), [low]),
  ];
  for (const request of unplaced)
    warnings.push(`no room for ${formatBytes(request.sizeBytes)} of ${request.name}`);
  for (const device of devices) device.takeBars(device.barRegisters());
}

/** What needs addresses on the bus below `parent`, through one kind of window. */
function requestsOnBus(
  access: ConfigAccess,
  devices: readonly PciDevice[],
  parent: PciDevice | null,
  kind: WindowKind,
): AddressRequest[] {
  const requests: AddressRequest[] = [];
  for (const device of devices) {
    if (device.parent !== parent) continue;
    for (const shape of device.shapes)
      if (windowKind(shape) === kind) requests.push(barRequest(access, device, shape));
    if (!device.isBridge) continue;
    const below = pack(requestsOnBus(access, devices, device, kind));
    if (below !== null) requests.push(windowRequest(device, kind, below));
  }
  return requests;
}

/** Only what may lie above 4 GiB goes through a prefetchable window; all else needs 32-bit addresses below a bridge. */
export function windowKind(shape: BarShape): WindowKind {
  return shape.is64 && shape.isPrefetchable ? "prefetchable" : "memory";
}

function barRequest(access: ConfigAccess, device: PciDevice, shape: BarShape): AddressRequest {
  return {
    name: `${device.name} BAR ${shape.index}`,
    sizeBytes: shape.sizeBytes,
    alignBytes: shape.sizeBytes,
    place: (address) => writeBar(access, device.segment, device.bdf, shape, address),
  };
}

function windowRequest(bridge: PciDevice, kind: WindowKind, below: AddressRequest): AddressRequest {
  const sizeBytes = alignUp(below.sizeBytes, PCI_BRIDGE_WINDOW_ALIGN);
  return {
    name: below.name,
    sizeBytes,
    alignBytes: Math.max(below.alignBytes, PCI_BRIDGE_WINDOW_ALIGN),
    place(address) {
      const window = { start: address, last: address + sizeBytes - 1 };
      if (kind === "memory") bridge.configWrite(PCI_MEMORY_BASE, 4, encodeWindow(window));
      else writePrefetchableWindow(bridge, window);
      below.place(address);
    },
  };
}

function closeWindows(bridge: PciDevice): void {
  bridge.configWrite(PCI_MEMORY_BASE, 4, encodeWindow(null));
  writePrefetchableWindow(bridge, null);
}

function writePrefetchableWindow(bridge: PciDevice, window: BridgeWindow | null): void {
  const upper = (address: number) => Math.floor(address / 2 ** 32);
  bridge.configWrite(PCI_PREF_BASE_UPPER32, 4, window === null ? 0 : upper(window.start));
  bridge.configWrite(PCI_PREF_LIMIT_UPPER32, 4, window === null ? 0 : upper(window.last));
  bridge.configWrite(PCI_PREF_MEMORY_BASE, 4, encodeWindow(window));
}

/** Memory decoding, where every memory BAR has an address. */
function enable(device: PciDevice): void {
  if (device.bars.length === device.shapes.length && (device.isBridge || device.bars.length > 0))
    device.changeCommand(PCI_COMMAND_MEMORY, 0);
}
