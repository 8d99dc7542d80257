/**
 * What an embedded machine is built from: plain data, because it crosses threads and may come from a file.
 *
 * Why: every part of the machine (memory, firmware tables, devices, and the kernel's thread) is made from
 * this one description, each in its own thread, so they cannot disagree.
 * The address map and the firmware tables that follow from it are in `../firmware.ts`.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import { formatBytes, GIB, isAligned, isIndex, MIB, PAGE_SIZE, TIB } from "../../base/units.ts";
import type { KernelImage } from "../machine.ts";

/** A machine. Give it to `DeterministicMachine` or to `LiveMachine`. */
export interface MachineConfig {
  /** RAM of each NUMA node in bytes: multiples of 2 MiB, node 0 at least 16 MiB. */
  readonly nodeBytes: readonly number[];
  /** PCI segment groups; the index is the segment number. 1 to 4. */
  readonly segments: readonly SegmentConfig[];
  /** What lies on the boot disk. Names are unique. */
  readonly installed: readonly KernelImage[];
}

/** One PCI segment group: a root bus, what is plugged in, and the remapping unit before it. */
export interface SegmentConfig {
  /** The DMA remapping unit that covers the segment; null: none, DMA is not translated. */
  readonly drhd: DrhdConfig | null;
  /** What is on bus 0 of the segment. */
  readonly slots: readonly SlotConfig[];
}

/** What a remapping unit can do. */
export interface DrhdConfig {
  /** Widest second-stage tables: 48 bits is 4 levels (3 levels work too), 39 bits is 3 levels only. */
  readonly addressBits: 39 | 48;
  /** Whether 2 MiB and 1 GiB leaves are supported. */
  readonly superpages: boolean;
}

/** Something at a device and function number of a bus. */
export type SlotConfig = EduConfig | NicConfig | RootPortConfig;

interface Location {
  /** Device number on its bus, 0 to 31. */
  readonly device: number;
  /** Function number, 0 to 7. Function 0 of a device must exist when others do. */
  readonly function: number;
}

interface Endpoint extends Location {
  /**
   * Memory that firmware has reserved for this function's DMA (an RMRR), a multiple of 4 KiB; 0 for none.
   * Only on bus 0, where the function's address is fixed.
   */
  readonly rmrrBytes: number;
}

/** QEMU's `edu` teaching device. */
export interface EduConfig extends Endpoint {
  readonly model: "edu";
}

/** An Intel 82574L with a traffic source on its wire. */
export interface NicConfig extends Endpoint {
  readonly model: "e1000e";
  /** For statistics: "nic0". Unique in the machine. */
  readonly name: string;
  /** Frames per second that arrive while the link is up; 0: a silent wire. */
  readonly framesPerSecond: number;
  /** The most frames per second that the other end takes from it; absent: any number. */
  readonly transmitFramesPerSecond?: number;
}

/** A PCI Express root port: a bridge with a bus of its own below it. */
export interface RootPortConfig extends Location {
  readonly model: "root-port";
  readonly children: readonly SlotConfig[];
}

/** The first bytes of RAM belong to firmware, as on a PC; RMRRs lie in them. */
export const FIRMWARE_BYTES = MIB;
/** RMRRs are given out from here ... */
export const RMRR_START = 0x1_0000;
/** ... to here. */
export const RMRR_END = 0xa_0000;
export const SEGMENTS_MAX = 4;

const DEVICE_LAST = 31;
const FUNCTION_LAST = 7;
const NODE_BYTES_MIN = 16 * MIB;
const MEMORY_BYTES_MAX = 64 * TIB;
const RATE_MAX = 10_000_000;

/**
 * Checks a description.
 *
 * @throws {KernelError} EINVAL naming the field, the value found and the rule
 */
export function validateConfig(config: MachineConfig): void {
  checkNodes(config.nodeBytes);
  if (!isIndex(config.segments.length - 1, SEGMENTS_MAX - 1))
    invalid("segments", `${config.segments.length} segment groups; there are 1 to ${SEGMENTS_MAX}`);
  const nicNames = new Set<string>();
  let rmrrBytes = 0;
  for (const [segment, { slots, drhd }] of config.segments.entries()) {
    if (drhd !== null && drhd.addressBits !== 39 && drhd.addressBits !== 48)
      invalid(`segments[${segment}].drhd.addressBits`, `${drhd.addressBits}; 39 or 48`);
    rmrrBytes += checkBus(slots, `segments[${segment}].slots`, true, nicNames);
  }
  if (rmrrBytes > RMRR_END - RMRR_START)
    invalid("rmrrBytes", `${formatBytes(rmrrBytes)} in all; at most 576 KiB`);
  const imageNames = new Set<string>();
  for (const [i, image] of config.installed.entries()) {
    if (image.name === "" || image.name.includes("/"))
      invalid(`installed[${i}].name`, `"${image.name}" is not a file name`);
    if (imageNames.has(image.name)) invalid(`installed[${i}].name`, `"${image.name}" exists twice`);
    imageNames.add(image.name);
  }
}

function checkNodes(nodeBytes: readonly number[]): void {
  if (!isIndex(nodeBytes.length - 1, 63))
    invalid("nodeBytes", `${nodeBytes.length} nodes; there are 1 to 64`);
  let total = 0;
  for (const [node, bytes] of nodeBytes.entries()) {
    if (!isIndex(bytes, MEMORY_BYTES_MAX) || bytes === 0 || !isAligned(bytes, 2 * MIB))
      invalid(`nodeBytes[${node}]`, `${bytes} is not a positive multiple of 2 MiB`);
    total += bytes;
  }
  if (nodeBytes[0] < NODE_BYTES_MIN)
    invalid("nodeBytes[0]", `${formatBytes(nodeBytes[0])}; at least 16 MiB`);
  if (total > MEMORY_BYTES_MAX)
    invalid("nodeBytes", `${formatBytes(total)} in all; at most ${formatBytes(MEMORY_BYTES_MAX)}`);
}

