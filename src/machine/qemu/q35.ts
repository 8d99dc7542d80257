/**
 * QEMU's q35 as a machine: its address map, what its firmware has to set up, and its command line.
 *
 * Firmware here is this file and a few instructions in `bios.ts`: it gives PCIEXBAR its address, so that a kernel finds
 * config space where the tables say, and lets the processor take interrupts.
 * Layout: RAM from 0 to 2.75 GiB; a machine of more has 2 GiB below 4 GiB and the rest above.
 *   0xb000_0000 ECAM, 64 MiB · 0xc000_0000 BARs · 0xfed9_0000 remapping unit · 0xfee0_0000 MSI
 * Source: QEMU 7.2 hw/i386/pc_q35.c, include/hw/pci-host/q35.h; Intel 3 Series Chipset datasheet §5.1.16 (PCIEXBAR)
 * Not modelled: NUMA nodes and RMRRs are in our tables alone, QEMU knows nothing of them.
 * @module
 */
import { KernelError } from "../../base/errno.ts";
import { GIB } from "../../base/units.ts";
import type {
  EduConfig,
  MachineConfig,
  NicConfig,
  RootPortConfig,
  SlotConfig,
} from "../embedded/config.ts";
import { type AddressMap, buildAddressMap } from "../firmware.ts";
import type { QtestClient } from "./qtest.ts";

/** RAM of this size or more is split. */
const SPLIT_BYTES = 0xb000_0000;
const ECAM_START = 0xb000_0000;
const MMIO_START = 0xc000_0000;
const MMIO_END = 0xfe00_0000;

/** Config mechanism 1, before there is an ECAM. */
const PCI_CONFIG_ADDRESS = 0xcf8;
const PCI_CONFIG_DATA = 0xcfc;
const CONFIG_ENABLE = 0x8000_0000;
/** Of the host bridge, 00:00.0: low and high half. */
const MCH_PCIEXBAR = 0x60;
/** Enabled, 64 MiB. */
const PCIEXBAR_64_BUSES = 0b101;

/** First bytes of the NICs' Ethernet addresses, as in the embedded machine; the last one is the NIC's number. */
export const NIC_MAC_PREFIX = [0x52, 0x54, 0x00, 0x48, 0x46] as const;

/**
 * Lays out the machine.
 *
 * @throws {KernelError} EINVAL when QEMU's q35 cannot be such a machine
 */
export function q35AddressMap(config: MachineConfig): AddressMap {
  const bytes = config.nodeBytes.reduce((sum, node) => sum + node, 0);
  const map = buildAddressMap(config, {
    start: bytes >= SPLIT_BYTES ? 2 * GIB : SPLIT_BYTES,
    ecamStart: ECAM_START,
    mmioStart: MMIO_START,
    mmioBytes: MMIO_END - MMIO_START,
  });
  if (config.segments.length !== 1) invalid("q35 has one segment group");
  const [{ drhd }] = config.segments;
  if (drhd === null || !drhd.superpages) invalid("intel-iommu is there and has superpages");
  for (const { nic } of nicPlaces(config))
    if (nic.transmitFramesPerSecond !== undefined) invalid("QEMU's NICs send as fast as they can");
  return map;
}

/** What firmware does before it starts a kernel. */
export function q35PowerOn(qtest: QtestClient): void {
  const writeConfig = (offset: number, value: number) => {
    qtest.outl(PCI_CONFIG_ADDRESS, CONFIG_ENABLE + offset);
    qtest.outl(PCI_CONFIG_DATA, value);
  };
  writeConfig(MCH_PCIEXBAR + 4, 0);
  writeConfig(MCH_PCIEXBAR, ECAM_START | PCIEXBAR_64_BUSES);
}

/** What QEMU opens. Descriptors are numbers in QEMU's process. */
export interface Q35Files {
  readonly ramFd: number;
  readonly ramBytes: number;
  readonly biosPath: string;
  readonly qtestPath: string;
  /** By NIC: one end of a pair of message sockets. */
  readonly wireFds: readonly number[];
}

/** QEMU's arguments. */
export function q35Arguments(config: MachineConfig, files: Q35Files): string[] {
  const [{ slots, drhd }] = config.segments;
  return [
    ...[
      "-machine",
      "q35,memory-backend=ram,kernel-irqchip=off",
      "-accel",
      "tcg",
      "-m",
      `${files.ramBytes}b`,
    ],
    "-object",
    `memory-backend-file,id=ram,size=${files.ramBytes},mem-path=/proc/self/fd/${files.ramFd},share=on`,
    ...["-nodefaults", "-nographic", "-no-user-config", "-no-reboot", "-bios", files.biosPath],
    ...["-device", `intel-iommu,aw-bits=${drhd?.addressBits ?? 48}`],
    ...files.wireFds.flatMap((fd, nic) => [
      "-netdev",
      `dgram,id=wire${nic},local.type=fd,local.str=${fd}`,
    ]),
    ...slots.flatMap((slot) => (slot.model === "e1000e" ? [] : slotArguments(slot, "pcie.0"))),
    ...nicPlaces(config).flatMap((place, id) => nicArguments(place, id)),
    ...["-chardev", `socket,id=qtest,path=${files.qtestPath},server=on,wait=off`],
    ...["-qtest", "chardev:qtest", "-qtest-log", "none"],
  ];
}

/** Where a NIC is plugged in. */
export interface NicPlace {
  /** The root port before it; null: it is on bus 0. */
  readonly port: RootPortConfig | null;
  readonly nic: NicConfig;
}

/** All NICs in the order of `nicsOf`: the index is the NIC's id. */
export function nicPlaces(config: MachineConfig): NicPlace[] {
  const below = (slots: readonly SlotConfig[], port: RootPortConfig | null): NicPlace[] =>
    slots.flatMap((slot) => {
      if (slot.model === "root-port") return below(slot.children, slot);
      return slot.model === "e1000e" ? [{ port, nic: slot }] : [];
    });
  return below(config.segments[0].slots, null);
}

function slotArguments(slot: EduConfig | RootPortConfig, bus: string): string[] {
  const at = `bus=${bus},addr=${address(slot)}`;
  if (slot.model === "edu") return ["-device", `edu,${at}`];
  const name = portName(slot);
  const port = `pcie-root-port,id=${name},${at},chassis=${slot.device},slot=${slot.function}`;
  return [
    "-device",
    slot.function === 0 ? `${port},multifunction=on` : port,
    ...slot.children.flatMap((child) => (child.model === "edu" ? slotArguments(child, name) : [])),
  ];
}

function nicArguments({ port, nic }: NicPlace, id: number): string[] {
  const mac = [...NIC_MAC_PREFIX, id].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
  const bus = port === null ? "pcie.0" : portName(port);
  return ["-device", `e1000e,netdev=wire${id},mac=${mac},bus=${bus},addr=${address(nic)}`];
}

function portName(port: RootPortConfig): string {
  return `port-${port.device}-${port.function}`;
}

function address(slot: { readonly device: number; readonly function: number }): string {
  return `${slot.device.toString(16)}.${slot.function}`;
}

function invalid(problem: string): never {
  throw new KernelError("EINVAL", "power on", problem);
}
