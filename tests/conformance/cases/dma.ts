/**
 * Where the DMA of an assigned device goes: an edu writes into files and reads from them through an address space, and
 * reaches nothing else.
 *
 * Source: Linux 7.3 drivers/iommu/iommufd/{device,pages}.c, drivers/iommu/intel/iommu.c; QEMU 7.2 hw/misc/edu.c
 * @module
 */
import assert from "node:assert/strict";
import {
  EDU_BUFFER,
  EDU_DMA_CMD,
  EDU_DMA_COUNT,
  EDU_DMA_DST,
  EDU_DMA_IRQ,
  EDU_DMA_MASK,
  EDU_DMA_RUN,
  EDU_DMA_SRC,
  EDU_DMA_TO_MEMORY,
} from "../../../src/abi/edu.ts";
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from "../../../src/abi/pci.ts";
import { EFD_NONBLOCK } from "../../../src/abi/uapi/fs.ts";
import { VFIO_PCI_CONFIG_REGION_INDEX } from "../../../src/abi/uapi/vfio.ts";
import { MIB, PAGE_SIZE } from "../../../src/base/units.ts";
import * as iommufd from "../../../src/host/iommufd.ts";
import * as vfio from "../../../src/host/vfio.ts";
import type { ConformanceCase } from "../conformance-case.ts";
import { type DeviceUser, deviceCase, NO_ID } from "../device-user.ts";

/** Within the 28 bits of the edu. */
const IOVA = 0x0123_4000;
/** Bytes of one transfer. Not to the end of the device's buffer: QEMU 7.2 ends then. */
const TRANSFER_BYTES = 256;
/** A transfer takes the edu 100 ms. */
const TRANSFER_NS = 5e9;
const STEP_NS = 5e6;

/** A bound edu with bus mastering, and an address space that shows all of a file at {@link IOVA}. */
class EduDma {
  readonly user: DeviceUser;
  readonly fd: number;
  readonly iommufd: number;
  readonly deviceId: number;
  readonly #bar: vfio.RegionAccess;
  readonly #config: vfio.RegionAccess;

  constructor(user: DeviceUser) {
    const { fd, iommufd: iommu, id } = user.bound(user.edu);
    this.user = user;
    this.fd = fd;
    this.iommufd = iommu;
    this.deviceId = id;
    this.#bar = vfio.openRegion(user.host, fd, 0);
    this.#config = vfio.openRegion(user.host, fd, VFIO_PCI_CONFIG_REGION_INDEX);
    this.setMaster(true);
  }

  setMaster(isOn: boolean): void {
    this.#config.write32(PCI_COMMAND, PCI_COMMAND_MEMORY | (isOn ? PCI_COMMAND_MASTER : 0));
  }

  /** Fills the device's buffer from a file that is mapped for the occasion, in another address space. */
  load(fill: number): void {
    const { user } = this;
    const file = filled(user, PAGE_SIZE, fill);
    const ioasId = user.ioasOf(this.iommufd, file, IOVA, PAGE_SIZE);
    vfio.attach(user.host, this.fd, ioasId);
    this.read(IOVA);
    vfio.detach(user.host, this.fd);
    iommufd.destroy(user.host, this.iommufd, ioasId);
    user.close(file);
  }

  /** From the device's buffer to an address. */
  write(address: number, flags = 0): void {
    this.#transfer(EDU_BUFFER, address, EDU_DMA_TO_MEMORY | flags);
  }

  /** From an address into the device's buffer. */
  read(address: number): void {
    this.#transfer(address, EDU_BUFFER, 0);
  }

  #transfer(source: number, destination: number, flags: number): void {
    assert.ok(Math.max(source, destination) <= EDU_DMA_MASK, "the edu reaches the address");
    const { host } = this.user;
    this.#bar.write32(EDU_DMA_SRC, source);
    this.#bar.write32(EDU_DMA_DST, destination);
    this.#bar.write32(EDU_DMA_COUNT, TRANSFER_BYTES);
    this.#bar.write32(EDU_DMA_CMD, EDU_DMA_RUN | flags);
    const endNs = host.clockNs() + TRANSFER_NS;
    while ((this.#bar.read32(EDU_DMA_CMD) & EDU_DMA_RUN) !== 0) {
      assert.ok(host.clockNs() < endNs, "the transfer ends");
      host.sleep(STEP_NS);
    }
  }
}