/** @returns bytes of RMRRs of the functions on this bus */
function checkBus(
  slots: readonly SlotConfig[],
  path: string,
  isRootBus: boolean,
  nicNames: Set<string>,
): number {
  const taken = new Set<number>();
  let rmrrBytes = 0;
  for (const [i, slot] of slots.entries()) {
    const at = `${path}[${i}]`;
    if (!isIndex(slot.device, DEVICE_LAST)) invalid(`${at}.device`, `${slot.device}; 0 to 31`);
    if (!isIndex(slot.function, FUNCTION_LAST))
      invalid(`${at}.function`, `${slot.function}; 0 to 7`);
    const devfn = (slot.device << 3) | slot.function;
    if (taken.has(devfn)) invalid(at, `${slot.device}.${slot.function} is taken`);
    taken.add(devfn);
    if (!isRootBus && slot.device !== 0)
      invalid(`${at}.device`, `${slot.device}; below a root port there is device 0 alone`);
    if (slot.model === "root-port") {
      if (!isRootBus) invalid(at, "a root port is only on bus 0");
      checkBus(slot.children, `${at}.children`, false, nicNames);
      continue;
    }
    if (!isIndex(slot.rmrrBytes, GIB) || !isAligned(slot.rmrrBytes, PAGE_SIZE))
      invalid(`${at}.rmrrBytes`, `${slot.rmrrBytes} is not a multiple of 4 KiB`);
    if (slot.rmrrBytes > 0 && !isRootBus)
      invalid(`${at}.rmrrBytes`, "only a function on bus 0 may have an RMRR");
    rmrrBytes += slot.rmrrBytes;
    if (slot.model !== "e1000e") continue;
    if (nicNames.has(slot.name)) invalid(`${at}.name`, `"${slot.name}" exists twice`);
    nicNames.add(slot.name);
    if (!(slot.framesPerSecond >= 0 && slot.framesPerSecond <= RATE_MAX))
      invalid(`${at}.framesPerSecond`, `${slot.framesPerSecond}; 0 to ${RATE_MAX}`);
    const takes = slot.transmitFramesPerSecond ?? 1;
    if (!(takes > 0 && takes <= RATE_MAX))
      invalid(`${at}.transmitFramesPerSecond`, `${takes}; above 0, to ${RATE_MAX}`);
  }
  for (const devfn of taken)
    if (!taken.has(devfn & ~FUNCTION_LAST))
      invalid(path, `device ${devfn >> 3} has function ${devfn & FUNCTION_LAST} but no function 0`);
  return rmrrBytes;
}

function invalid(field: string, problem: string): never {
  throw new KernelError("EINVAL", "power on", `${field}: ${problem}`);
}

/** What {@link standardConfig} lets one choose. */
export interface StandardConfigOptions {
  /** RAM of the whole machine, split between two nodes. Rounded up to a multiple of 4 MiB. */
  readonly memoryBytes: number;
  readonly nics: number;
  /** Frames per second for each NIC. */
  readonly framesPerSecond: number;
  /** As {@link NicConfig.transmitFramesPerSecond}. */
  readonly transmitFramesPerSecond?: number;
  readonly installed: readonly KernelImage[];
}

/**
 * A host as a hypervisor runs on: two NUMA nodes, one segment group with a remapping unit, an edu device with
 * an RMRR on bus 0, and NICs "nic0", "nic1", ... each behind its own root port.
 *
 * @throws {KernelError} EINVAL when there are more NICs than root ports fit on a bus (28)
 */
export function standardConfig(options: StandardConfigOptions): MachineConfig {
  const half = Math.ceil(options.memoryBytes / (4 * MIB)) * 2 * MIB;
  const slots: SlotConfig[] = [{ model: "edu", device: 1, function: 0, rmrrBytes: 2 * PAGE_SIZE }];
  for (let i = 0; i < options.nics; i++) {
    const nic: NicConfig = {
      model: "e1000e",
      device: 0,
      function: 0,
      name: `nic${i}`,
      framesPerSecond: options.framesPerSecond,
      ...(options.transmitFramesPerSecond !== undefined && {
        transmitFramesPerSecond: options.transmitFramesPerSecond,
      }),
      rmrrBytes: 0,
    };
    slots.push({ model: "root-port", device: 4 + i, function: 0, children: [nic] });
  }
  const config: MachineConfig = {
    nodeBytes: [half, half],
    segments: [{ drhd: { addressBits: 48, superpages: true }, slots }],
    installed: options.installed,
  };
  validateConfig(config);
  return config;
}

/** All NICs, segment by segment, in the order of their slots: the index is the NIC's id in its frames. */
export function nicsOf(config: MachineConfig): (NicConfig & { readonly segment: number })[] {
  const nics: (NicConfig & { segment: number })[] = [];
  const collect = (slots: readonly SlotConfig[], segment: number): void => {
    for (const slot of slots) {
      if (slot.model === "root-port") collect(slot.children, segment);
      else if (slot.model === "e1000e") nics.push({ ...slot, segment });
    }
  };
  for (const [segment, { slots }] of config.segments.entries()) collect(slots, segment);
  return nics;
}
