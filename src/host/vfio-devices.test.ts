import assert from "node:assert/strict";
import { test } from "node:test";
import { O_NONBLOCK, O_RDONLY } from "../abi/uapi/fs.ts";
import { isKernelError, KernelError } from "../base/errno.ts";
import type { Host } from "./host.ts";
import { listVfioDevices } from "./vfio-devices.ts";

/** A host with these text files. Only reading is allowed: opening a device would reset it. */
function host(files: Readonly<Record<string, string>>): Host {
  const open = new Map<number, { bytes: Uint8Array; at: number }>();
  let next = 3;
  return {
    readdir(path: string) {
      const names = new Set(
        Object.keys(files)
          .filter((file) => file.startsWith(`${path}/`))
          .map((file) => file.slice(path.length + 1).split("/")[0]),
      );
      if (names.size === 0) throw new KernelError("ENOENT", "readdir", path);
      return [...names];
    },
    open(path: string, flags: number) {
      assert.equal(flags, O_RDONLY | O_NONBLOCK);
      if (files[path] === undefined) throw new KernelError("ENOENT", "open", path);
      open.set(next, { bytes: new TextEncoder().encode(files[path]), at: 0 });
      return next++;
    },
    fstat: () => ({ kind: "file" }),
    read(fd: number, target: Uint8Array) {
      const file = open.get(fd);
      assert.ok(file);
      const piece = file.bytes.subarray(file.at, file.at + target.length);
      target.set(piece);
      file.at += piece.length;
      return piece.length;
    },
    close: (fd: number) => open.delete(fd),
  } as unknown as Host;
}

function device(name: string, slot: string, vendor: string, id: string) {
  const folder = `/sys/class/vfio-dev/${name}/device`;
  return {
    [`${folder}/vendor`]: `${vendor}\n`,
    [`${folder}/device`]: `${id}\n`,
    // As Linux writes it: the slot among other lines.
    [`${folder}/uevent`]: `DRIVER=vfio-pci\nPCI_CLASS=20000\nPCI_SLOT_NAME=${slot}\nMODALIAS=pci:v\n`,
  };
}

test("listVfioDevices() reads sysfs, in the order of the devices' numbers", () => {
  const found = listVfioDevices(
    host({
      ...device("vfio10", "0000:03:00.0", "0x8086", "0x10d3"),
      ...device("vfio9", "0000:02:00.0", "0x1234", "0x11e8"),
      ...device("vfio0", "0001:01:1f.7", "0x8086", "0x10d3"),
    }),
  );
  assert.deepEqual(found, [
    { path: "/dev/vfio/devices/vfio0", slot: "0001:01:1f.7", vendorId: 0x8086, deviceId: 0x10d3 },
    { path: "/dev/vfio/devices/vfio9", slot: "0000:02:00.0", vendorId: 0x1234, deviceId: 0x11e8 },
    { path: "/dev/vfio/devices/vfio10", slot: "0000:03:00.0", vendorId: 0x8086, deviceId: 0x10d3 },
  ]);
});

test("listVfioDevices() fails with ENOENT when the kernel has no VFIO", () => {
  assert.throws(
    () => listVfioDevices(host({ "/sys/kernel/x": "" })),
    (error) => isKernelError(error, "ENOENT"),
  );
});
