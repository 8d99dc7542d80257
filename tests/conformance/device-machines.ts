/**
 * The devices that cases about iommufd and VFIO find on either machine: an edu and an 82574L behind a VT-d unit, each in a
 * group of its own and in the hands of vfio-pci.
 * @module
 */
import type { SegmentConfig } from "../../src/machine/embedded/config.ts";
import type { LinuxMachine, MachineOptions } from "../linux/rig.ts";

/** On the embedded machine. Our kernel gives every function to vfio-pci. */
export const DEVICE_SEGMENT: SegmentConfig = {
  drhd: { addressBits: 48, superpages: true },
  slots: [
    { model: "edu", device: 4, function: 0, rmrrBytes: 0 },
    { model: "e1000e", device: 5, function: 0, rmrrBytes: 0, name: "nic0", framesPerSecond: 0 },
  ],
};

const EDU_SLOT = "0000:00:04.0";
const NIC_SLOT = "0000:00:05.0";

/**
 * On QEMU's q35. Interrupt remapping is what iommufd wants of a unit: without it a device could raise any vector. The unit
 * comes first, so that it has the others behind it.
 *
 * With remapping a kernel panics when it misses the timer's first ticks, and an emulated processor on a busy machine may
 * (no_timer_check).
 */
export const DEVICE_OPTIONS: MachineOptions = {
  kernelParameters: "intel_iommu=on no_timer_check",
  devices: [
    ...["-device", "intel-iommu,intremap=on,aw-bits=48"],
    ...["-device", "edu,addr=4", "-device", "e1000e,addr=5,romfile="],
  ],
};

/** Gives both devices of a Linux to vfio-pci. */
export async function giveToVfioPci(machine: LinuxMachine): Promise<void> {
  for (const slot of [EDU_SLOT, NIC_SLOT]) {
    await machine.writeFile(`/sys/bus/pci/devices/${slot}/driver_override`, "vfio-pci");
    await machine.writeFile("/sys/bus/pci/drivers_probe", slot);
  }
}