/** A memfd of equal bytes. */
function filled(user: DeviceUser, lengthBytes: number, fill: number): number {
  const file = user.memfd(lengthBytes);
  for (let at = 0; at < lengthBytes; at += PAGE_SIZE)
    user.host.pwrite(file, new Uint8Array(PAGE_SIZE).fill(fill), at);
  return file;
}

/** Asserts that a file holds one byte everywhere, but for what transfers of other bytes have written. */
function holds(
  user: DeviceUser,
  file: number,
  fill: number,
  ...transfers: readonly (readonly [at: number, byte: number])[]
): void {
  const { sizeBytes } = user.host.fstat(file);
  const bytes = new Uint8Array(sizeBytes);
  assert.equal(user.host.pread(file, bytes, 0), sizeBytes);
  const wanted = new Uint8Array(sizeBytes).fill(fill);
  for (const [at, byte] of transfers) wanted.fill(byte, at, at + TRANSFER_BYTES);
  if (Buffer.compare(bytes, wanted) === 0) return;
  const first = bytes.findIndex((byte, i) => byte !== wanted[i]);
  assert.fail(`byte ${first} of a file is ${bytes[first]}, not ${wanted[first]}`);
}

export const DMA_CASES: readonly ConformanceCase[] = [
  deviceCase(
    "a device's DMA reaches the file at the offset that the address space shows",
    (user) => {
      const edu = new EduDma(user);
      edu.load(0xa1);
      const file = filled(user, 4 * PAGE_SIZE, 0x11);
      const ioasId = iommufd.ioasAlloc(user.host, edu.iommufd);
      user.map(edu.iommufd, ioasId, {
        file,
        start: PAGE_SIZE,
        lengthBytes: 2 * PAGE_SIZE,
        iova: IOVA,
      });
      vfio.attach(user.host, edu.fd, ioasId);
      edu.write(IOVA + PAGE_SIZE + 0x100);
      holds(user, file, 0x11, [2 * PAGE_SIZE + 0x100, 0xa1]);
    },
  ),
  deviceCase(
    "a device reads what a process has written after the mapping, over the boundary of two areas",
    (user) => {
      const edu = new EduDma(user);
      const [low, high] = [user.memfd(PAGE_SIZE), user.memfd(PAGE_SIZE)];
      const ioasId = user.ioasOf(edu.iommufd, low, IOVA, PAGE_SIZE);
      user.map(edu.iommufd, ioasId, { file: high, iova: IOVA + PAGE_SIZE, lengthBytes: PAGE_SIZE });
      vfio.attach(user.host, edu.fd, ioasId);
      const half = TRANSFER_BYTES / 2;
      user.host.pwrite(low, new Uint8Array(half).fill(0xb1), PAGE_SIZE - half);
      user.host.pwrite(high, new Uint8Array(half).fill(0xb2), 0);
      edu.read(IOVA + PAGE_SIZE - half);
      edu.write(IOVA);
      const got = new Uint8Array(TRANSFER_BYTES);
      user.host.pread(low, got, 0);
      assert.deepEqual([got[0], got[half - 1], got[half], got.at(-1)], [0xb1, 0xb1, 0xb2, 0xb2]);
    },
  ),
  deviceCase("a device's DMA reaches every page of a large mapping", (user) => {
    const edu = new EduDma(user);
    edu.load(0xa2);
    const file = user.memfd(4 * MIB);
    const ioasId = user.ioasOf(edu.iommufd, file, 32 * MIB, 4 * MIB);
    vfio.attach(user.host, edu.fd, ioasId);
    const places = [0, 2 * MIB - TRANSFER_BYTES, 2 * MIB, 4 * MIB - TRANSFER_BYTES];
    for (const at of places) edu.write(32 * MIB + at);
    holds(user, file, 0, ...places.map((at) => [at, 0xa2] as const));
  }),
  deviceCase(
    "a mapping that is made while the device is attached is reached, one that is gone is not",
    (user) => {
      const edu = new EduDma(user);
      edu.load(0xa3);
      const ioasId = iommufd.ioasAlloc(user.host, edu.iommufd);
      vfio.attach(user.host, edu.fd, ioasId);
      const file = filled(user, PAGE_SIZE, 0x22);
      user.map(edu.iommufd, ioasId, { file, iova: IOVA, lengthBytes: PAGE_SIZE });
      edu.write(IOVA);
      holds(user, file, 0x22, [0, 0xa3]);
      user.unmapAll(edu.iommufd, ioasId);
      edu.write(IOVA + 0x400);
      holds(user, file, 0x22, [0, 0xa3]);
    },
  ),
  deviceCase("an IOVA that nothing is mapped at is blocked", (user) => {
    const edu = new EduDma(user);
    edu.load(0xa4);
    const file = filled(user, 2 * PAGE_SIZE, 0x33);
    const ioasId = iommufd.ioasAlloc(user.host, edu.iommufd);
    const lengthBytes = PAGE_SIZE;
    user.map(edu.iommufd, ioasId, { file, start: PAGE_SIZE, lengthBytes, iova: IOVA });
    vfio.attach(user.host, edu.fd, ioasId);
    for (const address of [IOVA - PAGE_SIZE, IOVA + PAGE_SIZE, 0, 0x0800_0000]) edu.write(address);
    holds(user, file, 0x33);
  }),
  deviceCase("a mapping without the right to write can be read, and a write is blocked", (user) => {
    const edu = new EduDma(user);
    const file = filled(user, PAGE_SIZE, 0x44);
    const ioasId = iommufd.ioasAlloc(user.host, edu.iommufd);
    const lengthBytes = PAGE_SIZE;
    user.map(edu.iommufd, ioasId, { file, iova: IOVA, lengthBytes, writable: false });
    const target = filled(user, PAGE_SIZE, 0x55);
    user.map(edu.iommufd, ioasId, { file: target, iova: 2 * IOVA, lengthBytes });
    vfio.attach(user.host, edu.fd, ioasId);
    edu.read(IOVA);
    edu.write(2 * IOVA);
    holds(user, target, 0x55, [0, 0x44]);
    user.host.pwrite(file, new Uint8Array(PAGE_SIZE).fill(0x66), 0);
    edu.write(IOVA);
    holds(user, file, 0x66);
  }),
  deviceCase("DMA of a device that is not attached, or not any more, is blocked", (user) => {
    const edu = new EduDma(user);
    edu.load(0xa5);
    const file = filled(user, PAGE_SIZE, 0x77);
    const ptId = user.ioasOf(edu.iommufd, file, IOVA, PAGE_SIZE);
    const hwptId = iommufd.hwptAlloc(user.host, edu.iommufd, { deviceId: edu.deviceId, ptId });
    edu.write(IOVA);
    holds(user, file, 0x77);
    vfio.attach(user.host, edu.fd, hwptId);
    edu.write(IOVA);
    holds(user, file, 0x77, [0, 0xa5]);
    vfio.detach(user.host, edu.fd);
    edu.write(IOVA + 0x800);
    holds(user, file, 0x77, [0, 0xa5]);
  }),
  deviceCase("replacing the HWPT under an attached device moves its DMA to other files", (user) => {
    const edu = new EduDma(user);
    edu.load(0xa6);
    const files = [
      filled(user, PAGE_SIZE, 1),
      filled(user, PAGE_SIZE, 2),
      filled(user, PAGE_SIZE, 3),
    ];
    const [first, second, third] = files.map((file) =>
      user.ioasOf(edu.iommufd, file, IOVA, PAGE_SIZE),
    );
    const { deviceId } = edu;
    const hwpts = [first, second].map((ptId) =>
      iommufd.hwptAlloc(user.host, edu.iommufd, { deviceId, ptId }),
    );
    vfio.attach(user.host, edu.fd, hwpts[0]);
    edu.write(IOVA);
    vfio.attach(user.host, edu.fd, hwpts[1]);
    edu.write(IOVA + 0x200);
    vfio.attach(user.host, edu.fd, third);
    edu.write(IOVA + 0x400);
    vfio.attach(user.host, edu.fd, hwpts[0]);
    user.unmapAll(edu.iommufd, first);
    edu.write(IOVA + 0x800);
    for (const [i, file] of files.entries()) holds(user, file, i + 1, [i * 0x200, 0xa6]);
  }),
  deviceCase("a replacement that fails leaves the attachment as it was", (user) => {
    const edu = new EduDma(user);
    edu.load(0xa7);
    const file = filled(user, PAGE_SIZE, 0x11);
    const other = filled(user, PAGE_SIZE, 0x22);
    const ioasId = user.ioasOf(edu.iommufd, file, IOVA, PAGE_SIZE);
    const inTheWay = user.ioasOf(edu.iommufd, other, 0xfee0_0000, PAGE_SIZE);
    user.map(edu.iommufd, inTheWay, { file: other, iova: IOVA, lengthBytes: PAGE_SIZE });
    const hwptId = vfio.attach(user.host, edu.fd, ioasId);
    user.fails("EADDRINUSE", () => vfio.attach(user.host, edu.fd, inTheWay));
    user.fails("EINVAL", () => vfio.attach(user.host, edu.fd, edu.deviceId));
    user.fails("ENOENT", () => vfio.attach(user.host, edu.fd, NO_ID));
    user.fails("EBUSY", () => iommufd.destroy(user.host, edu.iommufd, hwptId));
    edu.write(IOVA);
    holds(user, file, 0x11, [0, 0xa7]);
    holds(user, other, 0x22);
    assert.equal(user.unmapAll(edu.iommufd, inTheWay), 2 * PAGE_SIZE);
    iommufd.destroy(user.host, edu.iommufd, inTheWay);
  }),
  deviceCase("a copy of an area is reached after the area is gone", (user) => {
    const edu = new EduDma(user);
    edu.load(0xa8);
    const file = filled(user, 2 * PAGE_SIZE, 0x12);
    const fromIoasId = user.ioasOf(edu.iommufd, file, IOVA, 2 * PAGE_SIZE);
    const toIoasId = iommufd.ioasAlloc(user.host, edu.iommufd);
    vfio.attach(user.host, edu.fd, toIoasId);
    iommufd.ioasCopy(user.host, edu.iommufd, {
      ...{ fromIoasId, fromIova: IOVA + PAGE_SIZE, lengthBytes: PAGE_SIZE },
      ...{ toIoasId, toIova: IOVA, writable: true },
    });
    iommufd.destroy(user.host, edu.iommufd, fromIoasId);
    edu.write(IOVA);
    holds(user, file, 0x12, [PAGE_SIZE, 0xa8]);
  }),
  deviceCase("a device without bus mastering does no DMA", (user) => {
    const edu = new EduDma(user);
    edu.load(0xa9);
    const file = filled(user, PAGE_SIZE, 0x13);
    vfio.attach(user.host, edu.fd, user.ioasOf(edu.iommufd, file, IOVA, PAGE_SIZE));
    edu.setMaster(false);
    edu.write(IOVA);
    holds(user, file, 0x13);
    edu.setMaster(true);
    edu.write(IOVA);
    holds(user, file, 0x13, [0, 0xa9]);
  }),
  deviceCase("a file that is mapped keeps its pages when its descriptor is closed", (user) => {
    const edu = new EduDma(user);
    const [source, target] = [filled(user, PAGE_SIZE, 0xc1), user.memfd(PAGE_SIZE)];
    const ioasId = user.ioasOf(edu.iommufd, source, IOVA, PAGE_SIZE);
    user.map(edu.iommufd, ioasId, { file: target, iova: 2 * IOVA, lengthBytes: PAGE_SIZE });
    vfio.attach(user.host, edu.fd, ioasId);
    user.close(source);
    edu.read(IOVA);
    edu.write(2 * IOVA);
    holds(user, target, 0, [0, 0xc1]);
  }),
  deviceCase("the interrupt of a transfer comes after its data", (user) => {
    const edu = new EduDma(user);
    edu.load(0xaa);
    const file = user.memfd(PAGE_SIZE);
    const eventfd = user.eventfd(EFD_NONBLOCK);
    vfio.attach(user.host, edu.fd, user.ioasOf(edu.iommufd, file, IOVA, PAGE_SIZE));
    vfio.setMsiEventfd(user.host, edu.fd, eventfd);
    edu.write(IOVA, EDU_DMA_IRQ);
    const endNs = user.host.clockNs() + TRANSFER_NS;
    while (user.outcome(() => user.host.read(eventfd, new Uint8Array(8))) === "EAGAIN") {
      assert.ok(user.host.clockNs() < endNs, "the interrupt comes");
      user.host.sleep(STEP_NS);
    }
    holds(user, file, 0, [0, 0xaa]);
  }),
];
