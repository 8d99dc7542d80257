/**
 * Which functions there are: looks for them, and writes nothing.
 *
 * Each look is a transaction on the bus, many of them while VMs stand still, so none is made twice: below a port that
 * leads to a link there is device 0 alone, and what was seen of a function is kept.
 * Source: PCI Express Base 5.0 §7.3.1; Linux 7.3 drivers/pci/probe.c pci_scan_slot(), only_one_child()
 * Not modelled: ARI, whose functions have device numbers other than 0.
 * @module
 */
import {
  busOf,
  PCI_CAP_ID_EXP,
  PCI_CAP_LIST_MAX,
  PCI_CAPABILITY_LIST,
  PCI_DEVFNS_PER_BUS,
  PCI_EXP_FLAGS,
  PCI_EXP_FLAGS_TYPE_MASK,
  PCI_EXP_FLAGS_TYPE_SHIFT,
  PCI_EXP_TYPE_DOWNSTREAM,
  PCI_EXP_TYPE_ROOT_PORT,
  PCI_HEADER_TYPE,
  PCI_HEADER_TYPE_BRIDGE,
  PCI_HEADER_TYPE_MASK,
  PCI_HEADER_TYPE_MFD,
  PCI_SECONDARY_BUS,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_VENDOR_ID,
} from "../../abi/pci.ts";
import type { Ecam } from "../../machine/machine.ts";
import type { ConfigAccess } from "./config-access.ts";

/** What a read returns where no function is. */
const NO_VENDOR = 0xffff;

/** A function that answers. */
export interface FoundFunction {
  readonly segment: number;
  readonly bdf: number;
  readonly vendorId: number;
  readonly deviceId: number;
  /** True for PCI-to-PCI bridges (header type 1). */
  readonly isBridge: boolean;
  /** Whether its device may have functions other than 0. */
  readonly isMultifunction: boolean;
}

/** A function in the hierarchy as it is numbered. */
export interface NumberedFunction extends FoundFunction {
  /** The bridge above, or null on a root bus. */
  readonly parent: NumberedFunction | null;
}

/** @returns null where no function answers */
export function findFunction(
  access: ConfigAccess,
  segment: number,
  bdf: number,
): FoundFunction | null {
  const ids = access.read(segment, bdf, PCI_VENDOR_ID, 4);
  const vendorId = ids & 0xffff;
  if (vendorId === NO_VENDOR) return null;
  const header = access.read(segment, bdf, PCI_HEADER_TYPE, 1);
  return {
    segment,
    bdf,
    vendorId,
    deviceId: ids >>> 16,
    isBridge: (header & PCI_HEADER_TYPE_MASK) === PCI_HEADER_TYPE_BRIDGE,
    isMultifunction: (header & PCI_HEADER_TYPE_MFD) !== 0,
  };
}

/**
 * The functions of a bus in ascending order.
 *
 * @param bridge - the one that leads to it; null: a root bus
 */
export function functionsOnBus(
  access: ConfigAccess,
  segment: number,
  bus: number,
  bridge: { readonly bdf: number } | null,
): FoundFunction[] {
  const found: FoundFunction[] = [];
  const hasLink = bridge !== null && leadsToLink(access, segment, bridge.bdf);
  for (let devfn = 0; devfn < (hasLink ? 8 : PCI_DEVFNS_PER_BUS); devfn += 8) {
    const first = findFunction(access, segment, (bus << 8) | devfn);
    if (first === null) continue;
    found.push(first);
    for (let f = 1; first.isMultifunction && f < 8; f++) {
      const other = findFunction(access, segment, first.bdf | f);
      if (other !== null) found.push(other);
    }
  }
  return found;
}

/**
 * The functions of a segment group as its bridges are numbered, which is not trusted: a bus is looked at once. Bridges come
 * before what is below them.
 */
export function scanAsNumbered(access: ConfigAccess, ecam: Ecam): NumberedFunction[] {
  const { segment, startBus, lastBus } = ecam;
  const numbered: NumberedFunction[] = [];
  const seen = new Set([startBus]);
  const scan = (bus: number, parent: NumberedFunction | null): void => {
    for (const found of functionsOnBus(access, segment, bus, parent)) {
      const one = { ...found, parent };
      numbered.push(one);
      if (!found.isBridge) continue;
      const below = access.read(segment, found.bdf, PCI_SECONDARY_BUS, 1);
      if (below <= busOf(found.bdf) || below > lastBus || seen.has(below)) continue;
      seen.add(below);
      scan(below, one);
    }
  };
  scan(startBus, null);
  return numbered;
}

/** Offsets of a function's capabilities by their ids; of several with one id the first. */
export function findCapabilities(
  access: ConfigAccess,
  segment: number,
  bdf: number,
): ReadonlyMap<number, number> {
  const capabilities = new Map<number, number>();
  if ((access.read(segment, bdf, PCI_STATUS, 2) & PCI_STATUS_CAP_LIST) === 0) return capabilities;
  let at = access.read(segment, bdf, PCI_CAPABILITY_LIST, 1) & 0xfc;
  for (let i = 0; i < PCI_CAP_LIST_MAX && at >= 0x40; i++) {
    const header = access.read(segment, bdf, at, 2);
    const id = header & 0xff;
    if (!capabilities.has(id)) capabilities.set(id, at);
    at = (header >>> 8) & 0xfc;
  }
  return capabilities;
}

/** Whether what is below a bridge is the other end of a PCI Express link. */
function leadsToLink(access: ConfigAccess, segment: number, bdf: number): boolean {
  const express = findCapabilities(access, segment, bdf).get(PCI_CAP_ID_EXP);
  if (express === undefined) return false;
  const flags = access.read(segment, bdf, express + PCI_EXP_FLAGS, 2);
  const type = (flags & PCI_EXP_FLAGS_TYPE_MASK) >>> PCI_EXP_FLAGS_TYPE_SHIFT;
  return type === PCI_EXP_TYPE_ROOT_PORT || type === PCI_EXP_TYPE_DOWNSTREAM;
}
