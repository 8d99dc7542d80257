/**
 * A user of an edu device beside the VMs: opens it by VFIO, maps a page of a file of its own, and starts transfers.
 * @module
 */
import assert from "node:assert/strict";
import {
  EDU_BUFFER,
  EDU_BUFFER_BYTES,
  EDU_DEVICE_ID,
  EDU_DMA_CMD,
  EDU_DMA_COUNT,
  EDU_DMA_DST,
  EDU_DMA_RUN,
  EDU_DMA_SRC,
  EDU_DMA_TO_MEMORY,
} from "../../src/abi/edu.ts";
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from "../../src/abi/pci.ts";
import { O_CREAT, O_RDWR } from "../../src/abi/uapi/fs.ts";
import { VFIO_PCI_CONFIG_REGION_INDEX } from "../../src/abi/uapi/vfio.ts";
import { PAGE_SIZE } from "../../src/base/units.ts";
import type { Host } from "../../src/host/host.ts";
import * as iommufd from "../../src/host/iommufd.ts";
import { MappedMemory } from "../../src/host/mapped-memory.ts";
import * as vfio from "../../src/host/vfio.ts";
import { listVfioDevices } from "../../src/host/vfio-devices.ts";
import { functionKey } from "./invariants.ts";
import {
  eduSlot,
  type Moment,
  nicSlot,
  type SimulationOptions,
  vmPlans,
} from "./simulated-host.ts";

/** The two edus of {@link EDU_HOST}. */
export const EDU_WITH_RMRR = { slot: "0000:00:01.0", bdf: 1 << 3 } as const;
export const EDU_ORDINARY = { slot: "0000:00:02.0", bdf: 2 << 3 } as const;
/** What the target page is filled with; transfers write zeros. */
export const FILLED = 0x5a;
/** From a command to its first burst. */
export const TRANSFER_DUE_NS = 100e6;
const FILE = "edu-target";
const IOVA = 0x10_0000;

/** A host with a VM and two edus. Few frames: the VM waits for the edus, and its ring must not overflow. */
export const EDU_HOST: Omit<SimulationOptions, "seed" | "updates"> = {
  vms: vmPlans(1),
  segments: [
    {
      drhd: { addressBits: 48, superpages: true },
      slots: [eduSlot(1, 2 * PAGE_SIZE), eduSlot(2), nicSlot(4, "nic0", 2000)],
    },
  ],
  others: new Set([functionKey(0, EDU_ORDINARY.bdf)]),
};

/** An edu that somebody uses. */
export class EduUser {
  readonly #host: Host;
  readonly #device: number;
  readonly #iommufd: number;
  #ioasId = 0;

  /** @param slot - as sysfs says it */
  constructor(host: Host, slot: string) {
    const found = listVfioDevices(host).find((d) => d.slot === slot);
    assert(found?.deviceId === EDU_DEVICE_ID, `an edu at ${slot}`);
    this.#host = host;
    this.#device = host.open(found.path, O_RDWR);
    this.#iommufd = host.open("/dev/iommu", O_RDWR);
    vfio.bindIommufd(host, this.#device, this.#iommufd);
  }

  /** Maps a page of a file of the guests' store and fills it. @returns its IOVA */
  mapFile(): number {
    const host = this.#host;
    const file = host.open(`/mnt/guests/${FILE}`, O_RDWR | O_CREAT);
    host.ftruncate(file, PAGE_SIZE);
    host.fallocate(file, 0, 0, PAGE_SIZE);
    const mapping = new MappedMemory(host.mmap(file, 0, PAGE_SIZE));
    for (let at = 0; at < PAGE_SIZE; at += 4) mapping.store32(at, FILLED * 0x01010101);
    mapping.unmap();
    this.#ioasId = iommufd.ioasAlloc(host, this.#iommufd);
    iommufd.ioasMapFile(host, this.#iommufd, {
      ioasId: this.#ioasId,
      fileFd: file,
      start: 0,
      lengthBytes: PAGE_SIZE,
      iova: IOVA,
      writable: true,
    });
    host.close(file);
    vfio.attach(host, this.#device, this.#ioasId);
    return IOVA;
  }

  /** Undoes {@link mapFile} but for the attachment: the memory is nobody's then. */
  unmapFile(): void {
    iommufd.ioasUnmap(this.#host, this.#iommufd, {
      ioasId: this.#ioasId,
      iova: IOVA,
      lengthBytes: PAGE_SIZE,
    });
    this.#host.unlink(`/mnt/guests/${FILE}`);
  }

  /**
   * Starts a transfer of the device's buffer, which is zero, to an address.
   * @param lengthBytes - QEMU 7.2 aborts at one that ends with the last byte of the buffer (edu_check_range)
   */
  start(address: number, lengthBytes = EDU_BUFFER_BYTES): void {
    const config = vfio.openRegion(this.#host, this.#device, VFIO_PCI_CONFIG_REGION_INDEX);
    config.write32(PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    const bar = vfio.openRegion(this.#host, this.#device, 0);
    bar.write32(EDU_DMA_SRC, EDU_BUFFER);
    bar.write32(EDU_DMA_DST, address);
    bar.write32(EDU_DMA_COUNT, lengthBytes);
    bar.write32(EDU_DMA_CMD, EDU_DMA_RUN | EDU_DMA_TO_MEMORY);
  }

  close(): void {
    this.#host.close(this.#device);
    this.#host.close(this.#iommufd);
  }
}

/** The process of userspace at a moment that has one. */
export function hostAt({ host }: Moment): Host {
  assert(host !== null, "userspace runs");
  return host;
}

/** Lets the VMs run until a transfer that was started before must be over. */
export function waitForTransfer(moment: Moment): void {
  const host = hostAt(moment);
  const endNs = host.clockNs() + 1.2 * TRANSFER_DUE_NS;
  while (host.clockNs() < endNs) {
    for (const vm of moment.vms) vm.step();
    host.sleep(200_000);
  }
}
