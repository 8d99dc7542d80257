/**
 * Enumeration after a live update: everything is taken as it is.
 *
 * Why: completions are routed by requester id and requests by address, so a bus number or a BAR that moves under DMA sends
 * data astray, with or without an IOMMU. Nothing is written: sizes of BARs come from the handover. Only a function that it
 * does not know (or that has changed since) is probed, and given addresses from what is free if its own are of no
 * use; no bridge is touched for it.
 * Source: Linux 7.3 drivers/pci/probe.c (pci_scan_bridge_extend keeps numbers that are in order)
 * Invariant: no write to a function that the handover describes as it is, nor to any bridge; what is not preserved has lost its
 * bus mastering before (quiesce.ts)
 * @module
 */
import {
  type BridgeWindow,
  decodeMemoryWindow,
  decodePrefetchableWindow,
  PCI_COMMAND,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_MEMORY_BASE,
  PCI_PREF_BASE_UPPER32,
  PCI_PREF_LIMIT_UPPER32,
  PCI_PREF_MEMORY_BASE,
} from "../../abi/pci.ts";
import type { Firmware, MemoryRange } from "../../machine/machine.ts";
import { AddressSpace } from "./address-space.ts";
import { type BarShape, barShapes, probeBarSizes, writeBar } from "./base-address.ts";
import type { ConfigAccess } from "./config-access.ts";
import { PciDevice } from "./device.ts";
import { type Enumeration, windowKind } from "./enumerate.ts";
import { pciName } from "./function.ts";
import type { FunctionRecord } from "./handed-over.ts";
import type { NumberedFunction } from "./scan.ts";

/**
 * Takes over the hierarchy as it is numbered.
 *
 * @param functions - all of them, bridges before what is below them
 * @param records - what the handover says of functions; checked against the hardware already where they are preserved
 */
export function inherit(
  access: ConfigAccess,
  firmware: Firmware,
  functions: readonly NumberedFunction[],
  records: readonly FunctionRecord[],
): Enumeration {
  const deviceOf = new Map<NumberedFunction, PciDevice>();
  for (const one of functions) {
    const parent = one.parent === null ? null : (deviceOf.get(one.parent) ?? null);
    deviceOf.set(one, new PciDevice(access, one, parent));
  }
  const devices = [...deviceOf.values()];
  const warnings: string[] = [];
  const unknown: PciDevice[] = [];
  const recordOf = new Map(records.map((r) => [pciName(r.segment, r.bdf), r]));
  for (const device of devices) {
    const record = recordOf.get(device.name);
    if (record !== undefined && (record.refcount > 0 || isUnchanged(device, record))) {
      device.shapes = barShapes(record.bars, record.barSizes);
      device.isIncoming = record.refcount > 0;
      device.takeBars(record.bars);
    } else unknown.push(device);
  }
  // Those that are settled first: their addresses are taken before any other is looked at.
  for (const device of unknown) settle(access, firmware, devices, device, warnings);
  return { devices, warnings };
}

function isUnchanged(device: PciDevice, record: FunctionRecord): boolean {
  return (
    record.vendorId === device.vendorId &&
    record.deviceId === device.deviceId &&
    record.isBridge === device.isBridge &&
    device.barRegisters().every((raw, i) => raw === record.bars[i])
  );
}

/** A function that nobody handed over: probe it, keep its addresses if they are good, else give it free ones. */
function settle(
  access: ConfigAccess,
  firmware: Firmware,
  devices: readonly PciDevice[],
  device: PciDevice,
  warnings: string[],
): void {
  const { segment, bdf, isBridge } = device;
  // A bridge may have functions in use below it; its own BARs are not worth that.
  if (isBridge) return;
  const command = device.configRead(PCI_COMMAND, 2);
  device.changeCommand(0, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
  device.shapes = barShapes(device.barRegisters(), probeBarSizes(access, segment, bdf, isBridge));
  device.takeBars(device.barRegisters());
  for (const shape of device.shapes) {
    const free = freeFor(firmware, devices, device, shape);
    const held = device.bars.find((bar) => bar.index === shape.index);
    if (held !== undefined && free.isFree(held.address, shape.sizeBytes)) continue;
    const address = free.alloc(shape.sizeBytes, shape.sizeBytes);
    if (address === null) warnings.push(`${device.name}: no address for BAR ${shape.index}`);
    writeBar(access, segment, bdf, shape, address ?? 0);
    device.takeBars(device.barRegisters());
  }
  if (device.shapes.length > 0 && device.bars.length === device.shapes.length)
    device.changeCommand(PCI_COMMAND_MEMORY, 0);
  else if ((command & PCI_COMMAND_MEMORY) !== 0)
    warnings.push(`${device.name}: memory decoding is off now`);
}

/** Addresses that reach a BAR of this function and that no other BAR or bridge window has. */
function freeFor(
  firmware: Firmware,
  devices: readonly PciDevice[],
  device: PciDevice,
  shape: BarShape,
): AddressSpace {
  const { segment, parent } = device;
  const roots = firmware.mmioWindows.filter(
    (w) => w.segment === segment && (shape.is64 || w.start + w.lengthBytes <= 2 ** 32),
  );
  const space = new AddressSpace(
    parent === null ? roots : windowsOf(parent, shape).flatMap((w) => intersect(w, roots)),
  );
  for (const other of devices) {
    if (other.segment !== segment) continue;
    for (const bar of other.bars)
      if (other !== device || bar.index !== shape.index) space.take(bar.address, bar.sizeBytes);
    if (!other.isBridge || other.parent !== parent) continue;
    for (const window of windowsOf(other, null)) space.take(window.start, lengthOf(window));
  }
  return space;
}

/** The open windows of a bridge; those that a BAR of that shape may use, if one is given. */
function windowsOf(bridge: PciDevice, shape: BarShape | null): BridgeWindow[] {
  const memory = decodeMemoryWindow(bridge.configRead(PCI_MEMORY_BASE, 4));
  const prefetchable = decodePrefetchableWindow(
    bridge.configRead(PCI_PREF_MEMORY_BASE, 4),
    bridge.configRead(PCI_PREF_BASE_UPPER32, 4),
    bridge.configRead(PCI_PREF_LIMIT_UPPER32, 4),
  );
  const usesMemory = shape === null || windowKind(shape) === "memory";
  const usesPrefetchable = shape === null || windowKind(shape) === "prefetchable";
  return [
    ...(usesMemory && memory !== null ? [memory] : []),
    ...(usesPrefetchable && prefetchable !== null ? [prefetchable] : []),
  ];
}

function intersect(window: BridgeWindow, roots: readonly MemoryRange[]): MemoryRange[] {
  return roots.map((root) => {
    const start = Math.max(window.start, root.start);
    const end = Math.min(window.last + 1, root.start + root.lengthBytes);
    return { start, lengthBytes: Math.max(0, end - start) };
  });
}

function lengthOf(window: BridgeWindow): number {
  return window.last - window.start + 1;
}
