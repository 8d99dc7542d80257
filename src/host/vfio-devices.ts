/**
 * The devices that userspace may drive, without opening any: opening resets.
 *
 * Source: Linux 7.3 Documentation/ABI/testing/sysfs-devices-vfio-dev
 * @module
 */
import type { Host } from "./host.ts";
import { readTextFile } from "./read-file.ts";

const CLASS = "/sys/class/vfio-dev";

export interface VfioDeviceInfo {
  /** Path of its cdev. */
  readonly path: string;
  /** "0000:01:00.0" */
  readonly slot: string;
  readonly vendorId: number;
  readonly deviceId: number;
}

/** All devices, in the order of their names' numbers. */
export function listVfioDevices(host: Host): VfioDeviceInfo[] {
  const number = (name: string) => Number(/\d+$/.exec(name)?.[0] ?? 0);
  return [...host.readdir(CLASS)]
    .sort((a, b) => number(a) - number(b))
    .map((name) => {
      const read = (file: string) => readTextFile(host, `${CLASS}/${name}/device/${file}`).trim();
      return {
        path: `/dev/vfio/devices/${name}`,
        slot: /^PCI_SLOT_NAME=(.*)$/m.exec(read("uevent"))?.[1] ?? "",
        vendorId: Number(read("vendor")),
        deviceId: Number(read("device")),
      };
    });
}
