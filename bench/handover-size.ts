/**
 * (d) What a handover takes beside guest memory and page tables, counted by the kernel when all is frozen; the page
 * tables are counted apart, by walking what the remapping unit's registers name.
 *
 * Beside it: what upstream's memfd-v2 needs for the same files (16 bytes for each 4 KiB folio), and pkernfs (a 2 MiB
 * block of pointers for each file).
 * @module
 */
import { O_CREAT, O_RDWR } from "../src/abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_KEXEC } from "../src/abi/uapi/reboot.ts";
import { RTADDR_REG } from "../src/abi/vtd/registers.ts";
import {
  addressWidthLevels,
  CONTEXT_P,
  contextAddressWidth,
  contextEntryAddress,
  ROOT_P,
  rootEntryAddress,
  tableAddress,
} from "../src/abi/vtd/root-context.ts";
import { assert } from "../src/base/assert.ts";
import { formatBytes, GIB, KIB, MIB, PAGE_SIZE } from "../src/base/units.ts";
import { fiemap } from "../src/host/fiemap.ts";
import type { Host } from "../src/host/host.ts";
import * as iommufd from "../src/host/iommufd.ts";
import { createSession, preserveFd } from "../src/host/liveupdate.ts";
import * as vfio from "../src/host/vfio.ts";
import { listVfioDevices } from "../src/host/vfio-devices.ts";
import { boot } from "../src/kernel/boot.ts";
import { forEachTable } from "../src/kernel/iommu/second-stage-walk.ts";
import type { Kernel } from "../src/kernel/kernel.ts";
import { RESTORES } from "../src/kernel/restores.ts";
import { standardConfig } from "../src/machine/embedded/config.ts";
import { InProcessMachine } from "../src/machine/embedded/in-process.ts";
import type { KernelImage, Machine } from "../src/machine/machine.ts";
import type { Row } from "./report.ts";

const IMAGE: KernelImage = { name: "vmlinuz", entry: "bench", release: "b", restores: RESTORES };
const BASE_BYTES = 128 * KIB;
const BYTES_EACH = 64;
const MEMFD_FOLIO_BYTES = 16;
const PKERNFS_FILE_BYTES = 2 * MIB;

/** What userspace has put into its sessions. */
interface Preserved {
  files: number;
  extents: number;
  devices: number;
}

interface Case {
  readonly name: string;
  readonly nics: number;
  /** Makes and preserves what the case is about. */
  readonly build: (host: Host, preserved: Preserved) => void;
}

const CASES: readonly Case[] = [
  {
    name: "1 VM of 1 GiB",
    nics: 1,
    build: (host, preserved) => preserveVm(host, preserved, 0, GIB),
  },
  {
    name: "8 VMs of 8 GiB",
    nics: 8,
    build(host, preserved) {
      for (let vm = 0; vm < 8; vm++) preserveVm(host, preserved, vm, 8 * GIB);
    },
  },
  {
    name: "100 files of 64 MiB",
    nics: 0,
    build(host, preserved) {
      const session = createSession(host, openLiveUpdate(host), "files");
      for (let i = 0; i < 100; i++) {
        const fd = makeFile(host, `file${i}`, 64 * MIB);
        preserveFile(host, preserved, session, fd, i);
      }
    },
  },
  ...[2 * MIB, PAGE_SIZE].map((piece) => ({
    name: `1 file of 1000 extents of ${formatBytes(piece)}`,
    nics: 0,
    build(host: Host, preserved: Preserved) {
      const fd = makeFragmented(host, piece, 1000);
      preserveFile(host, preserved, createSession(host, openLiveUpdate(host), "file"), fd, 0);
      assert(preserved.extents >= 1000, `${preserved.extents} extents`);
    },
  })),
];

export function handoverRows(): Row[] {
  return CASES.map((one) => {
    const { preserved, bytes, guestBytes, tableBytes } = measure(one);
    const beyond = bytes - tableBytes;
    const { files, extents, devices } = preserved;
    const budget = BASE_BYTES + BYTES_EACH * (files + extents + devices);
    const folios = (guestBytes / PAGE_SIZE) * MEMFD_FOLIO_BYTES;
    const memoryFiles = files - 2 * devices;
    return {
      name: one.name,
      value: formatBytes(beyond),
      against: `memfd-v2 ${formatBytes(folios)}, pkernfs ${formatBytes(memoryFiles * PKERNFS_FILE_BYTES)}, page tables ${formatBytes(tableBytes)}`,
      ratio: beyond / budget,
      limit: `at most ${formatBytes(budget)}`,
      holds: beyond <= budget,
    };
  });
}

