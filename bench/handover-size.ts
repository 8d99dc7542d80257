/**
 * (d) What a handover takes beside guest memory and page tables, counted by the kernel when all is frozen; what takes how
 * much of it is told by the next kernel's decoders.
 *
 * Root and context tables are page tables too: hardware walks them, and pkernfs counted them so, whose
 * `iommu/root-pgtables` file holds both.
 * Beside it: what upstream's memfd-v2 needs for the same files (16 bytes for each 4 KiB folio), and pkernfs (a 2 MiB
 * block of pointers for each file).
 * @module
 */
import { O_CREAT, O_RDWR } from "../src/abi/uapi/fs.ts";
import { LINUX_REBOOT_CMD_KEXEC } from "../src/abi/uapi/reboot.ts";
import { assert } from "../src/base/assert.ts";
import { formatBytes, GIB, KIB, MIB, PAGE_SIZE } from "../src/base/units.ts";
import { fiemap } from "../src/host/fiemap.ts";
import type { Host } from "../src/host/host.ts";
import * as iommufd from "../src/host/iommufd.ts";
import { createSession, preserveFd } from "../src/host/liveupdate.ts";
import * as vfio from "../src/host/vfio.ts";
import { listVfioDevices } from "../src/host/vfio-devices.ts";
import { boot } from "../src/kernel/boot.ts";
import { RESTORES } from "../src/kernel/restores.ts";
import { standardConfig } from "../src/machine/embedded/config.ts";
import { InProcessMachine } from "../src/machine/embedded/in-process.ts";
import type { KernelImage } from "../src/machine/machine.ts";
import { type BytesByOwner, bytesByOwner, CONTEXT_TABLES, PAGE_TABLES } from "./handover-owners.ts";
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

/** What a frozen handover takes. */
interface Measured {
  /** Beside guest memory. */
  readonly bytes: number;
  readonly guestBytes: number;
  readonly owners: BytesByOwner;
}

export function handoverRows(): Row[] {
  return CASES.map((one) => {
    const { preserved, bytes, guestBytes, owners } = measure(one);
    const pageTables = owners.get(PAGE_TABLES) ?? 0;
    const contextTables = owners.get(CONTEXT_TABLES) ?? 0;
    const beyond = bytes - pageTables - contextTables;
    const { files, extents, devices } = preserved;
    const budget = BASE_BYTES + BYTES_EACH * (files + extents + devices);
    const folios = (guestBytes / PAGE_SIZE) * MEMFD_FOLIO_BYTES;
    const memoryFiles = files - 2 * devices;
    const others = [...owners].filter(([name]) => name !== PAGE_TABLES && name !== CONTEXT_TABLES);
    return {
      name: one.name,
      value: formatBytes(beyond),
      against: [
        `page tables ${formatBytes(pageTables)}`,
        `${CONTEXT_TABLES} ${formatBytes(contextTables)}`,
        `memfd-v2 ${formatBytes(folios)}, pkernfs ${formatBytes(memoryFiles * PKERNFS_FILE_BYTES)}`,
      ],
      ratio: beyond / budget,
      limit: `at most ${formatBytes(budget)}`,
      holds: beyond <= budget,
      details: others.map(([name, size]) => `${name} ${formatBytes(size)}`).join(", "),
    };
  });
}

function measure({ nics, build }: Case): Measured & { readonly preserved: Preserved } {
  const preserved: Preserved = { files: 0, extents: 0, devices: 0 };
  const found: Measured[] = [];
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
                const sizes = kernel.handover();
                const owners = bytesByOwner(real, kernel.kho.bootParameters());
                let sum = 0;
                for (const size of owners.values()) sum += size;
                assert(sum === sizes.bytes, `owners have ${sum} bytes of ${sizes.bytes}`);
                found.push({ ...sizes, owners });
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
        host.kexecFileLoad(`/boot/${IMAGE.name}`, null, "");
        return host.reboot(LINUX_REBOOT_CMD_KEXEC);
      },
    },
    { commandLine: "liveupdate=on", kho: null },
  );
  assert(found.length === 1, "the kernel came to its kexec");
  return { preserved, ...found[0] };
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
