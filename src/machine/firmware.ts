/**
 * The address map of a machine, and the tables that its firmware gives to a kernel.
 *
 * The embedded machine follows QEMU's q35, whose own map is in `qemu/q35.ts`: RAM from 0, a hole of 1 GiB below 4 GiB for registers once RAM is larger than 3 GiB, the
 * rest of RAM from 4 GiB on. The first MiB is firmware's; RMRRs lie there.
 * Layout of the hole (the same in every machine, whether RAM reaches it or not):
 *
 *     0xc000_0000  ECAM, 64 MiB (64 buses) for each segment group
 *     0xd000_0000  BAR window, 128 MiB for each segment group (below 4 GiB: edu and 82574L have 32-bit BARs)
 *     0xfed9_0000  DRHD registers, a page for each remapping unit
 *     0xfee0_0000  MSI doorbell, not a region: a write of vector v there is an interrupt
 *
 * Not modelled: ACPI tables as bytes; a kernel gets their content. Memory between 640 KiB and 1 MiB is RAM.
 * @module
 */
import { GIB, MIB, PAGE_SIZE } from "../base/units.ts";
import {
  FIRMWARE_BYTES,
  type MachineConfig,
  RMRR_START,
  validateConfig,
} from "./embedded/config.ts";
import type { Drhd, Ecam, Firmware, FirmwareMemory, MemoryRange, Rmrr } from "./machine.ts";

const HOLE_END = 4 * GIB;
const ECAM_BYTES = 64 * MIB;
const ECAM_LAST_BUS = 63;
const DRHD_START = 0xfed9_0000;

/** Where a machine has what, below 4 GiB. */
export interface HoleLayout {
  /** RAM that would lie from here to 4 GiB is above 4 GiB instead. */
  readonly start: number;
  /** ECAM windows of 64 MiB (64 buses), one for each segment group. */
  readonly ecamStart: number;
  /** BAR windows of the same size, one for each segment group. */
  readonly mmioStart: number;
  readonly mmioBytes: number;
}

const EMBEDDED_HOLE: HoleLayout = {
  start: 3 * GIB,
  ecamStart: 0xc000_0000,
  mmioStart: 0xd000_0000,
  mmioBytes: 128 * MIB,
};

/** What follows from a machine's description. */
export interface AddressMap {
  /** All RAM, firmware's too: what DMA can reach and what `createSharedRam` takes. */
  readonly ram: readonly MemoryRange[];
  readonly firmware: Firmware;
}

/**
 * Lays out a machine. Pure: every thread computes the same.
 *
 * @throws {KernelError} EINVAL when the description is not valid
 */
export function buildAddressMap(
  config: MachineConfig,
  hole: HoleLayout = EMBEDDED_HOLE,
): AddressMap {
  validateConfig(config);
  const memory: FirmwareMemory[] = [];
  let filled = 0;
  for (const [node, bytes] of config.nodeBytes.entries()) {
    for (const range of aroundHole(hole.start, filled, bytes)) memory.push({ ...range, node });
    filled += bytes;
  }
  const [first, ...rest] = memory;
  const usable = {
    ...first,
    start: FIRMWARE_BYTES,
    lengthBytes: first.lengthBytes - FIRMWARE_BYTES,
  };

  const drhds: Drhd[] = [];
  const ecams: Ecam[] = [];
  const mmioWindows: (MemoryRange & { segment: number })[] = [];
  for (const [segment, { drhd }] of config.segments.entries()) {
    if (drhd !== null) drhds.push({ segment, registerBase: DRHD_START + segment * PAGE_SIZE });
    const base = hole.ecamStart + segment * ECAM_BYTES;
    ecams.push({ segment, base, startBus: 0, lastBus: ECAM_LAST_BUS });
    const start = hole.mmioStart + segment * hole.mmioBytes;
    mmioWindows.push({ segment, start, lengthBytes: hole.mmioBytes });
  }
  return {
    ram: aroundHole(hole.start, 0, filled),
    firmware: {
      memory: [usable, ...rest],
      nodeCount: config.nodeBytes.length,
      drhds,
      rmrrs: layOutRmrrs(config),
      ecams,
      mmioWindows,
    },
  };
}

/** The addresses of `lengthBytes` of RAM of which `offset` bytes come before: one range, or two around the hole. */
function aroundHole(holeStart: number, offset: number, lengthBytes: number): MemoryRange[] {
  const shift = HOLE_END - holeStart;
  const below = Math.min(lengthBytes, holeStart - offset);
  if (below === lengthBytes) return [{ start: offset, lengthBytes }];
  if (below <= 0) return [{ start: offset + shift, lengthBytes }];
  return [
    { start: offset, lengthBytes: below },
    { start: HOLE_END, lengthBytes: lengthBytes - below },
  ];
}

function layOutRmrrs(config: MachineConfig): Rmrr[] {
  const rmrrs: Rmrr[] = [];
  let start = RMRR_START;
  for (const [segment, { slots }] of config.segments.entries()) {
    for (const slot of slots) {
      if (slot.model === "root-port" || slot.rmrrBytes === 0) continue;
      const bdf = (slot.device << 3) | slot.function;
      rmrrs.push({ segment, bdf, start, lengthBytes: slot.rmrrBytes });
      start += slot.rmrrBytes;
    }
  }
  return rmrrs;
}