function measure({ nics, build }: Case) {
  const preserved: Preserved = { files: 0, extents: 0, devices: 0 };
  let found: { bytes: number; guestBytes: number; tableBytes: number } | null = null;
  const config = standardConfig({
    memoryBytes: 160 * GIB,
    nics,
    framesPerSecond: 0,
    installed: [IMAGE],
  });
  const machine = new InProcessMachine(config, { modules: () => undefined });
  machine.run(
    {
      start(real, parameters) {
        const kernel = boot(
          {
            memory: real.memory,
            mmio: real.mmio,
            interrupts: real.interrupts,
            firmware: real.firmware,
            clock: real.clock,
            serial: real.serial,
            powerOff: (status) => real.powerOff(status),
            kexec: {
              installed: [IMAGE],
              load: () => {},
              // All is frozen and nothing of it will change: this is what the next kernel would find.
              execute() {
                found = { ...kernel.handover(), tableBytes: pageTableBytes(real, kernel.kho) };
                return real.powerOff(0);
              },
            },
          },
          parameters,
          { release: "bench" },
        );
        const host = kernel.spawn();
        host.mkdir("/mnt/guests");
        host.mount("guests", "/mnt/guests", "memfs", "");
        build(host, preserved);
        host.kexecFileLoad(`/boot/${IMAGE.name}`, "");
        return host.reboot(LINUX_REBOOT_CMD_KEXEC);
      },
    },
    { commandLine: "liveupdate=on", kho: null },
  );
  assert(found !== null, "the kernel came to its kexec");
  return { preserved, ...(found as { bytes: number; guestBytes: number; tableBytes: number }) };
}

/** One at a time may have the device open. */
const liveUpdateFds = new WeakMap<Host, number>();

function openLiveUpdate(host: Host): number {
  const fd = liveUpdateFds.get(host) ?? host.open("/dev/liveupdate", O_RDWR);
  liveUpdateFds.set(host, fd);
  return fd;
}

function makeFile(host: Host, name: string, lengthBytes: number): number {
  const fd = host.open(`/mnt/guests/${name}`, O_RDWR | O_CREAT);
  host.ftruncate(fd, lengthBytes);
  host.fallocate(fd, 0, 0, lengthBytes);
  return fd;
}

/** A file no two pieces of which are neighbours: another file has taken what lies between them, and gives it back. */
function makeFragmented(host: Host, pieceBytes: number, pieces: number): number {
  const [fd, other] = ["file", "other"].map((name) => makeFile(host, name, pieceBytes));
  for (let i = 1; i < pieces; i++)
    for (const one of [fd, other]) {
      host.ftruncate(one, (i + 1) * pieceBytes);
      host.fallocate(one, 0, i * pieceBytes, pieceBytes);
    }
  host.close(other);
  host.unlink("/mnt/guests/other");
  return fd;
}

function preserveFile(
  host: Host,
  preserved: Preserved,
  session: number,
  fd: number,
  token: number,
): void {
  preserveFd(host, session, fd, BigInt(token));
  preserved.files++;
  preserved.extents += fiemap(host, fd).length;
}

/** A VM's memory, address space and NIC, each preserved, without any state of a VMM. */
function preserveVm(host: Host, preserved: Preserved, number: number, bytes: number): void {
  const session = createSession(host, openLiveUpdate(host), `vm${number}`);
  const memory = makeFile(host, `vm${number}`, bytes);
  const iommu = host.open("/dev/iommu", O_RDWR);
  const nics = listVfioDevices(host).filter((device) => device.deviceId === 0x10d3);
  const device = host.open(nics[number].path, O_RDWR);
  const deviceId = vfio.bindIommufd(host, device, iommu);
  const ioasId = iommufd.ioasAlloc(host, iommu);
  iommufd.ioasMapFile(host, iommu, {
    ioasId,
    fileFd: memory,
    start: 0,
    lengthBytes: bytes,
    // Above the hole of interrupts, in 1 GiB leaves.
    iova: 4 * GIB,
    writable: true,
  });
  const hwptId = iommufd.hwptAlloc(host, iommu, { deviceId, ptId: ioasId });
  iommufd.hwptMarkPreserve(host, iommu, hwptId, 1n);
  vfio.attach(host, device, hwptId);
  preserveFile(host, preserved, session, memory, 1);
  preserveFd(host, session, iommu, 2n);
  preserveFd(host, session, device, 3n);
  preserved.files += 2;
  preserved.devices++;
}

/** Bytes of the second-stage tables that the remapping units reach and that are handed over. */
function pageTableBytes({ memory, mmio, firmware }: Machine, kho: Kernel["kho"]): number {
  const tables = new Set<number>();
  for (const { registerBase } of firmware.drhds) {
    const root =
      mmio.read(registerBase + RTADDR_REG, 4) +
      mmio.read(registerBase + RTADDR_REG + 4, 4) * 2 ** 32;
    for (let bus = 0; bus < 256; bus++) {
      const at = rootEntryAddress(root, bus << 8);
      if ((memory.load32(at) & ROOT_P) === 0) continue;
      const contexts = tableAddress(memory.load32(at), memory.load32(at + 4));
      for (let devfn = 0; devfn < 256; devfn++) {
        const entry = contextEntryAddress(contexts, devfn);
        if ((memory.load32(entry) & CONTEXT_P) === 0) continue;
        const top = tableAddress(memory.load32(entry), memory.load32(entry + 4));
        const levels = addressWidthLevels(contextAddressWidth(memory.load32(entry + 8)));
        forEachTable(memory, top, levels - 1, (table) => {
          if (kho.isPreserved(table, 0)) tables.add(table);
        });
      }
    }
  }
  return tables.size * PAGE_SIZE;
}
